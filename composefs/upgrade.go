// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// upgrade writes the meta.json of a repository that was made before there was
// one (specification section 1.8). The algorithm is read from the names of
// objects; fs-verity is required if the objects have it. The EROFS format is
// V1, as composefs-rs and bootc choose since version 0.8.
//
// The objects stay as they are; what changes in streams is the business of
// package oci.
func (r *Repo) upgrade(o OpenOptions) error {
	fail := func(err error) error { return fmt.Errorf("upgrade repository %s: %w", r.path, err) }
	if why, err := r.cannotWrite(); err != nil {
		return err
	} else if why != "" {
		return fail(fmt.Errorf("%w: %s: %w", ErrOldFormat, why, ErrReadOnly))
	}
	s, err := r.sampleObjects()
	if err != nil {
		return fail(err)
	}
	if s.alg == 0 {
		return fail(fmt.Errorf("%w, and no objects that tell its algorithm; remove its directory objects and create a repository", ErrOldFormat))
	}
	text, err := NewMeta(s.alg, FormatConfig{Default: erofs.V1}).Encode()
	if err != nil {
		return fail(err)
	}
	var protect fsverity.Algorithm
	switch {
	case s.plain == 0:
		protect = s.alg
	case s.protected > 0 && !o.AllowMissingVerity:
		return fail(fmt.Errorf("%w; allow it to be missing", ErrMixedVerity))
	}
	err = r.linkMeta(text, protect, func() error { return nil })
	if errors.Is(err, fs.ErrExist) {
		return nil // another process was faster
	}
	if err != nil {
		return fail(err)
	}
	r.upgraded = true
	if err := r.root.Sync(); err != nil {
		return fail(fmt.Errorf("sync repository: %w", err))
	}
	return nil
}

// objectSample is what the objects of a repository say without its meta.json.
type objectSample struct {
	alg              fsverity.Algorithm // 0: there are no objects
	protected, plain int                // with and without fs-verity
}

// errEnough ends the reading of a directory.
var errEnough = errors.New("enough")

// sampleObjects looks at one object of each directory.
func (r *Repo) sampleObjects() (s objectSample, err error) {
	dirs, err := r.fanOut()
	if err != nil {
		return s, err
	}
	for _, dir := range dirs {
		if err := r.sampleDir(dir, &s); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (r *Repo) sampleDir(dir int, s *objectSample) error {
	fd, err := r.openFan(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = eachDirent(fd, func(name []byte, kind uint8) error {
		alg, ok := algorithmOfName(name)
		if !ok || kind != unix.DT_REG {
			return nil
		}
		if s.alg != 0 && s.alg != alg {
			return fmt.Errorf("%w: it has objects of %s and of %s", ErrIntegrity, s.alg, alg)
		}
		s.alg = alg
		return cmp.Or(r.sampleObject(fd, string(name), s), errEnough)
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list %s/objects/%02x: %w", r.path, dir, err)
	}
	return nil
}

// algorithmOfName tells the algorithm from the name of an object in its
// directory.
func algorithmOfName(name []byte) (fsverity.Algorithm, bool) {
	var digest [fsverity.MaxDigestSize]byte
	for _, alg := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
		if decodeHex(digest[1:alg.Size()], name) {
			return alg, true
		}
	}
	return 0, false
}

// sampleObject notes whether an object has fs-verity.
func (r *Repo) sampleObject(dirfd int, name string, s *objectSample) error {
	fd, err := openBeneath(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close() // read-only
	switch _, err := r.verity.measure(f, s.alg); {
	case err == nil:
		s.protected++
	case errors.Is(err, fsverity.ErrNotEnabled), errors.Is(err, fsverity.ErrNotSupported):
		s.plain++
	default:
		return fmt.Errorf("object %s: %w", name, err)
	}
	return nil
}
