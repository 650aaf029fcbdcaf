// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/tarraw"
)

// ImporterOptions configure an Importer. The zero value works for layers that
// are blobs.
type ImporterOptions struct {
	Limits  Limits
	Workers int // goroutines that hash and store files; 0 means one a CPU
	// Methods are the ways in which files of a layer may become objects. What
	// a layer yields as bytes is always written.
	Methods composefs.Methods
	// SkipDiffID leaves out the digest of the layer: whoever can write to the
	// place that a layer comes from decides then what the image is.
	SkipDiffID bool
}

// Importer imports layers into one repository. Several layers may be imported
// at the same time; they share workers and memory.
type Importer struct {
	repo       *composefs.Repo
	limits     Limits
	skipDiffID bool
	store      *objectStore
	Stats      Stats
}

// NewImporter starts the workers. Close ends them.
func NewImporter(repo *composefs.Repo, o ImporterOptions) *Importer {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	im := &Importer{repo: repo, limits: o.Limits.withDefaults(), skipDiffID: o.SkipDiffID}
	im.store = newObjectStore(repo, repo.NewAdopter(o.Methods), &im.Stats, o.Workers)
	return im
}

// Close waits for the workers. No import may be running.
func (im *Importer) Close() { im.store.close() }

// segment is a piece of a layer on its way into the splitstream: inline bytes,
// then, when file is set, a file's content.
type segment struct {
	inline []byte
	file   *external
}

// external is the content of a member on its way into an object and into the
// digest of the layer.
type external struct {
	size  uint64
	bytes content
	id    *promise
}

// content is what a file holds. One of the two is called, once.
type content interface {
	// hashTo adds the content to a digest.
	hashTo(hash.Hash) error
	// drop gives the content back unread.
	drop()
}

const (
	segmentSize  = 64 << 10  // inline bytes collected before they are passed on
	segmentCount = 1024      // segments on their way in a layer
	segmentBytes = 4 << 20   // their inline bytes
	largePiece   = 128 << 10 // bytes of a large file passed on at once
)

// segments is the way of a layer from the framer to its splitstream: framed
// ones are added to the digest of the layer and are hashed ones then.
type segments struct {
	framed chan segment
	hashed chan segment
	inline *semaphore.Weighted
}

func newSegments() *segments {
	return &segments{
		framed: make(chan segment, segmentCount), hashed: make(chan segment, segmentCount),
		inline: semaphore.NewWeighted(segmentBytes),
	}
}

// weight is what a segment counts of segmentBytes.
func (s segment) weight() int64 { return min(int64(len(s.inline)), segmentBytes) }

