// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// streamItem is a stream that is checked.
type streamItem struct {
	id    fsverity.Digest
	names []string // links that lead to it; none for one that only streams name
	bytes int64    // of the file

	open    bool              // its tables could be read
	missing bool              // an object of its table is missing
	next    []fsverity.Digest // streams that it names and no link leads to

	sum streamSum // of the reassembly, if err is nil
	err error     // of the decoder
}

// path is where the stream is found.
func (s *streamItem) path() string {
	if len(s.names) > 0 {
		return streamsDir + "/" + s.names[0]
	}
	return "objects/" + s.id.ObjectPath()
}

// name is how the stream is called.
func (s *streamItem) name() string {
	if len(s.names) > 0 {
		return s.names[0]
	}
	return s.id.String()
}

func (c *Checker) rule(stream string) StreamRule {
	if c.o.Rule == nil {
		return StreamRule{}
	}
	return c.o.Rule(stream)
}

// firstStreams are those that links lead to: all, or those of the options.
func (c *Checker) firstStreams() []*streamItem {
	x := c.links[streamsDir]
	byID := map[fsverity.Digest]*streamItem{}
	var items []*streamItem
	add := func(e *linkEntry) {
		if e.id.IsZero() || e.dead {
			return
		}
		s := byID[e.id]
		if s == nil {
			s = &streamItem{id: e.id}
			byID[e.id] = s
			items = append(items, s)
		}
		s.names = append(s.names, e.name)
	}
	if c.o.Streams == nil {
		for i := range x.entries {
			add(&x.entries[i])
		}
		for _, s := range items {
			slices.Sort(s.names)
		}
		return items
	}
	for _, name := range c.o.Streams {
		if e := x.entry(name); e != nil {
			c.reportEntry(e)
			add(e)
		}
	}
	return items
}

// checkTables opens the streams and, from one to the next, those that they
// name, each once. Then it is known which links nothing needs.
func (c *Checker) checkTables(ctx context.Context) error {
	seen := map[fsverity.Digest]struct{}{}
	todo := c.firstStreams()
	for len(todo) > 0 {
		for _, s := range todo {
			seen[s.id] = struct{}{}
		}
		if err := parallel(ctx, c.workers, len(todo), func(i int) { c.checkTable(todo[i]) }); err != nil {
			return err
		}
		var next []*streamItem
		for _, s := range todo {
			c.streams = append(c.streams, s)
			for _, id := range s.next {
				if _, ok := seen[id]; ok {
					continue
				}
				seen[id] = struct{}{}
				if item := c.namedStream(id); item != nil {
					next = append(next, item)
				}
			}
			s.next = nil
		}
		todo = next
	}
	if c.o.Streams == nil {
		c.reportLinks()
	}
	return nil
}

// namedStream is a stream that another one names; nil when there is no such
// object.
func (c *Checker) namedStream(id fsverity.Digest) *streamItem {
	s := &streamItem{id: id}
	if e := c.links[streamsDir].leadingTo(id); e != nil {
		if c.o.Streams != nil {
			c.reportEntry(e)
		}
		s.names = []string{e.name}
	}
	var st unix.Stat_t
	if c.repo.lookup(id, &st) != nil {
		return nil // whoever names it has been told
	}
	return s
}

// reportLinks reports the first-level links. A dead one that nothing needs can
// be removed; as long as something does, its presence keeps programs from
// collecting what they believe is not needed.
func (c *Checker) reportLinks() {
	// What could not be remembered may be needed.
	blind := c.blind || c.links[streamsDir].full || len(c.damaged) >= maxRemembered || len(c.users) >= maxRemembered
	for _, dir := range []string{streamsDir, imagesDir} {
		x := c.links[dir]
		for i := range x.entries {
			e := &x.entries[i]
			_, wanted := c.users[e.id]
			if e.dead && !e.needed && !wanted && !blind {
				e.problem.Repairable = true
				e.fixText = "removed a link that led nowhere"
				e.fix = func(context.Context) error { return c.repo.unlinkDead(dir, e.name) }
			}
			c.reportEntry(e)
		}
	}
}

// openUnchecked opens an object without asking for fs-verity: what is in it is
// what is being checked.
func (r *Repo) openUnchecked(id fsverity.Digest) (*os.File, error) {
	// Only a regular file may be opened: opening a device can do things.
	var st unix.Stat_t
	if err := r.lookup(id, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%w: object %s is not a regular file", ErrIntegrity, id)
	}
	return r.openRegular(id)
}

// openRegular is openUnchecked for an object that was looked up.
func (r *Repo) openRegular(id fsverity.Digest) (*os.File, error) {
	fd, err := r.openDescriptor(id)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), r.path+"/objects/"+id.ObjectPath()), nil
}

// openDescriptor is openRegular without what an os.File costs, which for small
// objects is more than to read them.
func (r *Repo) openDescriptor(id fsverity.Digest) (fd int, err error) {
	dir, name := objectName(id)
	dirfd, err := r.fanDir(dir, false)
	if err != nil {
		return -1, err
	}
	fd, err = openBeneath(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, r.pathError("open", "objects/"+id.ObjectPath(), err)
	}
	return fd, nil
}

// reserve takes memory for a file of that size and what is made of it.
func (c *Checker) reserve(ctx context.Context, bytes int64) (release func(), err error) {
	n := max(1, min(bytes, math.MaxInt64/4)*3)
	n = min(n, checkMemory)
	if err := c.memory.Acquire(ctx, n); err != nil {
		return nil, context.Cause(ctx)
	}
	return func() { c.memory.Release(n) }, nil
}

