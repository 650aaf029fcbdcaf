// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// provenObjects are the objects of a repository without fs-verity whose bytes
// are those of their names, as far as a crash could have changed that.
//
// An object gets its name before its bytes are on disk; only [Repo.SyncFS]
// brings them there. When the power fails in between, the object may be there
// afterwards with its full length and without its bytes: ext4 commits the new
// length while the blocks are still on their way, and they read as zeros. Such
// an object must not stand for the content of a later pull. What a linked
// stream refers to was synced before the link was made (repository.md §4.4),
// and what this process stored is in its memory; all else is compared, byte by
// byte, with the content it is to stand for.
type provenObjects struct {
	mu     sync.Mutex
	loaded bool
	ids    map[objectKey]struct{}
}

// maxProven bounds the memory for objects, which a hostile repository could
// use up; more of them are compared.
const maxProven = 8 << 20

// keyOfID is [keyOf] for a digest.
func keyOfID(id fsverity.Digest) objectKey {
	var raw [fsverity.MaxDigestSize]byte
	return keyOf(id.AppendBytes(raw[:0]))
}

// add notes an object. The caller holds mu.
func (p *provenObjects) add(id fsverity.Digest) {
	if p.ids == nil {
		p.ids = make(map[objectKey]struct{})
	}
	if len(p.ids) < maxProven {
		p.ids[keyOfID(id)] = struct{}{}
	}
}

// prove notes an object that this process has stored or compared.
func (r *Repo) prove(id fsverity.Digest) {
	if r.enforce {
		return
	}
	r.proven.mu.Lock()
	r.proven.add(id)
	r.proven.mu.Unlock()
}

// isProven says whether an object need not be compared. The first call reads
// the tables of all linked streams.
func (r *Repo) isProven(id fsverity.Digest) bool {
	r.proven.mu.Lock()
	defer r.proven.mu.Unlock()
	if _, ok := r.proven.ids[keyOfID(id)]; ok {
		return true
	}
	if r.proven.loaded {
		return false
	}
	r.proven.loaded = true
	r.loadProven()
	_, ok := r.proven.ids[keyOfID(id)]
	return ok
}

// loadProven notes what the linked streams refer to. What cannot be read is
// left out, and is compared then.
func (r *Repo) loadProven() {
	names, err := r.listEntries(streamsDir)
	if err != nil {
		return
	}
	for _, name := range names {
		id, err := r.entryID(streamsDir, name)
		if err != nil {
			continue
		}
		r.proven.add(id)
		// What was read before an error is right all the same.
		_ = r.streamReferences(id, r.proven.add, func(n splitstream.NamedRef) { r.proven.add(n.ID) })
	}
}

// canAdopt reports whether an object is there that may stand for content of
// size bytes: as hasObject says and, where no fs-verity proves it, with the
// same bytes.
func (r *Repo) canAdopt(id fsverity.Digest, content io.ReaderAt, size int64) (bool, error) {
	ok, err := r.hasObject(id, size)
	if err != nil || !ok || r.enforce || r.isProven(id) {
		return ok, err
	}
	f, err := r.openObject(id)
	if errors.Is(err, ErrIntegrity) || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close() // read-only
	same, err := sameBytes(f, content, size)
	if err != nil {
		return false, fmt.Errorf("compare object %s: %w", id, err)
	}
	if same {
		r.prove(id)
	}
	return same, nil
}

// comparePiece is how many bytes are compared at once.
const comparePiece = 64 << 10

// sameBytes compares the first size bytes of a file with content. A file that
// cannot be read has other bytes: it is about to be replaced.
func sameBytes(f *os.File, content io.ReaderAt, size int64) (bool, error) {
	piece := int(min(size, comparePiece))
	have, want := make([]byte, piece), make([]byte, piece)
	for at := int64(0); at < size; at += int64(piece) {
		n := int(min(size-at, int64(piece)))
		if _, err := f.ReadAt(have[:n], at); err != nil {
			return false, nil //nolint:nilerr // see above
		}
		// At its end a reader may say so or not.
		if m, err := content.ReadAt(want[:n], at); m < n {
			return false, fmt.Errorf("read content: %w", err)
		}
		if !bytes.Equal(have[:n], want[:n]) {
			return false, nil
		}
	}
	return true, nil
}

// readerAtFD reads from a descriptor that somebody else owns.
type readerAtFD int

func (fd readerAtFD) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		var n int
		err := retry(func() (err error) {
			n, err = unix.Pread(int(fd), p[done:], off+int64(done))
			return err
		})
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, io.EOF
		}
		done += n
	}
	return done, nil
}
