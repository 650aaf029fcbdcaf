// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// treeReader turns a tree into the nodes of a plan, depth-first with the names
// of a directory in byte order. That is the writing order of V2, and in V0 and
// V1 the first name met is the canonical one of an inode with several.
type treeReader struct {
	p     *plan
	kids  []*tree.Node // parallel to p.ents
	index map[*tree.Node]int32
	alg   fsverity.Algorithm
	stack []treeFrame
	named []namedNode // space for a directory
}

type namedNode struct {
	name string
	node *tree.Node
}

type treeFrame struct {
	node      int32
	next, end int32 // entries to do
}

// planTree reads and checks a tree.
func planTree(root *tree.Node, v Version) (*plan, error) {
	if !v.Valid() {
		return nil, fmt.Errorf("lay out image: unknown version %s", v)
	}
	if root == nil || root.Kind != tree.Directory {
		return nil, errors.New("lay out image: the root is no directory")
	}
	r := &treeReader{p: &plan{version: v}, index: map[*tree.Node]int32{}}
	if err := r.read(root); err != nil {
		return nil, err
	}
	return r.p, r.p.complete()
}

func (r *treeReader) read(root *tree.Node) error {
	if err := r.add(root, ""); err != nil {
		return err
	}
	if err := r.push(0, root); err != nil {
		return err
	}
	for len(r.stack) > 0 {
		f := &r.stack[len(r.stack)-1]
		if f.next == f.end {
			r.stack = r.stack[:len(r.stack)-1]
			continue
		}
		at := f.next
		f.next++
		child := r.kids[at]
		ent := &r.p.ents[at]
		if child == nil {
			if ent.link {
				continue // "." and ".."
			}
			return fmt.Errorf("read tree: %q has no inode", r.pathTo(ent.name))
		}
		if i, ok := r.index[child]; ok {
			if err := r.addLink(ent, i); err != nil {
				return err
			}
			continue
		}
		if err := tree.CheckName(ent.name); err != nil {
			return fmt.Errorf("read tree: entry of %q: %w", r.path(), err)
		}
		ent.node = int32(len(r.p.nodes))
		if err := r.add(child, ent.name); err != nil {
			return err
		}
		if child.Kind == tree.Directory {
			if err := r.push(ent.node, child); err != nil {
				return err
			}
		}
	}
	return nil
}

// addLink makes ent a further name of node i.
func (r *treeReader) addLink(ent *dirent, i int32) error {
	if err := tree.CheckName(ent.name); err != nil {
		return fmt.Errorf("read tree: entry of %q: %w", r.path(), err)
	}
	n := &r.p.nodes[i]
	switch {
	case n.kind == tree.Directory:
		return fmt.Errorf("read tree: directory %q has a second name", r.pathTo(ent.name))
	case n.isWhiteout():
		// A name for what is absent: composefs-rs refuses it too.
		return fmt.Errorf("read tree: whiteout %q is a hard link", r.pathTo(ent.name))
	case n.nlink == math.MaxUint32:
		return fmt.Errorf("read tree: %q has too many names", r.pathTo(ent.name))
	}
	n.nlink++
	ent.node = i
	ent.link = true
	return nil
}

// push opens a directory: its entries get their place, sorted.
func (r *treeReader) push(i int32, dir *tree.Node) error {
	if len(r.stack) >= tree.MaxDepth {
		return fmt.Errorf("read tree: more than %d directories below each other", tree.MaxDepth)
	}
	first := len(r.p.ents)
	if first+dir.Len()+2 > math.MaxInt32/4 {
		return errors.New("read tree: too many names")
	}
	r.named = append(r.named[:0], namedNode{name: "."}, namedNode{name: ".."})
	for name, child := range dir.Entries() {
		r.named = append(r.named, namedNode{name: name, node: child})
	}
	slices.SortFunc(r.named, func(a, b namedNode) int { return cmp.Compare(a.name, b.name) })
	r.p.ents, r.kids = roomFor(r.p.ents, len(r.named)), roomFor(r.kids, len(r.named))
	for _, e := range r.named {
		ent := dirent{name: e.name}
		if e.node == nil && e.name == "." {
			ent.node, ent.link = entSelf, true
		}
		if e.node == nil && e.name == ".." {
			ent.node, ent.link = entParent, true
		}
		r.p.ents, r.kids = append(r.p.ents, ent), append(r.kids, e.node)
	}
	n := &r.p.nodes[i]
	n.firstEnt, n.ents = int32(first), int32(len(r.p.ents)-first)
	r.stack = append(r.stack, treeFrame{node: i, next: int32(first), end: int32(len(r.p.ents))})
	return nil
}

