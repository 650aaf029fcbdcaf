// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/tarraw"
)

// ImporterOptions configure an Importer. The zero value works.
type ImporterOptions struct {
	Limits  Limits
	Workers int // goroutines that hash and store files; 0 means one a CPU
}

// Importer imports layers into one repository. Several layers may be imported
// at the same time; they share workers and memory.
type Importer struct {
	repo   *composefs.Repo
	limits Limits
	store  *objectStore
	Stats  Stats
}

// NewImporter starts the workers. Close ends them.
func NewImporter(repo *composefs.Repo, o ImporterOptions) *Importer {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	im := &Importer{repo: repo, limits: o.Limits.withDefaults()}
	im.store = newObjectStore(repo, &im.Stats, o.Workers)
	return im
}

// Close waits for the workers. No import may be running.
func (im *Importer) Close() { im.store.close() }

// segment is a piece of a layer on its way into the splitstream: inline bytes,
// then, when file is set, a file's content.
type segment struct {
	inline []byte
	file   *promise
	size   uint64 // of file
}

const (
	segmentSize  = 64 << 10  // inline bytes collected before they are passed on
	segmentCount = 1024      // segments on their way in a layer
	segmentBytes = 4 << 20   // their inline bytes
	largePiece   = 128 << 10 // bytes of a large file passed on at once
)

// segments is the queue between the framer of a layer and its splitstream.
type segments struct {
	queue  chan segment
	inline *semaphore.Weighted
}

func newSegments() *segments {
	return &segments{queue: make(chan segment, segmentCount), inline: semaphore.NewWeighted(segmentBytes)}
}

// weight is what a segment counts of segmentBytes.
func (s segment) weight() int64 { return min(int64(len(s.inline)), segmentBytes) }

func (q *segments) send(ctx context.Context, s segment) error {
	if err := q.inline.Acquire(ctx, s.weight()); err != nil {
		return context.Cause(ctx)
	}
	select {
	case q.queue <- s:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ImportLayer stores a layer and returns the id of its splitstream. The layer
// is not linked: no name leads to it yet. open returns the layer's blob, which
// may be compressed and is read to its end; reading ends when the context ends
// that open was called with. A layer whose uncompressed bytes do not have the
// digest diffID is an error, and then no stream of it is stored.
func (im *Importer) ImportLayer(ctx context.Context, open func(context.Context) (io.ReadCloser, error), diffID Digest) (_ fsverity.Digest, err error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	blob, err := open(ctx)
	if err != nil {
		return fsverity.Digest{}, err
	}
	defer func() {
		if closeErr := blob.Close(); err == nil {
			err = closeErr
		}
	}()
	id, err := im.importBlob(ctx, stop, blob, diffID)
	if errors.Is(err, ErrMalformed) && ctx.Err() == nil {
		// A blob that is not what its digest says breaks the rules of tar, too.
		// Its end tells which it is.
		if _, blobErr := io.Copy(io.Discard, blob); blobErr != nil {
			err = fmt.Errorf("%w (before that: %w)", blobErr, err)
		}
	}
	return id, err
}

// importBlob is ImportLayer for an open blob. It calls stop when there is no
// use in reading the blob further.
func (im *Importer) importBlob(ctx context.Context, stop context.CancelCauseFunc, blob io.Reader, diffID Digest) (fsverity.Digest, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	plain, err := newDecompressor(blob, im.limits)
	if err != nil {
		return fsverity.Digest{}, err
	}
	defer plain.Close()
	hash := sha256.New()
	in := newReadAhead(ctx, plain, func(b []byte) { hash.Write(b) })
	defer in.Close()

	out := newSegments()
	var frameErr error
	var framer sync.WaitGroup
	framer.Go(func() {
		defer close(out.queue)
		frameErr = malformed(im.frame(ctx, in, out))
		if frameErr == nil {
			if got := digestFromSum(hash.Sum(nil)); got != diffID {
				frameErr = fmt.Errorf("%w: the uncompressed layer has digest %s, the config says %s", ErrIntegrity, got, diffID)
			}
		}
		if frameErr != nil {
			cancel(frameErr)
		}
	})
	id, err := im.repo.WriteStream(splitstream.Layer, func(w *splitstream.Writer) error {
		defer func() { im.Stats.BytesInlined.Add(int64(w.InlineBytes())) }()
		return im.assemble(ctx, w, out)
	})
	if err != nil {
		cancel(err)
		if !errors.Is(err, ErrMalformed) {
			stop(err) // the framer may be waiting for the blob
		}
	}
	framer.Wait()
	if err != nil || frameErr != nil {
		// Whatever ended the context is the cause, and the rest followed.
		return fsverity.Digest{}, context.Cause(ctx)
	}
	return id, nil
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
func (im *Importer) assemble(ctx context.Context, w *splitstream.Writer, in *segments) error {
	for s := range in.queue {
		_, err := w.Write(s.inline)
		in.inline.Release(s.weight())
		if err != nil {
			return err
		}
		if s.file == nil {
			continue
		}
		id, err := s.file.wait(ctx)
		if err != nil {
			return err
		}
		if err := w.External(id, s.size); err != nil {
			return err
		}
	}
	// The framer closes the queue also when it fails.
	return context.Cause(ctx)
}

// frame cuts the tar into segments and hands the files to the store.
func (im *Importer) frame(ctx context.Context, in io.Reader, out *segments) error {
	var inline []byte
	collect := func(b []byte) error {
		inline = append(inline, b...)
		if len(inline) < segmentSize {
			return nil
		}
		s := segment{inline: inline}
		inline = nil
		return out.send(ctx, s)
	}
	tar := tarraw.NewReader(in, collect, tarraw.Limits{})
	large := newLargeStore(im.store)
	defer large.close()
	for entries := 0; ; entries++ {
		e, err := tar.Next()
		if errors.Is(err, io.EOF) {
			return out.send(ctx, segment{inline: inline})
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
		// The segment goes first, so that a file that cannot be stored is
		// noticed before the rest of it is read.
		s := segment{inline: inline, file: newPromise(), size: e.Size}
		inline = nil
		if err := out.send(ctx, s); err != nil {
			return err
		}
		if e.Size <= smallFile {
			err = im.storeSmall(ctx, tar, e, s.file)
		} else {
			err = large.put(ctx, tar, e, s.file)
		}
		if err != nil {
			return err
		}
	}
}

func (im *Importer) storeSmall(ctx context.Context, body io.Reader, e *tarraw.Entry, p *promise) error {
	data, err := im.store.buffer(ctx, int(e.Size))
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(body, data); err != nil {
		im.store.release(data)
		return err
	}
	return im.store.put(ctx, data, p)
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

// put reads the body of e and passes it on piece by piece.
func (l *largeStore) put(ctx context.Context, body io.Reader, e *tarraw.Entry, p *promise) error {
	f := &largeFile{pieces: make(chan []byte, 4), p: p}
	defer close(f.pieces)
	select {
	case l.files <- f:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for left := e.Size; left > 0; {
		piece, err := l.store.buffer(ctx, int(min(left, largePiece)))
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(body, piece); err != nil {
			l.store.release(piece)
			return err
		}
		left -= uint64(len(piece))
		if left == 0 {
			f.whole = true
		}
		f.pieces <- piece
	}
	return nil
}
