// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

const (
	// smallFileSize is the size in bytes up to which a file is held in memory
	// while it is hashed and stored.
	smallFileSize = 1 << 20
	// memoryInFlight bounds the bytes of small files that wait to be stored.
	memoryInFlight = 24 << 20
)

// Stats counts what an import did. Objects and bytes are counted by how the
// object came to be; those of objects that were present are in no count of
// bytes.
type Stats struct {
	ObjectsStored     atomic.Int64
	ObjectsPresent    atomic.Int64
	ObjectsReflinked  atomic.Int64
	ObjectsHardlinked atomic.Int64
	BytesStored       atomic.Int64
	BytesReflinked    atomic.Int64
	BytesHardlinked   atomic.Int64
	BytesInlined      atomic.Int64
}

func (s *Stats) count(o composefs.Outcome, size int64) {
	switch o {
	case composefs.Present:
		s.ObjectsPresent.Add(1)
	case composefs.Reflinked:
		s.ObjectsReflinked.Add(1)
		s.BytesReflinked.Add(size)
	case composefs.Hardlinked:
		s.ObjectsHardlinked.Add(1)
		s.BytesHardlinked.Add(size)
	default:
		s.ObjectsStored.Add(1)
		s.BytesStored.Add(size)
	}
}

// objectStore hashes and stores the files of all layers of an import with a
// bounded number of workers and a bounded amount of memory.
type objectStore struct {
	repo    *composefs.Repo
	adopter *composefs.Adopter
	stats   *Stats
	jobs    chan *smallFile
	memory  *semaphore.Weighted
	buffers [len(bufferSizes)]sync.Pool
	workers sync.WaitGroup
}

// bufferSizes are the capacities of pooled buffers.
var bufferSizes = [...]int{16 << 10, 128 << 10, smallFileSize}

// buffer is a pooled buffer. It goes back when each of its users has released
// it.
type buffer struct {
	data  []byte
	users atomic.Int32
	store *objectStore
	class int
}

func (b *buffer) release() {
	if b.users.Add(-1) > 0 {
		return
	}
	b.store.memory.Release(int64(bufferSizes[b.class]))
	b.store.buffers[b.class].Put(b)
}

// promise is the digest of a file that is still being stored.
type promise struct {
	done chan struct{}
	id   fsverity.Digest
	err  error
}

func newPromise() *promise { return &promise{done: make(chan struct{})} }

func (p *promise) resolve(id fsverity.Digest, err error) {
	p.id, p.err = id, err
	close(p.done)
}

// wait returns the digest as soon as it is known.
func (p *promise) wait(ctx context.Context) (fsverity.Digest, error) {
	select {
	case <-p.done:
		return p.id, p.err
	case <-ctx.Done():
		return fsverity.Digest{}, context.Cause(ctx)
	}
}

func newObjectStore(repo *composefs.Repo, adopter *composefs.Adopter, stats *Stats, workers int) *objectStore {
	s := &objectStore{
		repo: repo, adopter: adopter, stats: stats,
		jobs:   make(chan *smallFile, 4*workers),
		memory: semaphore.NewWeighted(memoryInFlight),
	}
	for range workers {
		s.workers.Go(s.work)
	}
	return s
}

// close waits for the files that are being stored.
func (s *objectStore) close() {
	close(s.jobs)
	s.workers.Wait()
}

// buffer returns a buffer of n bytes, at most smallFileSize, for a number of
// users. It waits while too many bytes are in flight.
func (s *objectStore) buffer(ctx context.Context, n, users int) (*buffer, error) {
	class := 0
	for n > bufferSizes[class] {
		class++
	}
	if err := s.memory.Acquire(ctx, int64(bufferSizes[class])); err != nil {
		return nil, context.Cause(ctx)
	}
	b, ok := s.buffers[class].Get().(*buffer)
	if !ok {
		b = &buffer{data: make([]byte, bufferSizes[class]), store: s, class: class}
	}
	b.data = b.data[:n]
	b.users.Store(int32(users))
	return b, nil
}

// smallFile is a file that is held in memory while it is stored and added to
// the layer's digest. Its buffer has two users.
type smallFile struct {
	*buffer
	// from is where the content has to be read from; nil when the buffer has
	// it. ready is closed when it was, and failed is set before if it could
	// not be read.
	from   *LayerFile
	ready  chan struct{}
	failed bool
	id     *promise
}

func (f *smallFile) hashTo(h hash.Hash) error {
	defer f.release()
	if f.from != nil {
		<-f.ready
	}
	if f.failed {
		return f.id.err
	}
	_, _ = h.Write(f.data)
	return nil
}

func (f *smallFile) drop() { f.release() }

