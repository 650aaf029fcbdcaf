// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

const (
	objectsName = "objects"
	fanDirs     = 256
	objectBatch = 64 // objects that a worker takes at a time
)

// objectWorker checks objects, one after the other.
type objectWorker struct {
	c      *Checker
	hasher *fsverity.Hasher
	buffer []byte
}

func newObjectWorker(c *Checker) *objectWorker {
	return &objectWorker{c: c, hasher: fsverity.NewHasher(c.repo.meta.Algorithm), buffer: make([]byte, 128<<10)}
}

// exists reports whether there is something of an object's name, and counts what
// it takes on disk.
func (c *Checker) exists(id fsverity.Digest) (bool, error) {
	if c.facts.has(id, factCounted) {
		return true, nil
	}
	var st unix.Stat_t
	if err := c.repo.lookup(id, &st); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if c.facts.note(id, factCounted) == notedNow {
		c.allocated.Add(512 * st.Blocks)
	}
	return true, nil
}

// batcher hands objects over in batches.
type batcher struct {
	to    chan<- []fsverity.Digest
	batch []fsverity.Digest
}

func (b *batcher) add(id fsverity.Digest) {
	if b.batch == nil {
		b.batch = make([]fsverity.Digest, 0, objectBatch)
	}
	if b.batch = append(b.batch, id); len(b.batch) == objectBatch {
		b.flush()
	}
}

func (b *batcher) flush() {
	if len(b.batch) > 0 {
		b.to <- b.batch
	}
	b.batch = nil
}

// listObjects lists the objects by directory and reports what does not belong
// there.
func (c *Checker) listObjects(ctx context.Context, b *batcher) {
	fans := make([]bool, fanDirs)
	err := c.eachEntry(ctx, objectsName, func(_ int, name string, kind uint8) {
		path := objectsName + "/" + name
		fan, ok := fanNumber(name)
		switch {
		case ok && kind == unix.DT_DIR:
			fans[fan] = true
		case ok:
			c.report(UnexpectedType, Error, path, "it is not a directory, but %s", fileType(kind))
		case isLeaked(objectsName, name, kind):
			c.reportLeaked(objectsName, name)
		default:
			c.report(StrayFile, Warning, path, "%s that does not belong here", fileType(kind))
		}
	})
	if err != nil {
		c.report(ObjectOpenFailed, Error, objectsName, "%v", err)
	}
	for fan, there := range fans {
		if there && ctx.Err() == nil {
			c.listFan(ctx, fan, b)
		}
	}
}

// fanNumber is the number of a directory of objects.
func fanNumber(name string) (int, bool) {
	if !isStrictHex(name, 2) {
		return 0, false
	}
	n, err := hex.DecodeString(name)
	return int(n[0]), err == nil
}

// isStrictHex reports whether a text is n lower-case hex digits.
func isStrictHex(s string, n int) bool {
	return len(s) == n && strings.Trim(s, "0123456789abcdef") == ""
}

func (c *Checker) listFan(ctx context.Context, fan int, b *batcher) {
	dir := fanPath(fan)
	first := true
	err := c.eachEntry(ctx, dir, func(fd int, name string, _ uint8) {
		if first {
			first = false
			var st unix.Stat_t
			if unix.Fstat(fd, &st) == nil {
				c.checkAttributes(dir, &st)
			}
		}
		if id, ok := c.objectID(fan, name); ok {
			b.add(id)
			return
		}
		c.report(ObjectInvalidName, Error, dir+"/"+name, "the name of an object has %d lower-case hex digits", c.repo.nameDigits())
	})
	if err != nil {
		c.report(ObjectOpenFailed, Error, dir, "%v", err)
	}
}

// eachObject calls f for each object of a directory. What goes wrong is for
// listFan to say.
func (c *Checker) eachObject(ctx context.Context, fan int, f func(fsverity.Digest)) {
	_ = c.eachEntry(ctx, fanPath(fan), func(_ int, name string, _ uint8) {
		if id, ok := c.objectID(fan, name); ok {
			f(id)
		}
	})
}

func fanPath(fan int) string { return fmt.Sprintf("%s/%02x", objectsName, fan) }

// nameDigits is how many digits the name of an object has in its directory.
func (r *Repo) nameDigits() int { return 2*r.meta.Algorithm.Size() - 2 }

// objectID is the object that a file in a directory of objects is.
func (c *Checker) objectID(fan int, name string) (fsverity.Digest, bool) {
	if !isStrictHex(name, c.repo.nameDigits()) {
		return fsverity.Digest{}, false
	}
	id, err := fsverity.ParseDigest(fmt.Sprintf("%02x", fan) + name)
	return id, err == nil
}

// check checks an object, if nobody else has or does.
func (w *objectWorker) check(ctx context.Context, id fsverity.Digest) {
	c := w.c
	if c.facts.claim(id) == notedBefore {
		return
	}
	var st unix.Stat_t
	err := c.repo.lookup(id, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return // whoever needs it has been told
	}
	if err != nil {
		c.Counts.ObjectsChecked.Add(1)
		c.reportObject(id, ObjectOpenFailed, "%v", err)
		return
	}
	w.examine(ctx, id, &st, nil)
}

// reportObject reports a damaged object.
func (c *Checker) reportObject(id fsverity.Digest, kind Kind, format string, args ...any) {
	path := objectsName + "/" + id.ObjectPath()
	c.Counts.ObjectsDamaged.Add(1)
	c.damage(id, kind)
	c.Report(Finding{Kind: kind, Path: path, Object: id, Message: fmt.Sprintf(format, args...)})
	if kind == ObjectDigestMismatch || kind == ObjectVerityFailed {
		c.dropFix(id, path)
	}
}

