// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

func TestMain(m *testing.M) {
	unix.Umask(0o022) // some tests look at modes
	os.Exit(m.Run())
}

// needKernel is an environment variable; where it is set the kernel must have
// fs-verity and there is no stand-in.
const needKernel = "CFS_PULL_REQUIRE_VERITY"

// testVerity is the kernel's fs-verity where the directory for temporary files
// has it, and otherwise a stand-in.
func testVerity(tb testing.TB) verity {
	tb.Helper()
	dir := check(os.Open(tb.TempDir()))(tb)
	defer dir.Close()
	err := fsverity.Probe(dir, fsverity.SHA512)
	if err == nil {
		return kernelVerity()
	}
	if os.Getenv(needKernel) != "" {
		tb.Fatalf("%s is set: %v", needKernel, err)
	}
	return xattrVerity(tb)
}

// xattrVerity stands in for the kernel: it keeps the digest in an extended
// attribute, and like the kernel refuses files that are open for writing. It
// skips the test on file systems without such attributes.
func xattrVerity(tb testing.TB) verity {
	tb.Helper()
	const name = "user.test.verity"
	probe := filepath.Join(tb.TempDir(), "probe")
	must(tb, os.WriteFile(probe, nil, 0o600))
	if err := unix.Setxattr(probe, name, []byte{0}, 0); err != nil {
		tb.Skipf("the directory for temporary files has no user attributes (%v): set TMPDIR", err)
	}
	measure := func(f *os.File, alg fsverity.Algorithm) (fsverity.Digest, error) {
		b := make([]byte, 100)
		n, err := unix.Fgetxattr(int(f.Fd()), name, b)
		if errors.Is(err, unix.ENODATA) {
			return fsverity.Digest{}, fsverity.ErrNotEnabled
		}
		if err != nil {
			return fsverity.Digest{}, err
		}
		if n != alg.Size() {
			return fsverity.Digest{}, fsverity.ErrOtherAlgorithm
		}
		return fsverity.DigestFromBytes(alg, b[:n])
	}
	return verity{
		measure: measure,
		probe:   func(*os.File, fsverity.Algorithm) error { return nil },
		enable: func(f *os.File, alg fsverity.Algorithm) error {
			fd := int(f.Fd())
			// A read lease is only granted when no one has the file open
			// for writing.
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
				return errors.Join(fsverity.ErrBusy, err)
			}
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
				return err
			}
			if _, err := measure(f, alg); err == nil {
				return fsverity.ErrAlreadyEnabled
			}
			id, _, err := fsverity.SumFile(alg, f)
			if err != nil {
				return err
			}
			return unix.Fsetxattr(fd, name, id.Bytes(), 0)
		},
	}
}

// noVerity is a kernel or file system without fs-verity.
func noVerity() verity {
	return verity{
		enable: func(*os.File, fsverity.Algorithm) error { return fsverity.ErrNotSupported },
		measure: func(*os.File, fsverity.Algorithm) (fsverity.Digest, error) {
			return fsverity.Digest{}, fsverity.ErrNotSupported
		},
		probe: func(*os.File, fsverity.Algorithm) error { return fsverity.ErrNotSupported },
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func check[T any](v T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		must(tb, err)
		return v
	}
}

// newRepoPath creates a repository for the kernel v.
func newRepoPath(tb testing.TB, v verity, o InitOptions) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "repo")
	if created := check(create(tb.Context(), path, o, v))(tb); !created {
		tb.Fatal("the repository was there")
	}
	return path
}

// openRepo opens a repository and closes it at the end, when nothing of it may
// be in use.
func openRepo(tb testing.TB, path string, v verity, o OpenOptions) *Repo {
	tb.Helper()
	r := check(open(tb.Context(), path, o, v))(tb)
	tb.Cleanup(func() {
		if err := r.Close(); err != nil {
			tb.Error(err)
		}
	})
	return r
}

// insecureRepo is a new repository that does without fs-verity.
func insecureRepo(tb testing.TB) *Repo {
	tb.Helper()
	return openRepo(tb, newRepoPath(tb, noVerity(), InitOptions{AllowMissingVerity: true}), noVerity(), OpenOptions{})
}

// secureRepo is a new repository that requires it.
func secureRepo(tb testing.TB) *Repo {
	tb.Helper()
	v := testVerity(tb)
	return openRepo(tb, newRepoPath(tb, v, InitOptions{}), v, OpenOptions{})
}

// files lists all names in a repository, directories apart, so that nothing is
// left behind unnoticed.
func files(tb testing.TB, root string) []string {
	tb.Helper()
	var out []string
	must(tb, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, strings.TrimPrefix(path, root+"/"))
		}
		return err
	}))
	slices.Sort(out)
	return out
}

func objectPath(r *Repo, id fsverity.Digest) string {
	return filepath.Join(r.Path(), "objects", id.ObjectPath())
}

func readObject(tb testing.TB, r *Repo, id fsverity.Digest) string {
	tb.Helper()
	f := check(r.OpenObject(id))(tb)
	defer f.Close()
	b, err := os.ReadFile(f.Name())
	must(tb, err)
	return string(b)
}
