// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// objectDirs keeps objects/ and its 256 directories open, each from its first
// use on, so that an object costs no path look-up.
type objectDirs struct {
	objects atomic.Int32 // -1: not open
	fan     [256]atomic.Int32
	// used are the directories in which an object was found or stored that
	// links may be made to; lost says that one of those was removed.
	used [256]atomic.Bool
	lost atomic.Bool

	mu    sync.Mutex
	stale []int // replaced, but maybe in use; closed at the end
}

func (d *objectDirs) init() {
	d.objects.Store(-1)
	for i := range d.fan {
		d.fan[i].Store(-1)
	}
}

func (d *objectDirs) close() {
	for i := range d.fan {
		d.drop(&d.fan[i])
	}
	d.drop(&d.objects)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, fd := range d.stale {
		unix.Close(fd)
	}
	d.stale = nil
}

// drop forgets a directory that no longer exists. Others may be using it, so
// it is closed later.
func (d *objectDirs) drop(slot *atomic.Int32) {
	if fd := slot.Swap(-1); fd >= 0 {
		d.mu.Lock()
		d.stale = append(d.stale, int(fd))
		d.mu.Unlock()
	}
}

// use notes that an object in a directory is relied on.
func (d *objectDirs) use(dir int) {
	if !d.used[dir].Load() {
		d.used[dir].Store(true)
	}
}

// check says whether the directories that are relied on are still there. Who
// removes them does not know the lock, and what was in them is gone.
func (d *objectDirs) check() error {
	for i := range d.fan {
		fd := d.fan[i].Load()
		if fd < 0 || !d.used[i].Load() {
			continue
		}
		var st unix.Stat_t
		if err := retry(func() error { return unix.Fstat(int(fd), &st) }); err != nil {
			return fmt.Errorf("stat objects/%02x: %w", i, err)
		}
		if st.Nlink == 0 {
			d.lost.Store(true)
		}
	}
	if d.lost.Load() {
		return ErrObjectsRemoved
	}
	return nil
}

// objectName is an object's place: the number of its directory and its name
// in there.
func objectName(id fsverity.Digest) (dir int, name string) {
	var raw [fsverity.MaxDigestSize]byte
	var text [2 * fsverity.MaxDigestSize]byte
	b := id.AppendBytes(raw[:0])
	if len(b) == 0 {
		return 0, ""
	}
	return int(b[0]), string(hex.AppendEncode(text[:0], b[1:]))
}

// objectsDir is the descriptor of objects/. It belongs to the cache.
func (r *Repo) objectsDir(create bool) (int, error) {
	return r.cachedDir(&r.dirs.objects, "objects", create)
}

// fanDir is the descriptor of objects/<hh>. It belongs to the cache.
func (r *Repo) fanDir(dir int, create bool) (int, error) {
	slot := &r.dirs.fan[dir]
	if fd := slot.Load(); fd >= 0 {
		return int(fd), nil
	}
	const digits = "0123456789abcdef"
	return r.cachedDir(slot, "objects/"+string([]byte{digits[dir>>4], digits[dir&15]}), create)
}

func (r *Repo) cachedDir(slot *atomic.Int32, path string, create bool) (int, error) {
	if fd := slot.Load(); fd >= 0 {
		return int(fd), nil
	}
	open := r.openDir
	if create {
		open = r.makeDirs
	}
	fd, err := open(path)
	if err != nil {
		return -1, err
	}
	if !slot.CompareAndSwap(-1, int32(fd)) {
		unix.Close(fd)
		return r.cachedDir(slot, path, create)
	}
	return fd, nil
}

// forgetDirs is for when a directory turns out to have been removed.
func (r *Repo) forgetDirs(dir int) {
	if r.dirs.used[dir].Load() {
		r.dirs.lost.Store(true)
	}
	r.dirs.drop(&r.dirs.fan[dir])
	r.dirs.drop(&r.dirs.objects)
}

// lookup finds an object without opening it. The error is fs.ErrNotExist when
// there is none.
func (r *Repo) lookup(id fsverity.Digest, st *unix.Stat_t) error {
	dir, name := objectName(id)
	fd, err := r.fanDir(dir, false)
	if err != nil {
		return err
	}
	err = retry(func() error { return unix.Fstatat(fd, name, st, unix.AT_SYMLINK_NOFOLLOW) })
	if errors.Is(err, fs.ErrNotExist) {
		return fs.ErrNotExist // no need to format a path
	}
	if err != nil {
		return r.pathError("stat", "objects/"+id.ObjectPath(), err)
	}
	r.dirs.use(dir)
	return nil
}
