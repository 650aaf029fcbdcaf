// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// vectors are images that a containers-storage can hold: gzip, plain, zstd, no
// content, one layer twice, an index.
var vectors = []string{"sizes", "sizes-tar", "sizes-zstd", "empty-layer", "multi-arch", "selinux"}

// What podman pulls and what we pull leave the same records.
//
// Podman 4 names an image after its path and keeps a list of no signatures. The
// newer containers/image that we are built with does not; a copy with it leaves
// exactly our records.
func TestRecordsAreThoseOfPodman(t *testing.T) {
	ours, theirs := testStore(t), testStore(t)
	unmountStore(t, theirs.options)
	for _, name := range vectors {
		pull(t, ours, vector(t, name), "example.com/"+name+":latest")
		podman(t, theirs, "pull", "-q", vector(t, name))
	}
	signature := func(key string) bool { return strings.HasPrefix(key, "signature-") }
	for _, file := range []string{imagesFile, layersFile} {
		got := recordsByID(t, filepath.Join(ours.graphRoot, file))
		want := recordsByID(t, filepath.Join(theirs.graphRoot, file))
		for id, r := range want {
			if file == layersFile {
				continue
			}
			if got[id]["metadata"] != metadata {
				t.Errorf("image %s has metadata %q", id, got[id]["metadata"])
			}
			for _, records := range []map[string]any{r, got[id]} {
				for _, key := range []string{"names", "names-history", "metadata"} {
					delete(records, key)
				}
			}
			for _, key := range []string{"big-data-digests", "big-data-sizes"} {
				maps.DeleteFunc(r[key].(map[string]any), func(key string, _ any) bool { return signature(key) })
			}
			r["big-data-names"] = slices.DeleteFunc(r["big-data-names"].([]any), func(key any) bool { return signature(key.(string)) })
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-podman +cstor):\n%s", file, diff)
		}
	}
}

// recordsByID are the records of a file without what differs from pull to pull.
func recordsByID(t *testing.T, path string) map[string]map[string]any {
	t.Helper()
	out := map[string]map[string]any{}
	for _, r := range readJSON[[]map[string]any](t, path) {
		if filepath.Base(path) == filepath.Base(layersFile) {
			delete(r, "created") // when the layer was stored
		} else {
			delete(r, "digest") // of several, the library takes any
		}
		out[r["id"].(string)] = r
	}
	return out
}
