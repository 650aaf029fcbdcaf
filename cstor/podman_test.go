// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// vectors are the images that a containers-storage can hold.
var vectors = []string{
	"sizes", "sizes-tar", "sizes-zstd", "sizes-multi-gzip", "empty-layer", "dirs", "multi-arch", "annotated",
	"boot-modules", "boot-bls", "boot-uki", "selinux", "bound",
}

// What podman pulls and what we pull leave the same records.
func TestRecordsAreThoseOfPodman(t *testing.T) {
	ours, theirs := testStore(t), testStore(t)
	unmountStore(t, theirs.options)
	for _, name := range vectors {
		r := pull(t, ours, vector(t, name), "example.com/"+name+":latest")
		podman(t, theirs, "pull", "-q", vector(t, name))
		podman(t, theirs, "tag", r.ImageID, "example.com/"+name+":latest")
	}
	for _, file := range []string{imagesFile, layersFile} {
		a := comparable_(t, filepath.Join(ours.graphRoot, file))
		b := comparable_(t, filepath.Join(theirs.graphRoot, file))
		if diff := cmp.Diff(b, a); diff != "" {
			t.Errorf("%s (-podman +cstor):\n%s", file, diff)
		}
	}
}

// comparable_ is a list of records by id, without what differs from pull to
// pull.
func comparable_(t *testing.T, path string) map[string]map[string]any {
	t.Helper()
	out := map[string]map[string]any{}
	var list []map[string]any
	must(t, json.Unmarshal(check(os.ReadFile(path))(t), &list))
	for _, r := range list {
		id := r["id"].(string)
		out[id] = r
	}
	return out
}
