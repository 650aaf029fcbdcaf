// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/boot"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/repodump"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
	"github.com/cfs-pull/cfs-pull/pipeline"
	"github.com/cfs-pull/cfs-pull/pipeline/fetch"
)

// kinds are the kinds of repository that the vectors were made with.
var kinds = map[string]composefs.InitOptions{
	"sha512-1": {Algorithm: fsverity.SHA512, Formats: composefs.FormatConfig{Default: erofs.V1}},
	"sha512-2": {Algorithm: fsverity.SHA512, Formats: composefs.FormatConfig{Default: erofs.V2}},
	"sha256-1": {Algorithm: fsverity.SHA256, Formats: composefs.FormatConfig{Default: erofs.V1}},
}

// expectation is the content of an expect/<image>.json for one kind.
type expectation struct {
	ImageID        string              `json:"image_id"`
	BootImageID    string              `json:"boot_image_id"`
	ManifestDigest string              `json:"manifest_digest"`
	ConfigDigest   string              `json:"config_digest"`
	Repository     repodump.Repository `json:"repository"`
}

// ociVectors is the directory with the OCI layout of the vectors: the complete
// ones, or else the small images that are part of this module.
func ociVectors(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("CFS_PULL_VECTORS")
	if dir == "" {
		dir = filepath.Join(filepath.Dir(testutil.ModuleRoot(t)), "shared", "vectors")
	}
	if _, err := os.Stat(filepath.Join(dir, "oci", "layout")); err == nil {
		return filepath.Join(dir, "oci")
	}
	return filepath.Join(testutil.ModuleRoot(t), "testdata", "oci")
}

func newRepo(t *testing.T, o composefs.InitOptions) string {
	t.Helper()
	repo := filepath.Join(t.TempDir(), "repo")
	o.AllowMissingVerity = true
	if _, err := composefs.Init(t.Context(), repo, o); err != nil {
		t.Fatal(err)
	}
	return repo
}

// pullOptions are options for a pull of an image of the layout.
func pullOptions(repo, reference string) pipeline.Options {
	return pipeline.Options{
		Reference: reference, Repo: repo, AllowMissingVerity: true, AllowNoBoot: true,
		Fetch: fetch.Options{InsecurePolicy: true, OS: "linux", Architecture: "amd64"},
	}
}

