// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// readBelow reads the regular file at path inside root. Symbolic links,
// relative and absolute, are resolved as if root were "/", so none leads out.
// An absent file is fs.ErrNotExist, also when a directory above it is absent;
// a file larger than limit bytes is an error.
func readBelow(root, path string, limit int64) ([]byte, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	how := unix.OpenHow{
		// A FIFO must not block us, nor a terminal become ours.
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	var fd int
	for range 16 {
		fd, err = unix.Openat2(dir, path, &how)
		// EAGAIN: something was renamed during the walk, so the kernel cannot
		// promise that it stayed inside.
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if errors.Is(err, unix.ENOTDIR) {
		err = unix.ENOENT
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: joinRoot(root, path), Err: err}
	}
	f := os.NewFile(uintptr(fd), joinRoot(root, path))
	defer f.Close()
	return readRegular(f, limit)
}

// readFile reads the regular file at path, at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	f, _, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readRegular(f, limit)
}

// openRegular opens path for reading if it is a regular file, and returns its
// size. Links are followed: the caller's user named the place.
func openRegular(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

func readRegular(f *os.File, limit int64) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: f.Name(), Err: errors.New("not a regular file")}
	}
	if info.Size() > limit {
		return nil, tooLarge(f.Name(), limit)
	}
	return readLimited(f, f.Name(), limit)
}

// readLimited reads r to its end and fails as soon as it exceeds limit bytes.
func readLimited(r io.Reader, name string, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, tooLarge(name, limit)
	}
	return data, nil
}

func tooLarge(name string, limit int64) error {
	return fmt.Errorf("read %s: larger than the limit of %d bytes", name, limit)
}

func joinRoot(root, path string) string {
	if root == "/" || root == "" {
		return "/" + path
	}
	return root + "/" + path
}
