// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// LinkImage makes an object, an EROFS image, mountable by its digest.
func (r *Repo) LinkImage(id fsverity.Digest) error {
	if err := r.enterLink(id.String(), id); err != nil {
		return err
	}
	defer r.leave()
	return r.setLink(imagesDir, id.String(), objectTarget(id))
}

// HasImage reports whether the image's link leads to its object and the object
// is there as [Repo.HasObject] says.
func (r *Repo) HasImage(id fsverity.Digest) (bool, error) {
	if err := r.enter(); err != nil {
		return false, err
	}
	defer r.leave()
	if err := r.checkDigest(id); err != nil {
		return false, err
	}
	have, err := r.entryID(imagesDir, id.String())
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrIntegrity) {
		return false, nil
	}
	if err != nil || have != id {
		return false, err
	}
	return r.hasObject(id, -1)
}

// OpenImage opens an image that has a link, checked as by [Repo.OpenObject].
func (r *Repo) OpenImage(id fsverity.Digest) (*os.File, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.leave()
	if err := r.checkDigest(id); err != nil {
		return nil, err
	}
	have, err := r.entryID(imagesDir, id.String())
	if err != nil {
		return nil, err
	}
	if have != id {
		return nil, fmt.Errorf("open image %s: %w: its link leads to object %s", id, ErrIntegrity, have)
	}
	return r.openObject(id)
}

// OpenVerifiedImage is [Repo.OpenImage] for those who are about to trust the
// image's content: it has the digest id. Either the kernel enforces that, and
// measured is true, or the whole file was hashed; nothing keeps it from
// changing afterwards then. What meta.json says about fs-verity does not
// matter, since whoever can write to the repository can replace that file. A
// mismatch is [ErrIntegrity].
func (r *Repo) OpenVerifiedImage(id fsverity.Digest) (f *os.File, measured bool, err error) {
	f, err = r.OpenImage(id)
	if err != nil {
		return nil, false, err
	}
	if measured, err = r.verifyContent(f, id); err != nil {
		f.Close() // read-only
		return nil, false, fmt.Errorf("open image %s: %w", id, err)
	}
	return f, measured, nil
}

// verifyContent makes sure that a file has a digest.
func (r *Repo) verifyContent(f *os.File, id fsverity.Digest) (measured bool, err error) {
	got, err := r.verity.measure(f, r.meta.Algorithm)
	measured = err == nil
	if errors.Is(err, fsverity.ErrNotEnabled) || errors.Is(err, fsverity.ErrNotSupported) {
		got, _, err = fsverity.SumFile(r.meta.Algorithm, f)
	}
	switch {
	case errors.Is(err, fsverity.ErrOtherAlgorithm):
		return false, fmt.Errorf("%w: %w", ErrIntegrity, err)
	case err != nil:
		return false, err
	case got != id:
		return false, fmt.Errorf("%w: its digest is %s", ErrIntegrity, got)
	}
	return measured, nil
}

// ImageNames lists the first-level names of images, sorted; each should be a
// digest in hex.
func (r *Repo) ImageNames() ([]string, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.leave()
	return r.listEntries(imagesDir)
}

// ImageID is the object that the image link with a name leads to. Without such
// a link the error is [fs.ErrNotExist].
func (r *Repo) ImageID(name string) (fsverity.Digest, error) {
	if err := r.enter(); err != nil {
		return fsverity.Digest{}, err
	}
	defer r.leave()
	return r.entryID(imagesDir, name)
}

// SetImageRef makes the ref "a/b/c" lead to an image that has a link.
func (r *Repo) SetImageRef(ref string, id fsverity.Digest) error {
	if err := r.enterWrite(); err != nil {
		return err
	}
	defer r.leave()
	return r.setRef(imagesDir, ref, id.String())
}

// ImageRef is the name of the image that a ref leads to. Without such a ref the
// error is [fs.ErrNotExist]. The image may be missing.
func (r *Repo) ImageRef(ref string) (imageName string, err error) {
	if err := r.enter(); err != nil {
		return "", err
	}
	defer r.leave()
	return r.ref(imagesDir, ref)
}

// RemoveImageRef removes a ref. Without one the error is [fs.ErrNotExist].
func (r *Repo) RemoveImageRef(ref string) error {
	if err := r.enterWrite(); err != nil {
		return err
	}
	defer r.leave()
	return r.removeRef(imagesDir, ref)
}

// ImageRefs lists the refs of images in the directory prefix, or all for "",
// sorted by name.
func (r *Repo) ImageRefs(prefix string) ([]Ref, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.leave()
	return r.listRefs(imagesDir, prefix)
}
