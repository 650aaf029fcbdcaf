// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package loopfs_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/loopfs"
)

func TestMount(t *testing.T) {
	magic := map[loopfs.Kind]int64{
		loopfs.XFS:   unix.XFS_SUPER_MAGIC,
		loopfs.Btrfs: unix.BTRFS_SUPER_MAGIC,
		loopfs.Ext4:  unix.EXT4_SUPER_MAGIC,
	}
	for _, kind := range loopfs.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			var dir string
			t.Run("inside", func(t *testing.T) {
				dir = loopfs.Mount(t, kind)
				var st unix.Statfs_t
				if err := unix.Statfs(dir, &st); err != nil {
					t.Fatal(err)
				}
				if int64(st.Type) != magic[kind] {
					t.Errorf("file system magic %#x, want %#x", st.Type, magic[kind])
				}
				if got := clones(t, dir); got != kind.Reflinks() {
					t.Errorf("reflink works: %v, want %v", got, kind.Reflinks())
				}
			})
			if dir == "" {
				t.Skip("not mounted here")
			}
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("%s is still there after the test: %v", dir, err)
			}
		})
	}
}

// clones tells whether a file can be cloned in dir.
func clones(t *testing.T, dir string) bool {
	t.Helper()
	from := filepath.Join(dir, "from")
	if err := os.WriteFile(from, make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(filepath.Join(dir, "to"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil
}
