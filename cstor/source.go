// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"errors"
	"fmt"
)

// SourceStore says in which store an image of the transport containers-storage
// is looked for.
type SourceStore uint8

// The choices.
const (
	// SourceAuto takes the image from the store that has it. When the owned
	// store and the host's have different ones by the name, the newer counts.
	SourceAuto SourceStore = iota
	// SourceOwned takes it from the bootc-owned store.
	SourceOwned
	// SourceHost takes it from the host's store.
	SourceHost
)

var sourceStoreNames = [...]string{"auto", "owned", "host"}

// String is the choice as ParseSourceStore takes it.
func (w SourceStore) String() string { return sourceStoreNames[w] }

// ParseSourceStore parses auto, owned or host.
func ParseSourceStore(s string) (SourceStore, error) {
	for i, name := range sourceStoreNames {
		if s == name {
			return SourceStore(i), nil
		}
	}
	return 0, fmt.Errorf("unknown source store %q: want auto, owned or host", s)
}

// Found is an image that SelectSource has chosen.
type Found struct {
	Image *Image // loaded
	Store *Store // that has it
	// Owned is set if that is the owned store. Then there is nothing to copy.
	Owned bool
	// Passed is the other image by the same name, or nil. It is worth a warning.
	Passed *Image
}

// SelectSource finds the image by a name. owned and host may be nil: a store
// that does not exist. If neither has it the error is a [*NotFoundError].
func SelectSource(owned, host *Store, name string, which SourceStore) (*Found, error) {
	if which == SourceHost {
		owned = nil
	}
	if which == SourceOwned {
		host = nil
	}
	ours, err := lookupIn(owned, name)
	if err != nil {
		return nil, err
	}
	theirs, err := lookupIn(host, name)
	if err != nil {
		return nil, err
	}
	mine, other := &Found{Image: ours, Store: owned, Owned: true}, &Found{Image: theirs, Store: host}
	switch {
	case ours == nil && theirs == nil:
		return nil, notFoundIn(name, owned, host)
	case theirs == nil:
		return mine, nil
	case ours == nil:
		return other, nil
	case ours.ManifestDigest == theirs.ManifestDigest:
		return mine, nil
	case theirs.Created.After(ours.Created):
		other.Passed = ours
		return other, nil
	}
	mine.Passed = theirs
	return mine, nil
}

// lookupIn is Lookup that returns nil for an image that is not there, and for a
// store that does not exist.
func lookupIn(s *Store, name string) (*Image, error) {
	if s == nil {
		return nil, nil
	}
	img, err := s.Lookup(name)
	if _, absent := errors.AsType[*NotFoundError](err); absent {
		return nil, nil
	}
	return img, err
}

func notFoundIn(name string, stores ...*Store) error {
	where := ""
	for _, s := range stores {
		if s == nil {
			continue
		}
		if where != "" {
			where += " and "
		}
		where += s.graphRoot
	}
	if where == "" {
		where = "(there is none)"
	}
	return &NotFoundError{GraphRoot: where, Name: name}
}