// add appends the node of an inode that is met for the first time.
func (r *treeReader) add(src *tree.Node, name string) error {
	if err := r.check(src); err != nil {
		return fmt.Errorf("read tree: %q: %w", r.pathTo(name), err)
	}
	r.index[src] = int32(len(r.p.nodes))
	n := newNode(src)
	switch src.Kind {
	case tree.Regular:
		n.size = src.Size
		n.external = !src.Object.IsZero()
	case tree.Symlink:
		n.size = uint64(len(src.Target))
	case tree.CharDevice, tree.BlockDevice:
		n.rdev = uint32(src.Rdev)
	}
	r.p.nodes = append(roomFor(r.p.nodes, 1), n)
	return nil
}

// check refuses what an image cannot express.
func (r *treeReader) check(n *tree.Node) error {
	if !n.Kind.Valid() {
		return fmt.Errorf("unknown file type %d", n.Kind)
	}
	if n.Mtime.Nsec >= 1e9 {
		return fmt.Errorf("%d nanoseconds in the modification time", n.Mtime.Nsec)
	}
	for i, x := range n.Xattrs {
		if err := checkXattr(x); err != nil {
			return err
		}
		if i > 0 && n.Xattrs[i-1].Name >= x.Name {
			return fmt.Errorf("attributes %q and %q are not in order", n.Xattrs[i-1].Name, x.Name)
		}
	}
	switch n.Kind {
	case tree.Regular:
		return r.checkRegular(n)
	case tree.Symlink:
		return checkTarget(n.Target)
	case tree.CharDevice, tree.BlockDevice:
		if n.Rdev > math.MaxUint32 {
			return fmt.Errorf("device number %#x has more than 32 bits", n.Rdev)
		}
	}
	return nil
}

func (r *treeReader) checkRegular(n *tree.Node) error {
	if n.Object.IsZero() {
		if n.Size != uint64(len(n.Content)) {
			return fmt.Errorf("a file of %d bytes has %d bytes of content and no object", n.Size, len(n.Content))
		}
		return nil
	}
	switch {
	case n.Size == 0:
		return errors.New("an empty file has an object")
	case len(n.Content) > 0:
		return errors.New("a file has both content and an object")
	case r.alg == 0:
		r.alg = n.Object.Algorithm()
	case r.alg != n.Object.Algorithm():
		return fmt.Errorf("object of %s in a tree of %s", n.Object.Algorithm(), r.alg)
	}
	return nil
}

func checkXattr(x tree.Xattr) error {
	switch {
	case x.Name == "" || len(x.Name) > tree.MaxXattrName:
		return fmt.Errorf("attribute name %q: %d bytes, want 1 to %d", x.Name, len(x.Name), tree.MaxXattrName)
	case strings.IndexByte(x.Name, 0) >= 0:
		return fmt.Errorf("attribute name %q has a zero byte", x.Name)
	case len(x.Value) > tree.MaxXattrValue:
		return fmt.Errorf("attribute %q: a value of %d bytes, at most %d are possible", x.Name, len(x.Value), tree.MaxXattrValue)
	}
	return nil
}

func checkTarget(target string) error {
	if target == "" || len(target) > tree.MaxTarget {
		return fmt.Errorf("a link target of %d bytes, want 1 to %d", len(target), tree.MaxTarget)
	}
	if strings.IndexByte(target, 0) >= 0 {
		return errors.New("a link target with a zero byte")
	}
	return nil
}

// path names the directory that is being read.
func (r *treeReader) path() string { return r.pathTo("") }

// pathTo names an entry of the directory that is being read.
func (r *treeReader) pathTo(name string) string {
	var b strings.Builder
	for i := range r.stack[:max(len(r.stack)-1, 0)] {
		b.WriteByte('/')
		b.WriteString(r.p.ents[r.stack[i].next-1].name)
	}
	b.WriteByte('/')
	b.WriteString(name)
	return b.String()
}
