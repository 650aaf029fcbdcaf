// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"context"
	"errors"
)

// Store is a containers-storage. Its methods may be called by several
// goroutines, but one operation at a time should change it.
type Store struct {
	options   Options
	graphRoot string
	created   bool
}

var errNotYet = errors.New("not implemented yet")

// Reexec runs this process as a helper of the storage library if that is what
// it was started for, and reports whether it was. It must be the first
// statement of main, and of TestMain of each package that writes to a store:
//
//	if cstor.Reexec() {
//		return
//	}
func Reexec() bool { return false }

// Ensure opens a store for reading and writing, and makes it first, together
// with the directories and the compatibility link of a bootc system, if there
// is none. See Created.
func Ensure(ctx context.Context, o Options) (*Store, error) { return nil, errNotYet }

// OpenExisting opens a store that exists; ErrNoStore if it does not. It creates
// nothing at all, neither do the methods that only read, so it works on a
// read-only file system too.
func OpenExisting(ctx context.Context, o Options) (*Store, error) { return nil, errNotYet }

// Close gives everything back. The mount table and the open files are as they
// were before the store was opened.
func (s *Store) Close() error { return errNotYet }

// GraphRoot is the one path by which the store is used: no component of it is
// a symbolic link.
func (s *Store) GraphRoot() string { return s.graphRoot }

// Created reports whether Ensure made the store.
func (s *Store) Created() bool { return s.created }

// Images lists the images, those of additional image stores last, without
// their manifests and configs.
func (s *Store) Images() ([]*Image, error) { return nil, errNotYet }

// Lookup finds an image by its id, or enough leading digits of it, by a name,
// or by a manifest digest, and loads its manifest and config. A
// [*NotFoundError] says that there is none.
func (s *Store) Lookup(nameOrIDOrDigest string) (*Image, error) { return nil, errNotYet }

// Load reads the manifest and the config of an image that Images has listed.
func (s *Store) Load(img *Image) error { return errNotYet }

// Layers lists the layers of an image that Lookup or Load has loaded, lowest
// first: as many as it has diff_ids, else the error is ErrCorrupt.
func (s *Store) Layers(img *Image) ([]Layer, error) { return nil, errNotYet }

// LockOperation takes the operation lock, which excludes other cfs-pull
// processes that change the store or what is made of it: hold it from
// before Pull until the image is tagged, and while pruning. Others that use the
// store, such as podman and bootc, do not know it. When it is not granted in
// time, the error is a lock error that names the holder.
func (s *Store) LockOperation(ctx context.Context) (unlock func() error, err error) {
	return nil, errNotYet
}
