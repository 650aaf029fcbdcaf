// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"runtime"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// objectKey is the 16 bytes of a digest behind its first one. Two objects that
// share them count as one, which can only keep garbage.
type objectKey struct{ high, low uint64 }

func (k objectKey) compare(o objectKey) int {
	return cmp.Or(cmp.Compare(k.high, o.high), cmp.Compare(k.low, o.low))
}

func keyOf(digest []byte) objectKey {
	return objectKey{binary.BigEndian.Uint64(digest[1:]), binary.BigEndian.Uint64(digest[9:])}
}

// mark is a fact about an object, noted once.
type mark uint8

const (
	markLive   mark = iota // something that is in use refers to it
	markWalked             // its references as a stream are noted, or will be
	markImage              // its references as an image are noted, or will be
	markLinked             // a link in streams/ leads to it
	markCount
)

// objectIndex lists the objects that exist, 16 bytes and a few bits each, so
// that what is in use can be marked without memory for what streams merely
// claim to refer to.
type objectIndex struct {
	alg    fsverity.Algorithm
	shards [256]objectShard // by the first byte
}

type objectShard struct {
	keys  []objectKey // sorted
	marks [markCount][]atomic.Uint64
}

// indexObjects reads the directories of objects/. Anything there that is not
// an object is an error: whoever removes objects must know all of them. Names
// in objects/ itself that are not two digits are not looked at.
func (r *Repo) indexObjects(ctx context.Context) (*objectIndex, error) {
	x := &objectIndex{alg: r.meta.Algorithm}
	dirs, err := r.fanOut()
	if err != nil {
		return nil, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, dir := range dirs {
		group.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return x.shards[dir].read(r, dir)
		})
	}
	return x, group.Wait()
}

// fanOut lists the directories of objects/ that exist.
func (r *Repo) fanOut() ([]int, error) {
	fd, err := openBeneath(r.rootfd(), "objects", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, r.pathError("open", "objects", err)
	}
	defer unix.Close(fd)
	var dirs []int
	err = eachDirent(fd, func(name []byte, kind uint8) error {
		var n [1]byte
		if !decodeHex(n[:], name) {
			return nil
		}
		if kind != unix.DT_DIR {
			return fmt.Errorf("%w: %s/objects/%s is not a directory", ErrIntegrity, r.path, name)
		}
		dirs = append(dirs, int(n[0]))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list %s/objects: %w", r.path, err)
	}
	return dirs, nil
}

func (s *objectShard) read(r *Repo, dir int) error {
	err := r.eachObjectName(dir, func(_ []byte, key objectKey) error {
		s.keys = append(s.keys, key)
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(s.keys, objectKey.compare)
	s.keys = slices.Compact(s.keys)
	for m := range s.marks {
		s.marks[m] = make([]atomic.Uint64, len(s.keys)/64+1)
	}
	return nil
}

// eachObjectName calls f for each object in objects/<hh>.
func (r *Repo) eachObjectName(dir int, f func(name []byte, key objectKey) error) error {
	fd, err := r.openFan(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var digest [fsverity.MaxDigestSize]byte
	size := r.meta.Algorithm.Size()
	digest[0] = byte(dir)
	err = eachDirent(fd, func(name []byte, kind uint8) error {
		if !decodeHex(digest[1:size], name) {
			return fmt.Errorf("%w: %.200q is not the name of an object; move it elsewhere", ErrIntegrity, name)
		}
		if kind != unix.DT_REG {
			return fmt.Errorf("%w: %s is not a regular file", ErrIntegrity, name)
		}
		return f(name, keyOf(digest[:]))
	})
	if err != nil {
		return fmt.Errorf("list %s/objects/%02x: %w", r.path, dir, err)
	}
	return nil
}

// openFan opens objects/<hh> for reading.
func (r *Repo) openFan(dir int) (int, error) {
	path := fmt.Sprintf("objects/%02x", dir)
	fd, err := openBeneath(r.rootfd(), path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, r.pathError("open", path, err)
	}
	return fd, nil
}

// decodeHex fills dst from lower-case hex that must have exactly its length.
func decodeHex(dst, text []byte) bool {
	if len(text) != 2*len(dst) {
		return false
	}
	for _, c := range text {
		if c < 'a' && c > '9' { // upper case, which the library accepts
			return false
		}
	}
	_, err := hex.Decode(dst, text)
	return err == nil
}

// find looks an object up. ok is false when there is none.
func (x *objectIndex) find(id fsverity.Digest) (shard *objectShard, i int, ok bool) {
	if id.Algorithm() != x.alg {
		return nil, 0, false
	}
	var raw [fsverity.MaxDigestSize]byte
	id.AppendBytes(raw[:0])
	shard = &x.shards[raw[0]]
	i, ok = shard.find(keyOf(raw[:]))
	return shard, i, ok
}

func (s *objectShard) find(key objectKey) (int, bool) {
	return slices.BinarySearchFunc(s.keys, key, objectKey.compare)
}

// set notes a mark. first is false when it was noted before, exists when there
// is no such object.
func (x *objectIndex) set(id fsverity.Digest, m mark) (first, exists bool) {
	shard, i, ok := x.find(id)
	if !ok {
		return false, false
	}
	bit := uint64(1) << (i % 64)
	return shard.marks[m][i/64].Or(bit)&bit == 0, true
}

func (x *objectIndex) has(id fsverity.Digest, m mark) bool {
	shard, i, ok := x.find(id)
	return ok && shard.has(i, m)
}

// all reports whether every object has a mark.
func (s *objectShard) all(m mark) bool {
	n := 0
	for i := range s.marks[m] {
		n += bits.OnesCount64(s.marks[m][i].Load())
	}
	return n == len(s.keys)
}

func (s *objectShard) has(i int, m mark) bool {
	return s.marks[m][i/64].Load()&(1<<(i%64)) != 0
}
