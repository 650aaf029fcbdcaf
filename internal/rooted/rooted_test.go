// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package rooted

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(content), 0o600))
}

func openDir(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func TestReadFile(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	writeFile(t, filepath.Join(outside, "secret"), "outside")
	writeFile(t, filepath.Join(root, "a/file"), "inside")
	writeFile(t, filepath.Join(root, outside, "secret"), "inside")
	link := func(target, name string) { must(t, os.Symlink(target, filepath.Join(root, name))) }
	link("a/file", "relative")
	link("/a/file", "absolute")
	link(filepath.Join(outside, "secret"), "escape")
	link("../../../../../../../../a/file", "dotdot")
	link("loop", "loop")
	link(outside, "dir")
	link("/proc/self/environ", "magic")
	must(t, unix.Mkfifo(filepath.Join(root, "fifo"), 0o600))
	for _, test := range []struct {
		path, want string
		absent     bool
	}{
		{"a/file", "inside", false},
		{"relative", "inside", false},
		{"absolute", "inside", false},
		{"escape", "inside", false},
		{"dotdot", "inside", false},
		{"dir/secret", "inside", false},
		{"../" + filepath.Base(outside) + "/secret", "", true},
		{"absent", "", true},
		{"a/file/deeper", "", true},
		{"magic", "", true},
		{"loop", "", false},
		{"fifo", "", false},
		{"a", "", false},
	} {
		data, err := ReadFile(root, test.path, 100)
		if string(data) != test.want || (err == nil) != (test.want != "") || errors.Is(err, fs.ErrNotExist) != test.absent {
			t.Errorf("%s: %q, %v; want %q, absent: %v", test.path, data, err, test.want, test.absent)
		}
	}
	if _, err := ReadFile(root, "a/file", 3); err == nil {
		t.Error("no error for a file over the limit")
	}
}

func TestOpenRules(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	writeFile(t, filepath.Join(outside, "secret"), "outside")
	writeFile(t, filepath.Join(root, "a/file"), "inside")
	for target, name := range map[string]string{"a": "inner", "/a": "absolute", "../" + filepath.Base(outside): "outer"} {
		must(t, os.Symlink(target, filepath.Join(root, name)))
	}
	dir := openDir(t, root)
	for _, test := range []struct {
		path  string
		rules uint64
		want  error
	}{
		{"a/file", Beneath, nil},
		{"a/file", InRoot, nil},
		{"a/file", NoLinks, nil},
		{"a/file", NoLinks | OneMount, nil},
		{"inner/file", Beneath, nil},
		{"inner/file", InRoot, nil},
		{"inner/file", NoLinks, unix.ELOOP},
		{"absolute/file", Beneath, unix.EXDEV},
		{"absolute/file", InRoot, nil},
		{"outer/secret", Beneath, unix.EXDEV},
		{"outer/secret", InRoot, unix.ENOENT},
		{"../" + filepath.Base(outside) + "/secret", Beneath, unix.EXDEV},
		{"/a/file", NoLinks, unix.EXDEV},
	} {
		fd, err := Open(dir, test.path, unix.O_RDONLY, 0, test.rules)
		if !errors.Is(err, test.want) {
			t.Errorf("%s with rules %#x: %v, want %v", test.path, test.rules, err, test.want)
		}
		if err == nil {
			unix.Close(fd)
		}
	}
}

func TestOpenLong(t *testing.T) {
	root := t.TempDir()
	// Deeper than a path can say: built one level at a time.
	name := strings.Repeat("n", 200)
	at := openDir(t, root)
	const depth = 60
	for range depth {
		must(t, unix.Mkdirat(at, name, 0o755))
		next, err := Open(at, name, unix.O_PATH|unix.O_DIRECTORY, 0, NoLinks)
		must(t, err)
		t.Cleanup(func() { unix.Close(next) })
		at = next
	}
	fd, err := Open(at, "file", unix.O_CREAT|unix.O_WRONLY, 0o600, NoLinks)
	must(t, err)
	unix.Close(fd)

	dir := openDir(t, root)
	long := strings.Repeat(name+"/", depth) + "file"
	if _, err := Open(dir, long, unix.O_RDONLY, 0, NoLinks); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("Open of %d bytes: %v, want %v", len(long), err, unix.ENAMETOOLONG)
	}
	if _, err := OpenLong(dir, long, unix.O_RDONLY, 0, Beneath); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("with links: %v, want %v", err, unix.ENAMETOOLONG)
	}
	fd, err = OpenLong(dir, long, unix.O_RDONLY, 0, NoLinks)
	must(t, err)
	unix.Close(fd)
	if _, err := OpenLong(dir, strings.Repeat(name+"/", depth)+"absent", unix.O_RDONLY, 0, NoLinks); !errors.Is(err, unix.ENOENT) {
		t.Errorf("absent file: %v, want %v", err, unix.ENOENT)
	}
	if _, err := OpenLong(dir, strings.Repeat("n", 5000), unix.O_RDONLY, 0, NoLinks); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("one long name: %v, want %v", err, unix.ENAMETOOLONG)
	}
}
