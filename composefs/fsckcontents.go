// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// streamSum is what the reassembly of a stream gave.
type streamSum struct {
	sum [sha256.Size]byte
	// padded is how many zero bytes more give a digest that a name promises.
	padded map[[sha256.Size]byte]int
}

// checkContents checks the content of the objects, all or those of a limited
// check, and decodes the chunks of the streams; those whose name promises a
// digest are reassembled. What is read of an object for a stream is checked on
// the way, so that most are read once.
func (c *Checker) checkContents(ctx context.Context) error {
	// The longest stream first, so that it is not what all wait for at the end.
	slices.SortStableFunc(c.streams, func(a, b *streamItem) int { return cmp.Compare(b.bytes, a.bytes) })
	batches := make(chan []fsverity.Digest, 2*c.workers)
	var next atomic.Int64
	var group sync.WaitGroup
	for worker := range c.workers {
		group.Go(func() {
			w := newObjectWorker(c)
			for worker < streamWorkers && ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(c.streams) {
					break
				}
				c.decodeItem(ctx, w, c.streams[i])
			}
			for batch := range batches {
				for _, id := range batch {
					if ctx.Err() == nil {
						w.check(ctx, id)
					}
				}
			}
		})
	}
	b := batcher{to: batches}
	if c.o.Streams != nil {
		for id := range c.scope {
			b.add(id)
		}
	} else {
		c.listObjects(ctx, &b)
	}
	b.flush()
	close(batches)
	group.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// Only now is it known which objects are damaged.
	return parallel(ctx, min(c.workers, streamWorkers), len(c.streams), func(i int) { c.judgeItem(ctx, c.streams[i]) })
}

// wants are the digests that the names of a stream promise.
func (c *Checker) wants(s *streamItem) []nameRule {
	var wants []nameRule
	for _, name := range s.names {
		if rule := c.rule(name); rule.SHA256 != nil && !c.o.Quick {
			wants = append(wants, nameRule{name, rule})
		}
	}
	return wants
}

// decodeItem decodes a stream of which nothing is known to be missing.
func (c *Checker) decodeItem(ctx context.Context, w *objectWorker, s *streamItem) {
	if !s.open || s.missing {
		return
	}
	wants := c.wants(s)
	c.mu.Lock()
	sum, known := c.sums[s.id]
	c.mu.Unlock()
	if known && len(wants) > 0 {
		s.sum = sum
		return
	}
	s.sum, s.err = c.decode(ctx, w, s, wants, true)
}

// decode opens a stream and reassembles it.
func (c *Checker) decode(ctx context.Context, w *objectWorker, s *streamItem, wants []nameRule, whole bool) (streamSum, error) {
	release, err := c.reserve(ctx, s.bytes)
	if err != nil {
		return streamSum{}, err
	}
	defer release()
	f, o, err := c.openItem(s)
	if err != nil {
		return streamSum{}, err
	}
	defer f.Close() // read-only
	rd, err := splitstream.NewReader(f, s.bytes, o)
	if err != nil {
		return streamSum{}, err
	}
	return c.reassemble(ctx, rd, reassembly{worker: w, wants: wants, whole: whole})
}

// judgeItem reports what is wrong with the content of a stream. If that is what
// it needs, which has been reported, only its chunks can be.
func (c *Checker) judgeItem(ctx context.Context, s *streamItem) {
	if !s.open {
		return
	}
	wants, sum, err := c.wants(s), s.sum, s.err
	if c.noteUsers(ctx, s) || s.missing {
		c.taint(s.id)
		wants = nil
		sum, err = c.decode(ctx, nil, s, nil, false)
	}
	bad := func(kind Kind, severity Severity, name, format string, args ...any) {
		if severity == Error {
			c.Counts.StreamsDamaged.Add(1)
			c.taint(s.id)
		}
		finding := Finding{Kind: kind, Severity: severity, Path: s.path(), Object: s.id, Stream: name, Message: fmt.Sprintf(format, args...)}
		if name != "" {
			finding.Path = streamsDir + "/" + name
		}
		c.Report(finding)
	}
	if err != nil {
		kind := StreamReadFailed
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errTooMuch):
			kind = LimitExceeded
		case errors.Is(err, errSize):
			kind = StreamSizeMismatch
		}
		name := ""
		if len(s.names) > 0 {
			name = s.names[0]
		}
		bad(kind, Error, name, "%v", err)
		return
	}
	if len(wants) == 0 {
		return
	}
	c.mu.Lock()
	remember(c.sums, s.id, sum)
	c.mu.Unlock()
	for _, w := range wants {
		if *w.rule.SHA256 == sum.sum {
			continue
		}
		if n := sum.padded[*w.rule.SHA256]; n > 0 {
			bad(w.rule.Padding, Warning, w.name, "the last %d zero bytes of the archive are missing: an old release of composefs-rs wrote it", n)
		} else {
			bad(w.rule.Mismatch, Error, w.name, "its content has digest sha256:%x", sum.sum)
		}
	}
}

// nameRule is what one name of a stream promises.
type nameRule struct {
	name string
	rule StreamRule
}

// noteUsers notes that a stream uses damaged objects, and whether it does.
func (c *Checker) noteUsers(ctx context.Context, s *streamItem) (found bool) {
	c.mu.Lock()
	none := len(c.damaged) == 0
	c.mu.Unlock()
	if none || ctx.Err() != nil {
		return false
	}
	f, o, err := c.openItem(s)
	if err != nil {
		return false
	}
	defer f.Close() // read-only
	tables, err := splitstream.OpenTables(f, s.bytes, o)
	if err != nil {
		return false
	}
	err = tables.EachObject(func(id fsverity.Digest) {
		if c.Damaged(id) {
			c.usedBy(id, s.name())
			found = true
		}
	})
	return found && err == nil
}

