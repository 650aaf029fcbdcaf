// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package splitstream reads and writes composefs split streams: a byte stream
// (a tar layer, a JSON document, a blob) cut into inline bytes, kept
// compressed in the file itself, and external parts, each the whole content
// of an object of the repository named by its fs-verity digest.
//
// # Format
//
// All integers are little-endian. A file is a 32-byte header, an info block
// and four sections that lie anywhere in the file, each found through a range
// (u64 start, u64 end, half open) in the info block:
//
//	header   11 "SplitStream" · u8 version 0 · u16 flags · u8 algorithm ·
//	         u8 log2 block size 12 · range of the info block
//	info     ranges of stream_refs, object_refs, stream, named_refs ·
//	         u64 content type · u64 size of the reassembled stream
//
// stream_refs and object_refs are arrays of raw digests. named_refs is zstd
// text, records "<decimal index into stream_refs>:<name>" NUL sorted by name.
// stream is zstd data, a sequence of chunks that each begin with an i64: a
// negative -n announces n inline bytes, a k >= 0 stands for the whole object
// object_refs[k].
//
// Releases 0.5 and 0.6 of composefs-rs wrote the same 32 header bytes in
// another order (info range, flags, magic, version, algorithm, block size).
// The version byte does not tell them apart, the place of the magic does.
// This package reads both orders and writes the first.
//
// # Invariants
//
//   - The writer makes one inline chunk of all inline bytes between two
//     external chunks, whatever their number: other readers require a tar
//     header or a small file to lie inside one chunk.
//   - The writer emits both zstd sections even when they are empty, as a frame
//     of no bytes: other readers refuse a section of length zero.
//   - Neither side holds more than a bounded amount of memory, whatever the
//     size of the stream or the numbers a foreign file declares.
package splitstream

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// ContentType says what a stream holds. By convention it is eight ASCII bytes.
type ContentType uint64

// The content types of the OCI side of composefs.
const (
	Any      ContentType = 0                  // as an expectation: no check
	Layer    ContentType = 0x726579616c69636f // "ocilayer": an uncompressed tar layer
	Config   ContentType = 0x67666e6f6369636f // "ociconfg": an OCI image config
	Manifest ContentType = 0x66696e616d69636f // "ocimanif": an OCI image manifest
	Blob     ContentType = 0x626f6c625f69636f // "oci_blob": anything else
)

// String is the type as its eight ASCII bytes, or in hex when they are not
// printable.
func (c ContentType) String() string {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(c))
	for _, x := range b {
		if x < 0x20 || x > 0x7e {
			return fmt.Sprintf("%#x", uint64(c))
		}
	}
	return string(b[:])
}

// ErrFormat reports a file that is not a well-formed split stream.
var ErrFormat = errors.New("malformed splitstream")

// ErrContentType reports a well-formed split stream of another content type
// than the caller expected.
var ErrContentType = errors.New("unexpected splitstream content type")

const (
	magic       = "SplitStream"
	version     = 0
	lgBlockSize = 12

	headerSize = 32
	infoSize   = 80
	infoStart  = headerSize
	infoEnd    = infoStart + infoSize

	// maxWindow is libzstd's default limit for decoders, hence the largest
	// window that other readers of the format accept.
	maxWindow = 1 << 27
)

// emptyFrame is the zstd frame of no bytes, as libzstd writes it.
var emptyFrame = [...]byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x00, 0x01, 0x00, 0x00}

// wordFrame is a zstd frame whose content is its last eight bytes, stored raw:
// magic, no checksum and no content size, 2 MiB window, one last raw block of
// eight bytes.
var wordFrame = [...]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0x41, 0x00, 0x00, 0, 0, 0, 0, 0, 0, 0, 0}

// span is a half-open range of file offsets.
type span struct{ start, end uint64 }

func (s span) length() uint64 { return s.end - s.start }

// header is the content of the first 32 bytes.
type header struct {
	algorithm fsverity.Algorithm
	info      span
}

// encode is the header in the current byte order.
func (h header) encode() [headerSize]byte {
	var b [headerSize]byte
	copy(b[:], magic)
	b[11] = version
	b[14] = byte(h.algorithm)
	b[15] = lgBlockSize
	binary.LittleEndian.PutUint64(b[16:], h.info.start)
	binary.LittleEndian.PutUint64(b[24:], h.info.end)
	return b
}

// hasMagic reports whether a header has the magic in either place.
func hasMagic(b *[headerSize]byte) bool {
	return string(b[:11]) == magic || string(b[18:29]) == magic
}

// decodeHeader reads either order of the header.
func decodeHeader(b *[headerSize]byte) (header, error) {
	var info, tail []byte
	switch {
	case string(b[:11]) == magic:
		info, tail = b[16:32], []byte{b[11], b[14], b[15]}
	case string(b[18:29]) == magic:
		info, tail = b[0:16], b[29:32]
	default:
		return header{}, fmt.Errorf("%w: no magic", ErrFormat)
	}
	if tail[0] != version {
		return header{}, fmt.Errorf("%w: version %d is not known", ErrFormat, tail[0])
	}
	h := header{
		algorithm: fsverity.Algorithm(tail[1]),
		info:      span{binary.LittleEndian.Uint64(info), binary.LittleEndian.Uint64(info[8:])},
	}
	if !h.algorithm.Valid() {
		return header{}, fmt.Errorf("%w: algorithm %d is not known", ErrFormat, tail[1])
	}
	if tail[2] != lgBlockSize {
		return header{}, fmt.Errorf("%w: block size 2^%d is not known", ErrFormat, tail[2])
	}
	return h, nil
}

// info is the content of the info block.
type info struct {
	streamRefs, objectRefs, stream, namedRefs span
	contentType                               ContentType
	size                                      uint64
}

func (i info) encode() [infoSize]byte {
	var b [infoSize]byte
	for n, s := range [...]span{i.streamRefs, i.objectRefs, i.stream, i.namedRefs} {
		binary.LittleEndian.PutUint64(b[16*n:], s.start)
		binary.LittleEndian.PutUint64(b[16*n+8:], s.end)
	}
	binary.LittleEndian.PutUint64(b[64:], uint64(i.contentType))
	binary.LittleEndian.PutUint64(b[72:], i.size)
	return b
}

func decodeInfo(b *[infoSize]byte) info {
	at := func(off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
	return info{
		streamRefs:  span{at(0), at(8)},
		objectRefs:  span{at(16), at(24)},
		stream:      span{at(32), at(40)},
		namedRefs:   span{at(48), at(56)},
		contentType: ContentType(at(64)),
		size:        at(72),
	}
}
