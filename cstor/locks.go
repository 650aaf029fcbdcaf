// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.podman.io/storage/pkg/lockfile"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/filelock"
)

// The library's locks are POSIX record locks. They belong to the process: a
// second descriptor of a lock file, once closed, drops those that the library
// holds. So lock files are only ever opened through the library's own table of
// them (dependencies.md §1.3). Its blocking calls know no time limit; what is
// here polls instead.

// libraryLock is the library's object for a lock file. The table holds each
// either for reading and writing or for reading only, whoever asked first; a
// file that can only be read is for reading only. One that cannot be opened for
// another reason is an error, and not asked for in the other way: the library
// could never write with that object, and its message would not say why.
func libraryLock(path string, readOnly bool) (*lockfile.LockFile, error) {
	get, other := lockfile.GetLockFile, lockfile.GetROLockFile
	if readOnly {
		get, other = other, get
	}
	lock, err := get(path)
	_, unopened := errors.AsType[*fs.PathError](err)
	if err == nil || unopened && !errors.Is(err, unix.EROFS) && !errors.Is(err, fs.ErrPermission) {
		return lock, err
	}
	if lock, second := other(path); second == nil {
		return lock, nil
	}
	return nil, err
}

// lockForReading takes the shared locks of a graph root's records, in the
// library's order, and waits for them no longer than timeout.
func lockForReading(ctx context.Context, root string, readOnly bool, timeout time.Duration) (unlock func(), err error) {
	var held []*lockfile.LockFile
	unlock = func() {
		for _, lock := range held {
			lock.Unlock()
		}
	}
	w := filelock.NewWaiter(timeout)
	for _, name := range []string{layersLock, imagesLock} {
		path := filepath.Join(root, name)
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			continue // no one has written anything; a reader must not create it
		}
		lock, err := libraryLock(path, readOnly)
		if err != nil {
			unlock()
			return nil, fmt.Errorf("open lock of containers-storage: %w", err)
		}
		if err := poll(ctx, lock.TryRLock, path, w); err != nil {
			unlock()
			return nil, err
		}
		held = append(held, lock)
	}
	return unlock, nil
}

// poll repeats try until it gets the lock at path.
func poll(ctx context.Context, try func() error, path string, w *filelock.Waiter) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
			return fmt.Errorf("open lock of containers-storage: %w", pathErr)
		}
		if err := w.Wait(ctx); err != nil {
			return lockError(path, false, w.Waited(), err)
		}
	}
}

// lockError says that a lock of the library was not granted.
func lockError(path string, exclusive bool, waited time.Duration, err error) error {
	return &filelock.Error{
		What: "containers-storage", Path: path, Exclusive: exclusive,
		Holders: others(filelock.PosixHolders(path, !exclusive)), Waited: waited, Err: err,
	}
}

// others leaves this process out, unless there is nobody else.
func others(holders []filelock.Holder) []filelock.Holder {
	var out []filelock.Holder
	for _, h := range holders {
		if h.PID != os.Getpid() {
			out = append(out, h)
		}
	}
	if out == nil {
		return holders
	}
	return out
}
