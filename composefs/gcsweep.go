// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// sweep removes what is not marked.
func (c *collector) sweep(ctx context.Context) error {
	steps, err := c.steps()
	if err != nil {
		return err
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// steps are what a sweep does. Each is on disk before the next begins: a ref
// must never outlive its link, nor a link its object.
func (c *collector) steps() ([]func(context.Context) error, error) {
	temporaries, err := c.repo.findTemporaries()
	if err != nil {
		return nil, err
	}
	streams, images := c.deadEntries(c.streams), c.deadEntries(c.images)
	return []func(context.Context) error{
		func(context.Context) error { return c.sweepRefs() },
		func(context.Context) error { return c.sweepEntries(streamsDir, streams, &c.result.Streams) },
		func(context.Context) error { return c.sweepEntries(imagesDir, images, &c.result.Images) },
		func(context.Context) error { return c.sweepTemporaries(temporaries) },
		c.sweepObjects,
	}, nil
}

// deadEntries are the first-level links whose objects are missing or go.
func (c *collector) deadEntries(entries []entry) []string {
	var dead []string
	for _, e := range entries {
		if !c.objects.has(e.id, markLive) {
			dead = append(dead, e.name)
		}
	}
	return dead
}

// remove removes a name, unless this is a dry run.
func (c *collector) remove(dirfd int, dir, name string) error {
	if c.options.DryRun {
		return nil
	}
	err := unix.Unlinkat(dirfd, name, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return c.repo.pathError("unlink", path.Join(dir, name), err)
	}
	return nil
}

// sync makes removals in a directory durable, unless this is a dry run.
func (c *collector) sync(dir string) error {
	if c.options.DryRun {
		return nil
	}
	return c.repo.syncDir(dir)
}

func (c *collector) sweepRefs() error {
	slices.SortFunc(c.doomedRefs, func(a, b doomedRef) int { return strings.Compare(a.path(), b.path()) })
	for _, d := range c.doomedRefs {
		parent, name := refPath(d.dir, d.ref.Name)
		fd, err := c.repo.openDir(parent)
		if err != nil {
			return err
		}
		err = c.remove(fd, parent, name)
		unix.Close(fd)
		if err != nil {
			return err
		}
		c.result.Refs = append(c.result.Refs, d.dropped())
	}
	for _, dir := range refDirs(c.doomedRefs) {
		if err := c.sync(dir); err != nil {
			return err
		}
	}
	return c.removeSubjects()
}

// removeSubjects removes the directories that held refs of a subject which is
// gone, once they are empty. Others stay, as other tools leave them.
func (c *collector) removeSubjects() error {
	if c.options.DryRun {
		return nil
	}
	var dependents []doomedRef
	for _, d := range c.doomedRefs {
		if d.why == DropDependent {
			dependents = append(dependents, d)
		}
	}
	for _, dir := range refDirs(dependents) {
		parent, name := path.Split(dir)
		fd, err := c.repo.openDir(strings.TrimSuffix(parent, "/"))
		if err != nil {
			return err
		}
		err = unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
		unix.Close(fd)
		if err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOENT) {
			return c.repo.pathError("rmdir", dir, err)
		}
	}
	return nil
}

func (c *collector) sweepEntries(dir string, names []string, removed *[]string) error {
	if len(names) == 0 {
		return nil
	}
	fd, err := c.repo.openDir(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, name := range names {
		if err := c.remove(fd, dir, name); err != nil {
			return err
		}
		*removed = append(*removed, name)
	}
	return c.sync(dir)
}

// leakedName is how unfinished files are called, and where they lie.
type leakedName struct {
	dir, prefix string
	kind        uint8
}

var leaked = []leakedName{
	{".", tmpLink, unix.DT_LNK},
	{".", tmpMeta, unix.DT_REG},
	{"objects", tmpObject, unix.DT_REG},
}

// findTemporaries lists unfinished files and links. Whoever is at work on one
// holds the shared lock.
func (r *Repo) findTemporaries() ([]string, error) {
	var found []string
	for _, dir := range []string{".", "objects"} {
		fd, err := openBeneath(r.rootfd(), dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, r.pathError("open", dir, err)
		}
		err = eachDirent(fd, func(name []byte, kind uint8) error {
			if isLeaked(dir, string(name), kind) {
				found = append(found, path.Join(dir, string(name)))
			}
			return nil
		})
		unix.Close(fd)
		if err != nil {
			return nil, fmt.Errorf("list %s/%s: %w", r.path, dir, err)
		}
	}
	slices.Sort(found)
	return found, nil
}

// isTemporary reports whether a name is a prefix and twelve letters or digits.
func isTemporary(name, prefix string) bool {
	random, ok := strings.CutPrefix(name, prefix)
	return ok && len(random) == randomLength && !strings.ContainsFunc(random, func(c rune) bool {
		return (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z')
	})
}

func (c *collector) sweepTemporaries(paths []string) error {
	for _, p := range paths {
		if err := c.remove(c.repo.rootfd(), ".", p); err != nil {
			return err
		}
		c.result.Temporaries = append(c.result.Temporaries, p)
	}
	return nil
}

// sweepObjects removes the objects that are not marked, some directories side
// by side.
func (c *collector) sweepObjects(ctx context.Context) error {
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for dir := range c.objects.shards {
		if c.objects.shards[dir].all(markLive) {
			continue
		}
		group.Go(func() error {
			var own GCResult
			err := c.sweepShard(ctx, dir, &own)
			mu.Lock()
			defer mu.Unlock()
			c.result.Objects += own.Objects
			c.result.Bytes += own.Bytes
			c.result.LinkedBytes += own.LinkedBytes
			c.result.ObjectIDs = append(c.result.ObjectIDs, own.ObjectIDs...)
			return err
		})
	}
	err := group.Wait()
	slices.SortFunc(c.result.ObjectIDs, func(a, b fsverity.Digest) int { return cmp.Compare(a.String(), b.String()) })
	return err
}

// sweepShard removes objects of one directory. One that is not in the index
// appeared since and is left alone.
func (c *collector) sweepShard(ctx context.Context, dir int, own *GCResult) error {
	shard := &c.objects.shards[dir]
	fd, err := c.repo.openFan(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var dead []string
	err = c.repo.eachObjectName(dir, func(name []byte, key objectKey) error {
		if i, ok := shard.find(key); ok && !shard.has(i, markLive) {
			dead = append(dead, string(name))
		}
		return nil
	})
	if err != nil {
		return err
	}
	path := fmt.Sprintf("objects/%02x", dir)
	for _, name := range dead {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := c.removeObject(fd, path, name, own); err != nil {
			return err
		}
	}
	return nil
}

// removeObject removes an object of the directory at path and counts it.
func (c *collector) removeObject(dirfd int, path, name string, own *GCResult) error {
	var st unix.Stat_t
	err := retry(func() error { return unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return c.repo.pathError("stat", path+"/"+name, err)
	}
	if err := c.remove(dirfd, path, name); err != nil {
		return err
	}
	own.Objects++
	own.Bytes += st.Size
	if st.Nlink > 1 {
		own.LinkedBytes += st.Size
	}
	if c.options.ListObjects {
		id, err := fsverity.ParseDigest(path[len(path)-2:] + name)
		if err != nil {
			return err
		}
		own.ObjectIDs = append(own.ObjectIDs, id)
	}
	return nil
}
