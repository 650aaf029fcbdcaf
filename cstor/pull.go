// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"context"
	"errors"
	"io"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
)

// Source is an image that can be pulled into a store. The manifest has been
// verified and allowed by the signature policy.
type Source struct {
	// Reference is the image, for messages.
	Reference string
	// Manifest is the manifest of the platform, byte for byte.
	Manifest []byte
	// Index is the index that the manifest was chosen from, byte for byte, or
	// nil. The store then finds the image by the digest of the index too.
	Index []byte
	// Config returns the config, verified.
	Config func(ctx context.Context) ([]byte, error)
	// Layer opens the blob of layer i of the manifest. A reader must reach
	// io.EOF only after the blob's digest and size were verified. It is called
	// by several goroutines.
	Layer func(ctx context.Context, i int) (io.ReadCloser, error)
	// Retry says of an error of a layer's reader whether the whole layer should
	// be fetched again. nil means never.
	Retry func(err error) bool
}

// Policy says when a pull asks the source.
type Policy uint8

// The policies of podman.
const (
	PolicyAlways  Policy = iota // resolve the reference, fetch what is missing
	PolicyMissing               // only if no image has the name
	PolicyNewer                 // as PolicyAlways, but an unreachable source is no error when an image is there
	PolicyNever                 // an image without the name is an error
)

// Decide says what a policy means for an image by that name: whether to pull,
// and which image is there, if any. With PolicyNever an image that is not there
// is a [*NotFoundError]. An image that is not complete does not count.
func (s *Store) Decide(p Policy, name string) (present *Image, pull bool, err error) {
	img, err := s.Lookup(name)
	if err == nil {
		_, err = s.Layers(img)
	}
	if err == nil {
		return img, p == PolicyAlways || p == PolicyNewer, nil
	}
	absent := errors.Is(err, ErrIncomplete)
	if _, ok := errors.AsType[*NotFoundError](err); ok {
		absent = true
	}
	if !absent || p == PolicyNever {
		return nil, false, err
	}
	return nil, true, nil
}

// PullOptions say how to pull.
type PullOptions struct {
	// Names are given to the image, and taken from others that have them. They
	// must be normalised references; see NormalizeName and NameForDigest.
	Names []string
	// ParallelLayers is the number of layers fetched at once; 0 means
	// DefaultParallelLayers.
	ParallelLayers int
	// Limits bound what a layer may expand to.
	Limits oci.Limits
	// MinFree is the space in bytes to stay free on the file system of the
	// store; negative means the default. SkipSpaceCheck leaves the estimate out.
	MinFree        int64
	SkipSpaceCheck bool
	// ExpectedCopies is how often the store's file system will hold the missing
	// data: 1 when stage 2 makes reflinks or hard links, 2 when it copies. 0
	// means 1.
	ExpectedCopies int
	// Events is called for each event, by several goroutines and perhaps by two
	// at once. It should return soon. nil is allowed.
	Events func(Event)
}

// DefaultParallelLayers is how many layers are fetched at once.
const DefaultParallelLayers = 6

// EventKind says what an Event is about.
type EventKind uint8

// The kinds of events.
const (
	EventTotals  EventKind = iota // the first event: Total and Cached
	EventSkipped                  // Layer is present
	EventStarted                  // Layer is being fetched
	EventFetched                  // Bytes more of Layer have arrived
	EventStored                   // Layer is complete in the store
)

// Event is a step of a pull. All counts are bytes of compressed layers; a
// layer that occurs twice in an image counts once.
type Event struct {
	Kind  EventKind
	Layer string // digest of the layer's blob; empty with EventTotals
	Size  int64  // of the layer's blob
	// Bytes of EventFetched are new. A layer that is fetched again counts again.
	Bytes int64
	// Total and Cached are those of EventTotals.
	Total, Cached int64
}

// PullResult is what a pull did.
type PullResult struct {
	// ImageID and ManifestDigest are all that a second stage needs.
	ImageID        string
	ManifestDigest oci.Digest
	ConfigDigest   oci.Digest
	Names          []string // all names of the image afterwards
	// Fetched is false when the image was complete before: no blob was
	// transferred. Changed is set too when only names were changed.
	Fetched, Changed bool
	// Layers of the image, and how many of them were present.
	Layers, LayersPresent int
	// BytesFetched counts compressed bytes.
	BytesFetched int64
	// Copy is set by CopyImage.
	Copy CopyStats
}
