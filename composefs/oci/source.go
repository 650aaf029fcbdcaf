// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// LayerReader yields a layer in the order of its tar archive: the uncompressed
// bytes, except for the contents of files that it has as files and that
// NextFile has given out. The one importer reads both from it, so that a layer
// becomes the same stream wherever it comes from.
//
// It is used by one goroutine at a time.
type LayerReader interface {
	// Read reads bytes of the archive. It does not go beyond the beginning of
	// a file that NextFile can give out, unless NextFile was not asked there:
	// then it reads the file's bytes.
	io.Reader
	// NextFile is the file whose content, of exactly size bytes, comes next.
	// Read goes on behind it. It is nil when the content has to be read as
	// bytes.
	NextFile(size uint64) *LayerFile
	// Explain is told the error that ended an import when the layer's content
	// is to blame, and returns it or a better one.
	Explain(ctx context.Context, err error) error
	// Close ends the reading. Files that were opened stay open.
	Close() error
}

// LayerFile is the content of a member of a layer that lies in a file of its
// own. Open opens it for reading; it may be called by another goroutine, also
// after the LayerReader was closed. The size is checked by who reads it.
type LayerFile struct {
	Open func() (*os.File, error)
}

// OpenLayer opens a layer. Reading ends when ctx does.
type OpenLayer func(ctx context.Context) (LayerReader, error)

// OpenBlob opens a layer that is a blob, which may be compressed.
func OpenBlob(open func(context.Context) (io.ReadCloser, error), limits Limits) OpenLayer {
	return func(ctx context.Context) (LayerReader, error) {
		blob, err := open(ctx)
		if err != nil {
			return nil, err
		}
		u, err := newUnpacker(ctx, blob, limits)
		if err != nil {
			return nil, errors.Join(explainBlob(ctx, blob, err), blob.Close())
		}
		return &blobReader{unpacker: u, blob: blob}, nil
	}
}

// blobReader is a LayerReader of a blob.
type blobReader struct {
	*unpacker
	blob io.ReadCloser
}

// NextFile is nil: a blob has no files.
func (b *blobReader) NextFile(uint64) *LayerFile { return nil }

// Explain reads the blob to its end.
func (b *blobReader) Explain(ctx context.Context, err error) error {
	b.readAhead.Close()
	return explainBlob(ctx, b.blob, err)
}

// explainBlob finds out whether a blob is what its digest says: one that is not
// breaks the rules of tar, too, and its end tells which it is.
func explainBlob(ctx context.Context, blob io.Reader, err error) error {
	if !errors.Is(err, ErrMalformed) || ctx.Err() != nil {
		return err
	}
	if _, blobErr := io.Copy(io.Discard, blob); blobErr != nil {
		return fmt.Errorf("%w (before that: %w)", blobErr, err)
	}
	return err
}

// Close closes the blob.
func (b *blobReader) Close() error {
	b.unpacker.Close()
	return b.blob.Close()
}
