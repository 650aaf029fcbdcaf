// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// upper is a directory that keeps the changes of a mount: upper/ has what was
// changed, work/ belongs to overlayfs.
type upper struct {
	dir, upper, work *os.File
}

// openUpper opens the directory for changes and makes what is missing. A new
// upper/ looks like root, the root of the image, because its owner, mode and
// attributes are those of the mount's root.
func openUpper(path string, root *os.File) (*upper, error) {
	err := os.Mkdir(path, 0o755)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("%w: %w", ErrUpper, err)
	}
	u := &upper{}
	if err := u.open(path, root); err != nil {
		u.close()
		return nil, fmt.Errorf("%s: %w: %w", path, ErrUpper, err)
	}
	return u, nil
}

func (u *upper) open(path string, root *os.File) (err error) {
	if u.dir, err = openDirectory(unix.AT_FDCWD, path, path); err != nil {
		return err
	}
	if u.work, _, err = u.make("work", 0o700); err != nil {
		return err
	}
	var created bool
	if u.upper, created, err = u.make("upper", 0o700); err != nil {
		return err
	}
	if created {
		if err := copyAttributes(root, u.upper); err != nil {
			unix.Unlinkat(int(u.dir.Fd()), "upper", unix.AT_REMOVEDIR) // so that the next try makes it
			return err
		}
	}
	return u.checkUnused()
}

func (u *upper) close() {
	for _, f := range []*os.File{u.dir, u.upper, u.work} {
		if f != nil {
			f.Close() // a directory
		}
	}
}

// option is the path of a directory below u as overlayfs wants to have it.
func (u *upper) option(name string) string {
	path, err := os.Readlink(procPath(u.dir))
	if err != nil {
		path = u.dir.Name()
	}
	return strings.ReplaceAll(path+"/"+name, `\`, `\\`)
}

// make opens a directory below u and creates it if there is none.
func (u *upper) make(name string, mode uint32) (f *os.File, created bool, err error) {
	err = unix.Mkdirat(int(u.dir.Fd()), name, mode)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, false, &os.PathError{Op: "mkdir", Path: u.dir.Name() + "/" + name, Err: err}
	}
	f, openErr := openDirectory(int(u.dir.Fd()), name, u.dir.Name()+"/"+name)
	return f, err == nil, openErr
}

// openDirectory opens a directory that is not a link.
func openDirectory(dir int, name, path string) (*os.File, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open directory", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// copyAttributes gives a directory the owner, the mode, the times and the
// attributes of another one.
func copyAttributes(from, to *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: from.Name(), Err: err}
	}
	if err := unix.Fchown(int(to.Fd()), int(st.Uid), int(st.Gid)); err != nil {
		return &os.PathError{Op: "chown", Path: to.Name(), Err: err}
	}
	if err := unix.Fchmod(int(to.Fd()), st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: to.Name(), Err: err}
	}
	names := make([]byte, 1<<16)
	n, err := unix.Flistxattr(int(from.Fd()), names)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return &os.PathError{Op: "listxattr", Path: from.Name(), Err: err}
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, procPath(to), times, 0); err != nil {
		return &os.PathError{Op: "set time", Path: to.Name(), Err: err}
	}
	value := make([]byte, 1<<16)
	for name := range bytes.SplitSeq(names[:max(n, 0)], []byte{0}) {
		key := string(name)
		if key == "" || strings.HasPrefix(key, "trusted.overlay.") {
			continue // the image's marks for overlayfs
		}
		n, err := unix.Fgetxattr(int(from.Fd()), key, value)
		if err == nil {
			err = unix.Fsetxattr(int(to.Fd()), key, value[:n], 0)
		}
		if err != nil {
			return &os.PathError{Op: "copy attribute " + key, Path: to.Name(), Err: err}
		}
	}
	return nil
}

// checkUnused makes sure that no overlayfs has this upper directory: with two
// of them its content is not defined, and the kernel only warns.
func (u *upper) checkUnused() error {
	var own unix.Stat_t
	if err := unix.Fstat(int(u.upper.Fd()), &own); err != nil {
		return &os.PathError{Op: "stat", Path: u.upper.Name(), Err: err}
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("overlay"))
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	for _, m := range mounts {
		for option := range strings.SplitSeq(m.VFSOptions, ",") {
			value, ok := strings.CutPrefix(option, "upperdir=")
			if ok && (isSame(unescape(value), &own) || isSame(strings.ReplaceAll(unescape(value), `\\`, `\`), &own)) {
				return fmt.Errorf("it is in use by the mount on %s", m.Mountpoint)
			}
		}
	}
	return nil
}

// isSame reports whether path leads to an inode.
func isSame(path string, want *unix.Stat_t) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Dev == want.Dev && st.Ino == want.Ino
}

// octal is how the list of mounts has what would end an option: a backslash
// and three octal digits. Where overlayfs was given a path and not a
// descriptor, the list has what [upper.option] makes of it.
var octal = regexp.MustCompile(`\\[0-3][0-7]{2}`)

func unescape(option string) string {
	return octal.ReplaceAllStringFunc(option, func(s string) string {
		n, _ := strconv.ParseUint(s[1:], 8, 8) // the pattern allows nothing else
		return string([]byte{byte(n)})
	})
}
