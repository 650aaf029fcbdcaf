// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// linkIndex is the first level of streams/ or images/.
type linkIndex struct {
	entries []linkEntry
	byName  map[string]int32
	byID    map[fsverity.Digest]int32 // the first one that leads to an object
	full    bool                      // there are more than maxEntries
}

// linkEntry is a first-level name.
type linkEntry struct {
	name    string
	id      fsverity.Digest // where it leads to; zero when that cannot be told
	dead    bool            // the object is missing
	needed  bool            // a ref or a stream wants it although it is dead
	problem *Finding
	fix     func(context.Context) error // makes the problem go away
	fixText string
}

func (x *linkIndex) entry(name string) *linkEntry {
	if i, ok := x.byName[name]; ok {
		return &x.entries[i]
	}
	return nil
}

func (x *linkIndex) leadingTo(id fsverity.Digest) *linkEntry {
	if i, ok := x.byID[id]; ok {
		return &x.entries[i]
	}
	return nil
}

// StreamLink is where the link of a stream leads to. ok is false when there is
// no link, or it leads to no object that is there.
func (c *Checker) StreamLink(name string) (id fsverity.Digest, ok bool) {
	return c.link(streamsDir, name)
}

// HasStreamLink reports whether there is an entry of that name, good or bad.
func (c *Checker) HasStreamLink(name string) bool { return c.links[streamsDir].entry(name) != nil }

// ImageLink reports whether images/<hex> leads to its object, which is there.
func (c *Checker) ImageLink(id fsverity.Digest) bool {
	got, ok := c.link(imagesDir, id.String())
	return ok && got == id
}

// HasImageLink reports whether there is an entry images/<hex>, good or bad.
func (c *Checker) HasImageLink(id fsverity.Digest) bool {
	return c.links[imagesDir].entry(id.String()) != nil
}

// StreamNames lists the streams that have a link to an object that is there.
func (c *Checker) StreamNames() []string {
	var names []string
	for _, e := range c.links[streamsDir].entries {
		if !e.id.IsZero() && !e.dead {
			names = append(names, e.name)
		}
	}
	return names
}

func (c *Checker) link(dir, name string) (fsverity.Digest, bool) {
	e := c.links[dir].entry(name)
	if e == nil || e.id.IsZero() || e.dead {
		return fsverity.Digest{}, false
	}
	return e.id, true
}

// eachEntry calls f for what is in a directory of the repository, in no order,
// until ctx ends. A directory that is missing has nothing in it. fd is the
// directory, kind one of unix.DT_*.
func (c *Checker) eachEntry(ctx context.Context, dir string, f func(fd int, name string, kind uint8)) error {
	fd, err := openBeneath(c.repo.rootfd(), dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return c.repo.pathError("open", dir, err)
	}
	defer unix.Close(fd)
	err = eachDirent(fd, func(name []byte, kind uint8) error {
		f(fd, string(name), kind)
		return ctx.Err()
	})
	if err != nil && ctx.Err() == nil {
		return c.repo.pathError("list", dir, err)
	}
	return nil // the check ends with the context
}

// checkLinks reads the first level of both kinds and walks their refs.
func (c *Checker) checkLinks(ctx context.Context) error {
	for _, dir := range []string{streamsDir, imagesDir} {
		x := &linkIndex{byName: map[string]int32{}, byID: map[fsverity.Digest]int32{}}
		c.links[dir] = x
		err := c.eachEntry(ctx, dir, func(fd int, name string, kind uint8) {
			switch {
			case name == "refs":
			case len(x.entries) == maxEntries:
				x.full = true
			default:
				x.add(c.readEntry(dir, fd, name, kind))
			}
		})
		if err != nil {
			c.report(StatFailed, Error, dir, "%v", err)
		}
		if x.full {
			c.report(LimitExceeded, Error, dir, "there are more than %d links; the others were not checked", maxEntries)
		}
	}
	if c.o.Streams != nil {
		return nil
	}
	for _, dir := range []string{streamsDir, imagesDir} {
		c.checkRefs(ctx, dir, dir+"/refs", "", 0)
	}
	return nil
}

func (x *linkIndex) add(e linkEntry) {
	i := int32(len(x.entries))
	x.entries = append(x.entries, e)
	x.byName[e.name] = i
	if _, ok := x.byID[e.id]; !ok && !e.id.IsZero() {
		x.byID[e.id] = i
	}
}

// reportEntry reports what is wrong with a first-level name.
func (c *Checker) reportEntry(e *linkEntry) {
	if e.problem == nil {
		return
	}
	c.Report(*e.problem)
	if e.fix != nil {
		c.fix(StageLink, e.problem.Path, e.fixText, e.fix)
	}
}

