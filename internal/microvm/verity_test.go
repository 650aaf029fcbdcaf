// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package microvm

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// runVerityTests runs package fsverity's own tests of the kernel on the file
// system that mount puts at /mnt.
func runVerityTests(t *testing.T, mount string, c Config) {
	t.Helper()
	c.Files = map[string]string{"/bin/fsverity.test": GoTestBinary(t, "./fsverity")}
	c.Script = mount + ` && cd /mnt && TMPDIR=/mnt CFS_PULL_REQUIRE_VERITY=1 fsverity.test -test.v -test.run='^TestVerity'`
	r := mustRun(t, c)
	t.Log(r.Output)
	for _, name := range []string{"HelloWorld", "Boundaries", "Busy", "Race", "OfDirectory"} {
		if !strings.Contains(r.Output, "--- PASS: TestVerity"+name+" ") {
			t.Errorf("TestVerity%s did not run", name)
		}
	}
}

func TestVerityOnExt4(t *testing.T) {
	Require(t)
	t.Parallel()
	runVerityTests(t, "mount -t ext4 /dev/vda /mnt", Config{Disks: []Disk{{Path: Ext4(t, 256)}}})
}

func TestVerityOnBtrfs(t *testing.T) {
	Require(t)
	t.Parallel()
	runVerityTests(t, "mount -t btrfs /dev/vda /mnt", Config{Disks: []Disk{{Path: Btrfs(t, 256)}}, Modules: []string{"btrfs"}})
}

// TestVerityNeedsLargeBlocks has a file system with blocks of 1024 bytes, as
// mkfs.ext4 makes on small disks: fs-verity is there, but not for us.
func TestVerityNeedsLargeBlocks(t *testing.T) {
	Require(t)
	t.Parallel()
	disk := makeDisk(t, 16, "e2fsprogs", "mkfs.ext4", "-q", "-F", "-O", "verity", "-b", "1024")
	r := mustRun(t, Config{
		Files: map[string]string{"/bin/fsverity.test": GoTestBinary(t, "./fsverity")},
		Disks: []Disk{{Path: disk}},
		Script: `mount -t ext4 /dev/vda /mnt && cd /mnt &&
			TMPDIR=/mnt fsverity.test -test.v -test.run=TestVerityHelloWorld`,
	})
	if !strings.Contains(r.Output, "--- SKIP: TestVerityHelloWorld") || !strings.Contains(r.Output, "not supported here with 4096-byte blocks: invalid argument") {
		t.Errorf("want a skipped test that says why, got\n%s", r.Output)
	}
}

// TestTamper changes a byte of a verity file behind the kernel's back. Reading
// it must fail, and the rest of the file stay good.
func TestTamper(t *testing.T) {
	Require(t)
	t.Parallel()
	const marker = "THIS BLOCK WILL BE TAMPERED WITH"
	content := bytes.Repeat([]byte{'.'}, 4*4096)
	copy(content[2*4096:], marker)
	source := filepath.Join(t.TempDir(), "content")
	if err := os.WriteFile(source, content, 0o600); err != nil {
		t.Fatal(err)
	}
	disks := []Disk{{Path: Ext4(t, 64)}}
	mustRun(t, Config{
		Files: map[string]string{"/content": source, "/bin/enable": GoBuild(t, "./internal/microvm/testdata/enable")},
		Disks: disks,
		Script: `mount -t ext4 /dev/vda /mnt && cp /content /mnt/file && sync &&
			enable /mnt/file && umount /mnt`,
	})

	image, err := os.OpenFile(disks[0].Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	whole, err := os.ReadFile(disks[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(whole, []byte(marker))
	if at < 0 || bytes.Count(whole, []byte(marker)) != 1 {
		t.Fatalf("the marker is on the disk %d times, want once", bytes.Count(whole, []byte(marker)))
	}
	if _, err := image.WriteAt([]byte{'t'}, int64(at)); err != nil {
		t.Fatal(err)
	}

	r := mustRun(t, Config{Disks: disks, Script: `
		mount -t ext4 /dev/vda /mnt &&
		dd if=/mnt/file bs=4096 count=2 2>/dev/null | grep -c '^\.*$'
		dd if=/mnt/file bs=4096 skip=2 count=1 of=/dev/null
		cat /mnt/file >/dev/null || echo refused`})
	if !strings.HasPrefix(r.Output, "1\n") || !strings.HasSuffix(r.Output, "refused\n") {
		t.Errorf("reading the file gave\n%s\nwant the first blocks and then an error", r.Output)
	}
	if !strings.Contains(r.Console, "FILE CORRUPTED") {
		t.Errorf("the kernel did not say that the file is corrupted:\n%s", r.Console)
	}
}
