// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Inode is an inode of an image by the rules of mkcomposefs, which knows
// things that a [tree.Node] has no place for. [WriteInodes] takes them.
type Inode struct {
	Kind     tree.Kind
	Mode     uint32 // permission bits
	UID, GID uint32
	// Nlink is written as it is, except for directories, whose subdirectories
	// are counted.
	Nlink uint32
	Rdev  uint32
	Mtime tree.Time
	// Size is a regular file's size. For devices, fifos and sockets it is not
	// stored, yet one of 4 GiB or more makes the inode an extended one.
	Size   uint64
	Xattrs []tree.Xattr // names must not repeat
	// Content is a regular file's content. A file of size above 0 without
	// Content is external: a hole with overlayfs attributes.
	Content []byte
	Target  string // of a symbolic link
	// Digest is the content's digest; the zero Digest means unknown.
	Digest fsverity.Digest
	// Redirect is the path of the content below the object directory, without
	// a slash before it; empty for none.
	Redirect string
	// Entries are the entries of a directory, in any order.
	Entries []Entry
}

// Entry is a name in the directory of an [Inode].
type Entry struct {
	Name  string
	Inode int // index
	// Link marks a further name of an inode. Every inode but the root has
	// exactly one entry that is no Link: its place in the image.
	Link bool
}

// WriteInodes writes an image of version V0 or V1 that is identical to what
// mkcomposefs writes. The first inode is the root.
//
// Other than mkcomposefs it has no limit of 32 KiB for the attributes of one
// inode, and does not fail where a generated attribute replaces a longer one.
func WriteInodes(w io.Writer, inodes []Inode, v Version) error {
	p, err := planInodes(inodes, v)
	if err != nil {
		return err
	}
	return p.writeTo(w)
}

func planInodes(inodes []Inode, v Version) (*plan, error) {
	if !v.epoch1() {
		return nil, fmt.Errorf("lay out image: inodes can be written as V0 and V1, not %s", v)
	}
	if len(inodes) == 0 || inodes[0].Kind != tree.Directory {
		return nil, errors.New("lay out image: the root is no directory")
	}
	p := &plan{
		version: v, rules: rules{literal: true},
		nodes: make([]node, len(inodes)), redirects: make([]string, len(inodes)),
	}
	for i := range inodes {
		if err := p.addInode(inodes, i); err != nil {
			return nil, fmt.Errorf("lay out image: inode %d: %w", i, err)
		}
	}
	return p, p.complete()
}

func (p *plan) addInode(inodes []Inode, i int) error {
	src := &inodes[i]
	if !src.Kind.Valid() {
		return fmt.Errorf("unknown file type %d", src.Kind)
	}
	for _, x := range src.Xattrs {
		if err := checkXattr(x); err != nil {
			return err
		}
	}
	n := &p.nodes[i]
	*n = newNode(&tree.Node{
		Kind: src.Kind, Mode: src.Mode, UID: src.UID, GID: src.GID, Mtime: src.Mtime,
		Xattrs: src.Xattrs, Content: src.Content, Target: src.Target, Object: src.Digest,
	})
	n.nlink, n.size = src.Nlink, src.Size
	switch src.Kind {
	case tree.Directory:
		return p.addInodeEntries(inodes, i)
	case tree.Regular:
		if len(src.Content) > 0 || src.Size == 0 {
			if src.Size != uint64(len(src.Content)) {
				return fmt.Errorf("size %d, and %d bytes of content", src.Size, len(src.Content))
			}
			break
		}
		n.external = true
		p.redirects[i] = src.Redirect
		if len(src.Redirect)+1 > tree.MaxXattrValue {
			return fmt.Errorf("a redirect of %d bytes", len(src.Redirect))
		}
	case tree.Symlink:
		n.size = uint64(len(src.Target))
		return checkTarget(src.Target)
	case tree.CharDevice, tree.BlockDevice:
		n.rdev = src.Rdev
	}
	return nil
}

func (p *plan) addInodeEntries(inodes []Inode, i int) error {
	first := len(p.ents)
	p.ents = append(p.ents, dirent{name: ".", node: entSelf, link: true}, dirent{name: "..", node: entParent, link: true})
	for _, e := range inodes[i].Entries {
		if err := tree.CheckName(e.Name); err != nil {
			return err
		}
		if e.Inode < 0 || e.Inode >= len(inodes) {
			return fmt.Errorf("entry %q: no inode %d", e.Name, e.Inode)
		}
		p.ents = append(p.ents, dirent{name: e.Name, node: int32(e.Inode), link: e.Link})
	}
	ents := p.ents[first:]
	slices.SortFunc(ents, compareEnts)
	for k := 1; k < len(ents); k++ {
		if ents[k-1].name == ents[k].name {
			return fmt.Errorf("entry %q is given twice", ents[k].name)
		}
	}
	p.nodes[i].firstEnt, p.nodes[i].ents = int32(first), int32(len(ents))
	return nil
}
