// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// ShareError reports that an object cannot share the bytes of a file by one
// method, although nothing is wrong with file or repository. Another method
// may work.
type ShareError struct {
	Method Outcome // Reflinked or Hardlinked
	// Everywhere tells that the method fails for all files of the two file
	// systems, or for all that this process can do; otherwise only this file
	// is known to be the matter.
	Everywhere bool
	Err        error
}

func (e *ShareError) Error() string { return shareVerb[e.Method] + ": " + e.Err.Error() }

// Unwrap returns the system's error.
func (e *ShareError) Unwrap() error { return e.Err }

var shareVerb = map[Outcome]string{Reflinked: "reflink (FICLONE)", Hardlinked: "hard link (linkat)"}

// CloneFile makes an object that shares the extents of a file elsewhere on the
// same file system, whose size bytes have the digest id. f is open for reading.
// With fs-verity the kernel confirms the digest, and a wrong one is
// [ErrIntegrity]; without, the caller is trusted, also that nobody writes to f
// meanwhile. The outcome is Reflinked, or Present when the object is there
// already: then nothing was cloned. Where the file systems cannot do it the
// error is a [*ShareError].
func (r *Repo) CloneFile(f *os.File, id fsverity.Digest, size int64) (Outcome, error) {
	if err := r.enterWrite(); err != nil {
		return 0, err
	}
	defer r.leave()
	ok, err := r.canAdopt(id, f, size)
	if err != nil {
		return 0, err
	}
	if ok {
		return Present, nil
	}
	return r.cloneFile(f, id, size, nil)
}

// cloneFile is CloneFile for an object that is not there. The object gets its
// name only if check, which may be nil, finds nothing wrong when f has been
// cloned.
func (r *Repo) cloneFile(f *os.File, id fsverity.Digest, size int64, check func() error) (Outcome, error) {
	o, err := r.fill(id, size, func(fd int) error {
		if err := cloneWhole(fd, f, size); err != nil || check == nil {
			return err
		}
		return check()
	})
	if err != nil {
		return 0, fmt.Errorf("clone %s as object %s: %w", f.Name(), id, err)
	}
	if o == Stored {
		o = Reflinked
	}
	return o, nil
}

// cloneWhole makes an empty file a clone of f, which has size bytes.
func cloneWhole(fd int, f *os.File, size int64) error {
	if err := retry(func() error { return unix.IoctlFileClone(fd, int(f.Fd())) }); err != nil {
		return cloneError(err)
	}
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return fmt.Errorf("stat clone: %w", err)
	}
	if st.Size != size {
		return fmt.Errorf("%w: its clone has %d bytes, not %d", ErrIntegrity, st.Size, size)
	}
	return nil
}

// cloneError tells what only another method cures from failures.
func cloneError(err error) error {
	switch {
	case errors.Is(err, unix.EXDEV), // two file systems, or two mounts for an old kernel
		errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.ENOSYS):
		return &ShareError{Method: Reflinked, Everywhere: true, Err: err}
	case errors.Is(err, unix.EINVAL), // btrfs: one of the two has no checksums
		errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.ETXTBSY), errors.Is(err, unix.EMLINK):
		return &ShareError{Method: Reflinked, Err: err}
	}
	return fmt.Errorf("reflink: %w", err)
}

// LinkFile makes an object of a file elsewhere on the same file system, which
// holds the bytes of digest id: both are the same file from then on. f is open
// for reading only. Where there is fs-verity it is enabled on the file, which
// can never be written to again, and the kernel confirms the digest; without,
// the caller is trusted, also that nobody writes to the file. The outcome is
// Hardlinked or Present. On another file system, without the privilege to link
// the file, or where the file has fs-verity with another algorithm, the error
// is a [*ShareError].
func (r *Repo) LinkFile(f *os.File, id fsverity.Digest) (Outcome, error) {
	if err := r.enterWrite(); err != nil {
		return 0, err
	}
	defer r.leave()
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(int(f.Fd()), &st) }); err != nil {
		return 0, fmt.Errorf("link file as object %s: %w", id, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || (st.Size == 0 && id != r.emptyID) {
		return 0, fmt.Errorf("link file as object %s: %w: %s is not regular, or empty", id, ErrIntegrity, f.Name())
	}
	ok, err := r.canAdopt(id, f, st.Size)
	if err != nil {
		return 0, err
	}
	if ok {
		return Present, nil
	}
	return r.adoptFile(f, st.Dev, id, st.Size, nil)
}

// adoptFile is LinkFile for an object that is not there, of a file of size
// bytes on device dev. Nothing happens unless check, which may be nil, finds
// nothing wrong.
func (r *Repo) adoptFile(f *os.File, dev uint64, id fsverity.Digest, size int64, check func() error) (Outcome, error) {
	o, err := r.linkFrom(f, dev, id, size, check)
	if err != nil {
		return 0, fmt.Errorf("link %s as object %s: %w", f.Name(), id, err)
	}
	if o == Stored {
		o = Hardlinked
	}
	return o, nil
}

func (r *Repo) linkFrom(f *os.File, dev uint64, id fsverity.Digest, size int64, check func() error) (Outcome, error) {
	// Before the file is changed for good.
	objects, err := r.objectsDir(true)
	if err != nil {
		return 0, err
	}
	var there unix.Stat_t
	if err := unix.Fstat(objects, &there); err != nil {
		return 0, err
	}
	if there.Dev != dev {
		return 0, &ShareError{Method: Hardlinked, Everywhere: true, Err: unix.EXDEV}
	}
	if check != nil {
		if err := check(); err != nil {
			return 0, err
		}
	}
	if !r.noVerity.Load() {
		if err := r.enableVerity(f, id); err != nil {
			return 0, linkError(err)
		}
	}
	o, err := r.publish(int(f.Fd()), "", id, size)
	return o, linkError(err)
}

// linkError tells what only another method cures from failures.
func linkError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		// Two mounts of one file system; no privilege to link an open file.
		return &ShareError{Method: Hardlinked, Everywhere: true, Err: err}
	case errors.Is(err, unix.EMLINK), errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.EROFS),
		errors.Is(err, fsverity.ErrOtherAlgorithm), errors.Is(err, fsverity.ErrBusy):
		return &ShareError{Method: Hardlinked, Err: err}
	}
	return err
}
