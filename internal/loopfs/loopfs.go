// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package loopfs gives a test a fresh, real file system: made on a sparse file
// in the test's temporary directory, mounted through a loop device, unmounted
// when the test ends.
//
// What a repository does depends on the file system below it: xfs and btrfs
// share extents (reflinks), ext4 does not. The temporary directory of the test
// machine is one of them by chance; these helpers make it a choice.
package loopfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// Kind is a file system type as mount(8) knows it.
type Kind string

// The file systems with a defined behaviour here.
const (
	XFS   Kind = "xfs"   // with reflinks
	Btrfs Kind = "btrfs" // with reflinks
	Ext4  Kind = "ext4"  // without reflinks, 4 KiB blocks
)

// Kinds lists every file system that Mount makes, those with reflinks first.
func Kinds() []Kind { return []Kind{XFS, Btrfs, Ext4} }

// Reflinks tells whether files of this file system can share extents.
func (k Kind) Reflinks() bool { return k == XFS || k == Btrfs }

// DefaultSize is the apparent size of the file below a file system. The file
// is sparse, so only what a test writes takes space.
const DefaultSize int64 = 8 << 30

// mkfs is how each file system is made, and the Debian package that has the
// program.
var mkfs = map[Kind]struct {
	program, debianPackage string
	args                   []string
}{
	XFS:   {"mkfs.xfs", "xfsprogs", []string{"-q", "-m", "reflink=1"}},
	Btrfs: {"mkfs.btrfs", "btrfs-progs", []string{"-q"}},
	Ext4:  {"mkfs.ext4", "e2fsprogs", []string{"-q", "-F", "-b", "4096", "-m", "0"}},
}

// Mount makes a file system of DefaultSize and returns where it is mounted.
// The test is skipped without root, without the mkfs program and without loop
// devices or the file system's driver.
func Mount(tb testing.TB, kind Kind) string {
	tb.Helper()
	return MountSize(tb, kind, DefaultSize)
}

// MountSize is Mount with a size in bytes, for tests that fill a file system.
// xfs needs 300 MiB, btrfs 109 MiB.
func MountSize(tb testing.TB, kind Kind, size int64) string {
	tb.Helper()
	// TempDir first: its removal then runs after the unmount below.
	dir := tb.TempDir()
	image := filepath.Join(dir, string(kind)+".img")
	target := filepath.Join(dir, "mnt")
	if err := os.Mkdir(target, 0o755); err != nil {
		tb.Fatal(err)
	}
	Format(tb, kind, image, size)
	if err := Attach(kind, image, target); err != nil {
		if !supported(kind) {
			tb.Skipf("the kernel has no %s: %v", kind, err)
		}
		tb.Fatal(err)
	}
	tb.Cleanup(func() { Unmount(tb, target) })
	return target
}

// Format makes a file system in a new sparse file of a size in bytes. The test
// is skipped where Mount skips it, except for a missing driver.
func Format(tb testing.TB, kind Kind, image string, size int64) {
	tb.Helper()
	testutil.RequireRoot(tb)
	how, ok := mkfs[kind]
	if !ok {
		tb.Fatalf("make file system: no such kind %q", kind)
	}
	program := testutil.RequireTool(tb, how.program, how.debianPackage)
	testutil.RequireTool(tb, "mount", "mount")
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		tb.Skip("no loop devices: the kernel or the container lacks /dev/loop-control")
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		tb.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		tb.Fatal(err)
	}
	if out, err := exec.Command(program, append(how.args, image)...).CombinedOutput(); err != nil {
		tb.Fatalf("%s: %v\n%s", how.program, err, out)
	}
}

// Attach mounts the file system in a file through a loop device that goes away
// with the unmount. Unmount it with [Unmount].
func Attach(kind Kind, image, target string) error {
	// mount(8) finds a free loop device and marks it for removal with the
	// unmount, which is more than a few lines of ioctls.
	if out, err := exec.Command("mount", "-t", string(kind), "-o", "loop", image, target).CombinedOutput(); err != nil {
		return fmt.Errorf("mount %s: %w: %s", kind, err, bytes.TrimSpace(out))
	}
	return nil
}

// supported tells whether the kernel knows the file system, now that mount(8)
// had its chance to load a module.
func supported(kind Kind) bool {
	list, err := os.ReadFile("/proc/filesystems")
	return err == nil && bytes.Contains(list, []byte("\t"+string(kind)+"\n"))
}

// Unmount detaches what is mounted at target. A mount that stays busy is an
// error of the test: something left a file open or a mount on top.
func Unmount(tb testing.TB, target string) {
	tb.Helper()
	var err error
	for range 50 {
		if err = unix.Unmount(target, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err == nil {
		return
	}
	tb.Errorf("unmount %s: %v", target, err)
	// Lazily, so that the temporary directory can go all the same.
	if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
		tb.Errorf("detach %s: %v", target, err)
	}
}
