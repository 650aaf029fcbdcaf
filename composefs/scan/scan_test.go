// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package scan_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/dumpfile"
	"github.com/cfs-pull/cfs-pull/composefs/scan"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

func TestMain(m *testing.M) {
	unix.Umask(0o022) // modes are compared
	os.Exit(m.Run())
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func read(tb testing.TB, path string, o scan.Options) (*scan.Tree, error) {
	tb.Helper()
	dir, err := os.Open(path)
	must(tb, err)
	tb.Cleanup(func() { dir.Close() })
	if o.Algorithm == 0 {
		o.Algorithm = fsverity.SHA256
	}
	return scan.Read(tb.Context(), dir, o)
}

func dump(tb testing.TB, t *scan.Tree) string {
	tb.Helper()
	var b strings.Builder
	must(tb, dumpfile.Write(&b, t.Root, 0))
	return b.String()
}

// makeTree makes a directory with everything that there is.
func makeTree(t *testing.T) (root string, large []byte) {
	t.Helper()
	testutil.RequireRoot(t)
	root = t.TempDir()
	at := func(name string) string { return filepath.Join(root, name) }
	large = bytes.Repeat([]byte("large"), 1000)
	for name, content := range map[string][]byte{"64": large[:64], "65": large[:65], "empty": nil, "sub/large": large} {
		must(t, os.MkdirAll(filepath.Dir(at(name)), 0o755))
		must(t, os.WriteFile(at(name), content, 0o644))
	}
	must(t, os.Link(at("sub/large"), at("hard")))
	must(t, os.Link(at("64"), at("sub/hard")))
	must(t, os.Symlink("/etc/passwd", at("link")))
	must(t, os.Link(at("link"), at("hard-link")))
	must(t, unix.Mkfifo(at("fifo"), 0o600))
	must(t, unix.Mknod(at("null"), unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(at("disk"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70000))))
	must(t, unix.Mknod(at("socket"), unix.S_IFSOCK|0o600, 0))
	must(t, unix.Mknod(at("wh"), unix.S_IFCHR|0o600, 0))
	must(t, os.Chmod(at("65"), 0o755|os.ModeSetuid|os.ModeSticky))
	must(t, os.Lchown(at("link"), 7, 70000))
	must(t, unix.Lsetxattr(at("65"), "user.b", []byte("2\x00"), 0))
	must(t, unix.Lsetxattr(at("65"), "user.a", nil, 0))
	must(t, unix.Lsetxattr(at("link"), "trusted.c", []byte(strings.Repeat("v", 300)), 0))
	must(t, filepath.Walk(root, func(path string, _ os.FileInfo, err error) error {
		must(t, err)
		times := []unix.Timespec{{}, {Sec: 1234, Nsec: 5678}}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW)
	}))
	must(t, os.Chmod(root, 0o755))
	return root, large
}

