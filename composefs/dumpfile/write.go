// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package dumpfile

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Write writes the dumpfile of a tree: depth-first, the names of a directory
// in byte order. The first name of an inode has its metadata, the others refer
// to it. alg is the algorithm that every object must have; 0 stands for any.
func Write(w io.Writer, root *tree.Node, alg fsverity.Algorithm) error {
	if root == nil || root.Kind != tree.Directory {
		return errors.New("write dumpfile: the root is no directory")
	}
	d := &writer{
		w:     bufio.NewWriterSize(w, 128<<10),
		alg:   alg,
		names: map[*tree.Node]uint32{},
		first: map[*tree.Node]string{},
	}
	if err := d.count(root, 1); err != nil {
		return err
	}
	d.path = append(d.path, '/')
	if err := d.write(root); err != nil {
		return err
	}
	if err := d.w.Flush(); err != nil {
		return fmt.Errorf("write dumpfile: %w", err)
	}
	return nil
}

type writer struct {
	w     *bufio.Writer
	alg   fsverity.Algorithm
	names map[*tree.Node]uint32 // how many names an inode has
	first map[*tree.Node]string // the first of several names
	path  []byte
	line  []byte
	raw   []byte // a digest
}

// count counts the names of every inode.
func (d *writer) count(dir *tree.Node, depth int) error {
	if depth > tree.MaxDepth {
		return fmt.Errorf("write dumpfile: more than %d directories below each other", tree.MaxDepth)
	}
	for name, child := range dir.Entries() {
		if err := tree.CheckName(name); err != nil {
			return fmt.Errorf("write dumpfile: %w", err)
		}
		if child == nil {
			return fmt.Errorf("write dumpfile: entry %q has no inode", name)
		}
		d.names[child]++
		if child.Kind != tree.Directory {
			continue
		}
		if d.names[child] > 1 {
			return fmt.Errorf("write dumpfile: directory %q has a second name", name)
		}
		if err := d.count(child, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// write writes the line of an inode at d.path, and what is below it.
func (d *writer) write(n *tree.Node) error {
	nlink := d.names[n]
	if n.Kind == tree.Directory {
		nlink = 2
		for _, child := range n.Entries() {
			if child.Kind == tree.Directory {
				nlink++
			}
		}
	} else if nlink > 1 {
		if target, ok := d.first[n]; ok {
			return d.writeLink(target)
		}
		d.first[n] = string(d.path)
	}
	if err := d.writeInode(n, nlink); err != nil {
		return fmt.Errorf("write dumpfile: %q: %w", d.path, err)
	}
	if n.Kind != tree.Directory {
		return nil
	}
	length := len(d.path)
	for _, name := range n.Names() {
		if d.path[len(d.path)-1] != '/' {
			d.path = append(d.path, '/')
		}
		d.path = append(d.path, name...)
		if err := d.write(n.Entry(name)); err != nil {
			return err
		}
		d.path = d.path[:length]
	}
	return nil
}

func (d *writer) writeLink(target string) error {
	b := appendEscaped(d.line[:0], d.path, false)
	b = append(b, " 0 @120000 - - - - 0.0 "...)
	b = appendOptional(b, target)
	b = append(b, " - -\n"...)
	return d.put(b)
}

func (d *writer) writeInode(n *tree.Node, nlink uint32) error {
	if !n.Kind.Valid() {
		return fmt.Errorf("unknown file type %d", n.Kind)
	}
	var object fsverity.Digest
	var size, rdev uint64
	var payload string
	var content []byte
	switch n.Kind {
	case tree.Regular:
		size = n.Size
		if n.Object.IsZero() {
			if size != uint64(len(n.Content)) {
				return fmt.Errorf("a file of %d bytes has %d bytes of content and no object", size, len(n.Content))
			}
			content = n.Content
			break
		}
		if len(n.Content) > 0 {
			return errors.New("a file has both content and an object")
		}
		if d.alg != 0 && n.Object.Algorithm() != d.alg {
			return fmt.Errorf("object of %s, want %s", n.Object.Algorithm(), d.alg)
		}
		object = n.Object
	case tree.Symlink:
		size = uint64(len(n.Target))
		payload = n.Target
	case tree.CharDevice, tree.BlockDevice:
		rdev = n.Rdev
	}

	b := appendEscaped(d.line[:0], d.path, false)
	b = append(b, ' ')
	b = strconv.AppendUint(b, size, 10)
	b = append(b, ' ')
	b = strconv.AppendUint(b, uint64(n.Kind.TypeBits()|n.Mode&0o7777), 8)
	for _, v := range [...]uint64{uint64(nlink), uint64(n.UID), uint64(n.GID), rdev} {
		b = append(b, ' ')
		b = strconv.AppendUint(b, v, 10)
	}
	b = append(b, ' ')
	b = strconv.AppendInt(b, n.Mtime.Sec, 10)
	b = append(b, '.')
	b = strconv.AppendUint(b, uint64(n.Mtime.Nsec), 10)
	b = append(b, ' ')
	if object.IsZero() {
		b = appendOptional(b, payload)
		b = append(b, ' ')
		b = appendOptional(b, content)
		b = append(b, " -"...)
	} else {
		d.raw = object.AppendBytes(d.raw[:0])
		b = hex.AppendEncode(b, d.raw[:1])
		b = append(b, '/')
		b = hex.AppendEncode(b, d.raw[1:])
		b = append(b, " - "...)
		b = hex.AppendEncode(b, d.raw)
	}
	for _, x := range n.Xattrs {
		b = append(b, ' ')
		b = appendEscaped(b, x.Name, true)
		b = append(b, '=')
		b = appendEscaped(b, x.Value, true)
	}
	return d.put(append(b, '\n'))
}

// put writes a line; its memory is used again.
func (d *writer) put(line []byte) error {
	d.line = line
	if _, err := d.w.Write(line); err != nil {
		return fmt.Errorf("write dumpfile: %w", err)
	}
	return nil
}
