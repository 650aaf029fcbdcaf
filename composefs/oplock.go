// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/filelock"
)

// The file of the operation lock, in the directory below a repository that
// belongs to bootc and to what works beside it.
const (
	operationDir  = "bootc"
	operationFile = ".cfs-pull.lock"
)

// LockOperation takes the lock that a pull, a collection of garbage and a reset
// hold from their beginning to their end, so that of two at once the second
// finds what the first has done. It is a flock(2) of bootc/.cfs-pull.lock in the
// repository, which composefs-rs and bootc know nothing of: the lock of [Open]
// is needed beside it. It must be taken before that one; in the opposite order
// two processes could wait for each other.
//
// The error is a [*LockError] after timeout (0: [DefaultLockTimeout], negative:
// do not wait), and [ErrNotRepository] when there is neither a repository nor
// one of the old format.
func LockOperation(ctx context.Context, path string, timeout time.Duration) (release func() error, err error) {
	root, err := openRoot(path)
	if err != nil {
		return nil, err
	}
	defer root.Close() // a directory
	f, err := openOperationFile(root, path)
	if err != nil {
		return nil, err
	}
	if err := filelock.Flock(ctx, f, "operations on repository", unix.LOCK_EX, newWaiter(timeout)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() error {
		// A forked child may still have the description, so closing it would
		// not unlock at once.
		err := unix.Flock(int(f.Fd()), unix.LOCK_UN)
		if err != nil {
			err = fmt.Errorf("unlock repository %s: %w", path, err)
		}
		return errors.Join(err, f.Close())
	}, nil
}

// openOperationFile opens the file of the operation lock and makes it where it
// is missing.
func openOperationFile(root *os.File, path string) (*os.File, error) {
	dirfd := int(root.Fd())
	if err := looksLikeRepository(dirfd); err != nil {
		return nil, fmt.Errorf("open repository %s: %w", path, err)
	}
	fail := func(op, name string, err error) error {
		why := error(&fs.PathError{Op: op, Path: path + "/" + name, Err: err})
		if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
			why = fmt.Errorf("%w: %w", ErrReadOnly, why)
		}
		return fmt.Errorf("lock repository: %w", why)
	}
	if err := unix.Mkdirat(dirfd, operationDir, dirMode); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fail("mkdir", operationDir, err)
	}
	const name = operationDir + "/" + operationFile
	fd, err := openBeneath(dirfd, name, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fail("open", name, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// looksLikeRepository keeps files out of directories that are something else.
func looksLikeRepository(dirfd int) error {
	var st unix.Stat_t
	for _, name := range []string{"meta.json", "objects"} {
		err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("%w: it has neither meta.json nor objects", ErrNotRepository)
}
