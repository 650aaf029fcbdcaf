// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// tmpObject begins the names of unfinished objects in objects/, where the file
// system does not have files without a name.
const tmpObject = ".tmp-object-"

// Temp is a file that becomes an object. It lies in objects/, on the file
// system of the repository, and has no name unless the file system requires
// one. It ends with [Repo.Commit] or [Temp.Discard].
type Temp struct {
	repo *Repo
	file *os.File
	name string // in objects/; empty when it has none
	once sync.Once
}

// CreateTemp makes an empty Temp.
func (r *Repo) CreateTemp() (*Temp, error) {
	if err := r.enterWrite(); err != nil {
		return nil, err
	}
	defer r.leave()
	fd, _, name, err := r.createObject()
	if err != nil {
		return nil, err
	}
	r.addUser(1)
	return &Temp{repo: r, file: os.NewFile(uintptr(fd), r.path+"/objects/"+name), name: name}, nil
}

// File is the open file, for reading and writing. It is closed with the Temp.
func (t *Temp) File() *os.File { return t.file }

// Discard removes the file. It does nothing after Commit.
func (t *Temp) Discard() {
	t.once.Do(func() {
		t.file.Close() // it is thrown away
		t.removeName()
		t.repo.addUser(-1)
	})
}

// removeName removes the temporary name, if there is one left. What cannot be
// removed is left to garbage collection.
func (t *Temp) removeName() {
	if t.name == "" || t.repo.enter() != nil {
		return
	}
	defer t.repo.leave()
	if objects, err := t.repo.objectsDir(false); err == nil {
		unix.Unlinkat(objects, t.name, 0)
	}
}

// Commit makes an object of t, which holds the bytes of digest id. It always
// ends t. With fs-verity the kernel confirms the digest, and a wrong one is
// [ErrIntegrity]; without, the caller is trusted. When the object is there
// already, t is dropped before anything is spent on it.
func (r *Repo) Commit(t *Temp, id fsverity.Digest) (Outcome, error) {
	defer t.Discard()
	if t.repo != r {
		return 0, errors.New("commit object: temporary file of another repository")
	}
	if err := r.enterWrite(); err != nil {
		return 0, err
	}
	defer r.leave()
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(int(t.file.Fd()), &st) }); err != nil {
		return 0, fmt.Errorf("commit object %s: %w", id, err)
	}
	ok, err := r.canAdopt(id, t.file, st.Size)
	if err != nil {
		return 0, err
	}
	if ok {
		return Present, nil
	}
	if st.Size == 0 && id != r.emptyID {
		return 0, fmt.Errorf("commit object %s: %w: the file is empty", id, ErrIntegrity)
	}
	if r.noVerity.Load() {
		return r.publish(int(t.file.Fd()), t.name, id, st.Size)
	}
	f, err := reopen(t.file)
	if err != nil {
		return 0, fmt.Errorf("commit object %s: %w", id, err)
	}
	defer f.Close() // read-only
	waitForForks()
	if err := r.enableVerity(f, id); err != nil {
		return 0, fmt.Errorf("commit object %s: %w", id, err)
	}
	return r.publish(int(f.Fd()), t.name, id, st.Size)
}

// createObject makes a file in objects/, whose descriptor it returns too, as
// createFD does.
func (r *Repo) createObject() (fd, objects int, name string, err error) {
	for range linkAttempts {
		if objects, err = r.objectsDir(true); err != nil {
			return -1, -1, "", err
		}
		if fd, name, err = r.createFD(objects, tmpObject); err == nil {
			return fd, objects, name, nil
		}
		// What a file system answers in a directory that was removed
		// differs; the count of its links does not.
		var st unix.Stat_t
		if unix.Fstat(objects, &st) != nil || st.Nlink > 0 {
			break
		}
		r.dirs.drop(&r.dirs.objects)
	}
	return -1, -1, "", err
}

// createFD makes a file in a directory: without a name, or where that is not
// supported with a name that begins with prefix and is returned.
func (r *Repo) createFD(dirfd int, prefix string) (fd int, name string, err error) {
	if !r.noTmpfile.Load() {
		err = retry(func() (err error) {
			fd, err = unix.Openat(dirfd, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, fileMode)
			return err
		})
		if err == nil {
			return fd, "", nil
		}
		// EISDIR is what kernels and file systems that do not know the
		// flag make of it.
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
			return -1, "", fmt.Errorf("create temporary file in repository %s: %w", r.path, err)
		}
		r.noTmpfile.Store(true)
	}
	name = randomName(prefix)
	err = retry(func() (err error) {
		fd, err = unix.Openat(dirfd, name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_RDWR|unix.O_CLOEXEC, fileMode)
		return err
	})
	if err != nil {
		return -1, "", fmt.Errorf("create temporary file in repository %s: %w", r.path, err)
	}
	return fd, name, nil
}

// linkFile gives the file open at fd the name newname in newdir, without
// replacing anything. oldname is its temporary name in olddir, which goes
// away; empty for a file without a name. The error is fs.ErrExist when the name
// is taken, and then nothing has changed.
func (r *Repo) linkFile(fd, olddir int, oldname string, newdir int, newname string) error {
	if oldname != "" {
		err := retry(func() error {
			return unix.Renameat2(olddir, oldname, newdir, newname, unix.RENAME_NOREPLACE)
		})
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
			return err
		}
		// The file system cannot rename without replacing.
		if err := unix.Linkat(olddir, oldname, newdir, newname, 0); err != nil {
			return err
		}
		return unix.Unlinkat(olddir, oldname, 0)
	}
	if !r.noEmptyPath.Load() {
		err := retry(func() error { return unix.Linkat(fd, "", newdir, newname, unix.AT_EMPTY_PATH) })
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
			return err
		}
		// Either newdir is gone or we lack the privilege; the other way
		// below tells.
	}
	err := retry(func() error {
		return unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), newdir, newname, unix.AT_SYMLINK_FOLLOW)
	})
	if err == nil || errors.Is(err, unix.EEXIST) {
		r.noEmptyPath.Store(true)
	}
	return err
}
