// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// What a check of the meaning of streams needs to read. None of it asks for
// fs-verity: whether objects have it is a finding of its own.

// Exists reports whether there is an object of that name, good or bad.
func (c *Checker) Exists(id fsverity.Digest) bool {
	var st unix.Stat_t
	return id.Algorithm() == c.repo.meta.Algorithm && c.repo.lookup(id, &st) == nil
}

// ReadTables reads the tables of a stream, of its objects at most limit.
func (c *Checker) ReadTables(id fsverity.Digest, limit int) (*StreamTables, error) {
	s := &streamItem{id: id}
	f, o, err := c.openItem(s)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read-only
	tables, err := splitstream.OpenTables(f, s.bytes, o)
	if err != nil {
		return nil, err
	}
	out := &StreamTables{Type: tables.ContentType(), Size: tables.Size()}
	err = tables.EachObject(func(id fsverity.Digest) {
		if len(out.Objects) < limit {
			out.Objects = append(out.Objects, id)
		}
	})
	return out, errors.Join(err, tables.EachNamed(func(ref splitstream.NamedRef) { out.Named = append(out.Named, ref) }))
}

// ReadContent reads an object of at most limit bytes.
func (c *Checker) ReadContent(id fsverity.Digest, limit int64) ([]byte, error) {
	f, err := c.repo.openUnchecked(id)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read-only
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("object %s has more than %d bytes", id, limit)
	}
	return b, err
}

// StreamDigest is the SHA-256 digest of a reassembled stream.
func (c *Checker) StreamDigest(ctx context.Context, id fsverity.Digest) ([sha256.Size]byte, error) {
	s := &streamItem{id: id}
	f, o, err := c.openItem(s)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	defer f.Close() // read-only
	rd, err := splitstream.NewReader(f, s.bytes, o)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	wants := []nameRule{{rule: StreamRule{SHA256: new([sha256.Size]byte)}}}
	sum, err := c.reassemble(ctx, rd, reassembly{wants: wants, whole: true})
	return sum.sum, err
}

// FindDocument looks through all objects for the JSON document with a SHA-256
// digest. The error is fs.ErrNotExist when there is none of at most limit
// bytes.
func (c *Checker) FindDocument(ctx context.Context, want [sha256.Size]byte, limit int64) ([]byte, error) {
	if c.documents == nil {
		if err := c.listDocuments(ctx, limit); err != nil {
			return nil, err
		}
	}
	id, ok := c.documents[want]
	if !ok {
		return nil, fmt.Errorf("find document sha256:%x: %w", want, fs.ErrNotExist)
	}
	b, err := c.ReadContent(id, limit)
	if err == nil && sha256.Sum256(b) != want {
		err = fmt.Errorf("document sha256:%x in object %s: %w", want, id, ErrIntegrity)
	}
	return b, err
}

// listDocuments hashes every object that looks like JSON.
func (c *Checker) listDocuments(ctx context.Context, limit int64) error {
	c.documents = map[[sha256.Size]byte]fsverity.Digest{}
	ids := make(chan []fsverity.Digest)
	go func() {
		defer close(ids)
		b := batcher{to: ids}
		for fan := range fanDirs {
			if ctx.Err() == nil {
				c.eachObject(ctx, fan, b.add)
			}
		}
		b.flush()
	}()
	for batch := range ids {
		for _, id := range batch {
			if sum, ok := c.hashDocument(id, limit); ok && ctx.Err() == nil && len(c.documents) < maxRemembered {
				c.documents[sum] = id
			}
		}
	}
	if ctx.Err() != nil {
		c.documents = nil
		return context.Cause(ctx)
	}
	return nil
}

// hashDocument hashes an object, if it is a JSON object of at most limit bytes
// by its first bytes.
func (c *Checker) hashDocument(id fsverity.Digest, limit int64) (sum [sha256.Size]byte, ok bool) {
	f, err := c.repo.openUnchecked(id)
	if err != nil {
		return sum, false
	}
	defer f.Close() // read-only
	info, err := f.Stat()
	if err != nil || info.Size() > limit {
		return sum, false
	}
	var head [64]byte
	n, err := f.ReadAt(head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) || !bytes.HasPrefix(bytes.TrimLeft(head[:n], " \t\r\n"), []byte("{")) {
		return sum, false
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, limit)); err != nil {
		return sum, false
	}
	return [sha256.Size]byte(h.Sum(nil)), true
}
