// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"io"
	"sync"
)

const (
	blockSize  = 256 << 10 // bytes in one block of read-ahead
	blockCount = 8         // blocks of read-ahead in a layer
)

// readAhead reads from r in a goroutine of its own, so that decompression and
// what is done with the bytes run side by side.
type readAhead struct {
	full  chan []byte
	free  chan []byte
	block []byte // being read, to give back
	rest  []byte // of block, not read yet
	err   error  // valid when full is closed
	stop  context.CancelFunc
	done  sync.WaitGroup
}

// newReadAhead starts to read r until its end, an error or Close.
func newReadAhead(ctx context.Context, r io.Reader) *readAhead {
	ctx, cancel := context.WithCancel(ctx)
	a := &readAhead{
		full: make(chan []byte, blockCount),
		free: make(chan []byte, blockCount),
		stop: cancel,
	}
	for range blockCount {
		a.free <- make([]byte, blockSize)
	}
	a.done.Go(func() { a.fill(ctx, r) })
	return a
}

func (a *readAhead) fill(ctx context.Context, r io.Reader) {
	defer close(a.full)
	for {
		var block []byte
		select {
		case block = <-a.free:
		case <-ctx.Done():
			a.err = context.Cause(ctx)
			return
		}
		n, err := readBlock(r, block[:blockSize])
		if n > 0 {
			select {
			case a.full <- block[:n]:
			case <-ctx.Done():
				a.err = context.Cause(ctx)
				return
			}
		}
		if err != nil {
			a.err = err
			return
		}
	}
}

// readBlock fills block; unlike io.ReadFull it returns the reader's own error.
func readBlock(r io.Reader, block []byte) (int, error) {
	n := 0
	for n < len(block) {
		m, err := r.Read(block[n:])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (a *readAhead) Read(p []byte) (int, error) {
	if len(a.rest) == 0 {
		if a.block != nil {
			a.free <- a.block
			a.block = nil
		}
		block, ok := <-a.full
		if !ok {
			return 0, a.err
		}
		a.block, a.rest = block, block
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close stops reading and waits for the goroutine. The reader must have
// returned by then or return when its own context ends.
func (a *readAhead) Close() {
	a.stop()
	a.done.Wait()
}
