// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"fmt"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// imageRefPrefix begins the names under which a stream refers to EROFS images
// instead of streams.
const imageRefPrefix = "composefs.image"

// IsImageRef reports whether a stream's named ref leads to an EROFS image. All
// others lead to streams.
func IsImageRef(name string) bool { return strings.HasPrefix(name, imageRefPrefix) }

// StreamTables is what a stream says about itself and refers to.
type StreamTables struct {
	Type    splitstream.ContentType
	Size    uint64                 // of the reassembled stream, as its writer noted it
	Objects []fsverity.Digest      // what it is made of, those without a chunk included
	Named   []splitstream.NamedRef // streams and images, sorted by name
}

// StreamTables reads the tables of an object that is a splitstream of any
// type. The chunk stream is not decompressed. Errors are those of
// [Repo.OpenStream].
func (r *Repo) StreamTables(id fsverity.Digest) (*StreamTables, error) {
	s, err := r.OpenStream(id, splitstream.Any)
	if err != nil {
		return nil, err
	}
	defer s.Close() // read-only
	return &StreamTables{Type: s.ContentType(), Size: s.Size(), Objects: s.ObjectRefs(), Named: s.NamedRefs()}, nil
}

// ImageObjects lists the objects that an EROFS image refers to, in byte order.
// It does not ask for a link to the image. The error is [erofs.ErrCorrupt] for
// an object that is no composefs image, and otherwise that of
// [Repo.OpenObject].
func (r *Repo) ImageObjects(id fsverity.Digest) ([]fsverity.Digest, error) {
	f, err := r.OpenObject(id)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read-only
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read image %s: %w", id, err)
	}
	image, err := erofs.Open(f, info.Size())
	if err != nil {
		return nil, fmt.Errorf("read image %s: %w", id, err)
	}
	objects, err := image.Objects()
	if err != nil {
		return nil, fmt.Errorf("read image %s: %w", id, err)
	}
	return objects, nil
}
