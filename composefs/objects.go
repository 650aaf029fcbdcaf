// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Outcome says how an object came to be in the repository.
type Outcome uint8

// The outcomes. Reflinked and Hardlinked are for those who fill objects from
// another store.
const (
	Stored     Outcome = iota // its bytes were written
	Present                   // it was there
	Reflinked                 // it shares its extents with a file elsewhere
	Hardlinked                // it is a file elsewhere
)

// String is the outcome's name in lower case.
func (o Outcome) String() string {
	switch o {
	case Stored:
		return "stored"
	case Present:
		return "present"
	case Reflinked:
		return "reflinked"
	case Hardlinked:
		return "hardlinked"
	}
	return fmt.Sprintf("outcome %d", uint8(o))
}

// maxForkDelay is the size in bytes up to which writing a file may keep other
// goroutines from starting programs.
const maxForkDelay = 1 << 20

// linkAttempts bounds how often an object is linked again because directories
// or other objects came and went.
const linkAttempts = 8

func (r *Repo) checkDigest(id fsverity.Digest) error {
	if id.Algorithm() != r.meta.Algorithm {
		return fmt.Errorf("repository %s: %w: digest %q is not %s", r.path, ErrIntegrity, id, r.meta.Algorithm)
	}
	return nil
}

// HasObject reports whether an object is there and may be relied on: it has
// size bytes (any number when size is negative) and, where fs-verity is
// required, the kernel measures the right digest. A broken object counts as
// absent, since storing it again repairs it.
func (r *Repo) HasObject(id fsverity.Digest, size int64) (bool, error) {
	if err := r.enter(); err != nil {
		return false, err
	}
	defer r.leave()
	return r.hasObject(id, size)
}

func (r *Repo) hasObject(id fsverity.Digest, size int64) (bool, error) {
	if err := r.checkDigest(id); err != nil {
		return false, err
	}
	var st unix.Stat_t
	if err := r.lookup(id, &st); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, err
	}
	// A crash leaves files that were linked before their data was written
	// with a length of 0 where nothing but the length tells.
	if st.Mode&unix.S_IFMT != unix.S_IFREG || (size >= 0 && st.Size != size) || (st.Size == 0 && id != r.emptyID) {
		return false, nil
	}
	if !r.enforce {
		return true, nil
	}
	f, err := r.openObject(id)
	if errors.Is(err, ErrIntegrity) || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, f.Close()
}

// OpenObject opens an object for reading. Where fs-verity is required the
// kernel must measure its digest; elsewhere it must do so if the object has
// fs-verity at all. The content is not read. A mismatch is [ErrIntegrity], a
// missing object [fs.ErrNotExist].
func (r *Repo) OpenObject(id fsverity.Digest) (*os.File, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.leave()
	if err := r.checkDigest(id); err != nil {
		return nil, err
	}
	return r.openObject(id)
}

func (r *Repo) openObject(id fsverity.Digest) (*os.File, error) {
	path := "objects/" + id.ObjectPath()
	dir, name := objectName(id)
	dirfd, err := r.fanDir(dir, false)
	if err != nil {
		return nil, err
	}
	// Not blocking, because a hostile repository may have a FIFO there.
	fd, err := openBeneath(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		err = r.pathError("open", path, err)
		if errors.Is(err, unix.ELOOP) {
			err = fmt.Errorf("%w: it is a link: %w", ErrIntegrity, err)
		}
		return nil, err
	}
	f := os.NewFile(uintptr(fd), r.path+"/"+path)
	if err := r.checkObject(f, id); err != nil {
		f.Close() // read-only
		return nil, fmt.Errorf("open object %s: %w", id, err)
	}
	return f, nil
}

// checkObject says whether an open object is what its name says, without
// reading it.
func (r *Repo) checkObject(f *os.File, id fsverity.Digest) error {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(int(f.Fd()), &st) }); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%w: it is not a regular file", ErrIntegrity)
	}
	if st.Size == 0 && id != r.emptyID {
		return fmt.Errorf("%w: it is empty", ErrIntegrity)
	}
	if r.noVerity.Load() {
		return nil
	}
	got, err := r.verity.measure(f, r.meta.Algorithm)
	switch {
	case err == nil && got == id:
		return nil
	case err == nil:
		return fmt.Errorf("%w: its fs-verity digest is %s", ErrIntegrity, got)
	case errors.Is(err, fsverity.ErrOtherAlgorithm):
		return fmt.Errorf("%w: %w", ErrIntegrity, err)
	case errors.Is(err, fsverity.ErrNotEnabled), errors.Is(err, fsverity.ErrNotSupported):
		if r.enforce {
			return fmt.Errorf("%w: %w", ErrIntegrity, err)
		}
		return nil
	}
	return err
}

// Put stores data as an object.
func (r *Repo) Put(data []byte) (fsverity.Digest, Outcome, error) {
	id := fsverity.Sum(r.meta.Algorithm, data)
	o, err := r.PutID(id, data)
	return id, o, err
}

// PutID stores data, whose digest the caller has computed, as an object. Where
// there is fs-verity the kernel confirms the digest.
func (r *Repo) PutID(id fsverity.Digest, data []byte) (Outcome, error) {
	if err := r.enterWrite(); err != nil {
		return 0, err
	}
	defer r.leave()
	ok, err := r.canAdopt(id, bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return 0, err
	}
	if ok {
		return Present, nil
	}
	return r.putID(id, data)
}

