// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package tarraw

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

const (
	// bufferSize is the size in bytes of the read buffer: large, so that the
	// members of most directories come with one read.
	bufferSize = 256 << 10
	// directRead is the smallest read of a body that bypasses the buffer.
	directRead = bufferSize / 4
	// maxEmptyReads is how often in a row the source may return nothing.
	maxEmptyReads = 100
)

// errSink stands for Reader.sinkErr: whatever inline returns, it is not taken
// for an error of the archive.
var errSink = errors.New("inline function failed")

// Reader reads a tar archive member by member and sorts its bytes into inline
// bytes, which go to a function, and external bodies, which the caller reads.
type Reader struct {
	src    io.Reader
	inline func([]byte) error
	parser *Parser

	// buf[pos:end] is unread; buf[from:pos] is inline and not delivered yet.
	buf            []byte
	from, pos, end int
	base           int64 // offset in the archive of buf[0]
	srcErr         error // what src returned last
	sinkErr        error // what inline returned last

	entry *Entry
	body  uint64 // bytes of the current external body that are to be read
	pad   uint64 // bytes of padding after it
	err   error
}

// NewReader returns a Reader of the archive src. It calls inline with every
// byte that is not part of an external body, in order and unchanged; the slice
// is valid during the call. An error of inline ends the reading and is
// returned as it is.
//
// A Reader reads ahead: src is of no use to others before Next returned
// io.EOF.
func NewReader(src io.Reader, inline func([]byte) error, l Limits) *Reader {
	return &Reader{src: src, inline: inline, parser: NewParser(l), buf: make([]byte, bufferSize)}
}

// Offset is the number of bytes of the archive that were consumed, as inline
// bytes or as bodies.
func (r *Reader) Offset() int64 { return r.base + int64(r.pos) }

// Next returns the next member. Before it returns, inline got every byte in
// front of the member's body if that is external, and the body with its
// padding as well if it is not.
//
// At the end of the archive, Next delivers all bytes up to the end of src and
// then returns io.EOF. Errors in the archive are of type *[Error]. It is an
// error to call Next before an external body was read to its end: the object
// would be lost.
func (r *Reader) Next() (*Entry, error) {
	if r.err != nil {
		return nil, r.err
	}
	e, err := r.next()
	if err == errSink {
		err = r.sinkErr
	}
	if err != nil {
		r.err = err
		r.body, r.pad = 0, 0
		return nil, err
	}
	return e, nil
}

func (r *Reader) next() (*Entry, error) {
	if r.body > 0 {
		return nil, r.fail(RuleUnreadBody, fmt.Errorf("%d of %d bytes are left", r.body, r.entry.Size))
	}
	if err := r.takeInline(r.pad); err != nil {
		return nil, err
	}
	r.pad = 0
	r.entry = nil
	for {
		if err := r.fill(BlockSize); err != nil {
			return nil, r.atEnd(err)
		}
		step, err := r.parser.Block(r.buf[r.pos : r.pos+BlockSize])
		if err != nil {
			return nil, err
		}
		r.pos += BlockSize
		switch step {
		case Ready:
			return r.member(r.parser.Entry())
		case End:
			return nil, r.drain()
		}
	}
}

// member deals with the body of a member whose header was read.
func (r *Reader) member(e *Entry) (*Entry, error) {
	r.entry = e
	stored := e.Size + padding(e.Size)
	r.parser.Skip(stored)
	switch {
	case e.External():
		r.body, r.pad = e.Size, padding(e.Size)
	case e.Regular() && e.Size > 0:
		if err := r.fill(BlockSize); err != nil {
			return nil, r.truncated(err)
		}
		e.Content = bytes.Clone(r.buf[r.pos : r.pos+int(e.Size)])
		r.pos += BlockSize
	default:
		if err := r.takeInline(stored); err != nil {
			return nil, err
		}
	}
	return e, r.flush()
}

// atEnd turns the error of a fill at a header boundary into that of Next.
func (r *Reader) atEnd(err error) error {
	if err != io.EOF || r.parser.Pending() {
		return r.truncated(err)
	}
	if err := r.flush(); err != nil {
		return err
	}
	return io.EOF
}

// drain delivers everything up to the end of the source.
func (r *Reader) drain() error {
	for {
		r.pos = r.end
		switch err := r.fill(1); {
		case err == io.EOF:
			return io.EOF
		case err != nil:
			return r.truncated(err)
		}
	}
}

// takeInline passes n bytes on to inline, at the latest with the next flush.
func (r *Reader) takeInline(n uint64) error {
	for n > 0 {
		if err := r.fill(1); err != nil {
			return r.truncated(err)
		}
		part := min(n, uint64(r.end-r.pos))
		r.pos += int(part)
		n -= part
	}
	return nil
}

// flush delivers the inline bytes that are still in the buffer.
func (r *Reader) flush() error {
	if r.from == r.pos {
		return nil
	}
	b := r.buf[r.from:r.pos]
	r.from = r.pos
	if r.inline == nil {
		return nil
	}
	if r.sinkErr = r.inline(b); r.sinkErr != nil {
		return errSink
	}
	return nil
}

