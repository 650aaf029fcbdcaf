// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/bootc"
	"github.com/cfs-pull/cfs-pull/composefs/mount"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// ResetOptions say what a repository becomes.
type ResetOptions struct {
	composefs.InitOptions
	// Force removes what deployments of bootc and mounts need, too, and allows
	// fs-verity to be missing in a repository that requires it.
	Force bool
	// Bootc says where the running system is described.
	Bootc bootc.Options
	Log   *slog.Logger
}

// NeededError reports a reset that would remove what is needed: deployments
// could not boot any more, and the next collection of garbage would remove files
// of what is mounted.
type NeededError struct{ Deployed, Mounted []fsverity.Digest }

func (e *NeededError) Error() string {
	var needs []string
	for _, n := range []struct {
		ids  []fsverity.Digest
		what string
	}{{e.Deployed, "deployments of bootc"}, {e.Mounted, "mounts"}} {
		switch len(n.ids) {
		case 0:
		case 1:
			needs = append(needs, fmt.Sprintf("%s (%s)", n.what, n.ids[0]))
		default:
			needs = append(needs, fmt.Sprintf("%s (%s and %d more)", n.what, n.ids[0], len(n.ids)-1))
		}
	}
	return fmt.Sprintf("%s need images in the repository; nothing was removed", strings.Join(needs, " and "))
}

// Reset is [composefs.Reset] with the lock of a whole operation, which spares
// what is mounted and what the deployments of bootc beside the repository need:
// the error is a [*NeededError], or [bootc.ErrState] when deployments cannot be
// told. Where there is no repository, one is created as by [Init], and removed
// is nil.
func Reset(ctx context.Context, path string, o ResetOptions) (removed *composefs.ResetResult, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	unlock, err := lockOperation(ctx, path, o.LockTimeout, o.Log)
	if errors.Is(err, composefs.ErrNotRepository) && !hasLinks(path) {
		_, err := Init(ctx, path, o.InitOptions)
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	options := composefs.ResetOptions{
		InitOptions: o.InitOptions, Force: o.Force,
		Confirm: func(plan composefs.ResetPlan) error { return o.spare(path, plan) },
	}
	// A lock that is not granted has changed nothing, so all of it can be tried
	// again.
	_, err = waitLoudly(ctx, o.LockTimeout, o.Log, func(timeout time.Duration) (func() error, error) {
		var err error
		options.LockTimeout = timeout
		removed, err = composefs.Reset(ctx, path, options)
		return nil, err
	})
	return removed, err
}

// hasLinks reports whether a directory without meta.json and objects has what
// may be left of a repository, or is somebody else's. It is left alone: a
// repository that is created would begin with links to nothing.
func hasLinks(path string) bool {
	return slices.ContainsFunc([]string{"streams", "images"}, func(name string) bool {
		_, err := os.Lstat(filepath.Join(path, name))
		return !errors.Is(err, fs.ErrNotExist)
	})
}

// spare is an error when something needs what is to be removed.
func (o *ResetOptions) spare(path string, plan composefs.ResetPlan) error {
	var needed NeededError
	var errs [2]error
	needed.Deployed, errs[0] = o.deployed(path, plan)
	needed.Mounted, errs[1] = o.mounted(path, plan)
	if err := errors.Join(errs[:]...); err != nil {
		if !o.Force {
			return fmt.Errorf("%w; nothing was removed", err)
		}
		o.Log.Warn("cannot tell what is needed, and remove it all the same", "error", err)
	}
	if len(needed.Deployed)+len(needed.Mounted) == 0 {
		return nil
	}
	if !o.Force {
		return &needed
	}
	o.Log.Warn("removing what is needed: deployments do not boot until their images are pulled again, and gc removes the files of mounts",
		"deployments", len(needed.Deployed), "mounts", len(needed.Mounted))
	return nil
}

// deployed are the deployments beside the repository that need something in it.
func (o *ResetOptions) deployed(path string, plan composefs.ResetPlan) (ids []fsverity.Digest, err error) {
	state, err := bootc.ReadState(above(path), plan.Algorithm, o.Bootc)
	if err != nil {
		return nil, err
	}
	for _, d := range state.Deployments {
		_, hasImage := slices.BinarySearch(plan.Images, d.ID.String())
		_, hasManifest := slices.BinarySearch(plan.Streams, oci.ManifestStream(d.Manifest))
		if hasImage || hasManifest {
			ids = append(ids, d.ID)
		}
	}
	return ids, nil
}

// mounted are the images in the repository that are mounted: gc keeps their
// files only as long as they have links.
func (o *ResetOptions) mounted(path string, plan composefs.ResetPlan) (ids []fsverity.Digest, err error) {
	objects, err := os.Open(filepath.Join(path, "objects"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer objects.Close() // a directory
	all, err := mount.MountedWith(objects, plan.Algorithm)
	if err != nil {
		return nil, fmt.Errorf("find out what is mounted: %w", err)
	}
	return slices.DeleteFunc(all, func(id fsverity.Digest) bool {
		_, hasImage := slices.BinarySearch(plan.Images, id.String())
		return !hasImage
	}), nil
}
