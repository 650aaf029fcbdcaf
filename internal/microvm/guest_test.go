// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package microvm

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

func TestArchiveIsNewc(t *testing.T) {
	t.Parallel()
	tool := testutil.RequireTool(t, "cpio", "cpio")
	host := filepath.Join(t.TempDir(), "host")
	if err := os.WriteFile(host, []byte("12345"), 0o640); err != nil {
		t.Fatal(err)
	}
	g := &guest{entries: map[string]entry{}}
	g.add("/a/b/short", entry{mode: modeFile | 0o644, data: []byte("x")})
	g.add("/a/link", entry{mode: modeSymlink | 0o777, data: []byte("b/short")})
	g.add("dev/console", entry{mode: modeChar | 0o600, device: [2]uint32{5, 1}})
	g.add("empty", entry{mode: modeFile | 0o600})
	if err := g.addHost("/a/b/host", host); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := g.write(&archive); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), tool, "--list", "--verbose", "--numeric-uid-gid", "--quiet")
	cmd.Stdin = &archive
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", tool, err, out)
	}
	const want = `drwxr-xr-x   1 0        0               0 Jan  1  1970 a
drwxr-xr-x   1 0        0               0 Jan  1  1970 a/b
-rw-r-----   1 0        0               5 Jan  1  1970 a/b/host
-rw-r--r--   1 0        0               1 Jan  1  1970 a/b/short
lrwxrwxrwx   1 0        0               7 Jan  1  1970 a/link -> b/short
drwxr-xr-x   1 0        0               0 Jan  1  1970 dev
crw-------   1 0        0          5,   1 Jan  1  1970 dev/console
-rw-------   1 0        0               0 Jan  1  1970 empty
`
	if string(out) != want {
		t.Errorf("cpio lists\n%s\nwant\n%s", out, want)
	}
}

func TestArchiveErrors(t *testing.T) {
	t.Parallel()
	huge := &cpioWriter{w: &bytes.Buffer{}}
	huge.add("huge", modeFile, [2]uint32{}, 1<<32, nil)
	if err := huge.close(); err == nil {
		t.Error("a file of 4 GiB fits into the archive")
	}
	short := &cpioWriter{w: &bytes.Buffer{}}
	short.add("short", modeFile, [2]uint32{}, 10, bytes.NewReader([]byte("123")))
	if err := short.close(); err == nil {
		t.Error("a file that shrank while it was read fits into the archive")
	}
	g := &guest{entries: map[string]entry{}}
	if err := g.addHost("/null", "/dev/null"); err == nil {
		t.Error("a device of the host can be put into the machine")
	}
}

func TestModuleOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, content := range map[string]string{
		modulesDep: "kernel/fs/btrfs/btrfs.ko.xz: kernel/crypto/xor.ko.xz kernel/lib/libcrc32c.ko.xz\n" +
			"kernel/fs/xfs/xfs.ko.xz: kernel/lib/libcrc32c.ko.xz\n" +
			"kernel/crypto/xor.ko.xz:\nkernel/lib/libcrc32c.ko.xz:\nkernel/arch/crc32c-intel.ko:\n",
		modulesBuiltin: "kernel/fs/ext4/ext4.ko\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	table, err := readModuleTable(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := table.loadOrder([]string{"ext4", "btrfs", "crc32c-intel", "xfs", "btrfs"})
	want := []string{
		"kernel/lib/libcrc32c.ko.xz", "kernel/crypto/xor.ko.xz", "kernel/fs/btrfs/btrfs.ko.xz",
		"kernel/arch/crc32c-intel.ko", "kernel/fs/xfs/xfs.ko.xz",
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("loadOrder: %v, difference (-want +got):\n%s", err, diff)
	}
	if _, err := table.loadOrder([]string{"ntfs"}); err == nil {
		t.Error("loadOrder of an unknown module: no error")
	}
}

