// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package tarraw

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// ChunkSource is the sequence of chunks of a splitstream;
// *splitstream.ChunkReader is one.
type ChunkSource interface {
	// Next goes to the next chunk, over what is left of the current one. It
	// returns io.EOF after the last chunk.
	Next() (splitstream.Chunk, error)
	// Read reads the current inline chunk.
	Read(p []byte) (int, error)
}

// streamBuffer is the size in bytes of the buffer for inline data.
const streamBuffer = 32 << 10

// StreamReader reads the members of a layer back from its splitstream.
//
// The splitstream format wants each header block, each inline body with its
// padding, and each padding after an external body within one chunk; and
// bodies of files inline or external by their size. Anything else is an
// error. Chunks may end between those.
type StreamReader struct {
	chunks ChunkSource
	parser *Parser

	buf      []byte
	pos, end int    // buf[pos:end] belongs to the current inline chunk
	left     uint64 // bytes of that chunk that are not in buf yet
	ended    bool   // the last chunk was read

	entry *Entry
	err   error
}

// NewStreamReader returns a StreamReader of a layer's chunks.
func NewStreamReader(chunks ChunkSource, l Limits) *StreamReader {
	return &StreamReader{chunks: chunks, parser: NewParser(l), buf: make([]byte, streamBuffer)}
}

// Next returns the next member, with Object set if it is external. It returns
// io.EOF at the end of the archive and does not look at what follows the end
// marker.
func (r *StreamReader) Next() (*Entry, error) {
	if r.err != nil {
		return nil, r.err
	}
	e, err := r.next()
	if err != nil {
		r.err = err
		return nil, err
	}
	return e, nil
}

func (r *StreamReader) next() (*Entry, error) {
	r.entry = nil
	for {
		object, err := r.chunk(BlockSize)
		if err == io.EOF {
			return nil, r.atEnd()
		}
		if err != nil {
			return nil, err
		}
		if !object.IsZero() {
			return nil, r.fail(RuleChunk, errors.New("external chunk in place of a header"))
		}
		if err := r.fill(BlockSize); err != nil {
			return nil, err
		}
		step, err := r.parser.Block(r.buf[r.pos : r.pos+BlockSize])
		if err != nil {
			return nil, err
		}
		r.pos += BlockSize
		switch step {
		case Ready:
			r.entry = r.parser.Entry()
			if err := r.body(r.entry); err != nil {
				return nil, err
			}
			return r.entry, nil
		case End:
			return nil, io.EOF
		}
	}
}

// atEnd is the end of the chunks at a header boundary. Old writers left a
// single zero block there.
func (r *StreamReader) atEnd() error {
	if r.parser.records > 0 || r.parser.missed > 0 {
		return r.fail(RuleTruncated, io.ErrUnexpectedEOF)
	}
	return io.EOF
}

// body takes the member's body out of the stream.
func (r *StreamReader) body(e *Entry) error {
	if e.Size == 0 {
		return nil
	}
	pad := padding(e.Size)
	stored := e.Size + pad
	r.parser.Skip(stored)
	object, err := r.chunk(stored)
	if err == io.EOF {
		return r.fail(RuleTruncated, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return err
	}
	if !object.IsZero() {
		if !e.Regular() {
			return r.fail(RuleChunk, fmt.Errorf("external body of a member of type %q", e.Type))
		}
		if !e.External() {
			return r.fail(RuleInlineMax, fmt.Errorf("file of %d bytes is external", e.Size))
		}
		e.Object = object
		return r.padding(pad)
	}
	if e.External() {
		return r.fail(RuleInlineMax, fmt.Errorf("file of %d bytes is inline", e.Size))
	}
	if !e.Regular() {
		return r.discard(stored)
	}
	if err := r.fill(BlockSize); err != nil {
		return err
	}
	e.Content = bytes.Clone(r.buf[r.pos : r.pos+int(e.Size)])
	r.pos += BlockSize
	return nil
}

// padding takes the padding after an external body out of the stream.
func (r *StreamReader) padding(n uint64) error {
	if n == 0 {
		return nil
	}
	object, err := r.chunk(n)
	if err == io.EOF {
		return r.fail(RuleTruncated, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return err
	}
	if !object.IsZero() {
		return r.fail(RuleChunk, errors.New("external chunk in place of padding"))
	}
	return r.discard(n)
}

// chunk makes sure that the current chunk holds n more inline bytes, n > 0,
// or returns the object of the external chunk that comes next. io.EOF means
// that there is no chunk.
func (r *StreamReader) chunk(n uint64) (fsverity.Digest, error) {
	if r.pos == r.end && r.left == 0 {
		if r.ended {
			return fsverity.Digest{}, io.EOF
		}
		c, err := r.chunks.Next()
		switch {
		case err == io.EOF:
			r.ended = true
			return fsverity.Digest{}, io.EOF
		case err != nil:
			return fsverity.Digest{}, r.fail(RuleRead, err)
		case !c.Inline && c.Object.IsZero():
			return fsverity.Digest{}, r.fail(RuleChunk, errors.New("external chunk without an object"))
		case !c.Inline:
			return c.Object, nil
		}
		r.left = c.Length
	}
	if have := uint64(r.end-r.pos) + r.left; have < n {
		return fsverity.Digest{}, r.fail(RuleChunk, fmt.Errorf("%d inline bytes where %d belong together", have, n))
	}
	return fsverity.Digest{}, nil
}

// fill buffers at least n bytes of the current inline chunk, which chunk has
// found to hold them; n <= len(buf).
func (r *StreamReader) fill(n int) error {
	if r.end-r.pos >= n {
		return nil
	}
	r.end = copy(r.buf, r.buf[r.pos:r.end])
	r.pos = 0
	room := min(uint64(len(r.buf)-r.end), r.left)
	m, err := io.ReadAtLeast(r.chunks, r.buf[r.end:r.end+int(room)], n-r.end)
	r.end += m
	r.left -= uint64(m)
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return r.fail(RuleRead, err)
	}
	return nil
}

// discard drops n bytes of the current inline chunk.
func (r *StreamReader) discard(n uint64) error {
	for n > 0 {
		if err := r.fill(1); err != nil {
			return err
		}
		part := min(n, uint64(r.end-r.pos))
		r.pos += int(part)
		n -= part
	}
	return nil
}

func (r *StreamReader) fail(rule string, err error) error {
	name := r.parser.hint
	if r.entry != nil {
		name = r.entry.Name
	}
	return &Error{Entry: name, Offset: r.parser.offset, Rule: rule, Err: err}
}
