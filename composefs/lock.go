// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultLockTimeout is how long a lock is waited for when the options do not
// say. Pulls hold shared locks, so only garbage collection makes others wait.
const DefaultLockTimeout = 60 * time.Second

const (
	lockPollMin = 2 * time.Millisecond
	lockPollMax = 250 * time.Millisecond
)

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
		if err := w.wait(ctx); err != nil {
			return nil, &LockError{
				Path: path, Holders: []LockHolder{{PID: os.Getpid(), Command: commandOf(os.Getpid())}},
				Waited: w.waited(), Err: err,
			}
		}
	}
}

// take locks for the first handle of the process.
func (t *lockTable) take(ctx context.Context, l *processLock, root *os.File, w *waiter) (*processLock, error) {
	// A description of its own: the lock must not depend on what happens to
	// the descriptor that operations use.
	fd, err := openBeneath(int(root.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err == nil {
		l.file = os.NewFile(uintptr(fd), l.path)
		err = flock(ctx, l.file, l.path, unix.LOCK_SH, w)
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

	err := flock(ctx, l.file, l.path, unix.LOCK_EX, newWaiter(timeout))
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
	err := flock(context.Background(), l.file, l.path, unix.LOCK_SH, newWaiter(DefaultLockTimeout))
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

// flock polls: a blocking flock(2) could not be given up.
func flock(ctx context.Context, f *os.File, path string, how int, w *waiter) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("lock repository %s: %w", path, err)
		}
		if err := w.wait(ctx); err != nil {
			return &LockError{
				Path: path, Exclusive: how == unix.LOCK_EX,
				Holders: lockHolders(f, how == unix.LOCK_SH), Waited: w.waited(), Err: err,
			}
		}
	}
}

// waiter spaces out polls and ends them.
type waiter struct {
	start, deadline time.Time
	delay           time.Duration
}

// newWaiter gives up after timeout; 0 stands for the default, negative values
// for "do not wait".
func newWaiter(timeout time.Duration) *waiter {
	if timeout == 0 {
		timeout = DefaultLockTimeout
	}
	now := time.Now()
	return &waiter{start: now, deadline: now.Add(max(timeout, 0)), delay: lockPollMin}
}

func (w *waiter) waited() time.Duration { return time.Since(w.start) }

// wait sleeps until the next poll, or says why there is none.
func (w *waiter) wait(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	left := time.Until(w.deadline)
	if left <= 0 {
		return ErrLocked
	}
	t := time.NewTimer(min(w.delay, left))
	defer t.Stop()
	w.delay = min(2*w.delay, lockPollMax)
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// lockHolders finds who holds a flock on f in /proc/locks. It is for messages
// only and returns nothing when it does not know.
func lockHolders(f *os.File, writersOnly bool) []LockHolder {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil
	}
	table, err := os.Open("/proc/locks")
	if err != nil {
		return nil
	}
	defer table.Close()
	// The kernel prints the device of the super block, which is not what
	// stat returns on btrfs; the inode number alone is the second choice.
	var exact, likely []LockHolder
	for _, l := range parseLocks(io.LimitReader(table, 1<<20)) {
		if l.inode != st.Ino || (writersOnly && !l.write) {
			continue
		}
		h := LockHolder{PID: l.pid, Command: commandOf(l.pid)}
		if l.major == unix.Major(st.Dev) && l.minor == unix.Minor(st.Dev) {
			exact = append(exact, h)
		}
		likely = append(likely, h)
	}
	if exact != nil {
		return exact
	}
	return likely
}

type lockLine struct {
	pid          int
	write        bool
	major, minor uint32
	inode        uint64
}

// parseLocks reads the granted flock(2) locks of /proc/locks: lines such as
// "7: FLOCK  ADVISORY  WRITE 4242 fd:01:262146 0 EOF".
func parseLocks(r io.Reader) []lockLine {
	var out []lockLine
	for s := bufio.NewScanner(r); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 6 || f[1] != "FLOCK" { // "->" in f[1] marks one that waits
			continue
		}
		id := strings.Split(f[5], ":")
		pid, err := strconv.Atoi(f[4])
		if err != nil || len(id) != 3 || pid <= 0 {
			continue
		}
		major, err1 := strconv.ParseUint(id[0], 16, 32)
		minor, err2 := strconv.ParseUint(id[1], 16, 32)
		inode, err3 := strconv.ParseUint(id[2], 10, 64)
		if errors.Join(err1, err2, err3) != nil {
			continue
		}
		out = append(out, lockLine{pid, f[3] == "WRITE", uint32(major), uint32(minor), inode})
	}
	return out
}

func commandOf(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b))
}
