// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"encoding/binary"
	"hash/crc32"
	"math"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
)

// The library finds out by a stream's first bytes how it is compressed, records
// that with the layer, and decompresses it. We have to decompress it ourselves:
// a layer's digest must be known before the library sees the end of the stream
// and makes the layer visible. So that the record is the same as podman's and
// nothing is decompressed twice, the stream that the library gets is of the same
// kind but holds the archive as it is: gzip (RFC 1952) with stored blocks, zstd
// (RFC 8878) with raw blocks.

// framing wraps the bytes of an archive.
type framing interface {
	// header begins the stream.
	header() []byte
	// frame appends the framed form of data, at most maxFrame bytes, to dst.
	frame(dst, data []byte) []byte
	// trailer ends the stream.
	trailer() []byte
}

// maxFrame is the length of archive bytes that one frame takes. Framing adds at
// most maxOverhead bytes.
const (
	maxFrame    = math.MaxUint16 // of a stored block
	maxOverhead = 5
)

func framingFor(c oci.Compression) framing {
	switch c {
	case oci.Gzip:
		return &gzipFraming{}
	case oci.Zstd:
		return zstdFraming{}
	default:
		return plainFraming{}
	}
}

type plainFraming struct{}

func (plainFraming) header() []byte                { return nil }
func (plainFraming) frame(dst, data []byte) []byte { return append(dst, data...) }
func (plainFraming) trailer() []byte               { return nil }

type gzipFraming struct {
	crc  uint32
	size uint32 // modulo 2^32, as the format has it
}

func (g *gzipFraming) header() []byte {
	return []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255} // deflate, no flags, no time, unknown system
}

func (g *gzipFraming) frame(dst, data []byte) []byte {
	g.crc = crc32.Update(g.crc, crc32.IEEETable, data)
	g.size += uint32(len(data))
	return append(storedBlock(dst, 0, len(data)), data...)
}

func (g *gzipFraming) trailer() []byte {
	end := storedBlock(nil, 1, 0)
	end = binary.LittleEndian.AppendUint32(end, g.crc)
	return binary.LittleEndian.AppendUint32(end, g.size)
}

// storedBlock appends the head of a stored block. Blocks begin on byte
// boundaries here, because each one ends on one.
func storedBlock(dst []byte, final byte, length int) []byte {
	dst = append(dst, final)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(length))
	return binary.LittleEndian.AppendUint16(dst, ^uint16(length))
}

type zstdFraming struct{}

func (zstdFraming) header() []byte {
	// Magic number; no content size, no checksum, no dictionary; a window of
	// 128 KiB, which a raw block may fill.
	return []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 7 << 3}
}

func (zstdFraming) frame(dst, data []byte) []byte {
	head := uint32(len(data)) << 3 // raw, not the last
	return append(append(dst, byte(head), byte(head>>8), byte(head>>16)), data...)
}

func (zstdFraming) trailer() []byte { return []byte{1, 0, 0} } // an empty raw block, the last

// emptyStream is a stream that holds nothing.
func emptyStream(c oci.Compression) []byte {
	f := framingFor(c)
	return append(f.header(), f.trailer()...)
}
