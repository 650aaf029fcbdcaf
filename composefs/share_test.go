// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/loopfs"
)

// randomBytes are n bytes that no file system compresses.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// donorFile is a file of another store, open for reading.
func donorFile(tb testing.TB, path string, content []byte) *os.File {
	tb.Helper()
	must(tb, os.WriteFile(path, content, 0o640))
	f := check(os.Open(path))(tb)
	tb.Cleanup(func() { f.Close() })
	return f
}

// used is the number of bytes in use on the file system of dir.
func used(tb testing.TB, dir string) int64 {
	tb.Helper()
	f := check(os.Open(dir))(tb)
	defer f.Close()
	must(tb, unix.Syncfs(int(f.Fd())))
	var st unix.Statfs_t
	must(tb, unix.Statfs(dir, &st))
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

func TestCloneFile(t *testing.T) {
	for _, kind := range []loopfs.Kind{loopfs.XFS, loopfs.Btrfs} {
		t.Run(string(kind), func(t *testing.T) {
			t.Setenv("TMPDIR", loopfs.MountSize(t, kind, 1<<30))
			for name, newRepo := range map[string]func(testing.TB) *Repo{"insecure": insecureRepo, "secure": secureRepo} {
				t.Run(name, func(t *testing.T) { testCloneFile(t, newRepo(t)) })
			}
		})
	}
}

func testCloneFile(t *testing.T, r *Repo) {
	content := randomBytes(32<<20 + 17)
	id := fsverity.Sum(r.Algorithm(), content)
	path := filepath.Join(t.TempDir(), "donor")
	f := donorFile(t, path, content)
	before := used(t, path)

	if r.Enforcing() {
		if _, err := r.CloneFile(f, fsverity.Sum(r.Algorithm(), []byte("other")), int64(len(content))); !errors.Is(err, ErrIntegrity) {
			t.Errorf("wrong digest: %v", err)
		}
	}
	if _, err := r.CloneFile(f, id, int64(len(content))-1); !errors.Is(err, ErrIntegrity) {
		t.Errorf("wrong size: %v", err)
	}
	for _, want := range []Outcome{Reflinked, Present} {
		if o, err := r.CloneFile(f, id, int64(len(content))); o != want || err != nil {
			t.Errorf("clone: %s, %v; want %s", o, err, want)
		}
	}
	if readObject(t, r, id) != string(content) {
		t.Error("the object has other bytes")
	}
	if grown := used(t, path) - before; grown > 4<<20 {
		t.Errorf("the clone takes %d bytes", grown)
	}
	// The object stays as it is when the file changes.
	must(t, os.WriteFile(path, bytes.Repeat([]byte("x"), 1000), 0o640))
	if readObject(t, r, id) != string(content) {
		t.Error("the object changed with the file")
	}
	if got := files(t, r.Path()); len(got) != 2 {
		t.Errorf("files %v", got)
	}
}

func TestCloneFileUnsupported(t *testing.T) {
	content := []byte("a file of another store")
	ext4, xfs := loopfs.MountSize(t, loopfs.Ext4, 64<<20), loopfs.MountSize(t, loopfs.XFS, 300<<20)
	for name, on := range map[string]struct{ donor, repo string }{
		"no reflinks":       {ext4, ext4},
		"other file system": {ext4, xfs},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("TMPDIR", on.repo)
			r := insecureRepo(t)
			f := donorFile(t, filepath.Join(on.donor, t.Name()[len("TestCloneFileUnsupported/"):]), content)
			_, err := r.CloneFile(f, fsverity.Sum(r.Algorithm(), content), int64(len(content)))
			e, ok := errors.AsType[*ShareError](err)
			if !ok || e.Method != Reflinked || !e.Everywhere {
				t.Errorf("error %#v", err)
			}
			if got := files(t, r.Path()); len(got) != 1 {
				t.Errorf("files %v", got)
			}
		})
	}
}

func TestShareErrors(t *testing.T) {
	for _, c := range []struct {
		err        error
		convert    func(error) error
		share      bool
		everywhere bool
	}{
		{unix.EXDEV, cloneError, true, true},
		{unix.EOPNOTSUPP, cloneError, true, true},
		{unix.ENOTTY, cloneError, true, true},
		{unix.EINVAL, cloneError, true, false},
		{unix.ENOSPC, cloneError, false, false},
		{unix.EIO, cloneError, false, false},
		{unix.EXDEV, linkError, true, true},
		{unix.EMLINK, linkError, true, false},
		{unix.EPERM, linkError, true, false},
		{fsverity.ErrOtherAlgorithm, linkError, true, false},
		{unix.ENOSPC, linkError, false, false},
		{ErrIntegrity, linkError, false, false},
	} {
		err := c.convert(c.err)
		if !errors.Is(err, c.err) {
			t.Errorf("%v became %v", c.err, err)
		}
		e, ok := errors.AsType[*ShareError](err)
		if ok != c.share || ok && e.Everywhere != c.everywhere {
			t.Errorf("%v: %#v", c.err, err)
		}
	}
}
