// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What callers branch on; test with [errors.Is].
var (
	// ErrNoStore: there is no containers-storage at that path.
	ErrNoStore = errors.New("no containers-storage")
	// ErrUnsupported: the store, or an image in it, is of a kind that is not
	// supported, for instance one made with fuse-overlayfs.
	ErrUnsupported = errors.New("not supported")
	// ErrCorrupt: the records of the store contradict themselves. Nothing is
	// guessed then.
	ErrCorrupt = errors.New("containers-storage is damaged")
	// ErrIncomplete: an image lacks something, or has something that is not
	// what its digest says. To pull it again brings what is missing.
	ErrIncomplete = errors.New("image in containers-storage is not complete")
)

// NotFoundError is an image that a store does not have. Any other failure is
// no reason to say so.
type NotFoundError struct {
	GraphRoot string
	Name      string
}

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("find image %s in containers-storage %s: no such image", e.Name, e.GraphRoot)
}

// IntegrityError is a layer that is not what the image's config promises. It is
// not in the store.
type IntegrityError struct {
	Reference string
	Layer     int // index in the manifest, counted from 0
	Layers    int
	Digest    string // of the blob
	Want, Got string // diff_ids
}

func (e *IntegrityError) Error() string {
	return fmt.Sprintf("verify image %s: layer %d of %d (%s): the uncompressed archive has digest %s, the config says %s",
		e.Reference, e.Layer+1, e.Layers, e.Digest, e.Got, e.Want)
}

// passedErrnos are the errnos that callers tell apart.
var passedErrnos = []unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.EROFS}

// errnoError is an error that is also an errno, without saying so twice.
type errnoError struct {
	err   error
	errno unix.Errno
}

func (e *errnoError) Error() string   { return e.err.Error() }
func (e *errnoError) Unwrap() []error { return []error{e.err, e.errno} }
