// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package filelock takes file locks with a time limit and, when one is not
// granted, says who holds it.
//
// Two kinds of lock are known. flock(2) locks belong to an open file
// description; repositories and cfs-pull's own lock files use them. POSIX
// record locks belong to a process; the containers libraries use them. On a
// local file system the two do not see each other.
package filelock

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
	"time"

	"golang.org/x/sys/unix"
)

const (
	pollMin = 2 * time.Millisecond
	pollMax = 250 * time.Millisecond
)

// ErrLocked is what an [*Error] wraps when the time limit was reached.
var ErrLocked = errors.New("it is locked")

// Holder is a process that holds a conflicting lock.
type Holder struct {
	PID     int
	Command string // empty when unknown
}

// Self is this process as a holder.
func Self() Holder { return Holder{PID: os.Getpid(), Command: commandOf(os.Getpid())} }

// Error says which lock was not granted and who holds it.
type Error struct {
	What      string // what the lock protects, for example "repository"
	Path      string
	Exclusive bool // the lock that was asked for
	Holders   []Holder
	Waited    time.Duration
	Err       error // ErrLocked, or the context's error
}

func (e *Error) Error() string {
	var b strings.Builder
	kind := "shared"
	if e.Exclusive {
		kind = "exclusive"
	}
	fmt.Fprintf(&b, "get %s lock of %s %s within %s", kind, e.What, e.Path, e.Waited.Round(time.Millisecond))
	for i, h := range e.Holders {
		b.WriteString([]string{": held by ", ", "}[min(i, 1)])
		fmt.Fprintf(&b, "pid %d", h.PID)
		if h.Command != "" {
			fmt.Fprintf(&b, " (%s)", h.Command)
		}
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	return b.String()
}

// Unwrap makes errors.Is find ErrLocked and the context's error.
func (e *Error) Unwrap() []error { return []error{ErrLocked, e.Err} }

// Waiter spaces out polls and ends them.
type Waiter struct {
	start, deadline time.Time
	delay           time.Duration
}

// NewWaiter gives up after timeout; a value that is not positive means "do not
// wait".
func NewWaiter(timeout time.Duration) *Waiter {
	now := time.Now()
	return &Waiter{start: now, deadline: now.Add(max(timeout, 0)), delay: pollMin}
}

// Waited is the time since the waiter was made.
func (w *Waiter) Waited() time.Duration { return time.Since(w.start) }

// Wait sleeps until the next poll, or says why there is none.
func (w *Waiter) Wait(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	left := time.Until(w.deadline)
	if left <= 0 {
		return ErrLocked
	}
	t := time.NewTimer(min(w.delay, left))
	defer t.Stop()
	w.delay = min(2*w.delay, pollMax)
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Flock takes a flock(2) lock on f, how being LOCK_SH or LOCK_EX. It polls: a
// blocking flock(2) could not be given up. what is for the error.
func Flock(ctx context.Context, f *os.File, what string, how int, w *Waiter) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("lock %s %s: %w", what, f.Name(), err)
		}
		if err := w.Wait(ctx); err != nil {
			return &Error{
				What: what, Path: f.Name(), Exclusive: how == unix.LOCK_EX,
				Holders: FlockHolders(f, how == unix.LOCK_SH), Waited: w.Waited(), Err: err,
			}
		}
	}
}

// FlockHolders finds who holds a flock(2) lock on f. It is for messages only
// and returns nothing when it does not know.
func FlockHolders(f *os.File, writersOnly bool) []Holder {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil
	}
	return holders(&st, "FLOCK", writersOnly)
}

// PosixHolders finds who holds a POSIX record lock on the file at path, without
// opening it: closing it again would drop such locks of this process. It is for
// messages only and returns nothing when it does not know.
func PosixHolders(path string, writersOnly bool) []Holder {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil
	}
	return holders(&st, "POSIX", writersOnly)
}

// holders looks into /proc/locks.
func holders(st *unix.Stat_t, kind string, writersOnly bool) []Holder {
	table, err := os.Open("/proc/locks")
	if err != nil {
		return nil
	}
	defer table.Close()
	// The kernel prints the device of the super block, which is not what
	// stat returns on btrfs; the inode number alone is the second choice.
	var exact, likely []Holder
	for _, l := range parse(io.LimitReader(table, 1<<20), kind) {
		if l.inode != st.Ino || (writersOnly && !l.write) {
			continue
		}
		h := Holder{PID: l.pid, Command: commandOf(l.pid)}
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

type line struct {
	pid          int
	write        bool
	major, minor uint32
	inode        uint64
}

// parse reads the granted locks of one kind of /proc/locks: lines such as
// "7: FLOCK  ADVISORY  WRITE 4242 fd:01:262146 0 EOF".
func parse(r io.Reader, kind string) []line {
	var out []line
	for s := bufio.NewScanner(r); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 6 || f[1] != kind { // "->" in f[1] marks one that waits
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
		out = append(out, line{pid, f[3] == "WRITE", uint32(major), uint32(minor), inode})
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
