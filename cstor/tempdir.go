// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The overlay driver makes layers in temporary directories below its home,
// tempdirs/temp-dir-ID, each with a lock file tempdirs/lock-ID. It removes those
// whose lock it can get, whenever a store is opened: so what a killed process
// leaves here, podman or the next cfs-pull takes away. Versions before 1.58 of
// the library do not know these directories, and leave them alone; the staging
// directory that they do know they empty without asking, whoever uses it.
const (
	tempDirs      = driverDir + "/tempdirs"
	tempDirPrefix = "temp-dir-"
	tempDirLock   = "lock-"
)

// tempDir is a temporary directory in the driver's home, from where layers can
// be renamed to where they belong.
type tempDir struct {
	path string
	lock *os.File
}

// newTempDir makes a temporary directory.
func newTempDir(graphRoot string) (*tempDir, error) {
	base := filepath.Join(graphRoot, tempDirs)
	if err := os.MkdirAll(base, 0o700); err != nil {
		return nil, fmt.Errorf("make temporary directory: %w", err)
	}
	for {
		id := "cfs-pull-" + strings.ToLower(rand.Text())
		lock, err := os.OpenFile(filepath.Join(base, tempDirLock+id), os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("make temporary directory: %w", err)
		}
		d := &tempDir{path: filepath.Join(base, tempDirPrefix+id), lock: lock}
		kept, err := d.take()
		if err == nil && kept {
			err = os.Mkdir(d.path, 0o700)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make temporary directory: %w", err), d.remove())
		}
		if kept {
			return d, nil
		}
		lock.Close() // somebody took it for a stale one before it was locked
	}
}

// take locks the directory and reports whether it has kept its lock file until
// then. The lock belongs to the description, not to the process: the library
// tries record locks of this process on the same file.
func (d *tempDir) take() (kept bool, err error) {
	var file, name unix.Stat_t
	how := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET}
	fd := d.lock.Fd()
	err = ignoringEINTR(func() error { return unix.FcntlFlock(fd, unix.F_OFD_SETLK, &how) })
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "lock", Path: d.lock.Name(), Err: err}
	}
	if err := unix.Fstat(int(fd), &file); err != nil {
		return false, &os.PathError{Op: "stat", Path: d.lock.Name(), Err: err}
	}
	err = unix.Lstat(d.lock.Name(), &name)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "stat", Path: d.lock.Name(), Err: err}
	}
	return file.Dev == name.Dev && file.Ino == name.Ino, nil
}

// remove removes the directory with all that was not renamed, and unlocks it.
func (d *tempDir) remove() error {
	err := os.RemoveAll(d.path)
	if removeErr := os.Remove(d.lock.Name()); !errors.Is(removeErr, os.ErrNotExist) {
		err = errors.Join(err, removeErr)
	}
	d.lock.Close() // nothing was written
	return err
}
