// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package tree

import (
	"errors"
	"fmt"
	"iter"
	"strings"
)

// Limits of what a file system can hold, in bytes. The writers of images and
// dumpfiles refuse what exceeds them.
const (
	MaxName       = 255   // a directory entry's name
	MaxTarget     = 4095  // a symbolic link's target
	MaxXattrName  = 255   // an attribute's full name
	MaxXattrValue = 65535 // an attribute's value
	// MaxDepth is the number of directories on the longest path, the root
	// included. Readers of composefs images, ours and others, go no deeper.
	MaxDepth = 2048
)

// ErrBadName reports a name that cannot be in a directory.
var ErrBadName = errors.New("bad name for a directory entry")

// CheckName refuses what cannot be the name of a directory entry: the empty
// name, "." and "..", more than MaxName bytes, a slash or a zero byte.
func CheckName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("%w: %q", ErrBadName, name)
	case len(name) > MaxName:
		return fmt.Errorf("%w: %d bytes, at most %d are possible", ErrBadName, len(name), MaxName)
	case strings.IndexByte(name, '/') >= 0 || strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("%w: %q", ErrBadName, name)
	}
	return nil
}

// The file type bits of a POSIX mode, by Kind.
var typeBits = [...]uint32{
	Directory:   0o040000,
	Regular:     0o100000,
	Symlink:     0o120000,
	CharDevice:  0o020000,
	BlockDevice: 0o060000,
	FIFO:        0o010000,
	Socket:      0o140000,
}

// Valid reports whether k is one of the file types.
func (k Kind) Valid() bool { return int(k) < len(typeBits) }

// TypeBits are the file type bits (S_IFMT) of a POSIX mode; 0 for an invalid
// Kind.
func (k Kind) TypeBits() uint32 {
	if !k.Valid() {
		return 0
	}
	return typeBits[k]
}

// KindOfMode is the file type that a POSIX mode names.
func KindOfMode(mode uint32) (Kind, bool) {
	for k, bits := range typeBits {
		if mode&0o170000 == bits {
			return Kind(k), true
		}
	}
	return 0, false
}

// Entries yields the entries of directory n in no particular order.
func (n *Node) Entries() iter.Seq2[string, *Node] {
	return func(yield func(string, *Node) bool) {
		for name, child := range n.entries {
			if !yield(name, child) {
				return
			}
		}
	}
}
