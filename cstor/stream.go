// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"context"
	"io"
	"sync/atomic"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
)

// layerStream is what the library reads a layer from. It reaches io.EOF only
// after the blob's reader has, and after the archive was found to have the
// digest it should have. Part of the stream is held back until then, so that it
// does not matter how the library treats what follows the end of an archive.
type layerStream struct {
	ctx  context.Context
	blob *oci.LayerBlob
	want oci.Digest
	// mismatch makes the error for an archive with another digest.
	mismatch func(got oci.Digest) error

	frame   framing
	data    [maxFrame]byte
	out     []byte // framed, not read yet
	rest    []byte // of out
	held    []byte // framed, delivered only when more has followed or all was verified
	err     error
	started atomic.Bool
	ended   atomic.Bool
}

func newLayerStream(ctx context.Context, blob *oci.LayerBlob, want oci.Digest, mismatch func(oci.Digest) error) *layerStream {
	s := &layerStream{
		ctx: ctx, blob: blob, want: want, mismatch: mismatch, frame: framingFor(blob.Compression),
		out: make([]byte, 0, maxFrame+maxOverhead), held: make([]byte, 0, maxFrame+maxOverhead),
	}
	s.held = append(s.held, s.frame.header()...)
	return s
}

// waiting reports whether the library has not begun to read or has seen the
// end: only then it waits for locks.
func (s *layerStream) waiting() bool { return !s.started.Load() || s.ended.Load() }

// Read implements io.Reader.
func (s *layerStream) Read(p []byte) (int, error) {
	s.started.Store(true)
	for len(s.rest) == 0 {
		if s.err != nil {
			s.ended.Store(true)
			return 0, s.err
		}
		if s.err = s.fill(); s.err != nil && s.err != io.EOF {
			continue // what is held back stays so
		}
		s.out, s.held = s.held, s.out
		s.rest = s.out
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// fill frames the next piece of the archive into the buffer that Read is done
// with, which is s.out. At the verified end it returns io.EOF and has appended
// the rest to what was held back.
func (s *layerStream) fill() error {
	if err := context.Cause(s.ctx); err != nil {
		return err
	}
	n, err := s.blob.ReadBlock(s.data[:])
	if err != nil && err != io.EOF {
		return err
	}
	s.out = s.frame.frame(s.out[:0], s.data[:n])
	if err == nil {
		return nil
	}
	if got := s.blob.Digest(); got != s.want {
		return s.mismatch(got)
	}
	s.held = append(append(s.held, s.out...), s.frame.trailer()...)
	return io.EOF
}
