// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/filelock"
)

// OpenObjects opens the directory objects/, which a mount takes its files
// from. Without one the error is [fs.ErrNotExist].
func (r *Repo) OpenObjects() (*os.File, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.leave()
	return r.openReadDir("objects")
}

// openReadDir opens a directory of the repository for reading.
func (r *Repo) openReadDir(dir string) (*os.File, error) {
	fd, err := openBeneath(r.rootfd(), dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, r.pathError("open", dir, err)
	}
	return os.NewFile(uintptr(fd), r.path+"/"+dir), nil
}

// Usage is how much the objects of a repository are.
type Usage struct {
	Objects int64
	Bytes   int64 // the sum of their sizes
	// Allocated is the bytes that the file system has reserved for them;
	// extents that are shared count for each of their files.
	Allocated int64
	// Foreign counts names that are no object's.
	Foreign int64
}

// Usage counts the objects. It looks at every one, but reads none.
func (r *Repo) Usage(ctx context.Context) (Usage, error) {
	var u Usage
	if err := r.enter(); err != nil {
		return u, err
	}
	defer r.leave()
	tops, err := r.readDir("objects")
	if errors.Is(err, fs.ErrNotExist) {
		return u, nil
	}
	if err != nil {
		return u, err
	}
	for _, top := range tops {
		if ctx.Err() != nil {
			return u, context.Cause(ctx)
		}
		if !top.IsDir() {
			u.Foreign++
			continue
		}
		if err := r.addUsage(&u, top.Name()); err != nil {
			return u, err
		}
	}
	return u, nil
}

// addUsage counts the objects of one of the directories of objects/.
func (r *Repo) addUsage(u *Usage, top string) error {
	dir, err := r.openReadDir("objects/" + top)
	if err != nil {
		return err
	}
	defer dir.Close() // a directory
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list %s: %w", dir.Name(), err)
	}
	for _, name := range names {
		var st unix.Stat_t
		err := retry(func() error { return unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) })
		if errors.Is(err, unix.ENOENT) {
			continue // removed since the directory was read
		}
		if err != nil {
			return r.pathError("stat", "objects/"+top+"/"+name, err)
		}
		id, err := fsverity.ParseObjectPath(top + "/" + name)
		if err != nil || id.Algorithm() != r.meta.Algorithm || st.Mode&unix.S_IFMT != unix.S_IFREG {
			u.Foreign++
			continue
		}
		u.Objects++
		u.Bytes += st.Size
		u.Allocated += st.Blocks * 512
	}
	return nil
}

// FileSystem describes the file system that a repository is on.
type FileSystem struct {
	Type      string // as in mount(8), or the number of one that has no name here
	Size      uint64 // bytes
	Available uint64 // bytes that are free for this process
	ReadOnly  bool
}

// fileSystemNames are the file systems that a repository may be found on.
var fileSystemNames = map[int64]string{
	unix.BTRFS_SUPER_MAGIC:     "btrfs",
	unix.EROFS_SUPER_MAGIC_V1:  "erofs",
	unix.EXT4_SUPER_MAGIC:      "ext4", // or ext2, ext3
	unix.F2FS_SUPER_MAGIC:      "f2fs",
	unix.FUSE_SUPER_MAGIC:      "fuse",
	unix.NFS_SUPER_MAGIC:       "nfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay",
	unix.SQUASHFS_MAGIC:        "squashfs",
	unix.TMPFS_MAGIC:           "tmpfs",
	unix.XFS_SUPER_MAGIC:       "xfs",
	0x2fc12fc1:                 "zfs",
	0xca451a4e:                 "bcachefs",
}

// fileSystemName is the type of a file system as in mount(8).
func fileSystemName(st *unix.Statfs_t) string {
	if name, ok := fileSystemNames[int64(st.Type)]; ok {
		return name
	}
	return fmt.Sprintf("%#x", uint32(st.Type))
}

// FileSystem describes the file system that the repository is on.
func (r *Repo) FileSystem() (FileSystem, error) {
	if err := r.enter(); err != nil {
		return FileSystem{}, err
	}
	defer r.leave()
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(r.rootfd(), &st) }); err != nil {
		return FileSystem{}, fmt.Errorf("stat file system of %s: %w", r.path, err)
	}
	block := uint64(st.Bsize)
	return FileSystem{
		Type: fileSystemName(&st), Size: st.Blocks * block, Available: st.Bavail * block,
		ReadOnly: st.Flags&unix.ST_RDONLY != 0,
	}, nil
}

// ErrUnknown reports a question that can only be answered by writing, in a
// repository that cannot be written to or that has no files without a name.
var ErrUnknown = errors.New("cannot be tried without leaving traces")

// ProbeVerity tries, on a file without a name, whether the repository's file
// system and the kernel have fs-verity. It is nil when they have,
// [ErrVerityUnavailable] when they do not, and [ErrUnknown] when that cannot be
// tried.
func (r *Repo) ProbeVerity() error {
	return r.probe(func(dir *os.File) error {
		return r.verityError(r.verity.probe(dir, r.meta.Algorithm))
	})
}

// ErrNoReflink reports a file system whose files cannot share extents.
var ErrNoReflink = errors.New("files of this file system cannot share extents (reflinks)")

// ProbeReflink tries, on files without a name, whether files can share their
// extents. It is nil when they can, [ErrNoReflink] when not, and [ErrUnknown]
// when that cannot be tried.
func (r *Repo) ProbeReflink() error {
	return r.probe(func(dir *os.File) error {
		var files [2]*os.File
		for i := range files {
			fd, err := openTmpfile(dir)
			if err != nil {
				return err
			}
			files[i] = os.NewFile(uintptr(fd), dir.Name())
			defer files[i].Close() // it has no name and nothing of value
		}
		if _, err := files[0].Write(make([]byte, 4096)); err != nil {
			return fmt.Errorf("write probe file: %w", err)
		}
		err := retry(func() error { return unix.IoctlFileClone(int(files[1].Fd()), int(files[0].Fd())) })
		switch {
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
			return fmt.Errorf("repository %s: %w", r.path, ErrNoReflink)
		case err != nil:
			return fmt.Errorf("clone probe file: %w", err)
		}
		return nil
	})
}

func openTmpfile(dir *os.File) (int, error) {
	fd := -1
	err := retry(func() (err error) {
		fd, err = unix.Openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("create file without a name in %s: %w", dir.Name(), err)
	}
	return fd, nil
}

// probe calls f with a directory of the repository in which files without a
// name can be made.
func (r *Repo) probe(f func(dir *os.File) error) error {
	if err := r.Writable(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	dir, err := r.openReadDir("objects")
	if errors.Is(err, fs.ErrNotExist) {
		dir, err = r.openReadDir(".")
	}
	if err != nil {
		return err
	}
	defer dir.Close() // a directory
	fd, err := openTmpfile(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	unix.Close(fd) // nothing was written
	return f(dir)
}

// LockHolders lists the other processes that hold a lock of the repository, as
// far as the kernel tells: those of other namespaces have no number here.
func (r *Repo) LockHolders() ([]LockHolder, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.leave()
	holders := filelock.FlockHolders(r.lock.file, false)
	return slices.DeleteFunc(holders, func(h LockHolder) bool { return h.PID == os.Getpid() }), nil
}
