// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// OpenStoredLayer opens a layer of a repository by its splitstream, to import
// it into another one: files come as the objects that hold them, the rest as
// bytes.
func OpenStoredLayer(repo *composefs.Repo, id fsverity.Digest, limits Limits) OpenLayer {
	return func(context.Context) (LayerReader, error) {
		stream, err := repo.OpenStream(id, splitstream.Layer)
		if err != nil {
			return nil, err
		}
		chunks, err := stream.Chunks()
		if err != nil {
			return nil, errors.Join(err, stream.Close())
		}
		return &storedLayer{repo: repo, stream: stream, chunks: chunks, limits: limits.withDefaults()}, nil
	}
}

// storedLayer is a LayerReader of a splitstream.
type storedLayer struct {
	repo   *composefs.Repo
	stream *composefs.Stream
	chunks *splitstream.ChunkReader
	limits Limits

	size   uint64          // bytes given out, files included
	inline uint64          // bytes left of an inline chunk
	object fsverity.Digest // an external chunk that was not begun, or zero
	file   *os.File        // an external chunk that is being read, or nil
	err    error           // of the chunks
}

// advance makes sure that something of a chunk is left.
func (l *storedLayer) advance() error {
	for l.err == nil && l.inline == 0 && l.object.IsZero() && l.file == nil {
		var c splitstream.Chunk
		c, l.err = l.chunks.Next()
		if l.err == nil && c.Inline {
			l.inline = c.Length
		} else if l.err == nil {
			l.object = c.Object
		}
	}
	return l.err
}

// count adds to the size of the layer, which the limits bound.
func (l *storedLayer) count(n uint64) error {
	l.size += n
	if l.size > uint64(l.limits.MaxLayerSize) {
		return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, l.limits.MaxLayerSize)
	}
	return nil
}

// Read implements io.Reader.
func (l *storedLayer) Read(p []byte) (int, error) {
	if err := l.advance(); err != nil {
		return 0, err
	}
	if l.inline > 0 {
		n, err := l.chunks.Read(p)
		l.inline -= uint64(n)
		if err == nil {
			err = l.count(uint64(n))
		}
		return n, err
	}
	return l.readObject(p)
}

// readObject reads an external chunk whose file was not asked for.
func (l *storedLayer) readObject(p []byte) (int, error) {
	if l.file == nil {
		f, err := l.repo.OpenObject(l.object)
		if err != nil {
			return 0, err
		}
		l.file, l.object = f, fsverity.Digest{}
	}
	n, err := l.file.Read(p)
	if err == io.EOF {
		err = l.file.Close()
		l.file = nil
	}
	if err == nil {
		err = l.count(uint64(n))
	}
	return n, err
}

// NextFile gives out the object of an external chunk.
func (l *storedLayer) NextFile(size uint64) *LayerFile {
	if l.advance() != nil || l.object.IsZero() {
		return nil // Read says what is wrong
	}
	if err := l.count(size); err != nil {
		l.err = err
		return nil
	}
	id := l.object
	l.object = fsverity.Digest{}
	return &LayerFile{Open: func() (*os.File, error) { return openSized(l.repo, id, size) }}
}

// openSized opens an object that must have size bytes.
func openSized(repo *composefs.Repo, id fsverity.Digest, size uint64) (*os.File, error) {
	f, err := repo.OpenObject(id)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && uint64(info.Size()) != size {
		err = fmt.Errorf("object %s: %w: it has %d bytes, the layer's archive says %d", f.Name(), composefs.ErrIntegrity, info.Size(), size)
	}
	if err != nil {
		f.Close() // read-only
		return nil, err
	}
	return f, nil
}

// Explain looks for the object that is not what its name says.
func (l *storedLayer) Explain(ctx context.Context, err error) error {
	seen := map[fsverity.Digest]bool{}
	for _, id := range l.stream.ObjectRefs() {
		if ctx.Err() != nil {
			return err
		}
		if seen[id] {
			continue
		}
		seen[id] = true
		if broken := checkContent(l.repo, id); broken != nil {
			return fmt.Errorf("%w (so %w)", broken, err)
		}
	}
	return err
}

// checkContent reads an object.
func checkContent(repo *composefs.Repo, id fsverity.Digest) error {
	f, err := repo.OpenObject(id)
	if err != nil {
		return err
	}
	defer f.Close() // read-only
	got, _, err := fsverity.SumFile(repo.Algorithm(), f)
	if err != nil {
		return fmt.Errorf("read object %s: %w", f.Name(), err)
	}
	if got != id {
		return fmt.Errorf("object %s: %w: its content has the digest %s", f.Name(), composefs.ErrIntegrity, got)
	}
	return nil
}

// Close closes the stream.
func (l *storedLayer) Close() error {
	l.chunks.Close()
	var err error
	if l.file != nil {
		err = l.file.Close()
	}
	return errors.Join(err, l.stream.Close())
}
