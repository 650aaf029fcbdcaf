// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Limits bound what one layer may expand to.
type Limits struct {
	// MaxLayerSize is the largest uncompressed layer in bytes; 0 means
	// DefaultMaxLayerSize.
	MaxLayerSize int64
	// MaxRatio is the largest ratio of uncompressed to compressed size; 0
	// means DefaultMaxRatio. It applies from ratioFloor bytes on.
	MaxRatio int64
	// MaxEntries is the largest number of entries that the layers of one
	// image may have together; 0 means DefaultMaxEntries.
	MaxEntries int
}

// Defaults of Limits.
const (
	DefaultMaxLayerSize = 256 << 30
	DefaultMaxRatio     = 1200    // gzip cannot exceed 1032
	DefaultMaxEntries   = 4 << 20 // what the EROFS reader takes, too

	ratioFloor = 64 << 20
	maxWindow  = 128 << 20 // what zstd's own tools accept by default
)

func (l Limits) withDefaults() Limits {
	if l.MaxLayerSize == 0 {
		l.MaxLayerSize = DefaultMaxLayerSize
	}
	if l.MaxRatio == 0 {
		l.MaxRatio = DefaultMaxRatio
	}
	if l.MaxEntries == 0 {
		l.MaxEntries = DefaultMaxEntries
	}
	return l
}

// ErrTooLarge reports a layer that expands beyond its limits.
var ErrTooLarge = errors.New("layer too large")

// countingReader counts the bytes read through it and keeps the error that
// ended them.
type countingReader struct {
	r   io.Reader
	n   int64
	err error
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}

// decompressor reads the uncompressed bytes of a layer within its limits.
type decompressor struct {
	in          *countingReader
	out         io.Reader
	compression Compression
	close       func()
	limits      Limits
	n           int64
}

// newDecompressor finds out by the first bytes whether a layer is gzip, zstd
// or a plain tar. All members of a gzip file and all frames of a zstd file
// belong to the layer.
func newDecompressor(blob io.Reader, limits Limits) (*decompressor, error) {
	in := &countingReader{r: blob}
	buffered := bufio.NewReaderSize(in, 256<<10)
	magic, err := buffered.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	d := &decompressor{in: in, close: func() {}, limits: limits.withDefaults()}
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, d.malformed("read gzip header", err)
		}
		d.out, d.compression, d.close = z, Gzip, func() { _ = z.Close() }
	case len(magic) == 4 && isZstd(magic):
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
		if err != nil {
			return nil, d.malformed("read zstd header", err)
		}
		d.out, d.compression, d.close = z, Zstd, z.Close
	default:
		d.out = buffered
	}
	return d, nil
}

// isZstd reports whether a file begins with a zstd frame, skippable ones
// included.
func isZstd(m []byte) bool {
	return m[0] == 0x28 && m[1] == 0xb5 && m[2] == 0x2f && m[3] == 0xfd ||
		m[0]&0xf0 == 0x50 && m[1] == 0x2a && m[2] == 0x4d && m[3] == 0x18
}

func (d *decompressor) Read(p []byte) (int, error) {
	n, err := d.out.Read(p)
	d.n += int64(n)
	if d.n > d.limits.MaxLayerSize {
		return n, fmt.Errorf("%w: more than %d bytes uncompressed; allow it with --max-layer-size", ErrTooLarge, d.limits.MaxLayerSize)
	}
	if d.n > ratioFloor && d.n/max(d.in.n, 1) > d.limits.MaxRatio {
		return n, fmt.Errorf("%w: %d bytes expand to more than %d, a ratio above %d; allow it with --max-compression-ratio",
			ErrTooLarge, d.in.n, d.n, d.limits.MaxRatio)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = d.malformed("decompress layer", err)
	}
	return n, err
}

// malformed marks an error of the decoder, unless it comes from reading the
// blob.
func (d *decompressor) malformed(verb string, err error) error {
	if d.in.err != nil {
		return fmt.Errorf("%s: %w", verb, d.in.err)
	}
	return fmt.Errorf("%s: %w: %w", verb, ErrMalformed, err)
}

// Close releases the decoder. It does not close the blob.
func (d *decompressor) Close() { d.close() }
