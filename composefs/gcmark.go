// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// imageMemory bounds the bytes of images that are held in memory at once.
const imageMemory = erofs.DefaultSize

// doomedRef is a ref that is to be removed.
type doomedRef struct {
	dir string // streamsDir or imagesDir
	ref Ref
	why DropReason
}

func (d doomedRef) path() string { return d.dir + "/refs/" + d.ref.Name }

// walkKind is what an object is known to be when its references are wanted.
type walkKind uint8

const (
	walkStream  walkKind = iota // a link or a root says that it is a stream
	walkUnknown                 // a named ref leads to it: a stream, perhaps
	walkImage                   // a root says that it is an image
)

// walkItem is an object whose references are to be followed.
type walkItem struct {
	kind walkKind
	id   fsverity.Digest
}

// marker follows references from the roots. What is found is taken up in
// rounds, not by recursion: a chain of streams may be of any length.
type marker struct {
	missing atomic.Int64
	memory  *semaphore.Weighted

	mu   sync.Mutex
	next []walkItem // to be taken up in the next round

	dangling   []doomedRef
	dependents map[fsverity.Digest][]Ref // refs by the stream they depend on
}

// mark finds everything that is in use.
func (c *collector) mark(ctx context.Context) (err error) {
	c.memory = semaphore.NewWeighted(imageMemory)
	// Writers beside a dry run store objects before links and links before
	// refs. In the opposite order nothing is seen without what it leads to.
	if c.imageRefs, err = c.repo.listRefs(imagesDir, ""); err != nil {
		return err
	}
	if c.streamRefs, err = c.repo.listRefs(streamsDir, ""); err != nil {
		return err
	}
	if c.images, err = c.repo.readEntries(imagesDir); err != nil {
		return err
	}
	if c.streams, err = c.repo.readEntries(streamsDir); err != nil {
		return err
	}
	if c.objects, err = c.repo.indexObjects(ctx); err != nil {
		return err
	}
	for _, e := range c.streams {
		c.objects.set(e.id, markLinked)
	}
	if err := c.findRoots(); err != nil {
		return err
	}
	if err := c.walk(ctx); err != nil {
		return err
	}
	for _, refs := range c.dependents { // whose streams are not in use
		for _, ref := range refs {
			c.doom(streamsDir, ref, DropDependent)
		}
	}
	if err := c.judgeDangling(); err != nil {
		return err
	}
	c.result.Missing = c.missing.Load()
	return nil
}

// findRoots queues what refs and the caller want kept.
func (c *collector) findRoots() error {
	for _, ref := range c.imageRefs {
		c.root(imagesDir, ref)
	}
	drop := map[string]bool{}
	for _, name := range c.options.Drop {
		drop[name] = true
	}
	c.dependents = map[fsverity.Digest][]Ref{}
	for _, ref := range c.streamRefs {
		if drop[ref.Name] {
			c.doom(streamsDir, ref, DropAsked)
		} else if !c.depends(ref) {
			c.root(streamsDir, ref)
		}
	}
	return c.keepNames()
}

// depends notes a ref that counts only if a stream is in use.
func (c *collector) depends(ref Ref) bool {
	if c.options.DependsOn == nil {
		return false
	}
	stream, ok := c.options.DependsOn(ref.Name)
	if !ok {
		return false
	}
	if e, ok := findEntry(c.streams, stream); ok {
		c.dependents[e.id] = append(c.dependents[e.id], ref)
	} else {
		c.doom(streamsDir, ref, DropDependent)
	}
	return true
}

// root queues what a ref leads to.
func (c *collector) root(dir string, ref Ref) {
	e, ok := findEntry(c.entries(dir), ref.Target)
	if !ok || !c.keep(dir, e) {
		c.dangling = append(c.dangling, doomedRef{dir, ref, DropDangling})
	}
}

// keep queues an entry. It is false when its object is missing.
func (c *collector) keep(dir string, e entry) bool {
	kind := walkStream
	if dir == imagesDir {
		kind = walkImage
	}
	return c.reach(kind, e.id)
}

func (c *collector) entries(dir string) []entry {
	if dir == imagesDir {
		return c.images
	}
	return c.streams
}

func (c *collector) keepNames() error {
	for _, name := range c.options.Keep {
		found := false
		for _, dir := range []string{imagesDir, streamsDir} {
			if e, ok := findEntry(c.entries(dir), name); ok {
				found = true
				if !c.keep(dir, e) {
					return fmt.Errorf("keep %s/%s: its object %s is missing", dir, name, e.id)
				}
			}
		}
		if !found {
			return fmt.Errorf("%w: %q", ErrKeep, name)
		}
	}
	return nil
}

