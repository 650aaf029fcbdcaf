// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package splitstream

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

const (
	// maxRefs bounds each table of digests: 64 bytes each at most, 256 MiB.
	// The largest distribution images have about half a million files in all.
	maxRefs = 1 << 22

	// maxNamesSize bounds the decompressed named_refs section, in bytes. An
	// image has at most a few hundred layers of about 80 bytes each.
	maxNamesSize = 4 << 20

	chunkBuffer = 32 << 10
)

// ReaderOptions is what a caller expects of a stream.
type ReaderOptions struct {
	// Algorithm is the repository's; 0 accepts either.
	Algorithm fsverity.Algorithm
	// ContentType is the type wanted; 0 ([Any]) accepts every type.
	ContentType ContentType
}

// NamedRef is a reference by name to a stream or an image.
type NamedRef struct {
	Name string
	ID   fsverity.Digest
}

// Reader reads a split stream. Its tables are held in memory, the stream
// itself is read on demand. Safe for concurrent use when the file below is.
type Reader struct {
	r         io.ReaderAt
	algorithm fsverity.Algorithm
	info      info
	streams   []byte // raw table
	objects   []byte // raw table
	names     []nameIndex
}

type nameIndex struct {
	name  string
	index int
}

// NewReader reads and checks the tables of the split stream that is the first
// size bytes of r. An error wraps [ErrFormat] or [ErrContentType] unless
// reading itself failed.
func NewReader(r io.ReaderAt, size int64, o ReaderOptions) (*Reader, error) {
	rd, err := readHead(r, size, o)
	if err != nil {
		return nil, err
	}
	if rd.streams, err = rd.readTable("stream_refs", rd.info.streamRefs); err != nil {
		return nil, err
	}
	if rd.objects, err = rd.readTable("object_refs", rd.info.objectRefs); err != nil {
		return nil, err
	}
	if err := rd.readNames(); err != nil {
		return nil, err
	}
	return rd, nil
}

// readHead reads the header and the info block, and checks the places and
// lengths of the sections.
func readHead(r io.ReaderAt, size int64, o ReaderOptions) (*Reader, error) {
	if size < headerSize {
		return nil, fmt.Errorf("%w: %d bytes are less than a header", ErrFormat, size)
	}
	var hb [headerSize]byte
	if err := readAt(r, hb[:], 0); err != nil {
		return nil, fmt.Errorf("read splitstream header: %w", err)
	}
	h, err := decodeHeader(&hb)
	if err != nil {
		return nil, err
	}
	if o.Algorithm != 0 && h.algorithm != o.Algorithm {
		return nil, fmt.Errorf("%w: its algorithm is %s, the repository's %s", ErrFormat, h.algorithm, o.Algorithm)
	}
	if err := h.info.check("info block", size); err != nil {
		return nil, err
	}
	if h.info.length() < infoSize {
		return nil, fmt.Errorf("%w: info block of %d bytes is too short", ErrFormat, h.info.length())
	}
	var ib [infoSize]byte
	if err := readAt(r, ib[:], h.info.start); err != nil {
		return nil, fmt.Errorf("read splitstream info block: %w", err)
	}
	rd := &Reader{r: r, algorithm: h.algorithm, info: decodeInfo(&ib)}
	if o.ContentType != Any && rd.info.contentType != o.ContentType {
		return nil, fmt.Errorf("%w: have %s, want %s", ErrContentType, rd.info.contentType, o.ContentType)
	}
	for _, s := range [...]struct {
		name string
		span
	}{
		{"stream_refs", rd.info.streamRefs}, {"object_refs", rd.info.objectRefs},
		{"stream", rd.info.stream}, {"named_refs", rd.info.namedRefs},
	} {
		if err := s.check(s.name, size); err != nil {
			return nil, err
		}
	}
	if err := rd.checkTable("stream_refs", rd.info.streamRefs); err != nil {
		return nil, err
	}
	return rd, rd.checkTable("object_refs", rd.info.objectRefs)
}

func (s span) check(name string, size int64) error {
	if s.end < s.start || s.end > uint64(size) {
		return fmt.Errorf("%w: %s at %d to %d in a file of %d bytes", ErrFormat, name, s.start, s.end, size)
	}
	return nil
}