// openItem opens the file of a stream. The caller closes it.
func (c *Checker) openItem(s *streamItem) (*os.File, splitstream.ReaderOptions, error) {
	o := splitstream.ReaderOptions{Algorithm: c.repo.meta.Algorithm}
	f, err := c.repo.openUnchecked(s.id)
	if err != nil {
		return nil, o, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close() // read-only
		return nil, o, err
	}
	s.bytes = info.Size()
	return f, o, nil
}

// checkTable checks the tables of one stream. It holds none of them in memory
// but the names.
func (c *Checker) checkTable(s *streamItem) {
	c.Counts.StreamsChecked.Add(1)
	bad := func(kind Kind, id fsverity.Digest, format string, args ...any) {
		f := Finding{Kind: kind, Path: s.path(), Object: id, Message: fmt.Sprintf(format, args...)}
		if len(s.names) > 0 {
			f.Stream = s.names[0]
		}
		c.Report(f)
	}
	var tables *splitstream.Tables
	f, o, err := c.openItem(s)
	if err == nil {
		defer f.Close() // read-only
		tables, err = splitstream.OpenTables(f, s.bytes, o)
	}
	if err != nil {
		c.Counts.StreamsDamaged.Add(1)
		c.setBlind()
		bad(StreamOpenFailed, s.id, "%v", err)
		return
	}
	s.open = true
	c.inScope(s.id)
	for _, name := range s.names {
		if types := c.rule(name).Types; types != nil && !slices.Contains(types, tables.ContentType()) {
			s.open = false
			c.Report(Finding{
				Kind: StreamTypeMismatch, Path: streamsDir + "/" + name, Object: s.id, Stream: name,
				Message: fmt.Sprintf("it has type %s, its name says %v", tables.ContentType(), types),
			})
		}
	}
	missing := map[fsverity.Digest]struct{}{} // told; a table may name one again and again
	err = tables.EachObject(func(id fsverity.Digest) {
		if _, told := missing[id]; told {
			return
		}
		c.inScope(id)
		if exists, err := c.exists(id); !exists && err == nil {
			s.missing = true
			remember(missing, id, struct{}{})
			c.damage(id, MissingObjectRef)
			bad(MissingObjectRef, id, "object %s is missing", id)
		} else if err != nil {
			s.missing = true
			bad(StatFailed, id, "%v", err)
		}
	})
	if err == nil {
		own := len(s.names) > 0 && c.rule(s.names[0]).OwnRefs
		named := map[fsverity.Digest]struct{}{} // by now; names may be many, ids take their place on disk
		err = tables.EachNamed(func(ref splitstream.NamedRef) {
			if _, ok := named[ref.ID]; !ok && !IsImageRef(ref.Name) && c.wantsVisit(ref.ID) {
				remember(named, ref.ID, struct{}{})
				s.next = append(s.next, ref.ID)
			}
			c.checkNamed(s, ref, own, bad)
		})
	}
	if err != nil {
		s.open = false
		c.setBlind()
		bad(StreamOpenFailed, s.id, "%v", err)
	}
	if s.missing || !s.open {
		c.Counts.StreamsDamaged.Add(1)
	}
}

// setBlind notes that it is not known what some stream refers to.
func (c *Checker) setBlind() {
	c.mu.Lock()
	c.blind = true
	c.mu.Unlock()
}

// wantsVisit reports whether a stream that another one names is not checked
// anyway, because a link leads to it.
func (c *Checker) wantsVisit(id fsverity.Digest) bool {
	return c.o.Streams != nil || c.links[streamsDir].leadingTo(id) == nil
}

// checkNamed checks where a named ref of a stream leads to, unless that is for
// the caller (own).
func (c *Checker) checkNamed(s *streamItem, ref splitstream.NamedRef, own bool, bad func(Kind, fsverity.Digest, string, ...any)) {
	if c.Damaged(ref.ID) {
		c.usedBy(ref.ID, s.name())
	}
	dir := streamsDir
	if IsImageRef(ref.Name) {
		c.imageInScope(ref.ID)
		dir = imagesDir
	}
	if own {
		return
	}
	switch exists, err := c.exists(ref.ID); {
	case !exists || err != nil:
		c.damage(ref.ID, MissingNamedRef)
		c.usedBy(ref.ID, s.name())
		bad(MissingNamedRef, ref.ID, "it names %.200q, object %s, which is missing", ref.Name, ref.ID)
	case c.links[dir].leadingTo(ref.ID) == nil && !c.links[dir].full:
		c.ReportNotLinked(s.path(), ref.Name, ref.ID)
	}
}

// ReportNotLinked reports a stream or an image that a stream names and that no
// link leads to: garbage collection of other programs keeps its object, but not
// what that refers to.
func (c *Checker) ReportNotLinked(path, name string, id fsverity.Digest) {
	c.Report(Finding{
		Kind: NamedRefNotLinked, Severity: Warning, Path: path, Object: id,
		Message: fmt.Sprintf("it names %.200q, object %s, which no link leads to: garbage collection may remove what that needs", name, id),
	})
}

// inScope notes an object that a limited check has to look at.
func (c *Checker) inScope(id fsverity.Digest) {
	if c.scope == nil {
		return
	}
	c.mu.Lock()
	c.scope[id] = struct{}{}
	c.mu.Unlock()
}
