// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Severity says how bad a finding is.
type Severity uint8

// The severities. With a Warning everything still works and nothing is lost.
const (
	Error Severity = iota
	Warning
)

// String is the severity in lower case.
func (s Severity) String() string {
	if s == Warning {
		return "warning"
	}
	return "error"
}

// MarshalText writes what String returns.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Kind is the stable name of what can be wrong. Where cfsctl knows the same
// case the name is the same.
type Kind string

// The kinds of findings about objects, links, streams and images.
const (
	MetadataParseFailed    Kind = "metadata-parse-failed"
	MetadataUnknownFeature Kind = "metadata-unknown-feature"

	ObjectInvalidName    Kind = "object-invalid-name"    // a file in objects/<hh> that no digest names
	ObjectNotRegular     Kind = "object-not-regular"     // a FIFO, a link, a directory in place of an object
	ObjectOpenFailed     Kind = "object-open-failed"     // also a directory of objects
	ObjectDigestMismatch Kind = "object-digest-mismatch" // content or fs-verity digest is not the name
	ObjectVerityFailed   Kind = "object-verity-failed"   // the content cannot be read
	ObjectVerityMissing  Kind = "object-verity-missing"  // where fs-verity is required

	EntryNotSymlink   Kind = "entry-not-symlink" // in streams/ or images/
	EntryInvalidName  Kind = "entry-invalid-name"
	BrokenSymlink     Kind = "broken-symlink"
	StatFailed        Kind = "stat-failed"
	UnexpectedType    Kind = "unexpected-file-type"
	LinkTargetInvalid Kind = "link-target-invalid" // a link that does not lead to an object
	LinkNotCanonical  Kind = "link-not-canonical"  // one that does, but is written in another way
	ImageLinkMismatch Kind = "image-link-mismatch" // images/<hex> leads to another object
	RefTargetInvalid  Kind = "ref-target-invalid"  // a ref that does not lead to an entry of its kind

	StreamOpenFailed   Kind = "stream-open-failed" // header or tables
	StreamReadFailed   Kind = "stream-read-failed" // the chunks
	StreamTypeMismatch Kind = "stream-type-mismatch"
	StreamSizeMismatch Kind = "stream-size-mismatch"
	MissingObjectRef   Kind = "missing-object-ref"
	MissingNamedRef    Kind = "missing-named-ref"
	NamedRefNotLinked  Kind = "named-ref-not-linked" // gc of other programs does not walk it

	ImageOpenFailed    Kind = "image-open-failed"
	ImageReadFailed    Kind = "image-read-failed"
	ImageInvalid       Kind = "image-invalid"
	ImageMissingObject Kind = "image-missing-object"

	LeakedTemporary Kind = "leaked-temporary"
	StrayFile       Kind = "stray-file" // in objects/
	ModeUnexpected  Kind = "mode-unexpected"
	OwnerUnexpected Kind = "owner-unexpected"

	LimitExceeded Kind = "limit-exceeded" // something was not checked
)

// Finding is one thing that a check found.
type Finding struct {
	Kind     Kind            `json:"kind"`
	Severity Severity        `json:"severity"`
	Path     string          `json:"path"` // in the repository
	Object   fsverity.Digest `json:"object,omitzero"`
	Stream   string          `json:"stream,omitempty"` // content id
	Image    fsverity.Digest `json:"image,omitzero"`   // EROFS image
	Message  string          `json:"message"`
	Help     string          `json:"help,omitempty"` // what would help
	// Repairable says that a check with Repair would put it right.
	Repairable bool `json:"repairable"`
	// UsedBy lists some of the streams that need the object.
	UsedBy []string `json:"usedBy,omitempty"`
}

func compareFindings(a, b Finding) int {
	return cmp.Or(
		cmp.Compare(a.Severity, b.Severity), strings.Compare(a.Path, b.Path), cmp.Compare(a.Kind, b.Kind),
		strings.Compare(a.Message, b.Message), strings.Compare(a.Object.String(), b.Object.String()),
	)
}

// DefaultMaxFindings is how many findings a report lists.
const DefaultMaxFindings = 1000

// findings collects a bounded number of findings: those that sort first. The
// others are counted. It is safe for concurrent use.
type findings struct {
	max int

	mu     sync.Mutex
	list   []Finding // up to twice max, so that it is sorted rarely
	byKind map[Kind]int
	errors int
}

func newFindings(limit int) *findings {
	if limit <= 0 {
		limit = DefaultMaxFindings
	}
	return &findings{max: limit, byKind: map[Kind]int{}}
}

func (f *findings) add(x Finding) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.byKind[x.Kind]++
	if x.Severity == Error {
		f.errors++
	}
	f.list = append(f.list, x)
	if len(f.list) >= 2*f.max {
		f.cut()
	}
}

func (f *findings) cut() {
	slices.SortStableFunc(f.list, compareFindings)
	if len(f.list) > f.max {
		clear(f.list[f.max:])
		f.list = f.list[:f.max]
	}
}

// total is how many there were, and how many of them were errors.
func (f *findings) total() (all, errors int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.byKind {
		all += n
	}
	return all, f.errors
}

// sorted returns the findings that are kept, and the number of each kind.
func (f *findings) sorted() ([]Finding, map[Kind]int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut()
	return slices.Clone(f.list), maps.Clone(f.byKind)
}
