// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

const (
	// smallFile is the size in bytes up to which a file is held in memory
	// while it is hashed and stored.
	smallFile = 1 << 20
	// memoryInFlight bounds the bytes of small files that wait to be stored.
	memoryInFlight = 24 << 20
)

// Stats counts what an import did.
type Stats struct {
	ObjectsStored  atomic.Int64
	ObjectsPresent atomic.Int64
	BytesStored    atomic.Int64
	BytesInlined   atomic.Int64
}

// objectStore hashes and stores the files of all layers of an import with a
// bounded number of workers and a bounded amount of memory.
type objectStore struct {
	repo    *composefs.Repo
	stats   *Stats
	jobs    chan smallJob
	memory  *semaphore.Weighted
	buffers [len(bufferSizes)]sync.Pool
	workers sync.WaitGroup
}

// bufferSizes are the capacities of pooled buffers.
var bufferSizes = [...]int{16 << 10, 128 << 10, smallFile}

type smallJob struct {
	data []byte
	p    *promise
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

func newObjectStore(repo *composefs.Repo, stats *Stats, workers int) *objectStore {
	s := &objectStore{
		repo: repo, stats: stats,
		jobs:   make(chan smallJob, 4*workers),
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

func (s *objectStore) work() {
	alg := s.repo.Algorithm()
	for job := range s.jobs {
		id := fsverity.Sum(alg, job.data)
		outcome, err := s.repo.PutID(id, job.data)
		if err == nil {
			s.count(outcome, int64(len(job.data)))
		}
		s.release(job.data)
		job.p.resolve(id, err)
	}
}

func (s *objectStore) count(outcome composefs.Outcome, size int64) {
	if outcome == composefs.Present {
		s.stats.ObjectsPresent.Add(1)
		return
	}
	s.stats.ObjectsStored.Add(1)
	s.stats.BytesStored.Add(size)
}

// buffer returns a buffer of n bytes, at most smallFile. It waits while too
// many bytes are in flight.
func (s *objectStore) buffer(ctx context.Context, n int) ([]byte, error) {
	class := 0
	for n > bufferSizes[class] {
		class++
	}
	if err := s.memory.Acquire(ctx, int64(bufferSizes[class])); err != nil {
		return nil, context.Cause(ctx)
	}
	if b, ok := s.buffers[class].Get().(*[]byte); ok {
		return (*b)[:n], nil
	}
	return make([]byte, n, bufferSizes[class]), nil
}

func (s *objectStore) release(b []byte) {
	for class, size := range bufferSizes {
		if cap(b) == size {
			s.memory.Release(int64(size))
			s.buffers[class].Put(&b)
			return
		}
	}
}

// put hands over a buffer that holds a whole file.
func (s *objectStore) put(ctx context.Context, data []byte, p *promise) error {
	select {
	case s.jobs <- smallJob{data: data, p: p}:
		return nil
	case <-ctx.Done():
		s.release(data)
		return context.Cause(ctx)
	}
}

// largeFile is a file that is written while it is read.
type largeFile struct {
	pieces chan []byte // pooled; closed after the last one
	whole  bool        // set before pieces is closed when the file is complete
	p      *promise
}

// errCutShort reports a large file whose pieces ended too early.
var errCutShort = errors.New("file cut short")

// storeLarge writes and hashes one large file. It returns when pieces is
// closed, but an error is known at once.
func (s *objectStore) storeLarge(f *largeFile) {
	id, err := s.writeLarge(f)
	switch {
	case errors.Is(err, errCutShort):
		return // whoever did that ends those who wait
	case err != nil:
		err = fmt.Errorf("store file: %w", err)
	}
	f.p.resolve(id, err)
	for piece := range f.pieces { // those that an error left
		s.release(piece)
	}
}

func (s *objectStore) writeLarge(f *largeFile) (fsverity.Digest, error) {
	temp, err := s.repo.CreateTemp()
	if err != nil {
		return fsverity.Digest{}, err
	}
	defer temp.Discard()
	hasher := fsverity.NewHasher(s.repo.Algorithm())
	for piece := range f.pieces {
		_, _ = hasher.Write(piece)
		_, err := temp.File().Write(piece)
		s.release(piece)
		if err != nil {
			return fsverity.Digest{}, err
		}
	}
	if !f.whole {
		return fsverity.Digest{}, errCutShort
	}
	id := hasher.Sum()
	outcome, err := s.repo.Commit(temp, id)
	if err != nil {
		return fsverity.Digest{}, err
	}
	s.count(outcome, int64(hasher.Size()))
	return id, nil
}
