// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"errors"

	"github.com/cfs-pull/cfs-pull/internal/filelock"
)

// What callers branch on; test with [errors.Is].
var (
	// ErrNotRepository: the directory does not exist or is not a repository.
	ErrNotRepository = errors.New("not a composefs repository")

	// ErrOldFormat: the repository has objects but no meta.json.
	ErrOldFormat = errors.New("repository has the old format without meta.json")

	// ErrMeta: meta.json is malformed or asks for what is not implemented.
	ErrMeta = errors.New("repository metadata is not usable")

	// ErrNewer: a newer release made the repository, in a way that this one
	// must not touch. It comes with ErrMeta.
	ErrNewer = errors.New("a newer version of this program is needed")

	// ErrMixedVerity: a repository of the old format in which some objects
	// have fs-verity and some do not.
	ErrMixedVerity = errors.New("some objects have fs-verity and some do not, so that nothing says whether the repository requires it")

	// ErrDifferentMeta: Init found a repository with other settings.
	ErrDifferentMeta = errors.New("repository exists with different settings")

	// ErrReadOnly: the repository cannot be written to.
	ErrReadOnly = errors.New("repository is read-only")

	// ErrVerityUnavailable: the repository requires fs-verity and its file
	// system or kernel does not have it.
	ErrVerityUnavailable = errors.New("fs-verity is not available where the repository is; use ext4 after \"tune2fs -O verity DEVICE\", or btrfs, with a kernel that has fs-verity, or create the repository with missing fs-verity allowed")

	// ErrSecure: the caller asked to allow missing fs-verity in a repository
	// that requires it.
	ErrSecure = errors.New("repository requires fs-verity; allowing it to be missing would only show at boot")

	// ErrIntegrity: an object's content or fs-verity digest is not what its
	// name says.
	ErrIntegrity = errors.New("object does not match its digest")

	// ErrBadName: a stream or ref name that the repository cannot hold.
	ErrBadName = errors.New("invalid name")

	// ErrLocked: a lock was not granted in time; the error is a [*LockError].
	ErrLocked = filelock.ErrLocked

	// ErrObjectsRemoved: somebody removed objects while they were in use.
	ErrObjectsRemoved = errors.New("objects were removed while they were in use; run the command again")

	// ErrInUse: handles, streams or temporary files are still open.
	ErrInUse = errors.New("repository is still in use by this process")

	// ErrUndecided: garbage collection cannot tell what is in use, and has
	// removed nothing.
	ErrUndecided = errors.New("cannot tell what is in use, so nothing was removed")

	// ErrKeep: what garbage collection is to keep does not exist.
	ErrKeep = errors.New("no stream or image has the name that is to be kept")

	// ErrClosed: the handle was closed.
	ErrClosed = errors.New("repository handle is closed")
)

// LockHolder is a process that holds a conflicting lock.
type LockHolder = filelock.Holder

// LockError says which lock was not granted and who holds it.
type LockError = filelock.Error
