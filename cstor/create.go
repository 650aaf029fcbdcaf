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
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/filelock"
	"github.com/cfs-pull/cfs-pull/internal/rooted"
)

// temporarySuffix marks a store that is being made.
const temporarySuffix = ".tmp"

// Ensure opens a store for reading and writing, and makes it first, together
// with the directories and the compatibility link of a bootc system, if there
// is none. See Created.
//
// A store appears under its name only when it is complete and on disk. What an
// interrupted creation has left is removed.
func Ensure(ctx context.Context, o Options) (*Store, error) {
	o = o.withDefaults()
	if o.GraphRoot == "" {
		if err := ensureLayout(o); err != nil {
			return nil, err
		}
	}
	place, err := locate(o)
	if err != nil {
		return nil, err
	}
	if place.oldLayout {
		o.Log.Warn("ostree/bootc is a directory, not a link to composefs/bootc; the containers-storage in it is used",
			"sysroot", o.Sysroot, "storage", place.graphRoot)
	}
	created := false
	if err := place.isStore(); errors.Is(err, ErrNoStore) {
		after := place.prepareHostStore(ctx, o.Log)
		if created, err = place.create(ctx, o); err == nil {
			err = after()
		}
		if err != nil {
			return nil, fmt.Errorf("create containers-storage %s: %w", place.graphRoot, err)
		}
	} else if err != nil {
		return nil, err
	}
	s, err := newStore(o, place)
	if err != nil {
		return nil, err
	}
	s.created = created
	o.Log.Info("opened containers-storage", "path", s.graphRoot, "created", created)
	return s, nil
}

// ensureLayout makes what is missing of composefs/bootc and of ostree/bootc, a
// link to it. A real directory ostree/bootc stays as it is.
func ensureLayout(o Options) error {
	fail := func(err error) error {
		return fmt.Errorf("create directories of the containers-storage below %s: %w", o.Sysroot, err)
	}
	sysroot, err := unix.Open(o.Sysroot, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(&fs.PathError{Op: "open", Path: o.Sysroot, Err: err})
	}
	defer unix.Close(sysroot)
	real, err := isRealDirectory(sysroot, compatLink)
	if err != nil {
		return fail(err)
	}
	if real {
		return nil
	}
	// Repository and store hold the bytes of every user's files.
	if err := ensureDirectory(sysroot, composefsDir, 0o700); err != nil {
		return fail(err)
	}
	if err := ensureDirectory(sysroot, bootcDir, 0o755); err != nil {
		return fail(err)
	}
	if err := ensureDirectory(sysroot, ostreeDir, 0o755); err != nil {
		return fail(err)
	}
	dir, err := rooted.Open(sysroot, ostreeDir, unix.O_RDONLY|unix.O_DIRECTORY, 0, rooted.InRoot)
	if err != nil {
		return fail(&fs.PathError{Op: "open", Path: ostreeDir, Err: err})
	}
	defer unix.Close(dir)
	// A link that is there leads where it leads; so does that of a process
	// that was faster.
	err = unix.Symlinkat(compatTarget, dir, filepath.Base(compatLink))
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err == nil {
		err = unix.Fsync(dir)
	}
	if err != nil {
		return fail(&fs.PathError{Op: "symlink", Path: compatLink, Err: err})
	}
	return nil
}

// ensureDirectory makes a directory below the sysroot, if it is missing, so that
// it survives a crash.
func ensureDirectory(sysroot int, name string, mode uint32) error {
	parent, err := rooted.Open(sysroot, filepath.Dir(name), unix.O_RDONLY|unix.O_DIRECTORY, 0, rooted.InRoot)
	if err != nil {
		return &fs.PathError{Op: "open", Path: filepath.Dir(name), Err: err}
	}
	defer unix.Close(parent)
	err = unix.Mkdirat(parent, filepath.Base(name), mode)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err == nil {
		err = unix.Fsync(parent)
	}
	if err != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return nil
}

// create makes a store and reports whether it was this process that did.
func (p *place) create(ctx context.Context, o Options) (created bool, err error) {
	parentPath := filepath.Dir(p.graphRoot)
	if err := os.MkdirAll(parentPath, 0o755); err != nil {
		return false, err
	}
	parent, err := os.Open(parentPath)
	if err != nil {
		return false, err
	}
	defer parent.Close()
	// Who finds a temporary store must know that nobody is making it.
	err = filelock.Flock(ctx, parent, "the creation of a containers-storage in", unix.LOCK_EX, filelock.NewWaiter(o.LockTimeout))
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, unix.Flock(int(parent.Fd()), unix.LOCK_UN)) }()
	if err := p.isStore(); !errors.Is(err, ErrNoStore) {
		return false, err // another process was faster
	}
	temporary := p.graphRoot + temporarySuffix
	if err := removeMounted(temporary); err != nil {
		return false, fmt.Errorf("remove what an interrupted creation left: %w", err)
	}
	inPlace, err := p.mayBecomeStore()
	if err != nil {
		return false, err
	}
	if inPlace {
		// A mount point, or a directory that somebody made beforehand, can be
		// filled but not replaced.
		return true, initialise(p.graphRoot, o)
	}
	defer func() { err = errors.Join(err, removeMounted(temporary)) }()
	if err := initialise(temporary, o); err != nil {
		return false, err
	}
	if err := context.Cause(ctx); err != nil {
		return false, err
	}
	err = unix.Renameat2(unix.AT_FDCWD, temporary, unix.AT_FDCWD, p.graphRoot, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) { // by a program that knows no such lock
		return false, p.isStore()
	}
	if err != nil {
		return false, &os.LinkError{Op: "rename", Old: temporary, New: p.graphRoot, Err: err}
	}
	return true, parent.Sync()
}

// mayBecomeStore reports whether the directory is there and may be filled: when
// it is empty, or the creation of a store in it was interrupted.
func (p *place) mayBecomeStore() (bool, error) {
	entries, err := os.ReadDir(p.graphRoot)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		switch e.Name() {
		case "lost+found", driverDir, layersDir, imagesDir, "overlay-containers", "storage.lock", "userns.lock",
			"libpod", "db.sql", "defaultNetworkBackend":
		default:
			return false, fmt.Errorf("%w with the overlay driver, and the directory is not empty (%s is in it)", ErrNoStore, e.Name())
		}
	}
	return true, nil
}

// initialise makes the skeleton of a store and brings it to disk.
func initialise(root string, o Options) error {
	var lib library
	defer lib.close()
	err := lib.call(root, func() error {
		store, err := lib.open(root, o)
		if err != nil {
			return err
		}
		// The library makes the directory of the layers' records when it looks
		// for one; others expect it in a store.
		_, err = store.Layers()
		return err
	})
	if err != nil {
		return err
	}
	return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() && !e.Type().IsRegular() {
			return err
		}
		// Reading and closing a lock file is harmless here: nobody else knows
		// this store yet.
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}

// removeMounted removes a directory, if there is one, and what is mounted below
// it. A killed process may leave the driver's directory mounted on itself, or the
// overlay that the library tries out.
func removeMounted(path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
	if err != nil {
		return fmt.Errorf("look for mounts below %s: %w", path, err)
	}
	for _, m := range slices.Backward(mounts) { // the latest first
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return &fs.PathError{Op: "unmount", Path: m.Mountpoint, Err: err}
		}
	}
	return os.RemoveAll(path)
}
