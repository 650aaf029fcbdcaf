// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package tree is the file-system tree that layers are merged into and that
// EROFS images are written from.
//
// A tree is made of [Node]s. Directories own their entries by name; a node
// that is reached by several names is a hard link. Nodes know neither their
// names nor their parents.
package tree

import (
	"errors"
	"slices"
	"strings"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Kind is the file type of a node.
type Kind uint8

// The file types.
const (
	Directory Kind = iota
	Regular
	Symlink
	CharDevice
	BlockDevice
	FIFO
	Socket
)

// Time is a point in time: seconds since the epoch and nanoseconds.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Xattr is one extended attribute, with the full name ("user.x").
type Xattr struct {
	Name  string
	Value []byte
}

// Node is one inode.
type Node struct {
	Kind  Kind
	Mode  uint32 // permission bits with setuid, setgid and sticky
	UID   uint32
	GID   uint32
	Mtime Time
	// Xattrs is sorted by name in byte order, without repetition. Use
	// SetXattr and RemoveXattr to keep it so.
	Xattrs []Xattr

	// Size is a regular file's size in bytes.
	Size uint64
	// Content is the content of a regular file that is kept in the image.
	Content []byte
	// Object names the content of a regular file that is kept as an object.
	// A regular file of size above 0 has either Content or Object.
	Object fsverity.Digest

	Target string // symbolic link's target
	Rdev   uint64 // device number in the kernel's encoding (makedev)

	entries map[string]*Node
}

// NewDirectory returns an empty directory with an all-zero stat.
func NewDirectory() *Node {
	return &Node{Kind: Directory, entries: map[string]*Node{}}
}

// ErrNotDirectory reports a path component that is no directory.
var ErrNotDirectory = errors.New("not a directory")

// ErrNotExist reports a name that is not in the tree.
var ErrNotExist = errors.New("no such entry")

// Entry returns the entry of that name of directory n, or nil.
func (n *Node) Entry(name string) *Node { return n.entries[name] }

// Len is the number of entries of directory n.
func (n *Node) Len() int { return len(n.entries) }

// SetEntry adds or replaces an entry of directory n.
func (n *Node) SetEntry(name string, child *Node) {
	if n.entries == nil {
		n.entries = map[string]*Node{}
	}
	n.entries[name] = child
}

// RemoveEntry removes an entry of directory n, if it is there.
func (n *Node) RemoveEntry(name string) { delete(n.entries, name) }

// Clear removes all entries of directory n.
func (n *Node) Clear() { clear(n.entries) }

// Names are the names of the entries of directory n in byte order.
func (n *Node) Names() []string {
	names := make([]string, 0, len(n.entries))
	for name := range n.entries {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Lookup walks path, whose components are separated by slashes, from
// directory n. Empty components are skipped; symbolic links are not followed,
// and "." and ".." are ordinary names that never exist.
func (n *Node) Lookup(path string) (*Node, error) {
	for path != "" {
		var name string
		name, path, _ = strings.Cut(path, "/")
		if name == "" {
			continue
		}
		if n.Kind != Directory {
			return nil, ErrNotDirectory
		}
		child := n.entries[name]
		if child == nil {
			return nil, ErrNotExist
		}
		n = child
	}
	return n, nil
}

func compareXattr(x Xattr, name string) int { return strings.Compare(x.Name, name) }

// Xattr returns the value of an extended attribute.
func (n *Node) Xattr(name string) ([]byte, bool) {
	i, ok := slices.BinarySearchFunc(n.Xattrs, name, compareXattr)
	if !ok {
		return nil, false
	}
	return n.Xattrs[i].Value, true
}

// SetXattr adds or replaces an extended attribute.
func (n *Node) SetXattr(name string, value []byte) {
	i, ok := slices.BinarySearchFunc(n.Xattrs, name, compareXattr)
	if ok {
		n.Xattrs[i].Value = value
		return
	}
	n.Xattrs = slices.Insert(n.Xattrs, i, Xattr{Name: name, Value: value})
}

// RemoveXattr removes an extended attribute, if it is there.
func (n *Node) RemoveXattr(name string) {
	if i, ok := slices.BinarySearchFunc(n.Xattrs, name, compareXattr); ok {
		n.Xattrs = slices.Delete(n.Xattrs, i, i+1)
	}
}

// Clone copies n without its entries; the copy shares content and attribute
// values, which are never changed in place.
func (n *Node) Clone() *Node {
	c := *n
	c.Xattrs = slices.Clone(n.Xattrs)
	c.entries = nil
	if n.Kind == Directory {
		c.entries = map[string]*Node{}
	}
	return &c
}
