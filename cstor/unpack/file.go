// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/internal/tarraw"
)

const (
	xattrSELinux = "security.selinux"
	// maxTime is the greatest time that other unpackers write, in seconds: that
	// of 63 bits of nanoseconds. Times after it become 1970.
	maxTime = 9223372036
)

// file is a regular file on its way to the disk.
type file struct {
	parent   *directory
	name     string
	path     string
	node     *tree.Node
	content  Content
	complete chan struct{}
}

// file hands a regular file to the workers.
func (u *Unpacker) file(parent *directory, name, path string, node *tree.Node, c Content) error {
	if c.Fill == nil {
		if node.Size > uint64(len(node.Content)) {
			return rule("it has no content") // a mistake of the caller
		}
		c.Fill = func(dst *os.File) error {
			_, err := dst.Write(node.Content)
			return err
		}
	}
	f := &file{parent: parent.ref(), name: name, path: path, node: node, content: c, complete: make(chan struct{})}
	u.mu.Lock()
	u.pending[path] = f
	u.mu.Unlock()
	u.files <- f
	return nil
}

// wait waits for a file that may be with the workers.
func (u *Unpacker) wait(path string) error {
	u.mu.Lock()
	f := u.pending[path]
	u.mu.Unlock()
	if f != nil {
		<-f.complete
	}
	return u.workerError()
}

func (u *Unpacker) work() {
	for f := range u.files {
		dst, err := u.create(f)
		u.mu.Lock()
		delete(u.pending, f.path)
		if err != nil && u.err == nil {
			u.err = err
		}
		u.mu.Unlock()
		close(f.complete)
		f.parent.unref()
		switch {
		case f.content.Done != nil:
			f.content.Done(dst, err)
		case dst != nil:
			dst.Close()
		}
	}
}

// create makes a file, with its content and metadata.
func (u *Unpacker) create(f *file) (_ *os.File, err error) {
	if err := u.workerError(); err != nil {
		return nil, err
	}
	fd, err := unix.Openat(f.parent.fd, f.name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, f.node.Mode&0o777)
	if err != nil {
		return nil, fileFailed(f, err)
	}
	dst := os.NewFile(uintptr(fd), f.path)
	defer func() {
		if err != nil {
			dst.Close()
			err = fileFailed(f, err)
		}
	}()
	if err := f.content.Fill(dst); err != nil {
		return nil, err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, err
	}
	if uint64(stat.Size) != f.node.Size {
		return nil, rule("its content has " + strconv.FormatInt(stat.Size, 10) + " bytes, the header says " + strconv.FormatUint(f.node.Size, 10))
	}
	if err := u.setOpen(fd, f.node); err != nil {
		return nil, err
	}
	if err := setTime(f.parent.fd, f.name, f.node.Mtime); err != nil {
		return nil, err
	}
	return dst, nil
}

func fileFailed(f *file, err error) error {
	if r, ok := err.(rule); ok {
		return &oci.EntryError{Entry: f.path, Rule: string(r)}
	}
	return entryFailed(&tarraw.Entry{Name: f.path}, err)
}

// setOpen sets owner, mode and attributes of a file or directory that was just
// made. Most are as the kernel made them: asking costs less than setting.
func (u *Unpacker) setOpen(fd int, node *tree.Node) error {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return err
	}
	chown := stat.Uid != node.UID || stat.Gid != node.GID
	if chown {
		if err := unix.Fchown(fd, int(node.UID), int(node.GID)); err != nil {
			return err
		}
	}
	// A change of the owner takes setuid and setgid away.
	if chown || stat.Mode&0o7777 != node.Mode {
		if err := unix.Fchmod(fd, node.Mode); err != nil {
			return err
		}
	}
	for _, x := range node.Xattrs {
		if err := u.setXattr(x, func() error { return unix.Fsetxattr(fd, x.Name, x.Value, 0) }); err != nil {
			return err
		}
	}
	return nil
}

// setMetadata sets everything of a link or device that was just made.
func (u *Unpacker) setMetadata(parent *directory, name string, node *tree.Node) error {
	if err := unix.Fchownat(parent.fd, name, int(node.UID), int(node.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	// Links have no mode. What is here is no link: we made it a moment ago.
	if node.Kind != tree.Symlink {
		if err := unix.Fchmodat(parent.fd, name, node.Mode, 0); err != nil {
			return err
		}
	}
	if err := u.setXattrsAt(parent, name, node.Xattrs); err != nil {
		return err
	}
	return setTime(parent.fd, name, node.Mtime)
}

// setLinkMetadata lets the header of a hard link change the file, as other
// unpackers do. It usually says the same as that of the file.
func (u *Unpacker) setLinkMetadata(parent *directory, name string, e *tarraw.Entry) error {
	var stat unix.Stat_t
	if err := unix.Fstatat(parent.fd, name, &stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	symlink := stat.Mode&unix.S_IFMT == unix.S_IFLNK
	chown := stat.Uid != e.UID || stat.Gid != e.GID
	if chown {
		if err := unix.Fchownat(parent.fd, name, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if !symlink && (chown || stat.Mode&0o7777 != e.Mode&0o7777) {
		if err := unix.Fchmodat(parent.fd, name, e.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	if err := u.setXattrsAt(parent, name, e.Xattrs); err != nil {
		return err
	}
	if symlink {
		return nil
	}
	return setTime(parent.fd, name, tree.Time{Sec: e.MtimeSec, Nsec: e.MtimeNsec})
}

func (u *Unpacker) setXattrsAt(parent *directory, name string, xattrs []tree.Xattr) error {
	for _, x := range xattrs {
		err := u.setXattr(x, func() error {
			return unix.Lsetxattr("/proc/self/fd/"+strconv.Itoa(parent.fd)+"/"+name, x.Name, x.Value, 0)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// setXattr calls set for an attribute that is wanted.
func (u *Unpacker) setXattr(x tree.Xattr, set func() error) error {
	if x.Name == xattrSELinux {
		return nil
	}
	switch err := set(); err {
	case nil:
	case unix.EOPNOTSUPP:
		u.dropped.Add(1)
	default:
		return &os.PathError{Op: "set attribute", Path: x.Name, Err: err}
	}
	return nil
}

// setTime sets the modification time of name, and the time of access to the
// same.
func setTime(dir int, name string, t tree.Time) error {
	if t.Sec < 0 || t.Sec > maxTime {
		t = tree.Time{}
	}
	ts := unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)}
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}
