// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// SyncFS writes everything on the file system of the repository to disk. It
// goes between the last object and the first link to one. When a directory with
// objects was removed meanwhile, which nobody may do who knows the lock, the
// error is [ErrObjectsRemoved], and no link must be made.
func (r *Repo) SyncFS() error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	if err := r.dirs.check(); err != nil {
		return fmt.Errorf("repository %s: %w", r.path, err)
	}
	stored := r.unflushed.Swap(false) // before: others may be storing meanwhile
	if err := retry(func() error { return unix.Syncfs(r.rootfd()) }); err != nil {
		if stored {
			r.unflushed.Store(true)
		}
		return fmt.Errorf("sync file system of repository %s: %w", r.path, err)
	}
	return nil
}

// Unflushed reports whether objects were stored through this handle since the
// last [Repo.SyncFS], new ones or in the place of broken ones.
func (r *Repo) Unflushed() bool { return r.unflushed.Load() }

// touch notes a directory whose entries SyncLinks has to make durable.
func (r *Repo) touch(dir string) {
	r.touchMu.Lock()
	r.touched[dir] = struct{}{}
	r.touchMu.Unlock()
}

// SyncLinks makes the links, refs and their removals durable that this handle
// made since the last time. What fails is tried again with the next call. As
// with [Repo.SyncFS], objects that were removed meanwhile are
// [ErrObjectsRemoved]: what the links lead to is not all there.
func (r *Repo) SyncLinks() error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	r.touchMu.Lock()
	dirs := slices.Sorted(maps.Keys(r.touched))
	clear(r.touched)
	r.touchMu.Unlock()
	var errs []error
	for _, dir := range dirs {
		if err := r.syncDir(dir); err != nil {
			errs = append(errs, err)
			r.touch(dir)
		}
	}
	if err := r.dirs.check(); err != nil {
		errs = append(errs, fmt.Errorf("repository %s: %w", r.path, err))
	}
	return errors.Join(errs...)
}

func (r *Repo) syncDir(dir string) error {
	fd, err := openBeneath(r.rootfd(), dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		err = r.pathError("open", dir, err)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed since, with what was in it
		}
		return err
	}
	defer unix.Close(fd)
	if err := retry(func() error { return unix.Fsync(fd) }); err != nil {
		return r.pathError("fsync", dir, err)
	}
	return nil
}
