// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/filelock"
)

// DefaultLockTimeout is how long a lock is waited for when the options do not
// say. Pulls hold shared locks, so only garbage collection makes others wait.
const DefaultLockTimeout = 60 * time.Second

// fileKey identifies a directory whatever path leads to it.
type fileKey struct{ dev, ino uint64 }

// processLock is this process's lock of one repository. flock(2) locks belong
// to open file descriptions and two of one process conflict, so there is one
// for all handles.
type processLock struct {
	key  fileKey
	path string
	file *os.File // what is locked; nothing else is done with it

	// Guarded by lockTable.mu.
	refs      int
	busy      bool // the lock is being taken or converted, or is exclusive
	exclusive bool
	lost      bool // a failed conversion could not be undone
}

// lockTable holds the locks of this process. It is the package's only global
// state: "one lock for each repository and process" cannot be had with less.
type lockTable struct {
	mu   sync.Mutex
	held map[fileKey]*processLock
}

var locks = lockTable{held: make(map[fileKey]*processLock)}

// acquire takes or joins the shared lock of the directory that root is open on.
func (t *lockTable) acquire(ctx context.Context, root *os.File, path string, timeout time.Duration) (*processLock, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return nil, fmt.Errorf("stat repository %s: %w", path, err)
	}
	key := fileKey{st.Dev, st.Ino}
	w := newWaiter(timeout)
	for {
		t.mu.Lock()
		l := t.held[key]
		switch {
		case l == nil:
			l = &processLock{key: key, path: path, refs: 1, busy: true}
			t.held[key] = l
			t.mu.Unlock()
			return t.take(ctx, l, root, w)
		case !l.busy && !l.lost:
			l.refs++
			t.mu.Unlock()
			return l, nil
		}
		t.mu.Unlock()
		if err := w.Wait(ctx); err != nil {
			return nil, &LockError{
				What: lockSubject, Path: path, Holders: []LockHolder{filelock.Self()},
				Waited: w.Waited(), Err: err,
			}
		}
	}
}

// take locks for the first handle of the process.
func (t *lockTable) take(ctx context.Context, l *processLock, root *os.File, w *filelock.Waiter) (*processLock, error) {
	// A description of its own: the lock must not depend on what happens to
	// the descriptor that operations use.
	fd, err := openBeneath(int(root.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err == nil {
		l.file = os.NewFile(uintptr(fd), l.path)
		err = filelock.Flock(ctx, l.file, lockSubject, unix.LOCK_SH, w)
		if err != nil {
			l.file.Close() // nothing was written to a directory
		}
	} else {
		err = fmt.Errorf("open repository %s: %w", l.path, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	l.busy = false
	if err != nil {
		delete(t.held, l.key)
		return nil, err
	}
	return l, nil
}

// release drops one handle; the last one unlocks.
func (t *lockTable) release(l *processLock) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	l.refs--
	if l.refs > 0 {
		return nil
	}
	delete(t.held, l.key)
	// A forked child may still have the description, so closing it would
	// not unlock at once.
	err := unix.Flock(int(l.file.Fd()), unix.LOCK_UN)
	if err != nil {
		err = fmt.Errorf("unlock repository %s: %w", l.path, err)
	}
	return errors.Join(err, l.file.Close())
}

// convertExclusive turns the shared lock into the exclusive one. The kernel
// drops the shared lock first, so whatever was read before must be read again.
func (t *lockTable) convertExclusive(ctx context.Context, l *processLock, timeout time.Duration) error {
	t.mu.Lock()
	if l.refs > 1 || l.busy {
		n := l.refs
		t.mu.Unlock()
		return fmt.Errorf("get exclusive lock of repository %s: %w: %d handles are open", l.path, ErrInUse, n)
	}
	l.busy = true
	t.mu.Unlock()

	err := filelock.Flock(ctx, l.file, lockSubject, unix.LOCK_EX, newWaiter(timeout))
	if err == nil {
		t.mu.Lock()
		l.exclusive = true
		t.mu.Unlock()
		return nil
	}
	return errors.Join(err, t.backToShared(l))
}

// backToShared takes the shared lock again after an exclusive one, or after
// the attempt to get one, which has dropped it. Without it the handle must not
// write any more.
func (t *lockTable) backToShared(l *processLock) error {
	// The caller's context may be over already; the time limit still holds.
	err := filelock.Flock(context.Background(), l.file, lockSubject, unix.LOCK_SH, newWaiter(DefaultLockTimeout))
	t.mu.Lock()
	defer t.mu.Unlock()
	l.exclusive, l.busy, l.lost = false, false, err != nil
	return err
}

func (t *lockTable) isExclusive(l *processLock) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return l.exclusive
}

func (t *lockTable) isLost(l *processLock) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return l.lost
}

// lockSubject is what a lock of this package protects, for messages.
const lockSubject = "repository"

// newWaiter gives up after timeout; 0 stands for the default, negative values
// for "do not wait".
func newWaiter(timeout time.Duration) *filelock.Waiter {
	if timeout == 0 {
		timeout = DefaultLockTimeout
	}
	return filelock.NewWaiter(timeout)
}
