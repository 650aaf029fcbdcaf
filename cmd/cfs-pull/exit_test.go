// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

// What the system refuses says nothing about the repository.
func TestUndecided(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want int
	}{
		{unix.EIO, exitOther}, {unix.EROFS, exitOther}, {unix.EMFILE, exitOther}, {unix.EACCES, exitOther},
		{unix.ENOENT, exitIntegrity}, {unix.ELOOP, exitIntegrity}, {composefs.ErrIntegrity, exitIntegrity},
	} {
		err := fmt.Errorf("%w: open object: %w", composefs.ErrUndecided, tt.err)
		if got := classify(&pipeline.StageError{Stage: pipeline.StageGC, Err: err}); got.code != tt.want {
			t.Errorf("%v: %+v, want exit status %d", err, got, tt.want)
		}
	}
}

// A reset that stopped in the middle has done some work, so that it must not
// look like one that was refused.
func TestUnfinishedResetIsNoUsageError(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want failure
	}{
		{unix.EIO, failure{exitUsage, "environment", ""}},
		{fmt.Errorf("%w: %w", composefs.ErrResetUnfinished, unix.EIO), failure{exitOther, "unfinished", ""}},
	} {
		if got := classify(&pipeline.StageError{Stage: pipeline.StageOpen, Err: tt.err}); got != tt.want {
			t.Errorf("%v: %+v, want %+v", tt.err, got, tt.want)
		}
	}
}
