// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package tarraw cuts a tar archive into the pieces that a composefs layer
// splitstream is made of, without losing a byte.
//
// An archive is a sequence of members. What a member consists of, in order:
//
//   - extension records, each a 512-byte header block and its data padded to
//     whole blocks: GNU long name (L), GNU long link (K), pax header (x);
//   - the member's own 512-byte header block;
//   - its body, as long as the size that the header or the pax header names;
//   - padding up to the next multiple of 512.
//
// The body of a regular or contiguous file above [InlineMax] bytes is
// external: it becomes an object. Everything else is inline and kept verbatim:
// all headers, small bodies, padding, global pax headers, the end marker and
// whatever follows it. Inline bytes and external bodies, in order, are the
// archive.
//
// Layers are exchanged with other composefs implementations, which all must
// come to the same tree and the same digests. So the parser here is neither
// archive/tar nor GNU tar: it accepts, refuses and resolves exactly what the
// composefs layer format says. Where that differs from archive/tar:
//
//   - only the unsigned header checksum is known;
//   - the mode is not masked;
//   - a NUL type with a trailing slash in the name is a regular file;
//   - a hard link with a size has that much data;
//   - global pax headers are kept but never applied, and one between a
//     member's extension records and its header makes those records void;
//   - sparse files, negative pax times and repeated extension records of one
//     kind are errors.
//
// [Reader] reads an archive. [StreamReader] reads the members back from a
// splitstream. Both use [Parser], which sees header blocks only.
//
// Input is hostile. Memory is bounded by [Limits]; sizes are never trusted
// for an allocation.
package tarraw

import (
	"fmt"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// BlockSize is the size in bytes of the units of a tar archive.
const BlockSize = 512

// InlineMax is the size in bytes of the largest file whose body stays inline.
// It is part of the composefs layer format.
const InlineMax = 64

// The member types that have a meaning in a layer. Other bytes are possible;
// their bodies are inline.
const (
	TypeRegular    = '0' // a NUL type byte is reported as TypeRegular too
	TypeHardlink   = '1'
	TypeSymlink    = '2'
	TypeCharDevice = '3'
	TypeBlock      = '4'
	TypeDirectory  = '5'
	TypeFIFO       = '6'
	TypeContiguous = '7' // the same as TypeRegular
)

// Types that the parser deals with itself.
const (
	typeLongName  = 'L'
	typeLongLink  = 'K'
	typePax       = 'x'
	typePaxGlobal = 'g'
	typeSparse    = 'S'
)

// Default limits of the composefs layer format.
const (
	DefaultMaxExtension = 1 << 20
	DefaultMaxPending   = 16
)

// Limits bound the memory that one member can take. Zero fields stand for the
// defaults, which other implementations use: a higher limit accepts layers
// that they refuse.
type Limits struct {
	// MaxExtension is the greatest sum of the sizes in bytes of the
	// extension records of one member, and the greatest size of a global pax
	// header.
	MaxExtension int64
	// MaxPending is the greatest number of extension records of one member.
	MaxPending int
}

func (l Limits) withDefaults() Limits {
	if l.MaxExtension <= 0 {
		l.MaxExtension = DefaultMaxExtension
	}
	if l.MaxPending <= 0 {
		l.MaxPending = DefaultMaxPending
	}
	return l
}

// Entry is one member with its extension records applied. An Entry is not
// reused; the caller may keep it.
type Entry struct {
	// Type is the type byte of the header, with NUL replaced by TypeRegular.
	Type byte
	// Name is the path as raw bytes, neither cleaned nor checked; it is
	// never empty.
	Name string
	// Linkname is the target of a symbolic or hard link as raw bytes. Other
	// types may have one too.
	Linkname string
	// Mode is the whole number in the header, cut to 32 bits.
	Mode uint32
	// UID and GID are cut to 32 bits.
	UID, GID uint32
	// Size is the length of the body in bytes, whatever the type.
	Size uint64
	// MtimeSec and MtimeNsec are the modification time.
	MtimeSec  int64
	MtimeNsec uint32
	// Devmajor and Devminor are valid if HasDev: old headers lack them.
	Devmajor, Devminor uint32
	HasDev             bool
	// Xattrs is sorted by name without repetition.
	Xattrs []tree.Xattr
	// Content is the body of a regular file of at most InlineMax bytes.
	Content []byte
	// Object is the body of an external file; only StreamReader sets it.
	Object fsverity.Digest
	// Offset is where the member's first header block begins, extension
	// records included, in bytes from the start of the archive. In a
	// splitstream the bytes of external bodies count with their size.
	Offset int64
}

// Regular reports whether e is a regular or contiguous file.
func (e *Entry) Regular() bool {
	return e.Type == TypeRegular || e.Type == TypeContiguous
}

// External reports whether e's body is stored as an object.
func (e *Entry) External() bool {
	return e.Size > InlineMax && e.Regular()
}

// The rules of the format that an archive can break, for [Error].
const (
	RuleChecksum   = "header checksum"
	RuleNumber     = "numeric header field"
	RuleSize       = "member size"
	RulePath       = "member path"
	RulePax        = "pax header"
	RulePaxNumber  = "pax number"
	RulePaxTime    = "pax modification time"
	RuleDuplicate  = "repeated extension record"
	RuleExtension  = "extension data limit"
	RulePending    = "extension record limit"
	RuleOrphan     = "extension record without a member"
	RuleSparse     = "sparse file"
	RuleTruncated  = "truncated archive"
	RuleRead       = "input"
	RuleUnreadBody = "unread body"
	RuleChunk      = "splitstream chunk"
	RuleInlineMax  = "inline size limit"
)

// Error says which member of an archive broke which rule.
type Error struct {
	// Entry is the member's name as far as it is known, or empty.
	Entry string
	// Offset is the position in the archive, in bytes, of the header block
	// at fault or of the end of the input.
	Offset int64
	// Rule is one of the Rule constants.
	Rule string
	// Err says what was found.
	Err error
}

// maxNameInError bounds the name that an error message shows, since names are
// foreign and may be as long as Limits.MaxExtension.
const maxNameInError = 256

func (e *Error) Error() string {
	if e.Entry == "" {
		return fmt.Sprintf("tar archive at byte %d: %s: %v", e.Offset, e.Rule, e.Err)
	}
	name := e.Entry
	more := ""
	if len(name) > maxNameInError {
		name, more = name[:maxNameInError], "..."
	}
	return fmt.Sprintf("tar member %q%s at byte %d: %s: %v", name, more, e.Offset, e.Rule, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// padding is the number of bytes from size to the next multiple of BlockSize.
func padding(size uint64) uint64 { return -size & (BlockSize - 1) }
