// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/internal/testutil"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

// TestIndependentReader lets a reader that shares no code with this module say
// what is in a repository, and compares that with what composefs-rs wrote.
func TestIndependentReader(t *testing.T) {
	vectors := testutil.Vectors(t)
	reader := filepath.Join(filepath.Dir(vectors), "tools", "repo.py")
	if _, err := os.Stat(reader); err != nil {
		t.Skipf("the independent reader is not beside the vectors: %v", err)
	}
	python := testutil.RequireTool(t, "python3", "python3")
	// Old versions of the package cannot read a stream of several frames.
	if exec.Command(python, "-c", "import zstandard; zstandard.ZstdDecompressor().decompressobj(read_across_frames=True)").Run() != nil {
		t.Skip("Python has no zstandard 0.22 or newer: pip install zstandard")
	}
	oci := filepath.Join(vectors, "oci")
	files, err := filepath.Glob(filepath.Join(oci, "expect", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no expectations (%v)", err)
	}
	for _, file := range files {
		image := strings.TrimSuffix(filepath.Base(file), ".json")
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var expect map[string]struct {
			Repository map[string]any `json:"repository"`
		}
		if err := json.Unmarshal(raw, &expect); err != nil {
			t.Fatal(err)
		}
		for kind, init := range kinds {
			t.Run(image+"/"+kind, func(t *testing.T) {
				t.Parallel()
				repo := newRepo(t, init)
				o := pullOptions(repo, "oci:"+filepath.Join(oci, "layout")+":"+image)
				o.Tag = "tag/" + image
				result, err := pipeline.Direct(t.Context(), o)
				checkOutcome(t, image, err)
				out, err := exec.Command(python, reader, "dump", repo).Output()
				if err != nil {
					t.Fatalf("read the repository: %v", err)
				}
				var got map[string]any
				if err := json.Unmarshal(out, &got); err != nil {
					t.Fatal(err)
				}
				if problems, ok := got["problems"].([]any); !ok || len(problems) > 0 {
					t.Errorf("the reader complains: %v", problems)
				}
				if n := got["unreferenced_objects"]; n != 0.0 {
					t.Errorf("%v objects are garbage", n)
				}
				delete(got["links"].(map[string]any), "streams/refs/oci/localhost%2Fbootc-"+result.ManifestDigest.String())
				for key, want := range expect[kind].Repository {
					if diff := cmp.Diff(want, got[key]); diff != "" {
						t.Errorf("%s differs (-want +got):\n%s", key, diff)
					}
				}
			})
		}
	}
}
