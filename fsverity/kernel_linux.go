// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fsverity

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// busyAttempts and busyDelay bound how long Enable waits for a file that
	// is open for writing: the delay doubles, 255 ms in all. A child between
	// fork and exec, the usual holder, is gone after less.
	busyAttempts = 9
	busyDelay    = time.Millisecond
)

// Enable makes f an fs-verity file: from then on its content cannot change and
// the kernel checks what is read. f is a regular file, opened read-only; no
// writable descriptor of it may be left in any process. The errors are those
// of the package comment.
func Enable(f *os.File, alg Algorithm) error {
	if !alg.Valid() {
		return fmt.Errorf("enable fs-verity on %s: algorithm %s: %w", f.Name(), alg, ErrNotSupported)
	}
	delay := busyDelay
	for attempt := 1; ; attempt++ {
		err := ioctlEnable(f, alg)
		if err == nil {
			return nil
		}
		busy := errors.Is(err, unix.ETXTBSY) || errors.Is(err, unix.EBUSY)
		if !busy || attempt == busyAttempts {
			return enableError(f, err)
		}
		time.Sleep(delay)
		delay *= 2
	}
}

func enableError(f *os.File, err error) error {
	var kind error
	switch {
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOPKG):
		kind = ErrNotSupported
	case errors.Is(err, unix.EEXIST):
		kind = ErrAlreadyEnabled
	case errors.Is(err, unix.ETXTBSY), errors.Is(err, unix.EBUSY):
		kind = ErrBusy
	case errors.Is(err, unix.EINVAL) && isRegular(f):
		// The other arguments are constants that every kernel takes, so
		// what it refuses is the algorithm or the block size.
		kind = fmt.Errorf("%w with 4096-byte blocks", ErrNotSupported)
	default:
		return fmt.Errorf("enable fs-verity on %s: %w", f.Name(), err)
	}
	return fmt.Errorf("enable fs-verity on %s: %w: %w", f.Name(), kind, err)
}

func isRegular(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode().IsRegular()
}

// Measure is the digest that the kernel enforces for f. It reads nothing of
// the content. The errors are those of the package comment.
func Measure(f *os.File, alg Algorithm) (Digest, error) {
	number, sum, err := ioctlMeasure(f)
	if err != nil {
		return Digest{}, measureError(f, err)
	}
	if number != uint16(alg) || len(sum) != alg.Size() {
		return Digest{}, fmt.Errorf("measure fs-verity of %s: %w: number %d with %d bytes, want %s",
			f.Name(), ErrOtherAlgorithm, number, len(sum), alg)
	}
	return DigestFromBytes(alg, sum)
}

func measureError(f *os.File, err error) error {
	var kind error
	switch {
	case errors.Is(err, unix.ENODATA):
		kind = ErrNotEnabled
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EOPNOTSUPP):
		kind = ErrNotSupported
	case errors.Is(err, unix.EOVERFLOW):
		kind = ErrOtherAlgorithm
	default:
		return fmt.Errorf("measure fs-verity of %s: %w", f.Name(), err)
	}
	return fmt.Errorf("measure fs-verity of %s: %w: %w", f.Name(), kind, err)
}

// Probe tries fs-verity on a file of its own in dir, which leaves no name
// behind. It returns nil where Enable and Measure work and give the digest that
// [Sum] gives, and an error that is [ErrNotSupported] where the file system
// cannot.
func Probe(dir *os.File, alg Algorithm) error {
	content := []byte("fs-verity probe\n")
	f, err := probeFile(dir, content)
	if err != nil {
		return fmt.Errorf("probe fs-verity in %s: %w", dir.Name(), err)
	}
	defer f.Close() // read-only
	if err := Enable(f, alg); err != nil {
		return fmt.Errorf("probe %s: %w", dir.Name(), err)
	}
	got, err := Measure(f, alg)
	if err != nil {
		return fmt.Errorf("probe %s: %w", dir.Name(), err)
	}
	if want := Sum(alg, content); got != want {
		return fmt.Errorf("probe fs-verity in %s: the kernel measures %s, want %s", dir.Name(), got, want)
	}
	return nil
}

// probeFile is an unnamed file in dir that holds content, opened read-only.
func probeFile(dir *os.File, content []byte) (*os.File, error) {
	// A child forked while the writable descriptor is open would make Enable
	// wait for its exec.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()

	w, err := openUnnamed(dir)
	if err != nil {
		return nil, err
	}
	defer w.Close() // nothing depends on what a failed close would lose
	if _, err := w.Write(content); err != nil {
		return nil, fmt.Errorf("write probe file: %w", err)
	}
	r, err := os.Open("/proc/self/fd/" + strconv.Itoa(int(w.Fd())))
	if err != nil {
		return nil, fmt.Errorf("reopen probe file: %w", err)
	}
	return r, nil
}

// openUnnamed opens a new file without a name in dir for reading and writing.
func openUnnamed(dir *os.File) (*os.File, error) {
	fd, err := openat(dir, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC)
	if err == nil {
		return os.NewFile(uintptr(fd), "unnamed file in "+dir.Name()), nil
	}
	// EISDIR and ENOENT come from kernels that do not know O_TMPFILE.
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("create probe file: %w", err)
	}
	name := ".tmp-verity-probe-" + rand.Text()
	fd, err = openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW)
	if err != nil {
		return nil, fmt.Errorf("create probe file: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := unlinkat(dir, name); err != nil {
		f.Close()
		return nil, fmt.Errorf("unlink probe file: %w", err)
	}
	return f, nil
}

func openat(dir *os.File, name string, flags int) (int, error) {
	conn, err := dir.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, operr := -1, error(unix.EINTR)
	err = conn.Control(func(dirfd uintptr) {
		for operr == unix.EINTR {
			fd, operr = unix.Openat(int(dirfd), name, flags, 0o600)
		}
	})
	if err != nil {
		return -1, os.ErrClosed // the only reason for which Control does not call
	}
	return fd, operr
}

func unlinkat(dir *os.File, name string) error {
	conn, err := dir.SyscallConn()
	if err != nil {
		return err
	}
	var operr error
	err = conn.Control(func(dirfd uintptr) {
		operr = unix.Unlinkat(int(dirfd), name, 0)
	})
	if err != nil {
		return os.ErrClosed
	}
	return operr
}
