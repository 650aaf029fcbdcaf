// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// foreign is a descriptor of the directory that this package does not know;
// its locks conflict as those of another process do.
func foreign(tb testing.TB, path string) *os.File {
	tb.Helper()
	f := check(os.Open(path))(tb)
	tb.Cleanup(func() { f.Close() })
	return f
}

// granted tries a lock and gives it back.
func granted(tb testing.TB, f *os.File, how int) bool {
	tb.Helper()
	err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		tb.Fatal(err)
	}
	must(tb, unix.Flock(int(f.Fd()), unix.LOCK_UN))
	return err == nil
}

func TestOpenLocksShared(t *testing.T) {
	path := newRepoPath(t, noVerity(), InitOptions{AllowMissingVerity: true})
	other := foreign(t, path)
	a := check(open(t.Context(), path, OpenOptions{}, noVerity()))(t)
	b := check(open(t.Context(), path, OpenOptions{}, noVerity()))(t)
	for i, r := range []*Repo{a, b} {
		if !granted(t, other, unix.LOCK_SH) || granted(t, other, unix.LOCK_EX) {
			t.Errorf("with %d handles open the lock is not shared", 2-i)
		}
		must(t, r.Close())
	}
	if !granted(t, other, unix.LOCK_EX) {
		t.Error("the lock is left")
	}
}

func TestOpenWaitsForTheLock(t *testing.T) {
	path := newRepoPath(t, noVerity(), InitOptions{AllowMissingVerity: true})
	other := foreign(t, path)
	must(t, unix.Flock(int(other.Fd()), unix.LOCK_EX))

	for _, timeout := range []time.Duration{-1, 30 * time.Millisecond} {
		_, err := open(t.Context(), path, OpenOptions{LockTimeout: timeout}, noVerity())
		var le *LockError
		if !errors.As(err, &le) || !errors.Is(err, ErrLocked) {
			t.Fatalf("error %v, want a LockError", err)
		}
		if le.Path != path || le.Exclusive || le.Waited < timeout {
			t.Errorf("error %+v", le)
		}
		if len(le.Holders) != 1 || le.Holders[0].PID != os.Getpid() || le.Holders[0].Command == "" {
			t.Errorf("holders %v, want this process", le.Holders)
		}
		for _, want := range []string{path, fmt.Sprintf("pid %d", os.Getpid())} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("message %q has no %q", err, want)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := open(ctx, path, OpenOptions{}, noVerity()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want the context's", err)
	}

	var wg sync.WaitGroup
	wg.Go(func() {
		time.Sleep(30 * time.Millisecond)
		if err := unix.Flock(int(other.Fd()), unix.LOCK_UN); err != nil {
			t.Error(err)
		}
	})
	must(t, check(open(t.Context(), path, OpenOptions{}, noVerity()))(t).Close())
	wg.Wait()
}

func TestLockExclusive(t *testing.T) {
	path := newRepoPath(t, noVerity(), InitOptions{AllowMissingVerity: true})
	other := foreign(t, path)
	r := openRepo(t, path, noVerity(), OpenOptions{})

	second := check(open(t.Context(), path, OpenOptions{}, noVerity()))(t)
	if _, err := r.LockExclusive(t.Context(), -1); !errors.Is(err, ErrInUse) {
		t.Errorf("with another handle open: %v", err)
	}
	must(t, second.Close())

	unlock, err := r.LockExclusive(t.Context(), -1)
	must(t, err)
	if granted(t, other, unix.LOCK_SH) {
		t.Error("the lock is not exclusive")
	}
	var le *LockError
	if _, err := open(t.Context(), path, OpenOptions{LockTimeout: 10 * time.Millisecond}, noVerity()); !errors.As(err, &le) {
		t.Errorf("open beside the exclusive lock: %v", err)
	}
	if _, _, err := r.Put([]byte("x")); err != nil {
		t.Errorf("the holder cannot write: %v", err)
	}
	must(t, unlock())
	if !granted(t, other, unix.LOCK_SH) || granted(t, other, unix.LOCK_EX) {
		t.Error("the lock is not shared again")
	}

	// A conversion that fails drops the shared lock in the kernel.
	must(t, unix.Flock(int(other.Fd()), unix.LOCK_SH))
	if _, err := r.LockExclusive(t.Context(), 10*time.Millisecond); !errors.As(err, &le) || !le.Exclusive || len(le.Holders) == 0 {
		t.Errorf("with another process: %v", err)
	}
	must(t, unix.Flock(int(other.Fd()), unix.LOCK_UN))
	if granted(t, other, unix.LOCK_EX) {
		t.Error("the shared lock was lost")
	}
	must(t, r.Writable())
}

// A handle without its lock must not write: garbage collection could be
// running.
func TestLostLock(t *testing.T) {
	r := insecureRepo(t)
	locks.mu.Lock()
	r.lock.lost = true
	locks.mu.Unlock()
	if _, _, err := r.Put([]byte("x")); !errors.Is(err, ErrReadOnly) {
		t.Errorf("put without a lock: %v", err)
	}
	if _, err := open(t.Context(), r.Path(), OpenOptions{LockTimeout: -1}, noVerity()); !errors.Is(err, ErrLocked) {
		t.Errorf("joined a lost lock: %v", err)
	}
}
