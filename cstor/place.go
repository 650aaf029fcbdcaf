// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/rooted"
)

// Names below the sysroot.
const (
	composefsDir = "composefs"
	bootcDir     = "composefs/bootc"
	ostreeDir    = "ostree"
	compatLink   = "ostree/bootc"
	compatTarget = "../composefs/bootc"
	storageName  = "storage"
	bootcStorage = bootcDir + "/" + storageName
)

// place is where a store is or will be. The library keeps its lock files and
// its handles by path, so two spellings would be two stores: there is one path,
// with all links resolved.
type place struct {
	graphRoot string
	// oldLayout is set when ostree/bootc is a real directory.
	oldLayout bool
}

// locate finds the place and touches nothing.
func locate(o Options) (*place, error) {
	if o.GraphRoot != "" {
		path, err := realPath(o.GraphRoot)
		if err != nil {
			return nil, fmt.Errorf("find containers-storage: %w", err)
		}
		return &place{graphRoot: path}, nil
	}
	sysroot, err := unix.Open(o.Sysroot, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("find containers-storage below %s: %w", o.Sysroot, &os.PathError{Op: "open", Path: o.Sysroot, Err: err})
	}
	defer unix.Close(sysroot)
	p := &place{}
	if p.oldLayout, err = isRealDirectory(sysroot, compatLink); err != nil {
		return nil, fmt.Errorf("find containers-storage below %s: %w", o.Sysroot, err)
	}
	// bootc and older code go through ostree/bootc, wherever that leads.
	for _, dir := range []string{compatLink, bootcDir, composefsDir, "."} {
		path, err := resolveBelow(sysroot, dir)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("find containers-storage below %s: %s: %w", o.Sysroot, dir, err)
		}
		rest := bootcStorage
		switch dir {
		case compatLink, bootcDir:
			rest = storageName
		case composefsDir:
			rest = "bootc/" + storageName
		}
		// The store itself may be a link that leads elsewhere in the sysroot.
		if full, err := resolveBelow(sysroot, filepath.Join(dir, rest)); err == nil {
			p.graphRoot = full
		} else {
			p.graphRoot = filepath.Join(path, rest)
		}
		return p, nil
	}
	return nil, fmt.Errorf("find containers-storage below %s: %w", o.Sysroot, ErrNoStore)
}

// resolveBelow is the path without links of a directory below the sysroot.
// Links are resolved as if the sysroot were "/".
func resolveBelow(sysroot int, dir string) (string, error) {
	fd, err := rooted.Open(sysroot, dir, unix.O_PATH|unix.O_DIRECTORY, 0, rooted.InRoot)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}

// isRealDirectory reports whether name below the sysroot is a directory and not
// a link to one.
func isRealDirectory(sysroot int, name string) (bool, error) {
	dir, err := rooted.Open(sysroot, filepath.Dir(name), unix.O_PATH|unix.O_DIRECTORY, 0, rooted.InRoot)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	err = unix.Fstatat(dir, filepath.Base(name), &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR, err
}

// realPath is path, absolute and with its links resolved as far as it exists.
func realPath(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	var rest string
	for {
		resolved, err := filepath.EvalSymlinks(path)
		if err == nil {
			return filepath.Join(resolved, rest), nil
		}
		if !errors.Is(err, os.ErrNotExist) || path == "/" {
			return "", err
		}
		rest = filepath.Join(filepath.Base(path), rest)
		path = filepath.Dir(path)
	}
}