// fill makes at least n unread bytes available, n <= len(buf). It returns
// io.EOF if the source has none left, io.ErrUnexpectedEOF if it has too few.
// No slice of the buffer stays valid.
func (r *Reader) fill(n int) error {
	if r.end-r.pos >= n {
		return nil
	}
	if r.pos == r.end || len(r.buf)-r.pos < n {
		if err := r.flush(); err != nil {
			return err
		}
		r.base += int64(r.pos)
		r.end = copy(r.buf, r.buf[r.pos:r.end])
		r.from, r.pos = 0, 0
	}
	for empty := 0; r.end-r.pos < n; {
		if r.srcErr != nil {
			if r.srcErr == io.EOF && r.end > r.pos {
				return io.ErrUnexpectedEOF
			}
			return r.srcErr
		}
		m, err := r.readSource(r.buf[r.end:])
		r.end += m
		r.srcErr = err
		if m > 0 {
			empty = 0
		} else if empty++; empty >= maxEmptyReads && err == nil {
			r.srcErr = io.ErrNoProgress
		}
	}
	return nil
}

// readSource reads once. A source that claims more bytes than it was given
// room for breaks the contract of io.Reader.
func (r *Reader) readSource(p []byte) (int, error) {
	n, err := r.src.Read(p)
	if n < 0 || n > len(p) {
		return 0, errors.New("source returned an impossible count")
	}
	return n, err
}

// Read reads the body of the current member if it is external: exactly its
// size in bytes, then io.EOF. Other members' bodies read as empty. A body that
// the archive cuts short is an *[Error].
//
// Large reads go straight to the source.
func (r *Reader) Read(p []byte) (int, error) {
	if r.body == 0 {
		if r.err != nil && r.err != io.EOF {
			return 0, r.err
		}
		return 0, io.EOF
	}
	if uint64(len(p)) > r.body {
		p = p[:r.body]
	}
	if len(p) == 0 {
		return 0, nil
	}
	if r.pos == r.end && len(p) >= directRead && r.srcErr == nil {
		if n, err := r.readDirect(p); n > 0 || err != nil {
			return n, err
		}
	}
	b, err := r.Peek()
	if err != nil {
		return 0, err
	}
	n := copy(p, b)
	r.Discard(n)
	return n, nil
}

// readDirect reads part of the body past the empty buffer. It may return
// nothing at all.
func (r *Reader) readDirect(p []byte) (int, error) {
	if err := r.flush(); err != nil {
		return 0, r.bodyError(err)
	}
	n, err := r.readSource(p)
	r.srcErr = err
	r.base += int64(n)
	r.body -= uint64(n)
	if n == 0 && err != nil {
		return 0, r.bodyError(err)
	}
	return n, nil
}

// Peek returns the next bytes of the current member's external body, as many
// as the buffer holds but at least one, or io.EOF at the body's end. The slice
// is valid until the next call of a method other than Discard.
func (r *Reader) Peek() ([]byte, error) {
	if r.body == 0 {
		if r.err != nil && r.err != io.EOF {
			return nil, r.err
		}
		return nil, io.EOF
	}
	if err := r.fill(1); err != nil {
		return nil, r.bodyError(err)
	}
	return r.buf[r.pos : r.pos+int(min(r.body, uint64(r.end-r.pos)))], nil
}

// Discard consumes n bytes of those that Peek returned.
func (r *Reader) Discard(n int) {
	n = min(max(n, 0), int(min(r.body, uint64(r.end-r.pos))))
	r.pos += n
	r.from = r.pos
	r.body -= uint64(n)
}

// WriteTo writes the rest of the current member's external body to w without
// copying it.
func (r *Reader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		b, err := r.Peek()
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := w.Write(b)
		r.Discard(n)
		total += int64(n)
		if err != nil {
			return total, err
		}
		if n < len(b) {
			return total, io.ErrShortWrite
		}
	}
}

// Buffered is the number of bytes that were read from the source and not used
// yet.
func (r *Reader) Buffered() int { return r.end - r.pos }

// SkipBody counts the whole external body of the current member as read: the
// caller has it from elsewhere, and the source goes on with what follows it. It
// may only be called when nothing of the body was read or is Buffered.
func (r *Reader) SkipBody() {
	r.base += int64(r.body)
	r.body = 0
}

// bodyError ends the reading within a body.
func (r *Reader) bodyError(err error) error {
	r.err = r.truncated(err)
	r.body, r.pad = 0, 0
	return r.err
}

// truncated says where the source ended or failed, or returns the error of
// the inline function.
func (r *Reader) truncated(err error) error {
	if err == errSink {
		return r.sinkErr
	}
	if err == io.EOF || err == io.ErrUnexpectedEOF && r.srcErr == io.EOF {
		return r.failAt(r.base+int64(r.end), RuleTruncated, io.ErrUnexpectedEOF)
	}
	return r.failAt(r.base+int64(r.end), RuleRead, err)
}

func (r *Reader) fail(rule string, err error) error { return r.failAt(r.Offset(), rule, err) }

func (r *Reader) failAt(offset int64, rule string, err error) error {
	name := r.parser.hint
	if r.entry != nil {
		name = r.entry.Name
	}
	return &Error{Entry: name, Offset: offset, Rule: rule, Err: err}
}
