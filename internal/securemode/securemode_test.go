// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package securemode tests the shipped program from end to end on file systems
// that have fs-verity: pulls into repositories that require it, mounts of what
// came out as a boot makes them, and what happens when somebody has tampered
// with a repository.
//
// The development machine's kernel need not have fs-verity. The test starts a
// micro-VM and in there its own binary again, which then takes the other branch
// of [TestSecureMode].
package securemode

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/microvm"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// Environment of the test binary inside the machine. bootVariable says which
// boot this is.
const (
	bootVariable = "CFS_PULL_SECUREMODE_BOOT"
	bootPull     = "pull"
	bootDamaged  = "damaged" // the next one, after the host has damaged blocks
	bootOptions  = "options" // with a disk of its own, on one file system only
)

// Places inside the machine.
const (
	program      = "/bin/cfs-pull"
	fsverityTool = "/usr/bin/fsverity"  // absent where the host has none
	imagesDir    = "/images"            // layouts, by image name
	conformance  = "/conformance"       // the module's testdata/oci
	expectedFile = "/expected.json"     // what the host's pulls gave
	disk         = "/mnt"               // the file system with fs-verity
	plainDisk    = "/dev/vdb"           // ext4 without it
	smallBlocks  = "/dev/vdc"           // ext4 with it, but with blocks of 1024 bytes
	imageCopy    = "/out/damaged.erofs" // the image that the host is to damage
)

// fileSystem is one that has fs-verity.
type fileSystem struct {
	name    string
	modules []string
	options string // for mount
	format  func(testing.TB, int64) string
}

var fileSystems = []fileSystem{
	{name: "ext4", format: microvm.Ext4},
	// Without checksums, so that it is fs-verity that notices the damage.
	{name: "btrfs", format: microvm.Btrfs, modules: []string{"btrfs"}, options: "nodatasum"},
}

func TestSecureMode(t *testing.T) {
	boot := os.Getenv(bootVariable)
	var files map[string]string
	if boot == "" {
		microvm.Require(t)
		files = guestFiles(t)
	}
	for i, fs := range fileSystems {
		t.Run(fs.name, func(t *testing.T) {
			if boot != "" {
				runSteps(t, fs, boot)
				return
			}
			testDamage(t, fs, files)
			if i == 0 {
				testOptions(t, fs, files)
			}
		})
	}
}

// guestFiles builds and collects what the machine needs.
func guestFiles(t *testing.T) map[string]string {
	t.Helper()
	pull := microvm.GoBuild(t, "./cmd/cfs-pull", "-trimpath", "-tags=containers_image_openpgp", "-ldflags=-s -w")
	images := t.TempDir()
	for _, im := range allImages() {
		if err := im.write(filepath.Join(images, im.name)); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]string{
		program:                pull,
		"/bin/securemode.test": microvm.GoTestBinary(t, "./internal/securemode", "-ldflags=-s -w"),
		imagesDir:              images,
		conformance:            filepath.Join(testutil.ModuleRoot(t), "testdata", "oci"),
		expectedFile:           pullOnHost(t, pull, images),
	}
	addFsverityTool(t, files)
	return files
}

// testDamage pulls and mounts in one boot, and damages blocks before the next.
func testDamage(t *testing.T, fs fileSystem, files map[string]string) {
	image, out := fs.format(t, 192), t.TempDir()
	c := microvm.Config{Files: files, Disks: []microvm.Disk{{Path: image}}, OutputDir: out}
	runGuest(t, fs, bootPull, c)

	erofs, err := os.ReadFile(filepath.Join(out, filepath.Base(imageCopy)))
	if err != nil {
		t.Fatal(err)
	}
	damage(t, image, damagedBlock())
	damage(t, image, blockWith(t, erofs, damagedInline))
	r := runGuest(t, fs, bootDamaged, c)
	if !strings.Contains(r.Console, "FILE CORRUPTED") {
		t.Errorf("the kernel did not say that a file is corrupted:\n%s", r.Console)
	}
}

// testOptions has the cases in which the file system makes no difference, and
// the file systems that are not good enough.
func testOptions(t *testing.T, fs fileSystem, files map[string]string) {
	runGuest(t, fs, bootOptions, microvm.Config{Files: files, Disks: []microvm.Disk{
		{Path: fs.format(t, 192)},
		{Path: formatExt4(t, "-b", "4096")},
		{Path: formatExt4(t, "-b", "1024", "-O", "verity")},
	}})
}

// runGuest runs this test binary in a machine.
func runGuest(t *testing.T, fs fileSystem, boot string, c microvm.Config) microvm.Result {
	t.Helper()
	c.Modules = append([]string{"loop", "erofs", "overlay"}, fs.modules...)
	c.MemoryMiB = 1536
	c.Timeout = 20 * time.Minute // takes half a minute where the host is idle
	name := "TestSecureMode/" + fs.name
	c.Script = bootVariable + "=" + boot + " securemode.test -test.v -test.run '^TestSecureMode$/^" + fs.name + "$'"
	start, cpu := time.Now(), childrenCPU(t)
	r, err := microvm.Run(t.Context(), c)
	if err != nil || r.ExitCode != 0 {
		t.Fatalf("boot %q: %v\n%s", boot, err, r)
	}
	t.Logf("boot %q took %v, %v of the CPU\n%s", boot, time.Since(start).Round(time.Second), (childrenCPU(t) - cpu).Round(time.Second), r.Output)
	if !strings.Contains(r.Output, "--- PASS: "+name+" ") || strings.Contains(r.Output, "--- SKIP") {
		t.Errorf("%s did not run completely in boot %q", name, boot)
	}
	return r
}

// childrenCPU is the CPU time of all processes that have ended: a machine that
// shares its CPUs says more by that than by the clock.
func childrenCPU(t *testing.T) time.Duration {
	t.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
