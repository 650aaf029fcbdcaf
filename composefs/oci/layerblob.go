// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"crypto/sha256"
	"hash"
	"io"
)

// Compression is how a layer blob is compressed.
type Compression uint8

// The compressions that layers have.
const (
	Uncompressed Compression = iota
	Gzip
	Zstd
)

// LayerBlob reads the uncompressed archive in a layer blob. The blob is read
// and decompressed in a goroutine of its own, ahead of Read.
type LayerBlob struct {
	// Compression is how the blob is compressed, by its first bytes.
	Compression Compression

	*unpacker
	hash hash.Hash
}

// OpenLayerBlob starts to read a blob. Malformed compressed data is
// [ErrMalformed], an archive beyond the limits [ErrTooLarge]; errors of the
// blob's reader come through. All members of a gzip blob and all frames of a
// zstd blob belong to the archive.
func OpenLayerBlob(ctx context.Context, blob io.Reader, limits Limits) (*LayerBlob, error) {
	u, err := newUnpacker(ctx, blob, limits)
	if err != nil {
		return nil, err
	}
	return &LayerBlob{Compression: u.plain.compression, unpacker: u, hash: sha256.New()}, nil
}

// Read implements io.Reader.
func (b *LayerBlob) Read(p []byte) (int, error) {
	n, err := b.unpacker.Read(p)
	b.hash.Write(p[:n])
	return n, err
}

// ReadBlock fills p, unless the archive ends before. Unlike io.ReadFull it
// returns the error that reading ended with, whatever has been read.
func (b *LayerBlob) ReadBlock(p []byte) (int, error) { return readBlock(b, p) }

// Digest is the diff_id, once Read has returned io.EOF.
func (b *LayerBlob) Digest() Digest { return digestFromSum(b.hash.Sum(nil)) }

// unpacker reads the uncompressed archive in a blob, ahead of Read.
type unpacker struct {
	*readAhead
	plain *decompressor
}

func newUnpacker(ctx context.Context, blob io.Reader, limits Limits) (*unpacker, error) {
	plain, err := newDecompressor(blob, limits)
	if err != nil {
		return nil, err
	}
	return &unpacker{readAhead: newReadAhead(ctx, plain), plain: plain}, nil
}

// Close stops reading and waits for that. The blob's own reader must have
// returned by then, or return when its context ends. It is not closed.
func (u *unpacker) Close() {
	u.readAhead.Close()
	u.plain.Close()
}
