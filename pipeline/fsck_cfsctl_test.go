// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// sameCase are kinds of cfsctl that tell what one of ours tells already.
var sameCase = map[composefs.Kind][]composefs.Kind{
	// A stream or an image that is missing, told by whoever names it.
	composefs.MissingNamedRef: {composefs.BrokenSymlink, oci.ConfigReadFailed, oci.LayerObjectMissing, oci.ArtifactLayerObjectMissing, composefs.MissingNamedRef},
	oci.ManifestReadFailed: {
		composefs.BrokenSymlink, composefs.StreamOpenFailed, composefs.MissingObjectRef, oci.ManifestReadFailed,
	},
	oci.ConfigReadFailed: {composefs.StreamOpenFailed, oci.ConfigReadFailed},
	"layer-check-failed": {composefs.BrokenSymlink, oci.LayerObjectMissing},
	// An image whose link leads to a file, or whose config to another's.
	composefs.ImageInvalid: {oci.ConfigDigestMismatch, composefs.ImageLinkMismatch, composefs.ImageInvalid},
	// The digest of a damaged document is wrong, too.
	oci.ConfigDigestMismatch:   {composefs.ObjectDigestMismatch, oci.ConfigDigestMismatch},
	oci.ManifestDigestMismatch: {composefs.ObjectDigestMismatch, oci.ManifestDigestMismatch},
}

// TestFsckBesideCfsctl makes sure that nothing is good here that is not for the
// reference tool, see testutil.RequireCfsctl.
func TestFsckBesideCfsctl(t *testing.T) {
	tool := testutil.RequireCfsctl(t)
	for _, d := range imageDamages {
		t.Run(d.name, func(t *testing.T) {
			p := pullImage(t)
			d.damage(t, p)
			ours := fsck(t, p.repo, oci.FsckOptions{})
			for _, args := range [][]string{{"fsck", "--json"}, {"oci", "fsck", "--json"}} {
				cmd := exec.CommandContext(t.Context(), tool, append([]string{"--insecure", "--repo", p.repo}, args...)...)
				var stderr strings.Builder
				cmd.Stderr = &stderr
				out, err := cmd.Output()
				var theirs struct {
					OK     bool
					Errors []string
				}
				if jsonErr := json.Unmarshal(out, &theirs); jsonErr != nil {
					t.Fatalf("cfsctl %v: %v, %v\n%s%s", args, err, jsonErr, out, stderr.String())
				}
				if ours.OK && !theirs.OK {
					t.Errorf("cfsctl %v finds %q, we nothing", args, theirs.Errors)
				}
				for _, e := range theirs.Errors {
					kind := composefs.Kind(strings.TrimSpace(strings.Split(e, ":")[1]))
					found := ours.ByKind[kind] > 0
					for _, same := range sameCase[kind] {
						found = found || ours.ByKind[same] > 0
					}
					if !found {
						t.Errorf("cfsctl %v finds %q, we %v", args, e, ours.ByKind)
					}
				}
			}
		})
	}
}
