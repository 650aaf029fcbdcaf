// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/filelock"
)

// holdLock lets another process hold a POSIX lock, as podman does, and returns
// its pid and what ends it.
func holdLock(tb testing.TB, path string) (pid int, release func()) {
	tb.Helper()
	cmd, in, out := startHelperWithInput(tb, "lock", "CSTOR_LOCK="+path)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "locked\n" {
		tb.Fatalf("the other process says %q, %v", line, err)
	}
	return cmd.Process.Pid, func() {
		must(tb, in.Close())
		must(tb, cmd.Wait())
	}
}

// What waits for a lock of the library gives up after the time limit and says
// who has it.
func TestLibraryLocks(t *testing.T) {
	ref := vector(t, "sizes")
	src := openSource(t, ref, fetchOptions(t))
	for _, name := range []string{layersLock, imagesLock, "storage.lock"} {
		t.Run(filepath.Base(name), func(t *testing.T) {
			s := testStore(t)
			s.options.LockTimeout = 300 * time.Millisecond
			pid, release := holdLock(t, filepath.Join(s.graphRoot, name))
			started := time.Now()
			_, err := s.Pull(t.Context(), src, PullOptions{MinFree: -1})
			e, ok := errors.AsType[*filelock.Error](err)
			if !ok || !errors.Is(err, filelock.ErrLocked) {
				t.Fatalf("error %T %v", err, err)
			}
			if len(e.Holders) != 1 || e.Holders[0].PID != pid || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", pid)) {
				t.Errorf("error %v, the holder is %d", err, pid)
			}
			if waited := time.Since(started); waited < s.options.LockTimeout || waited > time.Minute {
				t.Errorf("waited %v", waited)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			s.options.LockTimeout = time.Minute
			if _, err := s.Pull(ctx, src, PullOptions{MinFree: -1}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("cancelled: %v", err)
			}
			other := check(OpenExisting(t.Context(), s.options))(t)
			must(t, other.Close()) // at once
			release()
			check(s.Pull(t.Context(), src, PullOptions{MinFree: -1}))(t)
			checkStore(t, s)
		})
	}
}

// A lock file that cannot be opened for writing now is said to be so, and can be
// later.
func TestLibraryLockOpenError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "images.lock")
	must(t, os.WriteFile(path, check(os.ReadFile(check(exec.LookPath("sleep"))(t)))(t), 0o755))
	cmd := exec.CommandContext(t.Context(), path, "60")
	must(t, cmd.Start()) // a program that runs can be read and not written
	_, err := libraryLock(path, false)
	if !errors.Is(err, unix.ETXTBSY) || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	if lock := check(libraryLock(path, false))(t); !lock.IsReadWrite() {
		t.Error("the lock is for reading only")
	}
}

// A lock that is given back in time is waited for.
func TestLibraryLockIsWaitedFor(t *testing.T) {
	s := testStore(t)
	pull(t, s, vector(t, "sizes"), "example.com/a:1")
	_, release := holdLock(t, filepath.Join(s.graphRoot, layersLock))
	time.AfterFunc(300*time.Millisecond, release)
	started := time.Now()
	check(s.Lookup("example.com/a:1"))(t)
	if time.Since(started) < 200*time.Millisecond {
		t.Error("read under the lock of another process")
	}
}

// The library panics when it cannot open a lock. That is an error here, and the
// library, whose mutexes stay locked, is not called again.
func TestLibraryPanics(t *testing.T) {
	s := &Store{graphRoot: t.TempDir()}
	full := &fs.PathError{Op: "open", Path: "layers.lock", Err: unix.ENOSPC}
	if err := s.guard(t.Context(), always, func() error { panic(full) }); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), s.graphRoot) {
		t.Errorf("guard: %v, want ENOSPC of the store", err)
	}
	called := false
	if err := s.guard(t.Context(), always, func() error { called = true; return nil }); !errors.Is(err, unix.ENOSPC) || called {
		t.Errorf("guard after a panic: %v, called: %t", err, called)
	}
	if _, err := s.Images(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("images after a panic: %v", err)
	}
}