// putID is PutID for an object that is not there.
func (r *Repo) putID(id fsverity.Digest, data []byte) (Outcome, error) {
	return r.fill(id, int64(len(data)), func(fd int) error {
		if err := writeAll(fd, data); err != nil {
			return fmt.Errorf("write object %s to repository %s: %w", id, r.path, err)
		}
		return nil
	})
}

// fill stores an object of size bytes that write puts into an empty file.
func (r *Repo) fill(id fsverity.Digest, size int64, write func(fd int) error) (Outcome, error) {
	if r.noVerity.Load() {
		return r.fillPlain(id, size, write)
	}
	return r.fillVerity(id, size, write)
}

// fillPlain stores where there is no fs-verity: create, write, link, close.
func (r *Repo) fillPlain(id fsverity.Digest, size int64, write func(fd int) error) (Outcome, error) {
	fd, objects, tmp, err := r.createObject()
	if err != nil {
		return 0, err
	}
	if tmp != "" {
		defer unix.Unlinkat(objects, tmp, 0) // gone already on success
	}
	if err := write(fd); err != nil {
		unix.Close(fd)
		return 0, err
	}
	o, err := r.publish(fd, tmp, id, size)
	return o, errors.Join(err, unix.Close(fd))
}

// fillVerity stores where there is fs-verity, or where nobody knows yet.
func (r *Repo) fillVerity(id fsverity.Digest, size int64, write func(fd int) error) (Outcome, error) {
	f, objects, tmp, err := r.writeForVerity(size, write)
	if tmp != "" {
		defer unix.Unlinkat(objects, tmp, 0) // gone already on success
	}
	if err != nil {
		return 0, err
	}
	defer f.Close() // read-only
	if err := r.enableVerity(f, id); err != nil {
		return 0, fmt.Errorf("store object %s: %w", id, err)
	}
	return r.publish(int(f.Fd()), tmp, id, size)
}

// writeForVerity makes an object of size bytes with write and returns it
// opened for reading, with no descriptor for writing left, also not in a
// child; see reopen. The temporary name in objects, if there is one, is
// returned also with an error.
func (r *Repo) writeForVerity(size int64, write func(fd int) error) (f *os.File, objects int, tmp string, err error) {
	if size <= maxForkDelay {
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
	} else {
		defer waitForForks()
	}
	fd, objects, tmp, err := r.createObject()
	if err != nil {
		return nil, -1, "", err
	}
	f, err = writeThenReopen(os.NewFile(uintptr(fd), r.path+"/objects/"+tmp), write)
	return f, objects, tmp, err
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b[:min(len(b), 1<<30)])
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		b = b[max(n, 0):]
	}
	return nil
}

// enableVerity gives a finished file its fs-verity digest and checks that it
// is id. Where fs-verity is not required and the file system lacks it, that is
// remembered.
func (r *Repo) enableVerity(f *os.File, id fsverity.Digest) error {
	err := r.verity.enable(f, r.meta.Algorithm)
	if err != nil && !errors.Is(err, fsverity.ErrAlreadyEnabled) {
		if errors.Is(err, fsverity.ErrNotSupported) && !r.enforce {
			r.noVerity.Store(true)
			return nil
		}
		return r.verityError(err)
	}
	got, err := r.verity.measure(f, r.meta.Algorithm)
	if err != nil {
		return r.verityError(err)
	}
	if got != id {
		return fmt.Errorf("%w: the kernel measures %s", ErrIntegrity, got)
	}
	return nil
}

// publish gives a finished file its name. tmp is its temporary name in
// objects/, if it has one; it is gone after Stored. A broken object of that
// name is replaced.
func (r *Repo) publish(fd int, tmp string, id fsverity.Digest, size int64) (Outcome, error) {
	dir, name := objectName(id)
	var err error
	for range linkAttempts {
		var dirfd, objects int
		if dirfd, err = r.fanDir(dir, true); err != nil {
			return 0, err
		}
		if objects, err = r.objectsDir(true); err != nil {
			return 0, err
		}
		err = r.linkFile(fd, objects, tmp, dirfd, name)
		switch {
		case err == nil:
			r.unflushed.Store(true)
			r.prove(id)
			r.dirs.use(dir)
			return Stored, nil
		case errors.Is(err, fs.ErrNotExist): // the directory was removed
			r.forgetDirs(dir)
			continue
		case !errors.Is(err, fs.ErrExist):
			return 0, fmt.Errorf("link object %s in repository %s: %w", id, r.path, err)
		}
		ok, err := r.canAdopt(id, readerAtFD(fd), size)
		if err != nil {
			return 0, err
		}
		if ok {
			return Present, nil
		}
		if err := r.replaceObject(fd, objects, tmp, dirfd, name); err != nil {
			return 0, err
		}
		r.prove(id)
		return Stored, nil
	}
	return 0, fmt.Errorf("link object %s in repository %s: %w", id, r.path, err)
}

// replaceObject puts a file in the place of a broken object.
func (r *Repo) replaceObject(fd, objects int, tmp string, dirfd int, name string) error {
	if tmp == "" {
		tmp = randomName(tmpObject)
		if err := r.linkFile(fd, objects, "", objects, tmp); err != nil {
			return fmt.Errorf("replace broken object %s in repository %s: %w", name, r.path, err)
		}
	}
	if err := unix.Renameat(objects, tmp, dirfd, name); err != nil {
		unix.Unlinkat(objects, tmp, 0) // the rename's error says more
		return fmt.Errorf("replace broken object %s in repository %s: %w", name, r.path, err)
	}
	r.unflushed.Store(true)
	return nil
}