// examine checks an object that the caller has claimed and looked up. What it
// reads goes to sink, too, if there is one. It returns whether the object is
// good, which without a sink nobody needs to know.
func (w *objectWorker) examine(ctx context.Context, id fsverity.Digest, st *unix.Stat_t, sink io.Writer) (good bool) {
	c := w.c
	path := objectsName + "/" + id.ObjectPath()
	bad := func(kind Kind, format string, args ...any) bool {
		c.reportObject(id, kind, format, args...)
		return false
	}
	c.Counts.ObjectsChecked.Add(1)
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return bad(ObjectNotRegular, "it is not a regular file")
	}
	c.checkAttributes(path, st)
	if !c.facts.has(id, factCounted) {
		c.allocated.Add(512 * st.Blocks)
	}
	if st.Size == 0 && id != c.repo.emptyID {
		return bad(ObjectDigestMismatch, "it is empty")
	}
	read := !c.o.Quick && !c.knownGood(id)
	if !read && c.repo.noVerity.Load() {
		return true
	}
	fd, err := c.repo.openDescriptor(id)
	if err != nil {
		return bad(ObjectOpenFailed, "%v", err)
	}
	sealed := false
	if c.repo.noVerity.Load() {
		defer unix.Close(fd)
	} else {
		f := os.NewFile(uintptr(fd), c.repo.path+"/"+path)
		defer f.Close() // read-only
		sealed, err = c.measure(f, id)
	}
	switch {
	case errors.Is(err, ErrIntegrity):
		return bad(ObjectDigestMismatch, "%v", err)
	case err != nil:
		return bad(ObjectVerityFailed, "%v", err)
	}
	unsealed := !sealed && c.repo.enforce
	if read {
		if !c.charge(st.Size - 512*st.Blocks) {
			c.damage(id, LimitExceeded)
			c.report(LimitExceeded, Error, path, "%d of its %d bytes are holes; its content was not checked", st.Size-512*st.Blocks, st.Size)
			return false
		}
		got, err := w.read(ctx, fd, st.Size, sealed, sink)
		switch {
		case ctx.Err() != nil:
			return false
		case err != nil:
			return bad(ObjectVerityFailed, "read: %v", err)
		case !sealed && got != id:
			return bad(ObjectDigestMismatch, "its content has digest %s", got)
		}
	}
	if unsealed {
		c.Counts.ObjectsDamaged.Add(1)
		c.damage(id, ObjectVerityMissing)
		c.Report(Finding{
			Kind: ObjectVerityMissing, Path: path, Object: id, Repairable: !c.o.Quick,
			Message: "the repository requires fs-verity and the object does not have it",
		})
		if !c.o.Quick {
			c.fix(stageSeal, path, "enabled fs-verity", func(context.Context) error { return c.repo.seal(id) })
		}
	}
	return !unsealed
}

// knownGood reports whether the round before has read an object and found it
// good, or it was stored since.
func (c *Checker) knownGood(id fsverity.Digest) bool {
	return c.past != nil && !c.past.Damaged(id) && len(c.past.damaged) < maxRemembered
}

// measure asks the kernel for an object's fs-verity digest. sealed is false
// for an object without fs-verity; another digest is ErrIntegrity.
func (c *Checker) measure(f *os.File, id fsverity.Digest) (sealed bool, err error) {
	r := c.repo
	if r.noVerity.Load() {
		return false, nil
	}
	got, err := r.verity.measure(f, r.meta.Algorithm)
	switch {
	case err == nil && got != id:
		return false, fmt.Errorf("%w: its fs-verity digest is %s", ErrIntegrity, got)
	case err == nil:
		return true, nil
	case errors.Is(err, fsverity.ErrOtherAlgorithm):
		return false, fmt.Errorf("%w: %w", ErrIntegrity, err)
	case errors.Is(err, fsverity.ErrNotSupported):
		if !r.enforce {
			r.noVerity.Store(true) // so it is for the whole file system
		}
		return false, nil
	case errors.Is(err, fsverity.ErrNotEnabled):
		return false, nil
	}
	return false, err
}

// read reads an object of size bytes and returns its digest. Of a sealed one
// the kernel verifies the content while it is read, and the digest is not
// computed. What is read goes to sink, too, if there is one.
func (w *objectWorker) read(ctx context.Context, fd int, size int64, sealed bool, sink io.Writer) (fsverity.Digest, error) {
	w.hasher.Reset()
	for size > 0 {
		if ctx.Err() != nil {
			return fsverity.Digest{}, context.Cause(ctx)
		}
		n, err := readDescriptor(fd, w.buffer[:min(size, int64(len(w.buffer)))])
		if err != nil {
			return fsverity.Digest{}, err
		}
		if n == 0 {
			break // it has been cut, which shows in the digest
		}
		size -= int64(n)
		w.c.Counts.BytesRead.Add(int64(n))
		if !sealed {
			w.hasher.Write(w.buffer[:n]) // fails only after Sum
		}
		if sink != nil {
			if _, err := sink.Write(w.buffer[:n]); err != nil {
				return fsverity.Digest{}, err
			}
		}
	}
	if sealed {
		return fsverity.Digest{}, nil
	}
	return w.hasher.Sum(), nil
}

// readDescriptor is read(2), until no signal interrupts it.
func readDescriptor(fd int, b []byte) (n int, err error) {
	err = retry(func() (err error) {
		n, err = unix.Read(fd, b)
		return err
	})
	return n, err
}