// put hands over a small file.
func (s *objectStore) put(ctx context.Context, f *smallFile) error {
	select {
	case s.jobs <- f:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *objectStore) work() {
	hasher := fsverity.NewHasher(s.repo.Algorithm()) // its buffers are large
	for f := range s.jobs {
		id, err := s.storeSmall(f, hasher)
		f.release()
		if !f.failed {
			f.id.resolve(id, err)
		}
	}
}

// sum is the digest of data. It leaves hasher with other content.
func sum(hasher *fsverity.Hasher, data []byte) fsverity.Digest {
	hasher.Reset()
	_, _ = hasher.Write(data)
	return hasher.Sum()
}

// storeSmall reads a file, if it is one, and stores its content.
func (s *objectStore) storeSmall(f *smallFile, hasher *fsverity.Hasher) (fsverity.Digest, error) {
	if f.from == nil {
		id := sum(hasher, f.data)
		outcome, err := s.repo.PutID(id, f.data)
		return s.stored(id, outcome, len(f.data), err)
	}
	donor, err := openDonor(f.from, uint64(len(f.data)))
	if err == nil {
		defer donor.Close() // read-only
		err = readDonor(donor, f.data)
	}
	if err != nil {
		f.failed = true
		f.id.resolve(fsverity.Digest{}, err)
		close(f.ready)
		return fsverity.Digest{}, err
	}
	close(f.ready)
	id := sum(hasher, f.data)
	outcome, err := s.adopter.Adopt(donor, id, f.data)
	return s.stored(id, outcome, len(f.data), err)
}

// stored counts an object, unless there is an error.
func (s *objectStore) stored(id fsverity.Digest, o composefs.Outcome, size int, err error) (fsverity.Digest, error) {
	if err != nil {
		return fsverity.Digest{}, err
	}
	s.stats.count(o, int64(size))
	return id, nil
}

// openDonor opens a file of a layer that must have size bytes.
func openDonor(from *LayerFile, size uint64) (*composefs.Donor, error) {
	f, err := from.Open()
	if err != nil {
		return nil, err
	}
	return composefs.NewDonor(f, int64(size))
}

// readDonor fills b.
func readDonor(d *composefs.Donor, b []byte) error {
	if _, err := io.ReadFull(d, b); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: it became shorter", composefs.ErrChanged)
		}
		return fmt.Errorf("read %s: %w", d.Name(), err)
	}
	return nil
}

// largeFile is a file whose content passes piece by piece. Each piece has two
// users.
type largeFile struct {
	stored chan *buffer // pieces to store; closed after the last one
	hashed chan *buffer // pieces to add to the layer's digest; the same
	whole  bool         // set before the channels are closed when the file is complete
	donor  *composefs.Donor
	id     *promise
}

func newLargeFile(id *promise) *largeFile {
	return &largeFile{stored: make(chan *buffer, 4), hashed: make(chan *buffer, 4), id: id}
}

// end closes the channels.
func (f *largeFile) end() {
	close(f.stored)
	close(f.hashed)
}

func (f *largeFile) closeDonor() {
	if f.donor != nil {
		f.donor.Close() // read-only
	}
}

// fill reads a piece.
func (f *largeFile) fill(in io.Reader, piece *buffer) error {
	if f.donor != nil {
		return readDonor(f.donor, piece.data)
	}
	_, err := io.ReadFull(in, piece.data)
	return err
}

func (f *largeFile) hashTo(h hash.Hash) error {
	for piece := range f.hashed {
		_, _ = h.Write(piece.data)
		piece.release()
	}
	return nil
}

func (f *largeFile) drop() {
	for piece := range f.hashed {
		piece.release()
	}
}

// errCutShort reports a large file whose pieces ended too early.
var errCutShort = errors.New("file cut short")

// storeLarge hashes and stores one large file. It returns when there are no
// more pieces, but an error is known at once.
func (s *objectStore) storeLarge(f *largeFile) {
	defer f.closeDonor()
	var id fsverity.Digest
	var err error
	if f.donor != nil && !s.adopter.OnlyCopies(f.donor) {
		id, err = s.adoptLarge(f)
	} else {
		id, err = s.writeLarge(f)
	}
	switch {
	case errors.Is(err, errCutShort):
		return // whoever did that ends those who wait
	case err != nil:
		err = fmt.Errorf("store file: %w", err)
	}
	f.id.resolve(id, err)
	for piece := range f.stored { // those that an error left
		piece.release()
	}
}

// writeLarge writes a file while its pieces come.
func (s *objectStore) writeLarge(f *largeFile) (fsverity.Digest, error) {
	temp, err := s.repo.CreateTemp()
	if err != nil {
		return fsverity.Digest{}, err
	}
	defer temp.Discard()
	hasher := fsverity.NewHasher(s.repo.Algorithm())
	for piece := range f.stored {
		_, _ = hasher.Write(piece.data)
		_, err := temp.File().Write(piece.data)
		piece.release()
		if err != nil {
			return fsverity.Digest{}, err
		}
	}
	if !f.whole {
		return fsverity.Digest{}, errCutShort
	}
	id := hasher.Sum()
	outcome, err := s.repo.Commit(temp, id)
	return s.stored(id, outcome, int(hasher.Size()), err)
}

// adoptLarge hashes the pieces of a file that lies elsewhere, and makes an
// object of it.
func (s *objectStore) adoptLarge(f *largeFile) (fsverity.Digest, error) {
	hasher := fsverity.NewHasher(s.repo.Algorithm())
	for piece := range f.stored {
		_, _ = hasher.Write(piece.data)
		piece.release()
	}
	if !f.whole {
		return fsverity.Digest{}, errCutShort
	}
	id := hasher.Sum()
	outcome, err := s.adopter.Adopt(f.donor, id, nil)
	return s.stored(id, outcome, int(hasher.Size()), err)
}
