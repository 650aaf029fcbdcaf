// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package rooted opens files below a directory that stay below it, whatever
// their names and the links on the way say.
//
// Names come out of images and other people's stores. The kernel resolves
// them: a check of the name followed by an ordinary open would leave a moment
// in which a link can be put into the way.
package rooted

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Rules of a look-up. A link of /proc is never followed.
const (
	// Beneath follows links as long as they stay below the directory. One
	// that is absolute or leads out is an error (EXDEV).
	Beneath = unix.RESOLVE_BENEATH
	// InRoot takes the directory for "/", as chroot does, so that no link
	// leads out.
	InRoot = unix.RESOLVE_IN_ROOT
	// NoLinks refuses every link on the way (ELOOP).
	NoLinks = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS
	// OneMount, added to one of the others, refuses to cross a mount point
	// (EXDEV).
	OneMount = unix.RESOLVE_NO_XDEV
)

const (
	// maxRetries bounds how often a look-up starts again because something
	// was renamed meanwhile anywhere on the system: then the kernel cannot
	// promise that it stayed inside.
	maxRetries = 1000
	// maxPath is the longest path in bytes that the kernel takes, less the
	// NUL.
	maxPath = unix.PathMax - 1
)

// Open opens path below the directory dir and returns the descriptor.
// O_CLOEXEC is implied. The error is an errno.
func Open(dir int, path string, flags int, mode uint32, rules uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Mode:    uint64(mode),
		Resolve: rules | unix.RESOLVE_NO_MAGICLINKS,
	}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(dir, path, &how)
		switch {
		case err == nil:
			return fd, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN) && try < maxRetries:
			runtime.Gosched()
			continue
		case errors.Is(err, unix.ENOSYS):
			return -1, fmt.Errorf("openat2 is missing, Linux 5.6 or newer is needed: %w", err)
		}
		return -1, err
	}
}

// OpenLong is Open for paths that may be longer than the kernel takes at once.
// With InRoot, links in such a path are resolved as if the part of it that was
// opened first were the root, so it is for NoLinks only.
func OpenLong(dir int, path string, flags int, mode uint32, rules uint64) (int, error) {
	if len(path) <= maxPath {
		return Open(dir, path, flags, mode, rules)
	}
	if rules&unix.RESOLVE_NO_SYMLINKS == 0 {
		return -1, unix.ENAMETOOLONG
	}
	at := dir
	defer func() {
		if at != dir {
			unix.Close(at)
		}
	}()
	for len(path) > maxPath {
		cut := strings.LastIndexByte(path[:maxPath], '/')
		if cut <= 0 {
			return -1, unix.ENAMETOOLONG
		}
		next, err := Open(at, path[:cut], unix.O_PATH|unix.O_DIRECTORY, 0, rules)
		if err != nil {
			return -1, err
		}
		if at != dir {
			unix.Close(at)
		}
		at, path = next, strings.TrimLeft(path[cut:], "/")
	}
	return Open(at, path, flags, mode, rules)
}

// OpenFile opens path inside the directory root for reading, whatever it is,
// with links resolved by the rules of InRoot. What is absent is fs.ErrNotExist,
// also when a directory above it is absent or is something else.
func OpenFile(root, path string) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	name := join(root, path)
	// A FIFO must not block us, nor a terminal become ours.
	fd, err := Open(dir, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0, InRoot)
	if errors.Is(err, unix.ENOTDIR) {
		err = unix.ENOENT
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// ReadFile reads the regular file that OpenFile opens. A file larger than
// limit bytes is an error.
func ReadFile(root, path string, limit int64) ([]byte, error) {
	f, err := OpenFile(root, path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ReadRegular(f, limit)
}

// ReadRegular reads f, which must be a regular file of at most limit bytes, to
// its end.
func ReadRegular(f *os.File, limit int64) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: f.Name(), Err: errors.New("not a regular file")}
	}
	if info.Size() > limit {
		return nil, TooLarge(f.Name(), limit)
	}
	return ReadLimited(f, f.Name(), limit)
}

// ReadLimited reads r to its end and fails when there are more than limit
// bytes. The name is for errors.
func ReadLimited(r io.Reader, name string, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, TooLarge(name, limit)
	}
	return data, nil
}

// TooLarge is the error for a file that is larger than limit bytes.
func TooLarge(name string, limit int64) error {
	return fmt.Errorf("read %s: larger than the limit of %d bytes", name, limit)
}

// join is root/path without doubled slashes and without cleaning: the names
// are for messages.
func join(root, path string) string {
	return strings.TrimRight(root, "/") + "/" + strings.TrimLeft(path, "/")
}
