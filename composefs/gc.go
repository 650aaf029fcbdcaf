// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// GCOptions say what garbage collection keeps beside what refs lead to.
type GCOptions struct {
	// Keep are first-level names of streams or images that stay, with all
	// that they lead to. One that matches nothing is [ErrKeep]: it may be a
	// misspelling, and the price would be what it was meant to keep.
	Keep []string
	// Drop are stream refs, without "refs/", that keep nothing and are
	// removed.
	Drop []string
	// DropDangling removes refs whose stream or image is gone. Without it
	// they are a [*DanglingError].
	DropDangling bool
	// DependsOn says of a stream ref that it counts only as long as the
	// stream of another content id is in use; otherwise the ref is removed.
	DependsOn func(streamRef string) (stream string, ok bool)
	// DryRun finds everything and removes nothing. The shared lock is enough
	// for it; what others are writing meanwhile then counts as not in use,
	// unfinished files included.
	DryRun bool
	// ListObjects notes the id of each removed object.
	ListObjects bool
}

// DropReason is why a ref was removed.
type DropReason string

// The reasons.
const (
	DropAsked     DropReason = "not-in-use"      // GCOptions.Drop
	DropDangling  DropReason = "dangling"        // what it leads to is gone
	DropDependent DropReason = "subject-is-gone" // GCOptions.DependsOn
)

// DroppedRef is a ref that was removed.
type DroppedRef struct {
	Path   string     `json:"path"` // in the repository
	Target string     `json:"target"`
	Reason DropReason `json:"reason"`
}

// GCResult is what garbage collection removed, or with DryRun would remove.
type GCResult struct {
	// Objects is their number, Bytes the sum of their sizes. LinkedBytes of
	// these belong to files that have names outside the repository and still
	// take space.
	Objects            int64
	Bytes, LinkedBytes int64
	ObjectIDs          []fsverity.Digest // with ListObjects, sorted
	// Streams and Images are first-level names, sorted.
	Streams, Images []string
	Refs            []DroppedRef
	// Temporaries are paths of unfinished files and links that others left.
	Temporaries []string
	// Missing counts references, of what stays, to objects that do not
	// exist. They are no work for garbage collection, but for fsck.
	Missing int64
}

// Empty reports whether there was nothing to remove.
func (g *GCResult) Empty() bool {
	return g.Objects == 0 && len(g.Streams)+len(g.Images)+len(g.Refs)+len(g.Temporaries) == 0
}

// DanglingError reports refs that lead to nothing, so that nobody can tell
// what they were to keep.
type DanglingError struct{ Refs []DroppedRef }

func (e *DanglingError) Error() string {
	const most = 5
	var names []string
	for _, ref := range e.Refs[:min(len(e.Refs), most)] {
		names = append(names, fmt.Sprintf("%s (to %s)", ref.Path, ref.Target))
	}
	if len(e.Refs) > most {
		names = append(names, fmt.Sprintf("%d more", len(e.Refs)-most))
	}
	return "refs lead to what is not there: " + strings.Join(names, ", ")
}

// CollectGarbage removes what neither refs nor o.Keep lead to: links in
// streams/ and images/, objects, and temporary files and links that crashes
// left. Images and streams count as in use by refs only, never by themselves.
//
// It needs the lock of [Repo.LockExclusive], unless o.DryRun is set, and
// nothing else may use the handle. Everything in use is found before anything
// is removed; what is in use and cannot be read is an error that is
// [ErrUndecided], and then nothing was removed. Refs go first, then links, then
// objects, each durably before the next begins, so that an interruption leaves
// no link that leads to nothing and no ref that does. With an error of the
// removal the result says what was removed until then.
//
// The result is that of composefs-rs, except that a stream which no link leads
// to any more keeps what it refers to as long as it is in use itself, that
// temporaries are removed, and that a second run finds nothing left to do.
func (r *Repo) CollectGarbage(ctx context.Context, o GCOptions) (*GCResult, error) {
	if !o.DryRun {
		if err := r.Writable(); err != nil {
			return nil, err
		}
	}
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.leave()
	if err := r.checkAlone(o.DryRun); err != nil {
		return nil, fmt.Errorf("collect garbage in repository %s: %w", r.path, err)
	}
	c := &collector{repo: r, options: o, result: &GCResult{}}
	if err := c.mark(ctx); err != nil {
		return nil, fmt.Errorf("collect garbage in repository %s: %w: %w", r.path, ErrUndecided, err)
	}
	if err := c.sweep(ctx); err != nil {
		return c.result, fmt.Errorf("collect garbage in repository %s: %w", r.path, err)
	}
	return c.result, nil
}

// checkAlone makes sure that nobody can be writing.
func (r *Repo) checkAlone(dryRun bool) error {
	if dryRun {
		return nil
	}
	if !locks.isExclusive(r.lock) {
		return errors.New("the exclusive lock is not held")
	}
	r.useMu.Lock()
	defer r.useMu.Unlock()
	if r.users > 0 || r.calls > 1 {
		return fmt.Errorf("%w: %d files or streams are open, %d calls are running", ErrInUse, r.users, r.calls-1)
	}
	return nil
}

// collector is a garbage collection under way.
type collector struct {
	repo    *Repo
	options GCOptions
	result  *GCResult

	objects               *objectIndex
	streams, images       []entry
	streamRefs, imageRefs []Ref
	doomedRefs            []doomedRef

	marker
}

// entry is a first-level link of streams/ or images/.
type entry struct {
	name string
	id   fsverity.Digest
}

// readEntries reads the first-level links of a kind, sorted by name.
func (r *Repo) readEntries(dir string) ([]entry, error) {
	names, err := r.listEntries(dir)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	fd, err := r.openDir(dir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	entries := make([]entry, 0, len(names))
	for _, name := range names {
		id, err := r.readEntry(fd, dir, name)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry{name, id})
	}
	return entries, nil
}

func findEntry(entries []entry, name string) (entry, bool) {
	i, ok := slices.BinarySearchFunc(entries, name, func(e entry, name string) int { return strings.Compare(e.name, name) })
	if !ok {
		return entry{}, false
	}
	return entries[i], true
}
