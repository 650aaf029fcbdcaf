// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// layers are the parts of an overlayfs.
type layers struct {
	source  string // its name in the list of mounts
	erofs   *os.File
	objects *os.File
	upper   *upper // nil for a read-only mount
	verity  bool
}

// mountOverlay stacks the layers; the mount is attached nowhere.
func (m *mounter) mountOverlay(l *layers, attributes int) (*os.File, error) {
	if !m.noLayerFiles {
		c := l.context()
		defer c.close()
		c.setFile("lowerdir+", l.erofs, remedyOverlay)
		c.setFile("datadir+", l.objects, remedyOverlay)
		if l.upper != nil {
			c.setFile("upperdir", l.upper.upper, remedyUpper)
			c.setFile("workdir", l.upper.work, remedyUpper)
		}
		mount, err := c.mount(attributes, l.remedy())
		// Descriptors of layers came with Linux 6.13 (EINVAL before), those of
		// mounts that are attached nowhere with 6.15 (EBADF before).
		if err == nil || !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EBADF) {
			return mount, err
		}
	}
	lower, detach, err := attachTemporarily(l.erofs)
	if err != nil {
		return nil, err
	}
	defer detach()
	c := l.context()
	defer c.close()
	c.setString("lowerdir", procPath(lower)+"::"+procPath(l.objects), remedyOverlay)
	if l.upper != nil {
		c.setString("upperdir", l.upper.option("upper"), remedyUpper)
		c.setString("workdir", l.upper.option("work"), remedyUpper)
	}
	return c.mount(attributes, l.remedy())
}

// context is an overlayfs without layers yet.
func (l *layers) context() *fsContext {
	c := openContext("overlay")
	c.setString("source", l.source, "")
	c.setString("metacopy", "on", remedyOverlay)
	c.setString("redirect_dir", "on", remedyOverlay)
	if l.verity {
		c.setString("verity", "require", remedyVerity)
	}
	return c
}

func (l *layers) remedy() string {
	if l.upper != nil {
		return remedyUpper
	}
	return remedyOverlay
}

// attachTemporarily attaches a mount in a directory of its own, for kernels
// that want layers to be somewhere. The function returned takes both away;
// what is stacked on the mount by then keeps it.
func attachTemporarily(mount *os.File) (root *os.File, detach func(), err error) {
	dir, err := os.MkdirTemp("", "cfs-pull-mount-")
	if err != nil {
		return nil, nil, err
	}
	if err := unix.MoveMount(int(mount.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		os.Remove(dir) // empty
		return nil, nil, kernelError("attach EROFS for a moment", "", "", err)
	}
	undo := func() {
		// Lazily: it cannot be busy with others, and must go in any case.
		_ = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		_ = os.Remove(dir)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		undo()
		return nil, nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	root = os.NewFile(uintptr(fd), dir)
	return root, func() {
		root.Close() // only a path
		undo()
	}, nil
}
