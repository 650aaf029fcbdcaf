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
