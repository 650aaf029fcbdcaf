// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// This file is what garbage collection and fsck know of the references inside
// objects. Neither reads the chunk stream of a splitstream, and neither holds
// a table of digests in memory, whose length a hostile repository chooses.

// ImageRefPrefix begins the names of those named refs of a stream that lead to
// EROFS images and not to streams (specification section 4.2).
const ImageRefPrefix = "composefs.image"

// IsImageRef reports whether a stream's named ref leads to an EROFS image. All
// others lead to streams.
func IsImageRef(name string) bool { return strings.HasPrefix(name, ImageRefPrefix) }

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

// ImageObjects lists the objects that an EROFS image refers to, in the order
// of the image and without repetition. It does not ask for a link to the
// image. The error is [erofs.ErrCorrupt] for an object that is no composefs
// image, and otherwise that of [Repo.OpenObject].
func (r *Repo) ImageObjects(id fsverity.Digest) ([]fsverity.Digest, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.leave()
	if err := r.checkDigest(id); err != nil {
		return nil, err
	}
	var objects []fsverity.Digest
	seen := map[fsverity.Digest]struct{}{}
	err := r.imageReferences(id, func(object fsverity.Digest) {
		if _, ok := seen[object]; !ok {
			seen[object] = struct{}{}
			objects = append(objects, object)
		}
	})
	if err != nil {
		return nil, err
	}
	return objects, nil
}

// streamTables opens an object as a splitstream of any type and hands its
// tables to f, which may use them until it returns. The file's errors are
// those of openObject, splitstream's wrap [splitstream.ErrFormat].
func (r *Repo) streamTables(id fsverity.Digest, f func(*splitstream.Tables) error) error {
	return r.withObject(id, func(file *os.File, size int64) error {
		t, err := splitstream.OpenTables(file, size, splitstream.ReaderOptions{Algorithm: r.meta.Algorithm})
		if err != nil {
			return err
		}
		return f(t)
	})
}

// streamReferences calls object for each object in the table of a splitstream,
// and named for each of its named refs, which lead to streams and to images.
func (r *Repo) streamReferences(id fsverity.Digest, object func(fsverity.Digest), named func(splitstream.NamedRef)) error {
	err := r.streamTables(id, func(t *splitstream.Tables) error {
		if err := t.EachObject(object); err != nil {
			return err
		}
		return t.EachNamed(named)
	})
	if err != nil {
		return fmt.Errorf("read stream %s: %w", id, err)
	}
	return nil
}

// imageReferences calls object for each object that an EROFS image refers to,
// repeatedly for some. The structure of the whole image is checked; an error
// about it wraps [erofs.ErrCorrupt]. The image is held in memory.
func (r *Repo) imageReferences(id fsverity.Digest, object func(fsverity.Digest)) error {
	err := r.withObject(id, func(file *os.File, size int64) error {
		image, err := erofs.Open(file, size)
		if err != nil {
			return err
		}
		return image.EachObject(object)
	})
	if err != nil {
		return fmt.Errorf("read image %s: %w", id, err)
	}
	return nil
}

// isStream reports whether an object begins like a splitstream.
func (r *Repo) isStream(id fsverity.Digest) (is bool, err error) {
	err = r.withObject(id, func(file *os.File, size int64) error {
		is, err = splitstream.IsSplitStream(file, size)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("read object %s: %w", id, err)
	}
	return is, nil
}

// withObject opens an object, checked as by [Repo.OpenObject], for as long as
// f runs.
func (r *Repo) withObject(id fsverity.Digest, f func(file *os.File, size int64) error) error {
	file, err := r.openObject(id)
	if err != nil {
		return err
	}
	defer file.Close() // read-only
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(int(file.Fd()), &st) }); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	return f(file, st.Size)
}
