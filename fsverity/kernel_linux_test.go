// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fsverity

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestErrorMapping pins the table of the package comment. A kernel with
// fs-verity is tried in internal/microvm.
func TestErrorMapping(t *testing.T) {
	t.Parallel()
	regular := tempFile(t, []byte("x"))
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	all := []error{ErrNotSupported, ErrNotEnabled, ErrAlreadyEnabled, ErrBusy, ErrOtherAlgorithm}

	for _, test := range []struct {
		call  string
		got   error
		errno unix.Errno
		want  error // nil: none of ours
	}{
		{"enable", enableError(regular, unix.ENOTTY), unix.ENOTTY, ErrNotSupported},
		{"enable", enableError(regular, unix.EOPNOTSUPP), unix.EOPNOTSUPP, ErrNotSupported},
		{"enable", enableError(regular, unix.ENOPKG), unix.ENOPKG, ErrNotSupported},
		{"enable", enableError(regular, unix.EINVAL), unix.EINVAL, ErrNotSupported},
		{"enable of a directory", enableError(dir, unix.EINVAL), unix.EINVAL, nil},
		{"enable", enableError(regular, unix.EEXIST), unix.EEXIST, ErrAlreadyEnabled},
		{"enable", enableError(regular, unix.ETXTBSY), unix.ETXTBSY, ErrBusy},
		{"enable", enableError(regular, unix.EBUSY), unix.EBUSY, ErrBusy},
		{"enable", enableError(regular, unix.EIO), unix.EIO, nil},
		{"measure", measureError(regular, unix.ENODATA), unix.ENODATA, ErrNotEnabled},
		{"measure", measureError(regular, unix.ENOTTY), unix.ENOTTY, ErrNotSupported},
		{"measure", measureError(regular, unix.EOPNOTSUPP), unix.EOPNOTSUPP, ErrNotSupported},
		{"measure", measureError(regular, unix.EOVERFLOW), unix.EOVERFLOW, ErrOtherAlgorithm},
		{"measure", measureError(regular, unix.EIO), unix.EIO, nil},
	} {
		if !errors.Is(test.got, test.errno) {
			t.Errorf("%s with %v: error %q does not wrap the errno", test.call, test.errno, test.got)
		}
		for _, kind := range all {
			if got, want := errors.Is(test.got, kind), kind == test.want; got != want {
				t.Errorf("%s with %v: errors.Is(%q, %q) = %v", test.call, test.errno, test.got, kind, got)
			}
		}
	}
}

// TestWithoutVerity runs the real calls on a file system that has no fs-verity,
// whatever the kernel.
func TestWithoutVerity(t *testing.T) {
	t.Parallel()
	const tmpfs = "/dev/shm"
	var stat unix.Statfs_t
	if err := unix.Statfs(tmpfs, &stat); err != nil || stat.Type != unix.TMPFS_MAGIC {
		t.Skipf("%s is not a tmpfs: mount one there", tmpfs)
	}
	path, err := os.MkdirTemp(tmpfs, "fsverity-test-")
	if err != nil {
		t.Skipf("cannot write to %s: %v", tmpfs, err)
	}
	defer os.RemoveAll(path)
	name := filepath.Join(path, "file")
	if err := os.WriteFile(name, []byte("hello world"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()

	if err := Enable(f, SHA512); !errors.Is(err, ErrNotSupported) {
		t.Errorf("Enable = %v, want %v", err, ErrNotSupported)
	}
	if d, err := Measure(f, SHA512); !errors.Is(err, ErrNotSupported) || !d.IsZero() {
		t.Errorf("Measure = %s, %v, want %v", d, err, ErrNotSupported)
	}
	if err := Probe(dir, SHA512); !errors.Is(err, ErrNotSupported) {
		t.Errorf("Probe = %v, want %v", err, ErrNotSupported)
	}
	left, err := os.ReadDir(path)
	if err != nil || len(left) != 1 {
		t.Errorf("after Probe the directory has %v, %v, want the file alone", left, err)
	}
}

func TestKernelCallErrors(t *testing.T) {
	t.Parallel()
	f := tempFile(t, nil)
	if err := Enable(f, 0); !errors.Is(err, ErrNotSupported) {
		t.Errorf("Enable with algorithm 0 = %v, want %v", err, ErrNotSupported)
	}
	f.Close()
	if err := Enable(f, SHA512); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Enable of a closed file = %v, want %v", err, os.ErrClosed)
	}
	if _, err := Measure(f, SHA512); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Measure of a closed file = %v, want %v", err, os.ErrClosed)
	}
	if err := Probe(f, SHA512); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Probe in a closed directory = %v, want %v", err, os.ErrClosed)
	}
	notDir := tempFile(t, nil)
	if err := Probe(notDir, SHA512); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("Probe in a file = %v, want %v", err, unix.ENOTDIR)
	}
}

func TestOpenUnnamed(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	f, err := probeFile(dir, []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, 20)
	n, _ := f.ReadAt(got, 0)
	if string(got[:n]) != "content" {
		t.Errorf("probe file holds %q, want %q", got[:n], "content")
	}
	if _, err := f.Write([]byte("x")); err == nil {
		t.Error("probe file can be written")
	}
	if left, err := os.ReadDir(path); err != nil || len(left) != 0 {
		t.Errorf("directory has %v, %v, want nothing", left, err)
	}
}

func ExampleSum() {
	fmt.Println(Sum(SHA256, []byte("hello world")))
	// Output: 1e2eaa4202d750a41174ee454970b92c1bc2f925b1e35076d8c7d5f56362ba64
}
