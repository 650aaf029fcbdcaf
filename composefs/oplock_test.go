// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLockOperation(t *testing.T) {
	path := newRepoPath(t, noVerity(), InitOptions{AllowMissingVerity: true})
	release := check(LockOperation(t.Context(), path, -1))(t)

	// It is the file that is agreed on, and says who holds it.
	other := foreign(t, path+"/bootc/.cfs-pull.lock")
	if granted(t, other, unix.LOCK_SH) {
		t.Error("the lock is not held")
	}
	_, err := LockOperation(t.Context(), path, 20*time.Millisecond)
	e, ok := errors.AsType[*LockError](err)
	if !ok || !errors.Is(err, ErrLocked) || !e.Exclusive || e.Waited < 20*time.Millisecond {
		t.Fatalf("error %v", err)
	}
	for _, want := range []string{"operations on repository " + path, fmt.Sprintf("pid %d", os.Getpid())} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("message %q has no %q", err, want)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	if _, err := LockOperation(ctx, path, 0); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("cancelled: %v", err)
	}
	// The repository's own lock is another one.
	r := check(open(t.Context(), path, OpenOptions{LockTimeout: -1}, noVerity()))(t)
	unlock := check(r.LockExclusive(t.Context(), -1))(t)
	must(t, unlock())
	must(t, r.Close())

	must(t, release())
	release = check(LockOperation(t.Context(), path, -1))(t)
	must(t, release())
}

func TestLockOperationElsewhere(t *testing.T) {
	dir := t.TempDir()
	if _, err := LockOperation(t.Context(), dir, -1); !errors.Is(err, ErrNotRepository) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := LockOperation(t.Context(), dir+"/absent", -1); !errors.Is(err, ErrNotRepository) {
		t.Errorf("nothing: %v", err)
	}
	if got := check(os.ReadDir(dir))(t); len(got) > 0 {
		t.Errorf("made %v", got)
	}
	// One of the old format, and links that lead out.
	must(t, os.Mkdir(dir+"/objects", 0o755))
	release := check(LockOperation(t.Context(), dir, -1))(t)
	must(t, release())
	must(t, os.RemoveAll(dir+"/bootc"))
	outside := t.TempDir()
	must(t, os.Symlink(outside, dir+"/bootc"))
	if _, err := LockOperation(t.Context(), dir, -1); !errors.Is(err, unix.EXDEV) {
		t.Errorf("a directory that leads out: %v", err)
	}
	if got := check(os.ReadDir(outside))(t); len(got) > 0 {
		t.Errorf("made %v outside", got)
	}
}
