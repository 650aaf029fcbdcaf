// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package realimage_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/loopfs"
	"github.com/cfs-pull/cfs-pull/internal/realimage"
	"github.com/cfs-pull/cfs-pull/internal/repodump"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// TestUnified pulls the real image by way of a containers-storage on a file
// system with reflinks. No file of it may be copied, whatever its mode, its name
// and its capabilities; the import adds less than 3 % of the image to what the
// store takes; and the repository is that of a direct pull.
func TestUnified(t *testing.T) {
	testutil.RequireRoot(t)
	layout := realimage.Layout(t)
	binary := realimage.Binary(t)
	on := loopfs.Mount(t, loopfs.XFS)
	store, ref := filepath.Join(on, "store"), "oci:"+layout+":"+realimage.TagZstd

	first := realimage.PullUnified(t, binary, filepath.Join(on, "repo"), store, "--name", "localhost/os:real", ref)
	objects, bytes := first.Stats.Objects, first.Stats.Bytes
	if objects["reflinked"] == 0 || objects["copied"] != 0 || objects["hardlinked"] != 0 || bytes["copied"] != 0 {
		t.Errorf("objects %v, bytes %v", objects, bytes)
	}

	// The second stage once more, into another repository, which is all that is
	// new then: objects, streams and the plain image.
	before := used(t, on)
	again := realimage.PullUnified(t, binary, filepath.Join(on, "second"), store, "--name", "localhost/os:real", "--policy", "never", "--no-boot", ref)
	grown, size := used(t, on)-before, bytes["reflinked"]
	t.Logf("%d objects of %d bytes: the import takes %d bytes more, %.2f %%", objects["reflinked"], size, grown, 100*float64(grown)/float64(size))
	if grown*100 > size*3 {
		t.Errorf("the import of %d bytes takes %d more", size, grown)
	}
	if diff := cmp.Diff(first.Stats.Objects, again.Stats.Objects); diff != "" {
		t.Errorf("the second import did something else:\n%s", diff)
	}

	direct := filepath.Join(t.TempDir(), "direct")
	realimage.Pull(t, binary, direct, ref)
	if diff := cmp.Diff(dump(t, direct), dump(t, filepath.Join(on, "repo"))); diff != "" {
		t.Errorf("the repository differs from that of a direct pull:\n%s", diff)
	}
}

func dump(t *testing.T, repository string) *repodump.Repository {
	t.Helper()
	r, err := repodump.Dump(repository)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// used is the number of bytes in use on a file system.
func used(t *testing.T, dir string) int64 {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}