func (c *collector) doom(dir string, ref Ref, why DropReason) {
	c.doomedRefs = append(c.doomedRefs, doomedRef{dir, ref, why})
}

// judgeDangling decides what becomes of refs that lead to nothing.
func (c *collector) judgeDangling() error {
	if len(c.dangling) == 0 {
		return nil
	}
	if c.options.DropDangling {
		c.doomedRefs = append(c.doomedRefs, c.dangling...)
		return nil
	}
	var e DanglingError
	for _, d := range c.dangling {
		e.Refs = append(e.Refs, d.dropped())
	}
	return &e
}

func (d doomedRef) dropped() DroppedRef {
	return DroppedRef{Path: d.path(), Target: d.ref.Target, Reason: d.why}
}

// reach marks an object as in use and queues it, unless it was before. It is
// false when there is no such object.
func (c *collector) reach(kind walkKind, id fsverity.Digest) bool {
	_, exists := c.objects.set(id, markLive)
	if !exists {
		return false
	}
	done := markWalked
	if kind == walkImage {
		done = markImage
	}
	if first, _ := c.objects.set(id, done); first {
		c.mu.Lock()
		c.next = append(c.next, walkItem{kind, id})
		c.mu.Unlock()
	}
	return true
}

// walk follows references until there is nothing new.
func (c *collector) walk(ctx context.Context) error {
	for len(c.next) > 0 {
		round := c.next
		c.next = nil
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(runtime.GOMAXPROCS(0))
		for _, item := range round {
			group.Go(func() error {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return c.follow(ctx, item)
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		for _, item := range round {
			c.wake(item.id)
		}
	}
	return nil
}

// wake makes roots of the refs that depend on a stream, which is in use.
func (c *collector) wake(id fsverity.Digest) {
	for _, ref := range c.dependents[id] {
		c.root(streamsDir, ref)
	}
	delete(c.dependents, id)
}

// follow marks what one object refers to.
func (c *collector) follow(ctx context.Context, item walkItem) error {
	object := func(id fsverity.Digest) {
		if _, exists := c.objects.set(id, markLive); !exists {
			c.miss(id)
		}
	}
	switch item.kind {
	case walkImage:
		return c.followImage(ctx, item.id, object)
	case walkUnknown:
		// A config or manifest may name a stream that no link leads to any
		// more, after a crash or when two tools compressed it differently;
		// what only that stream refers to is in use all the same.
		is, err := c.repo.isStream(item.id)
		if err != nil || !is {
			return err
		}
	}
	var lost error
	err := c.repo.streamReferences(item.id, object, func(ref splitstream.NamedRef) {
		switch linked := c.objects.has(ref.ID, markLinked); {
		case linked && c.reach(walkStream, ref.ID):
		case strings.HasPrefix(ref.Name, ImageRefPrefix):
			object(ref.ID) // the files of an image are those of its layers
		case !c.reach(walkUnknown, ref.ID):
			// Images may be in use whose files only this stream listed.
			lost = fmt.Errorf("%w: its named ref %.200q leads to stream %s, which is missing", ErrIntegrity, ref.Name, ref.ID)
		}
	})
	if err = cmp.Or(err, lost); err != nil {
		return fmt.Errorf("%s: %w", c.describe(streamsDir, item.id), err)
	}
	return nil
}

func (c *collector) followImage(ctx context.Context, id fsverity.Digest, object func(fsverity.Digest)) error {
	var st unix.Stat_t
	if err := c.repo.lookup(id, &st); err != nil {
		return fmt.Errorf("%s: %w", c.describe(imagesDir, id), err)
	}
	size := min(max(st.Size, 0), imageMemory)
	if err := c.memory.Acquire(ctx, size); err != nil {
		return context.Cause(ctx)
	}
	defer c.memory.Release(size)
	if err := c.repo.imageReferences(id, object); err != nil {
		return fmt.Errorf("%s: %w", c.describe(imagesDir, id), err)
	}
	return nil
}

// miss counts a reference to an object that does not exist.
func (c *collector) miss(id fsverity.Digest) {
	if id.Algorithm() == c.repo.meta.Algorithm {
		c.missing.Add(1)
	}
}

// describe names an object by a link that leads to it.
func (c *collector) describe(dir string, id fsverity.Digest) string {
	for _, e := range c.entries(dir) {
		if e.id == id {
			return dir + "/" + e.name
		}
	}
	return dir + " (without a link)"
}

// refDirs lists the directories of refs.
func refDirs(refs []doomedRef) []string {
	dirs := map[string]struct{}{}
	for _, d := range refs {
		parent, _ := refPath(d.dir, d.ref.Name)
		dirs[parent] = struct{}{}
	}
	return slices.Sorted(maps.Keys(dirs))
}