// readAt fills b; an end of file before that is an error.
func readAt(r io.ReaderAt, b []byte, off uint64) error {
	n, err := r.ReadAt(b, int64(off))
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// checkTable checks the length of a table of digests.
func (r *Reader) checkTable(name string, s span) error {
	h := uint64(r.algorithm.Size())
	n := s.length()
	if n%h != 0 {
		return fmt.Errorf("%w: %s is %d bytes, not a multiple of %d", ErrFormat, name, n, h)
	}
	if n/h > maxRefs {
		return fmt.Errorf("%w: %s has %d entries, more than %d", ErrFormat, name, n/h, maxRefs)
	}
	return nil
}

func (r *Reader) readTable(name string, s span) ([]byte, error) {
	b := make([]byte, s.length())
	if err := readAt(r.r, b, s.start); err != nil {
		return nil, fmt.Errorf("read %s of splitstream: %w", name, err)
	}
	return b, nil
}

func (r *Reader) readNames() error {
	d, err := r.decompress("named_refs", r.info.namedRefs)
	if err != nil {
		return err
	}
	defer d.Close()
	text, err := io.ReadAll(io.LimitReader(d, maxNamesSize+1))
	if err != nil {
		return malformed("decompress named_refs", err)
	}
	if len(text) > maxNamesSize {
		return fmt.Errorf("%w: named_refs is more than %d bytes", ErrFormat, maxNamesSize)
	}
	if !utf8.Valid(text) {
		return fmt.Errorf("%w: named_refs is not UTF-8", ErrFormat)
	}
	count := r.info.streamRefs.length() / uint64(r.algorithm.Size())
	for len(text) > 0 {
		record, rest, ok := bytes.Cut(text, []byte{0})
		if !ok {
			return fmt.Errorf("%w: last of named_refs has no end", ErrFormat)
		}
		text = rest
		number, name, ok := strings.Cut(string(record), ":")
		if !ok {
			return fmt.Errorf("%w: named_refs record %.80q has no colon", ErrFormat, record)
		}
		index, err := strconv.ParseUint(number, 10, 32)
		if err != nil || index >= count {
			return fmt.Errorf("%w: named_refs record %.80q does not index %d streams", ErrFormat, record, count)
		}
		r.names = append(r.names, nameIndex{name, int(index)})
	}
	// Sorted and unique is what writers emit, but no rule for readers: the
	// last record of a name counts.
	slices.SortStableFunc(r.names, func(a, b nameIndex) int { return strings.Compare(a.name, b.name) })
	kept := r.names[:0]
	for i, n := range r.names {
		if i+1 < len(r.names) && r.names[i+1].name == n.name {
			continue
		}
		kept = append(kept, n)
	}
	r.names = kept
	return nil
}

// decompress opens a zstd section. A section of no bytes is an error: it would
// be indistinguishable from one that was cut off.
func (r *Reader) decompress(name string, s span) (*zstd.Decoder, error) {
	if s.length() == 0 {
		return nil, fmt.Errorf("%w: %s has no zstd frame", ErrFormat, name)
	}
	d, err := zstd.NewReader(io.NewSectionReader(r.r, int64(s.start), int64(s.length())),
		zstd.WithDecoderConcurrency(1), // no goroutines
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow),
	)
	if err != nil {
		return nil, fmt.Errorf("start zstd decoder: %w", err)
	}
	return d, nil
}

// Algorithm is the algorithm of the digests in the stream.
func (r *Reader) Algorithm() fsverity.Algorithm { return r.algorithm }

// ContentType is what the stream says it holds.
func (r *Reader) ContentType() ContentType { return r.info.contentType }

// Size is the length in bytes of the reassembled stream as the writer noted
// it. It is information, not a promise.
func (r *Reader) Size() uint64 { return r.info.size }

// ObjectRefs lists the objects the stream needs, those no chunk uses included.
func (r *Reader) ObjectRefs() []fsverity.Digest { return r.digests(r.objects) }

// StreamRefs lists the streams and images that the stream refers to.
func (r *Reader) StreamRefs() []fsverity.Digest { return r.digests(r.streams) }

// NamedRefs lists the references by name, sorted by name.
func (r *Reader) NamedRefs() []NamedRef {
	refs := make([]NamedRef, len(r.names))
	for i, n := range r.names {
		refs[i] = NamedRef{Name: n.name, ID: r.digest(r.streams, n.index)}
	}
	return refs
}

// NamedRef looks up a reference by name.
func (r *Reader) NamedRef(name string) (fsverity.Digest, bool) {
	i, ok := slices.BinarySearchFunc(r.names, name, func(n nameIndex, s string) int { return strings.Compare(n.name, s) })
	if !ok {
		return fsverity.Digest{}, false
	}
	return r.digest(r.streams, r.names[i].index), true
}

func (r *Reader) digests(table []byte) []fsverity.Digest {
	ids := make([]fsverity.Digest, len(table)/r.algorithm.Size())
	for i := range ids {
		ids[i] = r.digest(table, i)
	}
	return ids
}

// digest is entry i of a raw table. The bytes always fit: tables are whole
// multiples of the digest size.
func (r *Reader) digest(table []byte, i int) fsverity.Digest {
	n := r.algorithm.Size()
	d, err := fsverity.DigestFromBytes(r.algorithm, table[i*n:(i+1)*n])
	if err != nil {
		return fsverity.Digest{}
	}
	return d
}

