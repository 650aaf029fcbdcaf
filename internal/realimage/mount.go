// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package realimage

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/loopfs"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// MountErofs mounts an EROFS image file read-only, straight from the file as
// an initramfs does, and returns where. Kernels before 6.12 get a loop device.
func MountErofs(tb testing.TB, image string) string {
	tb.Helper()
	testutil.RequireRoot(tb)
	target := tb.TempDir()
	err := unix.Mount(image, target, "erofs", unix.MS_RDONLY, "")
	if errors.Is(err, unix.ENOTBLK) {
		out, loopErr := exec.Command("mount", "-t", "erofs", "-o", "ro,loop", image, target).CombinedOutput()
		if loopErr != nil {
			tb.Fatalf("mount %s through a loop device: %v\n%s", image, loopErr, out)
		}
		err = nil
	}
	if errors.Is(err, unix.ENODEV) {
		tb.Skip("the kernel has no erofs: modprobe erofs")
	}
	if err != nil {
		tb.Fatalf("mount erofs %s: %v", image, err)
	}
	tb.Cleanup(func() { loopfs.Unmount(tb, target) })
	return target
}

// MountComposefs mounts an image of a repository the way the composefs mount
// tools do: EROFS for the metadata, overlayfs with the objects directory as a
// data-only lower layer for the content. The kernel must be 6.6 or newer.
func MountComposefs(tb testing.TB, repository, imageID string) string {
	tb.Helper()
	objects := filepath.Join(repository, "objects")
	metadata := MountErofs(tb, filepath.Join(objects, imageID[:2], imageID[2:]))
	target := tb.TempDir()
	options := "metacopy=on,redirect_dir=on,lowerdir=" + metadata + "::" + objects
	if err := unix.Mount("composefs", target, "overlay", unix.MS_RDONLY, options); err != nil {
		tb.Fatalf("mount overlay (%s): %v", options, err)
	}
	tb.Cleanup(func() { loopfs.Unmount(tb, target) })
	return target
}

// MountByCommand mounts an image of a repository with cfs-pull, which also
// unmounts it when the test ends.
func MountByCommand(tb testing.TB, binary, repository, imageID string) string {
	tb.Helper()
	testutil.RequireRoot(tb)
	target := tb.TempDir()
	run := func(args ...string) {
		tb.Helper()
		if out, err := exec.Command(binary, args...).CombinedOutput(); err != nil {
			tb.Fatalf("cfs-pull %q: %v\n%s", args, err, out)
		}
	}
	run("mount", "--repo", repository, imageID, target)
	tb.Cleanup(func() { run("umount", target) })
	return target
}

// FsckErofs checks an EROFS image with erofs-utils.
func FsckErofs(tb testing.TB, image string) {
	tb.Helper()
	program := testutil.RequireTool(tb, "fsck.erofs", "erofs-utils")
	if out, err := exec.Command(program, image).CombinedOutput(); err != nil {
		tb.Errorf("fsck.erofs %s: %v\n%s", image, err, out)
	}
}

// PodmanMount copies an image into a podman store of its own and returns where
// podman has mounted its tree.
func PodmanMount(tb testing.TB, ref string) string {
	tb.Helper()
	testutil.RequireRoot(tb)
	program := testutil.RequireTool(tb, "podman", "podman")
	skopeo := testutil.RequireTool(tb, "skopeo", "skopeo")
	// A file system of its own: an overlay does not go on top of another one,
	// which is what the temporary directory of a container may be.
	store := loopfs.Mount(tb, loopfs.Ext4)
	run := tb.TempDir()
	command := func(name string, args ...string) string {
		tb.Helper()
		var stderr strings.Builder
		cmd := exec.Command(name, args...)
		cmd.Stderr = &stderr
		cmd.Env = append(cmd.Environ(), "TMPDIR="+store)
		out, err := cmd.Output()
		if err != nil {
			tb.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.String())
		}
		return strings.TrimSpace(string(out))
	}
	root := filepath.Join(store, "root")
	podman := func(args ...string) string {
		tb.Helper()
		base := []string{"--root", root, "--runroot", run, "--tmpdir", run, "--storage-driver", "overlay"}
		return command(program, append(base, args...)...)
	}
	tb.Cleanup(func() { podman("system", "reset", "--force") })
	// skopeo has the same store code, but can name the image: podman derives a
	// name from the layout's path, and not every path is one.
	const name = "localhost/os:test"
	command(skopeo, "copy", "--quiet", ref, "containers-storage:[overlay@"+root+"+"+run+"]"+name)
	target := podman("image", "mount", name)
	tb.Cleanup(func() { podman("image", "unmount", name) })
	return target
}