// readEntry reads a first-level link and finds out what is wrong with it.
func (c *Checker) readEntry(dir string, fd int, name string, kind uint8) linkEntry {
	e := linkEntry{name: name}
	bad := func(kind Kind, severity Severity, format string, args ...any) linkEntry {
		e.problem = &Finding{Kind: kind, Severity: severity, Path: dir + "/" + e.name, Object: e.id, Message: fmt.Sprintf(format, args...)}
		if dir == streamsDir {
			e.problem.Stream = e.name
		}
		return e
	}
	if kind != unix.DT_LNK {
		return bad(EntryNotSymlink, Error, "it is not a link, but %s", fileType(kind))
	}
	if err := checkEntry(e.name); err != nil {
		return bad(EntryInvalidName, Error, "%v", err)
	}
	target, err := readlinkat(fd, e.name)
	if err != nil {
		return bad(StatFailed, Error, "read link: %v", err)
	}
	id, err := c.repo.parseTarget(target)
	if err != nil {
		return bad(LinkTargetInvalid, Error, "it leads to %.300q, which is not an object", target)
	}
	canonical := target == objectTarget(id)
	if !canonical && !c.leadsTo(dir, e.name, id) {
		return bad(LinkTargetInvalid, Error, "it leads to %.300q, which is not object %s", target, id)
	}
	e.id = id
	if dir == imagesDir {
		if named, err := fsverity.ParseDigest(e.name); err != nil || named.String() != e.name || named.Algorithm() != c.repo.meta.Algorithm {
			return bad(EntryInvalidName, Error, "the name of an image must be a %s digest in hex", c.repo.meta.Algorithm)
		} else if named != id {
			e.id = fsverity.Digest{}
			e = bad(ImageLinkMismatch, Error, "it leads to object %s", id)
			return c.fixImageLink(e, named)
		}
	}
	var st unix.Stat_t
	switch err := c.repo.lookup(id, &st); {
	case errors.Is(err, fs.ErrNotExist):
		e.dead = true
		c.damage(id, MissingObjectRef)
		return bad(BrokenSymlink, Error, "object %s is missing", id)
	case err != nil:
		return bad(StatFailed, Error, "%v", err)
	case !canonical:
		e = bad(LinkNotCanonical, Warning, "its target is %.300q, other programs write %q", target, objectTarget(id))
		e.fix = func(context.Context) error { return c.repo.setLink(dir, e.name, objectTarget(id)) }
		e.fixText, e.problem.Repairable = "wrote the link in its usual form", true
	}
	return e
}

// fixImageLink lets an image's link lead to its object, when that is there.
func (c *Checker) fixImageLink(e linkEntry, named fsverity.Digest) linkEntry {
	e.problem.Image = named
	if ok, err := c.repo.hasObject(named, -1); err == nil && ok {
		e.fix = func(context.Context) error { return c.repo.setLink(imagesDir, e.name, objectTarget(named)) }
		e.fixText, e.problem.Repairable = "made the link lead to the image", true
	}
	return e
}

// leadsTo reports whether the system gets from a link to an object, too.
func (c *Checker) leadsTo(dir, name string, id fsverity.Digest) bool {
	var object, st unix.Stat_t
	if c.repo.lookup(id, &object) != nil {
		return false
	}
	fd, err := openBeneath(c.repo.rootfd(), dir+"/"+name, unix.O_PATH, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.Fstat(fd, &st) == nil && st.Dev == object.Dev && st.Ino == object.Ino
}

// checkRefs checks the refs in a directory and those below it.
func (c *Checker) checkRefs(ctx context.Context, kind, dir, prefix string, depth int) {
	err := c.eachEntry(ctx, dir, func(fd int, base string, fileKind uint8) {
		name, file := path.Join(prefix, base), dir+"/"+base
		switch {
		case checkName(base) != nil:
			c.report(EntryInvalidName, Error, file, "%v", checkName(base))
		case fileKind == unix.DT_DIR && depth+1 >= maxRefDepth:
			c.report(LimitExceeded, Error, file, "it is deeper than %d directories; it was not checked", maxRefDepth)
		case fileKind == unix.DT_DIR:
			c.checkRefs(ctx, kind, file, name, depth+1)
		case fileKind != unix.DT_LNK:
			c.report(UnexpectedType, Error, file, "it is neither a directory nor a link, but %s", fileType(fileKind))
		default:
			c.Counts.RefsChecked.Add(1)
			c.checkRef(kind, file, name, fd, depth+1)
		}
	})
	if err != nil {
		c.report(StatFailed, Error, dir, "%v", err)
	}
}

// checkRef checks one ref, whose name has depth components. Readers take the
// last component of its target for the name of an entry.
func (c *Checker) checkRef(kind, file, name string, fd, depth int) {
	target, err := readlinkat(fd, path.Base(file))
	if err != nil {
		c.report(StatFailed, Error, file, "read link: %v", err)
		return
	}
	x := c.links[kind]
	base := path.Base(target)
	direct := strings.Repeat("../", depth) + base
	leads := path.Join(path.Dir(file), target) == kind+"/"+base && !path.IsAbs(target)
	e := x.entry(base)
	switch {
	case e == nil && x.full:
		return
	case e == nil && leads:
		c.report(BrokenSymlink, Error, file, "it leads to %s/%s, which does not exist", kind, base)
	case e == nil:
		c.report(RefTargetInvalid, Error, file, "it leads to %.300q, which is not an entry of %s/", target, kind)
		return
	case e.dead:
		e.needed = true
		c.report(BrokenSymlink, Error, file, "it leads to %s/%s, whose object is missing", kind, base)
	case target == direct:
	default:
		f := Finding{
			Kind: LinkNotCanonical, Severity: Warning, Path: file, Repairable: true,
			Message: fmt.Sprintf("its target is %.300q, other programs write %q", target, direct),
		}
		if !leads {
			f.Kind, f.Severity = RefTargetInvalid, Error
			f.Message = fmt.Sprintf("it leads to %.300q; to lead to the entry of that name it must be %q", target, direct)
		}
		c.Report(f)
		c.fix(StageLink, file, "wrote the ref in its usual form", func(context.Context) error { return c.repo.setRef(kind, name, base) })
	}
	if kind == streamsDir && c.o.Ref != nil {
		c.o.Ref(Ref{Name: name, Target: base})
	}
}

// fileType names a file type, one of unix.DT_*.
func fileType(kind uint8) string {
	switch kind {
	case unix.DT_REG:
		return "a regular file"
	case unix.DT_DIR:
		return "a directory"
	case unix.DT_LNK:
		return "a link"
	case unix.DT_FIFO:
		return "a FIFO"
	case unix.DT_SOCK:
		return "a socket"
	}
	return "a device"
}