var (
	errTooMuch = errors.New("it expands to more than a check reads; it was not checked")
	errSize    = errors.New("its parts do not add up to the size that it says")
	errDamaged = errors.New("the object is damaged")
)

// maxPadding is the most zero bytes that are tried at the end of an archive:
// archives are padded to records, usually of 10 KiB.
const (
	maxPadding  = 64 << 10
	paddingStep = 512
)

// reassembly adds up a stream.
type reassembly struct {
	worker *objectWorker // checks the objects on the way; nil: nobody does
	wants  []nameRule    // digests; if there are none the objects are not read
	whole  bool          // all objects are there

	c      *Checker
	left   uint64 // of the size that the stream says
	empty  int    // chunks without a byte
	sum    io.Writer
	buffer []byte
}

var reassemblyBuffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// reassemble decodes the chunks of a stream and checks that they add up, if all
// objects are there. If a name promises a digest it reads the objects, too, and
// returns the digest.
func (c *Checker) reassemble(ctx context.Context, rd *splitstream.Reader, a reassembly) (streamSum, error) {
	chunks, err := rd.Chunks()
	if err != nil {
		return streamSum{}, err
	}
	defer chunks.Close()
	buffer := reassemblyBuffers.Get().(*[]byte)
	defer reassemblyBuffers.Put(buffer)
	h := sha256.New()
	a.c, a.left, a.buffer, a.sum = c, rd.Size(), *buffer, io.Discard
	if len(a.wants) > 0 {
		a.sum = h
	}
	for {
		chunk, err := chunks.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err == nil && chunk.Inline {
			err = a.inline(chunk.Length, chunks)
		} else if err == nil {
			err = a.external(ctx, chunk.Object)
		}
		if err != nil {
			return streamSum{}, err
		}
	}
	if a.whole && a.left != 0 {
		return streamSum{}, fmt.Errorf("%w: it says %d bytes, and %d are missing", errSize, rd.Size(), a.left)
	}
	if len(a.wants) == 0 {
		return streamSum{}, nil
	}
	out := streamSum{sum: [sha256.Size]byte(h.Sum(nil)), padded: map[[sha256.Size]byte]int{}}
	for _, w := range a.wants {
		if w.rule.Padding != "" && *w.rule.SHA256 != out.sum {
			out.padded[*w.rule.SHA256] = 0
		}
	}
	if len(out.padded) > 0 {
		findPadding(h, out.padded)
	}
	return out, nil
}

// findPadding notes how many zero bytes are to be added to give a digest.
func findPadding(sum hash.Hash, padded map[[sha256.Size]byte]int) {
	var zeros [paddingStep]byte
	for n := paddingStep; n <= maxPadding; n += paddingStep {
		sum.Write(zeros[:]) // a hash takes every write
		key := [sha256.Size]byte(sum.Sum(nil))
		if _, wanted := padded[key]; wanted {
			padded[key] = n
		}
	}
}

// take accounts for n bytes of the stream.
func (a *reassembly) take(n uint64) error {
	if n > a.left {
		return fmt.Errorf("%w: there is more", errSize)
	}
	a.left -= n
	return nil
}

func (a *reassembly) inline(n uint64, chunks *splitstream.ChunkReader) error {
	if err := a.take(n); err != nil {
		return err
	}
	for n > 0 {
		part := min(n, uint64(len(a.buffer)))
		if !a.c.charge(int64(part)) {
			return errTooMuch
		}
		m, err := io.ReadFull(chunks, a.buffer[:part])
		if err != nil {
			return err
		}
		a.sum.Write(a.buffer[:m]) // a hash takes every write
		n -= part
	}
	return nil
}

// maxEmpty bounds the chunks that add nothing to a stream, which so could go
// on for ever.
const maxEmpty = 1024

func (a *reassembly) external(ctx context.Context, id fsverity.Digest) error {
	c := a.c
	if !a.whole {
		// Nothing can be added up, but the work must end.
		if !c.charge(paddingStep) {
			return errTooMuch
		}
		return nil
	}
	var st unix.Stat_t
	if err := c.repo.lookup(id, &st); err != nil {
		return fmt.Errorf("object %s: %w", id, err)
	}
	if st.Size == 0 {
		if a.empty++; a.empty > maxEmpty {
			return fmt.Errorf("%w: more than %d of them have no bytes", errSize, maxEmpty)
		}
		return nil
	}
	if err := a.take(uint64(st.Size)); err != nil {
		return err
	}
	if len(a.wants) == 0 {
		if !c.charge(1) {
			return errTooMuch
		}
		return nil
	}
	if a.worker != nil && !c.knownGood(id) && c.facts.claim(id) == notedNow {
		if !a.worker.examine(ctx, id, &st, a.sum) {
			return fmt.Errorf("object %s: %w", id, errDamaged)
		}
		return nil
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("object %s: %w: it is not a regular file", id, ErrIntegrity)
	}
	if !c.charge(st.Size) {
		return errTooMuch
	}
	return a.copy(ctx, id, st.Size)
}

// copy reads an object of so many bytes.
func (a *reassembly) copy(ctx context.Context, id fsverity.Digest, size int64) error {
	fd, err := a.c.repo.openDescriptor(id)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for size > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := readDescriptor(fd, a.buffer[:min(size, int64(len(a.buffer)))])
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("object %s: %w", id, err)
		}
		a.sum.Write(a.buffer[:n]) // a hash takes every write
		size -= int64(n)
	}
	return nil
}