// Chunk is one piece of a stream.
type Chunk struct {
	// Inline says which kind it is.
	Inline bool
	// Length is the number of inline bytes; 0 for an external chunk, whose
	// length is that of its object.
	Length uint64
	// Object and Index say which object an external chunk is, and its place
	// in the table of objects.
	Object fsverity.Digest
	Index  int
}

// ChunkReader walks a stream from its beginning.
type ChunkReader struct {
	reader *Reader
	dec    *zstd.Decoder
	buf    *bufio.Reader
	left   uint64 // inline bytes of the current chunk not read yet
	err    error
}

// Chunks starts at the first chunk. The caller closes the result.
func (r *Reader) Chunks() (*ChunkReader, error) {
	d, err := r.decompress("stream", r.info.stream)
	if err != nil {
		return nil, err
	}
	return &ChunkReader{reader: r, dec: d, buf: bufio.NewReaderSize(d, chunkBuffer)}, nil
}

// Close frees the decoder. It does not report anything.
func (c *ChunkReader) Close() {
	c.dec.Close()
	if c.err == nil {
		c.err = errClosed
	}
}

var errClosed = errors.New("read splitstream: closed")

// Next skips what is left of the current chunk and returns the next one. The
// error is [io.EOF] after the last chunk, and only there.
func (c *ChunkReader) Next() (Chunk, error) {
	if c.err != nil {
		return Chunk{}, c.err
	}
	for c.left > 0 {
		n, err := c.buf.Discard(int(min(c.left, math.MaxInt32)))
		c.left -= uint64(n)
		if err != nil {
			return Chunk{}, c.fail("inline chunk", err)
		}
	}
	word, err := c.buf.Peek(8)
	if err != nil {
		if errors.Is(err, io.EOF) && len(word) == 0 {
			c.err = io.EOF
			return Chunk{}, io.EOF
		}
		return Chunk{}, c.fail("chunk", err)
	}
	v := int64(binary.LittleEndian.Uint64(word))
	if _, err := c.buf.Discard(8); err != nil {
		return Chunk{}, c.fail("chunk", err)
	}
	if v < 0 {
		// The negation of the smallest value is 2^63 as an unsigned number.
		c.left = -uint64(v)
		return Chunk{Inline: true, Length: c.left, Index: -1}, nil
	}
	count := len(c.reader.objects) / c.reader.algorithm.Size()
	if v >= int64(count) {
		c.err = fmt.Errorf("%w: chunk refers to object %d of %d", ErrFormat, v, count)
		return Chunk{}, c.err
	}
	return Chunk{Object: c.reader.digest(c.reader.objects, int(v)), Index: int(v)}, nil
}

// Read reads from the current inline chunk and returns [io.EOF] at its end.
func (c *ChunkReader) Read(p []byte) (int, error) {
	if c.left == 0 {
		if c.err != nil {
			return 0, c.err
		}
		return 0, io.EOF
	}
	if c.err != nil {
		return 0, c.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if uint64(len(p)) > c.left {
		p = p[:c.left]
	}
	n, err := c.buf.Read(p)
	c.left -= uint64(n)
	if err != nil {
		return n, c.fail("inline chunk", err)
	}
	return n, nil
}

// fail notes an error of the decoder; the end of data inside a chunk is one.
func (c *ChunkReader) fail(what string, err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	c.err = malformed("read "+what, err)
	return c.err
}

// malformed marks an error of the decoder, unless it comes from reading the
// file: a disk that does not answer says nothing about the format.
func malformed(doing string, err error) error {
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s of splitstream: %w", doing, err)
	}
	return fmt.Errorf("%w: %s: %w", ErrFormat, doing, err)
}

// Reassemble writes the original bytes to w. It gets the content of objects
// through open and closes what open returns.
func (r *Reader) Reassemble(w io.Writer, open func(fsverity.Digest) (io.ReadCloser, error)) error {
	c, err := r.Chunks()
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		chunk, err := c.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if chunk.Inline {
			if _, err := io.Copy(w, c); err != nil {
				return fmt.Errorf("copy inline chunk: %w", err)
			}
			continue
		}
		if err := copyObject(w, chunk.Object, open); err != nil {
			return err
		}
	}
}

func copyObject(w io.Writer, id fsverity.Digest, open func(fsverity.Digest) (io.ReadCloser, error)) error {
	f, err := open(id)
	if err != nil {
		return fmt.Errorf("open object %s: %w", id, err)
	}
	defer f.Close()
	if _, err := io.Copy(w, f); err != nil {
		return fmt.Errorf("copy object %s: %w", id, err)
	}
	return nil
}