func TestParseStatus(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		status string
		code   int
		none   bool // ErrNoStatus
		fails  bool
	}{
		{status: "exit 0\n"},
		{status: "start\nexit 3\n", code: 3},
		{status: "start\n", code: -1, none: true, fails: true},
		{status: "start\nsetup cannot hand back /out\n", code: -1, fails: true},
		{status: "exit 255\n", code: 255},
		{status: "", code: -1, none: true, fails: true},
		{status: "exit 1", code: -1, none: true, fails: true}, // cut off
		{status: "exit 256\n", code: -1, none: true, fails: true},
		{status: "exit -1\n", code: -1, none: true, fails: true},
		{status: "setup insmod x: no\n", code: -1, fails: true},
	} {
		code, err := parseStatus(test.status)
		if code != test.code || (err != nil) != test.fails || errors.Is(err, ErrNoStatus) != test.none {
			t.Errorf("parseStatus(%q) = %d, %v, want %+v", test.status, code, err, test)
		}
	}
}

func TestExtractStaysInside(t *testing.T) {
	t.Parallel()
	for _, header := range []tar.Header{
		{Typeflag: tar.TypeReg, Name: "../escaped"},
		{Typeflag: tar.TypeReg, Name: "/escaped"},
		{Typeflag: tar.TypeDir, Name: "../escaped"},
		{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "/etc"},
	} {
		var archive bytes.Buffer
		w := tar.NewWriter(&archive)
		if err := errors.Join(w.WriteHeader(&header), w.Close()); err != nil {
			t.Fatal(err)
		}
		above := t.TempDir()
		name := filepath.Join(above, "archive")
		if err := os.WriteFile(name, archive.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := extract(name, filepath.Join(above, "out")); err == nil {
			t.Errorf("extract of %s (type %c): no error", header.Name, header.Typeflag)
		}
		if left, err := os.ReadDir(above); err != nil || len(left) != 2 {
			t.Errorf("after extract of %s the directory above has %v, %v", header.Name, left, err)
		}
	}
}

// TestCrash has machines that crash, as some do while they boot.
func TestCrash(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		crash   string // what it does at each crash
		crashes int
		starts  int
		fails   bool
	}{
		{name: "QEMU, once", crash: "kill -ABRT $$", crashes: 1, starts: 2},
		{name: "QEMU, always", crash: "kill -ABRT $$", crashes: 100, starts: maxStarts, fails: true},
		{name: "QEMU, in the script", crash: "echo start >port-status; kill -ABRT $$", crashes: 1, starts: 1, fails: true},
		{name: "kernel, once", crash: "exit 0", crashes: 1, starts: 2},
		{name: "kernel, always", crash: "exit 0", crashes: 100, starts: maxStarts},
		{name: "kernel, in the script", crash: "echo start >port-status; exit 0", crashes: 1, starts: 1},
		{name: "set-up", crash: "echo setup no >port-status; exit 0", crashes: 1, starts: 1},
		{name: "bad option", crash: "exit 1", crashes: 1, starts: 1, fails: true},
		{name: "not at all", crash: "exit 0", starts: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			qemu := filepath.Join(dir, "qemu")
			script := fmt.Sprintf("#!/bin/sh\ncd %s\necho >>starts\n[ $(wc -l <starts) -gt %d ] || { %s; }\necho exit 0 >port-status\n",
				dir, test.crashes, test.crash)
			// Written by a child: a fork of this process at that time must not
			// have the file open for writing when it is to run.
			write := exec.CommandContext(t.Context(), "sh", "-c", "cat >qemu && chmod +x qemu")
			write.Dir, write.Stdin = dir, strings.NewReader(script)
			if err := write.Run(); err != nil {
				t.Fatal(err)
			}
			m := machine{qemu: qemu, dir: dir}
			if err := m.run(t.Context()); (err != nil) != test.fails {
				t.Errorf("run: %v, want failure: %v", err, test.fails)
			}
			starts, err := os.ReadFile(filepath.Join(dir, "starts"))
			if err != nil || len(starts) != test.starts {
				t.Errorf("%d starts, %v, want %d", len(starts), err, test.starts)
			}
		})
	}
}