func TestRead(t *testing.T) {
	root, large := makeTree(t)
	object := func(content []byte) string {
		d := fsverity.Sum(fsverity.SHA256, content)
		return d.ObjectPath() + " - " + d.String()
	}
	want := []string{
		"/ 0 40755 3 0 0 0 1234.5678 - - -",
		"/64 64 100644 2 0 0 0 1234.5678 - " + string(large[:64]) + " -",
		"/65 65 105755 1 0 0 0 1234.5678 " + object(large[:65]) + ` user.a= user.b=2\x00`,
		fmt.Sprintf("/disk 0 60600 1 0 0 %d 1234.5678 - - -", unix.Mkdev(259, 70000)),
		"/empty 0 100644 1 0 0 0 1234.5678 - - -",
		"/fifo 0 10600 1 0 0 0 1234.5678 - - -",
		"/hard 5000 100644 2 0 0 0 1234.5678 " + object(large),
		"/hard-link 11 120777 2 7 70000 0 1234.5678 /etc/passwd - - trusted.c=" + strings.Repeat("v", 300),
		"/link 0 @120000 - - - - 0.0 /hard-link - -",
		fmt.Sprintf("/null 0 20644 1 0 0 %d 1234.5678 - - -", unix.Mkdev(1, 3)),
		"/socket 0 140600 1 0 0 0 1234.5678 - - -",
		"/sub 0 40755 2 0 0 0 1234.5678 - - -",
		"/sub/hard 0 @120000 - - - - 0.0 /64 - -",
		"/sub/large 0 @120000 - - - - 0.0 /hard - -",
		"/wh 0 20600 1 0 0 0 1234.5678 - - -",
	}
	got, err := read(t, root, scan.Options{})
	must(t, err)
	if diff := cmp.Diff(strings.Join(want, "\n")+"\n", dump(t, got)); diff != "" {
		t.Errorf("tree differs (-want +got):\n%s", diff)
	}
	for _, name := range []string{"sub/large", "64", "empty"} {
		n, err := got.Root.Lookup(name)
		must(t, err)
		f, err := got.Open(n)
		must(t, err)
		content := make([]byte, n.Size+1)
		size, _ := f.ReadAt(content, 0)
		must(t, f.Close())
		if want, err := os.ReadFile(filepath.Join(root, name)); err != nil || !bytes.Equal(content[:size], want) {
			t.Errorf("%s has other content in the tree: %v", name, err)
		}
	}
	if _, err := got.Open(&tree.Node{Kind: tree.Regular, Object: fsverity.Sum(fsverity.SHA256, large)}); err == nil {
		t.Error("a node of another tree was opened")
	}

	split, err := read(t, root, scan.Options{SplitHardLinks: true})
	must(t, err)
	if text := dump(t, split); strings.Contains(text, "@") || !strings.Contains(text, "/sub/large 5000 100644 1 0 0 0 1234.5678 "+object(large)+"\n") {
		t.Errorf("hard links were not split:\n%s", text)
	}
}

func TestReadStaysInside(t *testing.T) {
	outside, root := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "secret"), bytes.Repeat([]byte("s"), 100), 0o600))
	must(t, os.Symlink(outside, filepath.Join(root, "dir")))
	must(t, os.WriteFile(filepath.Join(root, "file"), bytes.Repeat([]byte("f"), 100), 0o600))
	got, err := read(t, root, scan.Options{})
	must(t, err)
	if n := got.Root.Entry("dir"); n.Kind != tree.Symlink || n.Target != outside {
		t.Errorf("a link to a directory is %+v", n)
	}
	// A file that was replaced by a link since is not opened.
	must(t, os.Remove(filepath.Join(root, "file")))
	must(t, os.Symlink(filepath.Join(outside, "secret"), filepath.Join(root, "file")))
	if f, err := got.Open(got.Root.Entry("file")); !errors.Is(err, unix.ELOOP) {
		t.Errorf("open a file that became a link: %v, %v", f, err)
	}
}

func TestReadFails(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := read(t, file, scan.Options{}); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("read a file: %v", err)
	}
	// Files of this one have a size of 4096 bytes and less to read.
	if _, err := read(t, "/sys/kernel/mm", scan.Options{}); err == nil || !strings.Contains(err.Error(), "its size changed") {
		t.Errorf("read files of a wrong size: %v", err)
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	dir, err := os.Open(filepath.Dir(file))
	must(t, err)
	defer dir.Close()
	if _, err := scan.Read(ctx, dir, scan.Options{Algorithm: fsverity.SHA256}); !errors.Is(err, cause) {
		t.Errorf("read after the end: %v", err)
	}
	testReadDeep(t)
}

// testReadDeep has a tree that is one directory too deep.
func testReadDeep(t *testing.T) {
	root := t.TempDir()
	open := func(dir int, name string) int {
		t.Helper()
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		unix.Close(dir)
		return fd
	}
	fd := open(-1, root)
	for range tree.MaxDepth {
		must(t, unix.Mkdirat(fd, "d", 0o755))
		fd = open(fd, "d")
	}
	if _, err := read(t, root, scan.Options{}); err == nil || !strings.Contains(err.Error(), "below each other") && !errors.Is(err, unix.EMFILE) {
		t.Errorf("read a deep tree: %v", err)
	}
	for range tree.MaxDepth { // os.RemoveAll takes seconds
		fd = open(fd, "..")
		must(t, unix.Unlinkat(fd, "d", unix.AT_REMOVEDIR))
	}
	unix.Close(fd)
}
