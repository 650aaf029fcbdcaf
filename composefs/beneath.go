// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/rooted"
)

const (
	// maxName is the longest name of a directory entry, in bytes.
	maxName = 255

	// maxRefDepth bounds the components of a ref's name.
	maxRefDepth = 32

	// maxTarget is the longest link target that is read, in bytes.
	maxTarget = 4096

	dirMode  = 0o755
	fileMode = 0o644
)

// openBeneath opens path below dirfd. Links are followed as long as they stay
// below it; a link that leads out, or one of /proc's, is an error. O_CLOEXEC is
// implied. The error is an errno.
func openBeneath(dirfd int, path string, flags int, mode uint32) (int, error) {
	return rooted.Open(dirfd, path, flags, mode, rooted.Beneath)
}

// retry calls f until no signal interrupts it.
func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// pathError gives an errno the name of what it happened to. errors.Is with
// [fs.ErrNotExist] and the like works on the result.
func (r *Repo) pathError(op, path string, err error) error {
	return &fs.PathError{Op: op, Path: r.path + "/" + path, Err: err}
}

// openDir opens a directory of the repository for *at calls.
func (r *Repo) openDir(path string) (int, error) {
	fd, err := openBeneath(r.rootfd(), path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, r.pathError("open", path, err)
	}
	return fd, nil
}

// makeDirs opens a directory of the repository and creates it, and what lies
// above it, where it is missing.
func (r *Repo) makeDirs(path string) (int, error) {
	fd, err := r.openDir(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return fd, err
	}
	parent, name := ".", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		parent, name = path[:i], path[i+1:]
	}
	up := r.rootfd()
	if parent != "." {
		if up, err = r.makeDirs(parent); err != nil {
			return -1, err
		}
		defer unix.Close(up)
	}
	err = unix.Mkdirat(up, name, dirMode)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, r.pathError("mkdir", path, err)
	}
	r.touch(parent)
	return r.openDir(path)
}

// readlinkat reads a link; EINVAL means that it is something else.
func readlinkat(dirfd int, name string) (string, error) {
	buf := make([]byte, maxTarget)
	n, err := unix.Readlinkat(dirfd, name, buf)
	if err != nil {
		return "", err
	}
	if n == len(buf) {
		return "", unix.ENAMETOOLONG
	}
	return string(buf[:n]), nil
}

// randomLength is how many random letters and digits end temporary names.
const randomLength = 12

// randomName is prefix and random letters and digits.
func randomName(prefix string) string { return prefix + rand.Text()[:randomLength] }

// checkName says whether name can be an entry of streams/ or images/, or a
// component of a ref.
func checkName(name string) error {
	switch {
	case name == "", name == ".", name == "..":
		return fmt.Errorf("%w %q", ErrBadName, name)
	case len(name) > maxName:
		return fmt.Errorf("%w: %.60q… has %d bytes, more than %d", ErrBadName, name, len(name), maxName)
	case strings.ContainsAny(name, "/\x00"), !utf8.ValidString(name):
		return fmt.Errorf("%w %q: it has a slash or a NUL, or is not UTF-8", ErrBadName, name)
	}
	return nil
}

// checkEntry is checkName for first-level names, where "refs" is taken.
func checkEntry(name string) error {
	if name == "refs" {
		return fmt.Errorf("%w %q: it is reserved", ErrBadName, name)
	}
	return checkName(name)
}

// checkRef checks the name of a ref, whose components are separated by slashes,
// and returns their number.
func checkRef(ref string) (int, error) {
	parts := strings.Split(ref, "/")
	if len(parts) > maxRefDepth {
		return 0, fmt.Errorf("%w: %.60q… has more than %d components", ErrBadName, ref, maxRefDepth)
	}
	for _, p := range parts {
		if err := checkName(p); err != nil {
			return 0, fmt.Errorf("ref %.300q: %w", ref, err)
		}
	}
	return len(parts), nil
}
