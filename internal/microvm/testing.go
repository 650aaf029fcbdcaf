// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package microvm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// Require skips the test where no virtual machine can run, and says what to
// install.
func Require(tb testing.TB) {
	tb.Helper()
	if testing.Short() {
		tb.Skip("boots a virtual machine: run without -short")
	}
	if err := Available(); err != nil {
		tb.Skip(err)
	}
}

// GoBuild builds a program of this module, static, and returns its path. The
// package is named as on go's command line, from the module's root, for
// instance "./cmd/cfs-pull"; args go before it, for instance "-tags=x".
func GoBuild(tb testing.TB, pkg string, args ...string) string {
	tb.Helper()
	out := filepath.Join(tb.TempDir(), filepath.Base(pkg))
	return goTool(tb, out, append(append([]string{"build", "-o", out}, args...), pkg))
}

// GoTestBinary builds the tests of a package of this module as one static
// program and returns its path. Inside, run it with -test.v -test.run and so
// on; there is no testdata unless Config.Files brings it.
func GoTestBinary(tb testing.TB, pkg string, args ...string) string {
	tb.Helper()
	out := filepath.Join(tb.TempDir(), filepath.Base(pkg)+".test")
	return goTool(tb, out, append(append([]string{"test", "-c", "-o", out}, args...), pkg))
}

func goTool(tb testing.TB, out string, args []string) string {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), "go", args...)
	cmd.Dir = testutil.ModuleRoot(tb)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if printed, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, printed)
	}
	return out
}

// Ext4 makes a disk image with an empty ext4 file system that has fs-verity,
// and returns its path.
func Ext4(tb testing.TB, sizeMiB int64) string {
	tb.Helper()
	// Blocks of 4096 bytes: mkfs takes smaller ones for small disks, and
	// fs-verity needs blocks that are no smaller than its own.
	return makeDisk(tb, sizeMiB, "e2fsprogs", "mkfs.ext4", "-q", "-F", "-O", "verity", "-b", "4096")
}

// Btrfs makes a disk image with an empty btrfs, 114 MiB or larger, and returns
// its path.
func Btrfs(tb testing.TB, sizeMiB int64) string {
	tb.Helper()
	return makeDisk(tb, sizeMiB, "btrfs-progs", "mkfs.btrfs", "-q")
}

// makeDisk makes a sparse image and formats it.
func makeDisk(tb testing.TB, sizeMiB int64, debianPackage, tool string, args ...string) string {
	tb.Helper()
	if path, err := exec.LookPath("/usr/sbin/" + tool); err == nil {
		tool = path // not on everybody's PATH
	} else {
		tool = testutil.RequireTool(tb, tool, debianPackage)
	}
	disk := filepath.Join(tb.TempDir(), "disk.img")
	f, err := os.OpenFile(disk, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	if err := f.Truncate(sizeMiB << 20); err != nil {
		tb.Fatal(err)
	}
	if err := f.Close(); err != nil {
		tb.Fatal(err)
	}
	if printed, err := exec.CommandContext(tb.Context(), tool, append(args, disk)...).CombinedOutput(); err != nil {
		tb.Fatalf("%s: %v\n%s", tool, err, printed)
	}
	return disk
}
