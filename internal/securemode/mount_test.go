// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package securemode

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// mount mounts until the test ends.
func mount(t *testing.T, source, target, kind string, flags uintptr, options string) {
	t.Helper()
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		t.Fatalf("mount %s with options %q: %v", kind, options, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Errorf("unmount %s: %v", target, err)
		}
	})
}

// mountImage mounts an image the way an initramfs does: the EROFS image
// straight from its file, and overlayfs with the objects as a data-only layer,
// which must have the fs-verity digests that the image names.
func mountImage(t *testing.T, repo, id string) string {
	t.Helper()
	metadata, root := t.TempDir(), t.TempDir()
	mount(t, filepath.Join(repo, "images", id), metadata, "erofs", unix.MS_RDONLY, "")
	mount(t, "composefs", root, "overlay", unix.MS_RDONLY,
		"metacopy=on,redirect_dir=on,verity=require,lowerdir="+metadata+"::"+filepath.Join(repo, "objects"))
	return root
}

// checkTree reads all files below root and compares them with want. Those that
// are refused must be refused by the kernel, and all others be as in the image.
func checkTree(t *testing.T, root string, want map[string][]byte, refused ...string) {
	t.Helper()
	got := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		got[name] = true
		content, err := os.ReadFile(path)
		switch {
		case slices.Contains(refused, name):
			if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENOENT) {
				t.Errorf("reading %s: %v, want it to be refused", name, err)
			}
		case err != nil:
			t.Error(err)
		case !bytes.Equal(content, want[name]):
			t.Errorf("%s has %d bytes that are not the %d bytes of the image", name, len(content), len(want[name]))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for name := range maps.Keys(want) {
		if !got[name] {
			t.Errorf("%s is missing", name)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s is not in the image", name)
	}
}
