// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
)

// Upgrade is what was done to a repository that an older release made.
type Upgrade struct {
	// Metadata is set when meta.json was missing and was written.
	Metadata bool `json:"metadata"`
	// Images is how many images got the EROFS images that they lacked.
	Images int `json:"images"`
}

// lockOperation takes the operation lock, and says so when it has to wait.
func lockOperation(ctx context.Context, path string, timeout time.Duration, log *slog.Logger) (func() error, error) {
	return waitLoudly(ctx, timeout, log, func(timeout time.Duration) (func() error, error) {
		return composefs.LockOperation(ctx, path, timeout)
	})
}

// lockExclusive turns the repository's lock into the exclusive one, and says
// so when it has to wait.
func lockExclusive(ctx context.Context, repo *composefs.Repo, timeout time.Duration, log *slog.Logger) (func() error, error) {
	return waitLoudly(ctx, timeout, log, func(timeout time.Duration) (func() error, error) {
		return repo.LockExclusive(ctx, timeout)
	})
}

// waitLoudly tries a lock and, before it waits for it, says for whom.
func waitLoudly(ctx context.Context, timeout time.Duration, log *slog.Logger, lock func(time.Duration) (func() error, error)) (func() error, error) {
	unlock, err := lock(-1)
	locked, ok := errors.AsType[*composefs.LockError](err)
	if !ok || timeout < 0 || ctx.Err() != nil {
		return unlock, err
	}
	var holders []any
	for _, h := range locked.Holders {
		holders = append(holders, "pid", h.PID, "command", h.Command)
	}
	log.Warn("waiting for others that use the repository", holders...)
	return lock(timeout)
}

// openUpgraded opens a repository for writing and brings what an older release
// left into today's form. The caller holds the operation lock. What cannot be
// upgraded is left alone and logged.
func openUpgraded(ctx context.Context, path string, o composefs.OpenOptions, limits oci.Limits, log *slog.Logger) (*composefs.Repo, *Upgrade, error) {
	o.Upgrade = true
	repo, err := composefs.Open(ctx, path, o)
	if err != nil {
		return nil, nil, err
	}
	if err := repo.Writable(); err != nil {
		return nil, nil, errors.Join(err, repo.Close())
	}
	done := &Upgrade{Metadata: repo.Upgraded()}
	if done.Metadata {
		log.Info("upgraded a repository of an older release: wrote its meta.json",
			"algorithm", repo.Algorithm().String(), "verity required", repo.Secure())
	}
	up, err := oci.Upgrade(ctx, repo, limits)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("repository %s: %w", path, err), repo.Close())
	}
	if done.Images = up.Images; up.Images > 0 {
		log.Info("upgraded images of an older release", "images", up.Images)
	}
	for _, b := range up.Broken {
		log.Warn("an image is broken and cannot be upgraded; pull it again, or remove its tag", "tag", b.Tag, "error", b.Err)
	}
	if *done == (Upgrade{}) {
		done = nil
	}
	return repo, done, nil
}
