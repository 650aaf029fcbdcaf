// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package dumpfile

import (
	"fmt"
	"io"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/erofs"
)

// ParseTree parses a dumpfile strictly and makes a tree of it.
func ParseTree(r io.Reader, o ParseOptions) (*tree.Node, error) {
	d, err := Parse(r, o)
	if err != nil {
		return nil, err
	}
	return d.Tree()
}

// Tree makes a tree of the dump by the rules of composefs-rs: link counts and
// which of several names was an inode's own are forgotten. It refuses what a
// tree cannot express: files that are neither inline nor an object that is
// named by its digest, and hard links to directories.
func (d *Dump) Tree() (*tree.Node, error) {
	nodes := make([]tree.Node, len(d.inodes))
	for i := range d.inodes {
		src, n := &d.inodes[i], &nodes[i]
		if src.Kind == tree.Directory {
			*n = *tree.NewDirectory()
		}
		n.Kind, n.Mode, n.UID, n.GID, n.Mtime = src.Kind, src.Mode, src.UID, src.GID, src.Mtime
		n.Xattrs = src.Xattrs
		switch src.Kind {
		case tree.Symlink:
			n.Target = src.Target
		case tree.CharDevice, tree.BlockDevice:
			n.Rdev = uint64(src.Rdev)
		case tree.Regular:
			n.Size, n.Content = src.Size, src.Content
			if src.Size == 0 || len(src.Content) > 0 {
				break
			}
			if src.Digest.IsZero() || src.Redirect != src.Digest.ObjectPath() {
				return nil, fmt.Errorf("make tree: inode %d: a file without content that names no object", i)
			}
			n.Object = src.Digest
		}
	}
	for i := range d.inodes {
		for _, e := range d.inodes[i].Entries {
			if e.Link && d.inodes[e.Inode].Kind == tree.Directory {
				return nil, fmt.Errorf("make tree: %q is a hard link to a directory", e.Name)
			}
			nodes[i].SetEntry(e.Name, &nodes[e.Inode])
		}
	}
	return &nodes[0], nil
}

// WriteImage writes the EROFS image that mkcomposefs writes for the dump with
// --min-version and --max-version: minimum, or V1 if there is a whiteout and
// maximum allows it.
func (d *Dump) WriteImage(w io.Writer, minimum, maximum erofs.Version) error {
	v := minimum
	if v == erofs.V0 && maximum >= erofs.V1 && d.hasWhiteout() {
		v = erofs.V1
	}
	return erofs.WriteInodes(w, d.inodes, v)
}

func (d *Dump) hasWhiteout() bool {
	for i := range d.inodes {
		if d.inodes[i].Kind == tree.CharDevice && d.inodes[i].Rdev == 0 {
			return true
		}
	}
	return false
}