func (q *segments) send(ctx context.Context, s segment) error {
	if err := q.inline.Acquire(ctx, s.weight()); err != nil {
		return context.Cause(ctx)
	}
	select {
	case q.framed <- s:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// hash adds all segments to h and passes them on, until the framer has ended.
// It reads the very bytes that become the stream and its objects. h may be nil.
func (q *segments) hash(ctx context.Context, h hash.Hash) error {
	var err error
	for s := range q.framed {
		if err == nil && h != nil {
			_, _ = h.Write(s.inline)
		}
		if s.file != nil {
			if err == nil && h != nil {
				err = s.file.bytes.hashTo(h)
			} else {
				s.file.bytes.drop()
			}
		}
		if err != nil {
			continue // what is left only has to be dropped
		}
		select {
		case q.hashed <- s:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	return err
}

// DiffIDError reports a layer that is not the one that the config names. It is
// [ErrIntegrity].
type DiffIDError struct{ Got, Want Digest }

func (e *DiffIDError) Error() string {
	return fmt.Sprintf("%v: the uncompressed layer has digest %s, the config says %s", ErrIntegrity, e.Got, e.Want)
}

// Unwrap returns ErrIntegrity.
func (e *DiffIDError) Unwrap() error { return ErrIntegrity }

// ImportLayer stores a layer and returns the id of its splitstream. The layer
// is not linked: no name leads to it yet. A layer whose uncompressed bytes do
// not have the digest diffID is an error, and then no stream of it is stored.
func (im *Importer) ImportLayer(ctx context.Context, open OpenLayer, diffID Digest) (_ fsverity.Digest, err error) {
	reading, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	layer, err := open(reading)
	if err != nil {
		return fsverity.Digest{}, err
	}
	defer func() {
		if closeErr := layer.Close(); err == nil {
			err = closeErr
		}
	}()
	id, err := im.importLayer(reading, stop, layer, diffID)
	// The reading may have been stopped; explaining is not over by that.
	if blamesContent(err) {
		err = layer.Explain(ctx, err)
	}
	return id, err
}

// blamesContent reports whether an error is about what a layer contains, and not
// about getting or storing it.
func blamesContent(err error) bool {
	_, wrong := errors.AsType[*DiffIDError](err)
	return wrong || errors.Is(err, ErrMalformed)
}

// importLayer is ImportLayer for an open layer. It calls stop when there is no
// use in reading the layer further.
func (im *Importer) importLayer(ctx context.Context, stop context.CancelCauseFunc, layer LayerReader, diffID Digest) (fsverity.Digest, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	way := newSegments()
	var readErr error
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(way.hashed)
		if readErr = im.read(ctx, cancel, layer, way, diffID); readErr != nil {
			cancel(readErr)
		}
	})
	id, err := im.repo.WriteStream(splitstream.Layer, func(w *splitstream.Writer) error {
		defer func() { im.Stats.BytesInlined.Add(int64(w.InlineBytes())) }()
		return im.assemble(ctx, w, way)
	})
	if err != nil {
		cancel(err)
		if !blamesContent(err) {
			stop(err) // the framer may be waiting for the layer
		}
	}
	reader.Wait()
	if err != nil || readErr != nil {
		// Whatever ended the context is the cause, and the rest followed.
		return fsverity.Digest{}, context.Cause(ctx)
	}
	return id, nil
}

// read frames a layer, hashes it and compares its digest.
func (im *Importer) read(ctx context.Context, cancel context.CancelCauseFunc, layer LayerReader, way *segments, diffID Digest) error {
	var framer sync.WaitGroup
	var frameErr error
	framer.Go(func() {
		defer close(way.framed)
		if frameErr = malformed(im.frame(ctx, layer, way)); frameErr != nil {
			cancel(frameErr)
		}
	})
	var h hash.Hash
	if !im.skipDiffID {
		h = sha256.New()
	}
	err := way.hash(ctx, h)
	if err != nil {
		cancel(err)
	}
	framer.Wait()
	switch {
	case frameErr != nil:
		return frameErr
	case err != nil || h == nil:
		return err
	}
	if got := digestFromSum(h.Sum(nil)); got != diffID {
		return &DiffIDError{Got: got, Want: diffID}
	}
	return nil
}

// malformed marks the errors of the tar framer that are about the archive and
// not about reading it.
func malformed(err error) error {
	if e, ok := errors.AsType[*tarraw.Error](err); ok && e.Rule != tarraw.RuleRead {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return err
}

// assemble writes segments to the splitstream in their order.
func (im *Importer) assemble(ctx context.Context, w *splitstream.Writer, way *segments) error {
	for s := range way.hashed {
		_, err := w.Write(s.inline)
		way.inline.Release(s.weight())
		if err != nil {
			return err
		}
		if s.file == nil {
			continue
		}
		id, err := s.file.id.wait(ctx)
		if err != nil {
			return err
		}
		if err := w.External(id, s.file.size); err != nil {
			return err
		}
	}
	// The queue ends also when the reading has failed.
	return context.Cause(ctx)
}

// frame cuts the tar into segments and hands the files to the store.
func (im *Importer) frame(ctx context.Context, layer LayerReader, way *segments) error {
	var inline []byte
	collect := func(b []byte) error {
		inline = append(inline, b...)
		if len(inline) < segmentSize {
			return nil
		}
		s := segment{inline: inline}
		inline = nil
		return way.send(ctx, s)
	}
	tar := tarraw.NewReader(layer, collect, tarraw.Limits{})
	large := newLargeStore(im.store)
	defer large.close()
	for entries := 0; ; entries++ {
		e, err := tar.Next()
		if errors.Is(err, io.EOF) {
			return way.send(ctx, segment{inline: inline})
		}
		if err != nil {
			return err
		}
		if entries >= im.limits.MaxEntries {
			return fmt.Errorf("%w: more than %d entries", ErrTooLarge, im.limits.MaxEntries)
		}
		if !e.External() {
			continue
		}
		s := segment{inline: inline, file: &external{size: e.Size, id: newPromise()}}
		inline = nil
		body := body{tar: tar}
		if tar.Buffered() == 0 {
			if body.file = layer.NextFile(e.Size); body.file != nil {
				tar.SkipBody()
			}
		}
		// The segment goes first, so that a file that cannot be stored is
		// noticed before the rest of it is read.
		if e.Size <= smallFileSize {
			err = im.frameSmall(ctx, way, s, body)
		} else {
			err = large.frame(ctx, way, s, body)
		}
		if err != nil {
			return err
		}
	}
}

// body is where the content of a member is: in a file, or in the tar.
type body struct {
	tar  *tarraw.Reader
	file *LayerFile // or nil
}

// frameSmall passes a small file on.
func (im *Importer) frameSmall(ctx context.Context, way *segments, s segment, from body) error {
	buf, err := im.store.buffer(ctx, int(s.file.size), 2)
	if err != nil {
		return err
	}
	f := &smallFile{buffer: buf, from: from.file, id: s.file.id}
	s.file.bytes = f
	if from.file != nil {
		f.ready = make(chan struct{})
	} else if _, err = io.ReadFull(from.tar, buf.data); err != nil {
		f.drop()
		f.drop()
		return err
	}
	if err := im.store.put(ctx, f); err != nil {
		f.drop()
		f.drop()
		return err
	}
	if err := way.send(ctx, s); err != nil {
		f.drop()
		return err
	}
	return nil
}

// largeStore stores a layer's large files, one after the other, in a goroutine
// of its own.
type largeStore struct {
	store *objectStore
	files chan *largeFile
	done  sync.WaitGroup
}

func newLargeStore(store *objectStore) *largeStore {
	l := &largeStore{store: store, files: make(chan *largeFile)}
	l.done.Go(func() {
		for f := range l.files {
			store.storeLarge(f)
		}
	})
	return l
}

func (l *largeStore) close() {
	close(l.files)
	l.done.Wait()
}

// frame passes a large file on, then its content piece by piece.
func (l *largeStore) frame(ctx context.Context, way *segments, s segment, from body) error {
	f := newLargeFile(s.file.id)
	s.file.bytes = f
	defer f.end()
	if err := way.send(ctx, s); err != nil {
		return err
	}
	var in io.Reader = from.tar
	if from.file != nil {
		donor, err := openDonor(from.file, s.file.size)
		if err != nil {
			return err
		}
		f.donor, in = donor, donor
	}
	select {
	case l.files <- f:
	case <-ctx.Done():
		f.closeDonor()
		return context.Cause(ctx)
	}
	for left := s.file.size; left > 0; {
		piece, err := l.store.buffer(ctx, int(min(left, largePiece)), 2)
		if err != nil {
			return err
		}
		if err := f.fill(in, piece); err != nil {
			piece.release()
			piece.release()
			return err
		}
		left -= uint64(len(piece.data))
		f.whole = left == 0
		f.stored <- piece
		f.hashed <- piece
	}
	return nil
}