func readExpectation(t *testing.T, vectors, image string) map[string]expectation {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(vectors, "expect", image+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var e map[string]expectation
	if err := json.Unmarshal(raw, &e); err != nil {
		t.Fatal(err)
	}
	return e
}

// checkOutcome accepts success, and for the image whose unified kernel image is
// sealed for another image the complaint about just that.
func checkOutcome(t *testing.T, image string, err error) {
	t.Helper()
	if image == "boot-uki" {
		mismatch, ok := errors.AsType[*boot.MismatchError](err)
		if !ok {
			t.Fatalf("pull: %v, want a mismatch of the unified kernel image", err)
		}
		if len(mismatch.Tried) != 4 {
			t.Errorf("%d ids were tried, want 4", len(mismatch.Tried))
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	vectors := ociVectors(t)
	files, err := filepath.Glob(filepath.Join(vectors, "expect", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no expectations below %s (%v)", vectors, err)
	}
	for _, file := range files {
		image := strings.TrimSuffix(filepath.Base(file), ".json")
		expect := readExpectation(t, vectors, image)
		for kind, init := range kinds {
			t.Run(image+"/"+kind, func(t *testing.T) {
				t.Parallel()
				want := expect[kind]
				repo := newRepo(t, init)
				o := pullOptions(repo, "oci:"+filepath.Join(vectors, "layout")+":"+image)
				o.Tag = "tag/" + image
				result, err := pipeline.Direct(t.Context(), o)
				checkOutcome(t, image, err)
				if got := result.Image.ID.String(); got != want.ImageID {
					t.Errorf("image id %s, want %s", got, want.ImageID)
				}
				if got := result.BootImage.ID.String(); got != want.BootImageID {
					t.Errorf("boot image id %s, want %s", got, want.BootImageID)
				}
				if got := result.ConfigDigest.String(); got != want.ConfigDigest {
					t.Errorf("config digest %s, want %s", got, want.ConfigDigest)
				}
				got, err := repodump.Dump(repo)
				if err != nil {
					t.Fatal(err)
				}
				// The vectors were tagged by hand.
				link := "streams/refs/oci/localhost%2Fbootc-" + want.ManifestDigest
				if target := got.Links[link]; target != "../../oci-manifest-"+want.ManifestDigest {
					t.Errorf("%s leads to %q", link, target)
				}
				delete(got.Links, link)
				if diff := cmp.Diff(&want.Repository, got); diff != "" {
					t.Errorf("repository differs (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// TestSameTree pulls images that hold the tree of another image in another
// form.
func TestSameTree(t *testing.T) {
	vectors := ociVectors(t)
	for _, test := range []struct{ reference, same string }{
		{"oci:" + filepath.Join(vectors, "layout") + ":sizes-multi-gzip", "sizes"},
		{"dir:" + filepath.Join(vectors, "dir-docker-types"), "annotated"},
	} {
		t.Run(filepath.Base(test.reference), func(t *testing.T) {
			if _, err := os.Stat(filepath.Join(vectors, "expect", test.same+".json")); err != nil {
				t.Skip("the image is too large to be part of the module; set CFS_PULL_VECTORS")
			}
			for kind, init := range kinds {
				want := readExpectation(t, vectors, test.same)[kind]
				repo := newRepo(t, init)
				result, err := pipeline.Direct(t.Context(), pullOptions(repo, test.reference))
				if err != nil {
					t.Fatal(err)
				}
				checkStoredManifest(t, repo, result)
				if result.Image.ID.String() != want.ImageID || result.BootImage.ID.String() != want.BootImageID {
					t.Errorf("%s: ids %s and %s, want %s and %s", kind,
						result.Image.ID, result.BootImage.ID, want.ImageID, want.BootImageID)
				}
			}
		})
	}
}

// checkStoredManifest wants manifest and config in the repository as they came,
// whatever their type.
func checkStoredManifest(t *testing.T, path string, r *pipeline.Result) {
	t.Helper()
	repo, err := composefs.Open(t.Context(), path, composefs.OpenOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	for digest, open := range map[oci.Digest]func(*composefs.Repo, oci.Digest) (*oci.Document, error){
		r.ManifestDigest: oci.OpenManifest, r.ConfigDigest: oci.OpenConfig,
	} {
		document, err := open(repo, digest)
		if err != nil {
			t.Fatal(err)
		}
		if got := oci.DigestOf(document.Raw); got != digest {
			t.Errorf("what is stored as %s has digest %s", digest, got)
		}
	}
}

func isMalformed(err error) bool {
	return errors.Is(err, oci.ErrMalformed) && !isIntegrity(err)
}

func isIntegrity(err error) bool {
	_, fetched := errors.AsType[*fetch.IntegrityError](err)
	return fetched || errors.Is(err, oci.ErrIntegrity)
}

func TestRefused(t *testing.T) {
	vectors := ociVectors(t)
	for _, test := range []struct {
		image string
		is    func(error) bool
		text  []string // parts of the message
		kept  bool     // the layer as such is good, and stays
	}{
		{"bad-no-usr", isMalformed, []string{"/usr"}, true},
		{"bad-missing-parent", isMalformed, []string{"layer 1 of 1", `entry "nowhere/file"`, "parent"}, true},
		{"bad-dotdot", isMalformed, []string{"layer 1 of 1", `entry "usr/../../escape"`, `must not contain ".."`}, true},
		{"bad-through-symlink", isMalformed, []string{"layer 1 of 1", `entry "usr/evil/passwd"`, "not a directory"}, true},
		{"bad-hardlink-absent", isMalformed, []string{"layer 1 of 1", `entry "usr/bin/h"`, "does not exist"}, true},
		{"bad-hardlink-dir", isMalformed, []string{"layer 1 of 1", `entry "usr/bin/h"`, "directory"}, true},
		{"bad-negative-mtime", isMalformed, []string{"layer 1 of 1", `member "usr/bin/neg"`, "modification time"}, false},
		{"bad-sparse", isMalformed, []string{"layer 1 of 1", `member "usr/bin/sparse"`, "sparse"}, false},
		{"bad-truncated", isMalformed, []string{"layer 1 of 1", `member "usr/bin/cut"`, "truncated"}, false},
		{"bad-checksum", isMalformed, []string{"layer 1 of 1", `member "bin"`, "checksum"}, false},
		{"bad-diffid", isIntegrity, []string{"layer 1 of 1", "sha256:"}, false},
		{"bad-diffid-count", isMalformed, []string{"diff_ids"}, false},
		{"bad-blob", isIntegrity, []string{"layer 1 of 1", "sha256:"}, false},
	} {
		t.Run(test.image, func(t *testing.T) {
			t.Parallel()
			repo := newRepo(t, composefs.InitOptions{})
			layout := "oci:" + filepath.Join(vectors, "layout") + ":"
			_, err := pipeline.Direct(t.Context(), pullOptions(repo, layout+test.image))
			if err == nil || !test.is(err) {
				t.Fatalf("pull: %v", err)
			}
			for _, text := range append(test.text, test.image) {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q does not say %q", err, text)
				}
			}
			dump, err := repodump.Dump(repo)
			if err != nil {
				t.Fatal(err)
			}
			for link := range dump.Links {
				if !test.kept || !strings.HasPrefix(link, "streams/oci-layer-") {
					t.Errorf("%s was written", link)
				}
			}
			if _, err := pipeline.Direct(t.Context(), pullOptions(repo, layout+"annotated")); err != nil {
				t.Errorf("a later pull of a good image: %v", err)
			}
			if leaked := temporaries(t, repo); len(leaked) > 0 {
				t.Errorf("temporary files are left: %v", leaked)
			}
		})
	}
}

// temporaries lists what a pull should have removed.
func temporaries(t *testing.T, repo string) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{".symlink-*", "objects/.tmp-*"} {
		names, err := filepath.Glob(filepath.Join(repo, pattern))
		if err != nil {
			t.Fatal(err)
		}
		found = slices.Concat(found, names)
	}
	return found
}
