// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Stream is an open splitstream.
type Stream struct {
	*splitstream.Reader
	repo *Repo
	file *os.File
	once sync.Once
}

// Close closes the stream's file. Chunk readers do not work afterwards.
func (s *Stream) Close() error {
	var err error
	s.once.Do(func() {
		err = s.file.Close()
		s.repo.addUser(-1)
	})
	return err
}

// StreamID is the object of the stream with a content id. The link is not
// followed. Without one the error is [fs.ErrNotExist].
func (r *Repo) StreamID(name string) (fsverity.Digest, error) {
	if err := r.enter(); err != nil {
		return fsverity.Digest{}, err
	}
	defer r.leave()
	return r.entryID(streamsDir, name)
}

// StreamNames lists the content ids, sorted.
func (r *Repo) StreamNames() ([]string, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.leave()
	return r.listEntries(streamsDir)
}

// OpenStream opens an object as a splitstream of type ct, or of any type for
// [splitstream.Any].
func (r *Repo) OpenStream(id fsverity.Digest, ct splitstream.ContentType) (*Stream, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.leave()
	return r.openStream(id, ct)
}

func (r *Repo) openStream(id fsverity.Digest, ct splitstream.ContentType) (*Stream, error) {
	if err := r.checkDigest(id); err != nil {
		return nil, err
	}
	f, err := r.openObject(id)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close() // read-only
		return nil, fmt.Errorf("open stream %s: %w", id, err)
	}
	rd, err := splitstream.NewReader(f, info.Size(), splitstream.ReaderOptions{Algorithm: r.meta.Algorithm, ContentType: ct})
	if err != nil {
		f.Close() // read-only
		return nil, fmt.Errorf("open stream %s: %w", id, err)
	}
	r.addUser(1)
	return &Stream{Reader: rd, repo: r, file: f}, nil
}

// CheckStream reports whether a stream can be relied on: it opens, and every
// object in its table is there. Streams that it refers to are not looked at,
// nor is the chunk stream decompressed.
func (r *Repo) CheckStream(id fsverity.Digest, ct splitstream.ContentType) (bool, error) {
	if err := r.enter(); err != nil {
		return false, err
	}
	defer r.leave()
	return r.checkStream(id, ct)
}

func (r *Repo) checkStream(id fsverity.Digest, ct splitstream.ContentType) (bool, error) {
	s, err := r.openStream(id, ct)
	if err != nil {
		if isBroken(err) {
			return false, nil
		}
		return false, err
	}
	defer s.Close() // read-only
	for _, o := range s.ObjectRefs() {
		if ok, err := r.hasObject(o, -1); !ok {
			return false, err
		}
	}
	return true, nil
}

// isBroken tells what is wrong in the repository from what went wrong.
func isBroken(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrIntegrity) ||
		errors.Is(err, splitstream.ErrFormat) || errors.Is(err, splitstream.ErrContentType)
}

// WriteStream stores the splitstream that fill writes, as an object. It gets
// no name by that, see [Repo.LinkStream].
func (r *Repo) WriteStream(ct splitstream.ContentType, fill func(*splitstream.Writer) error) (fsverity.Digest, error) {
	t, err := r.CreateTemp()
	if err != nil {
		return fsverity.Digest{}, err
	}
	defer t.Discard()
	w, err := splitstream.NewWriter(t.File(), r.meta.Algorithm, ct)
	if err != nil {
		return fsverity.Digest{}, err
	}
	if err := fill(w); err != nil {
		return fsverity.Digest{}, err
	}
	if err := w.Finish(); err != nil {
		return fsverity.Digest{}, err
	}
	id, _, err := fsverity.SumFile(r.meta.Algorithm, t.File())
	if err != nil {
		return fsverity.Digest{}, fmt.Errorf("hash splitstream: %w", err)
	}
	if _, err := r.Commit(t, id); err != nil {
		return fsverity.Digest{}, err
	}
	return id, nil
}

// LinkStream gives a stream its content id. A link that is there is replaced
// in one step. Call [Repo.SyncFS] before, so that no crash leaves the link
// without what it leads to.
func (r *Repo) LinkStream(name string, id fsverity.Digest) error {
	if err := r.enterLink(name, id); err != nil {
		return err
	}
	defer r.leave()
	return r.setLink(streamsDir, name, objectTarget(id))
}

// LinkStreamOnce is LinkStream for streams that others may be writing at the
// same time with another compressor, which gives other ids: whoever comes
// first wins, and the winner's id is returned and must be used from then on. A
// link to something that is missing, broken or not of type ct does not win.
func (r *Repo) LinkStreamOnce(name string, id fsverity.Digest, ct splitstream.ContentType) (fsverity.Digest, error) {
	if err := r.enterLink(name, id); err != nil {
		return fsverity.Digest{}, err
	}
	defer r.leave()
	r.linkMu.Lock()
	defer r.linkMu.Unlock()

	err := r.createLink(streamsDir, name, objectTarget(id))
	if err == nil {
		return id, nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return fsverity.Digest{}, err
	}
	have, err := r.entryID(streamsDir, name)
	if err == nil && have == id {
		r.touch(streamsDir)
		return id, nil
	}
	if err == nil {
		var ok bool
		if ok, err = r.checkStream(have, ct); ok {
			r.touch(streamsDir)
			return have, nil
		}
	}
	if err != nil && !isBroken(err) {
		return fsverity.Digest{}, err
	}
	return id, r.setLink(streamsDir, name, objectTarget(id))
}

// enterLink begins a call that links an object. leave ends it.
func (r *Repo) enterLink(name string, id fsverity.Digest) error {
	if err := checkEntry(name); err != nil {
		return err
	}
	if err := r.checkDigest(id); err != nil {
		return err
	}
	return r.enterWrite()
}

// SetStreamRef makes the ref "a/b/c" lead to the stream with a content id,
// which must exist. A ref that is there is replaced in one step.
func (r *Repo) SetStreamRef(ref, streamName string) error {
	if err := r.enterWrite(); err != nil {
		return err
	}
	defer r.leave()
	return r.setRef(streamsDir, ref, streamName)
}

// StreamRef is the content id that a ref leads to. Without such a ref the
// error is [fs.ErrNotExist]. The stream may be missing.
func (r *Repo) StreamRef(ref string) (streamName string, err error) {
	if err := r.enter(); err != nil {
		return "", err
	}
	defer r.leave()
	return r.ref(streamsDir, ref)
}

// StreamRefTime is when a ref was made or last changed. Without such a ref the
// error is [fs.ErrNotExist].
func (r *Repo) StreamRefTime(ref string) (time.Time, error) {
	if err := r.enter(); err != nil {
		return time.Time{}, err
	}
	defer r.leave()
	if _, err := checkRef(ref); err != nil {
		return time.Time{}, err
	}
	parent, name := refPath(streamsDir, ref)
	fd, err := r.openDir(parent)
	if err != nil {
		return time.Time{}, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) }); err != nil {
		return time.Time{}, r.pathError("stat", parent+"/"+name, err)
	}
	return time.Unix(st.Mtim.Unix()), nil
}

// RemoveStreamRef removes a ref. Without one the error is [fs.ErrNotExist].
func (r *Repo) RemoveStreamRef(ref string) error {
	if err := r.enterWrite(); err != nil {
		return err
	}
	defer r.leave()
	return r.removeRef(streamsDir, ref)
}

// StreamRefs lists the refs in the directory prefix, for instance "oci", or
// all for "". They are sorted by name, which includes the prefix.
func (r *Repo) StreamRefs(prefix string) ([]Ref, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.leave()
	return r.listRefs(streamsDir, prefix)
}
