// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cfs-pull/cfs-pull/composefs"
)

// An artifact goes with its subject, and both in one collection.
func TestReferrers(t *testing.T) {
	repo := openOld(t, "sha512-1")
	gc(t, repo)
	refs, err := repo.StreamRefs("oci")
	if err != nil {
		t.Fatal(err)
	}
	subject, artifact := refs[0], refs[1]
	digest := func(ref composefs.Ref) string { return strings.TrimPrefix(ref.Target, "oci-manifest-") }
	for _, name := range []string{
		"oci-referrers/" + digest(subject) + "/" + digest(artifact),
		// Of an image that was never here.
		"oci-referrers/sha256:" + strings.Repeat("0", 64) + "/" + digest(artifact),
		// Not ours: they keep what they lead to.
		"oci-referrers/nonsense/" + digest(artifact), "oci-referrers/x",
	} {
		if err := repo.SetStreamRef(name, artifact.Target); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(name string) {
		t.Helper()
		if err := repo.RemoveStreamRef(name); err != nil {
			t.Fatal(err)
		}
	}
	if got := gc(t, repo); len(got.Refs) != 1 || got.Objects != 0 || !strings.Contains(got.Refs[0].Path, "sha256:00") {
		t.Errorf("removed %+v", got)
	}
	remove(artifact.Name)
	remove("oci-referrers/x")
	remove("oci-referrers/nonsense/" + digest(artifact))
	if got := gc(t, repo); !got.Empty() {
		t.Errorf("the artifact lost its tag: removed %+v", got)
	}
	remove(subject.Name)
	if got := gc(t, repo); len(got.Refs) != 1 || len(got.Streams) < 4 || got.Objects == 0 {
		t.Errorf("the subject lost its tag: removed %+v", got)
	}
	if entries, err := os.ReadDir(filepath.Join(repo.Path(), "streams/refs/oci-referrers")); err != nil || len(entries) != 1 {
		t.Errorf("directories %v, %v", entries, err) // that of nonsense, which has another form
	}
	if got := gc(t, repo); !got.Empty() {
		t.Errorf("a second time: removed %+v", got)
	}
}
