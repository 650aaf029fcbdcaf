// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Tree makes the tree that the image was written from: what the writer added
// is gone, and what it escaped is as it was. [Write] makes the same image of
// it, if a writer by the rules of composefs-rs made the image
// ([Image.CheckCanonical]). Attribute values and file contents share memory
// with the image.
//
// It refuses files that name no object by digest, which a tree cannot express.
func (im *Image) Tree() (*tree.Node, error) {
	b := &builder{im: im, links: map[uint64]*linked{}}
	w := &walker{im: im, build: b}
	if err := w.walk(); err != nil {
		return nil, err
	}
	for nid, l := range b.links {
		if l.names != l.nlink {
			return nil, corrupt("inode %d has %d names, and says %d", nid, l.names, l.nlink)
		}
	}
	return b.root, nil
}

// ErrNotCanonical reports an image that is not what the writer would make.
var ErrNotCanonical = errors.New("image differs from the one that its tree gives")

// CheckCanonical checks every byte: it makes the tree, and compares the image
// with the one that [Write] makes of it.
func (im *Image) CheckCanonical() error {
	root, err := im.Tree()
	if err != nil {
		return err
	}
	c := &comparer{want: im.data}
	if err := Write(c, root, WriteOptions{Version: im.version}); err != nil {
		return err
	}
	if c.at != len(im.data) {
		return fmt.Errorf("%w: it has %d bytes, want %d", ErrNotCanonical, len(im.data), c.at)
	}
	return nil
}

// comparer compares what is written with what is wanted.
type comparer struct {
	want []byte
	at   int
}

func (c *comparer) Write(b []byte) (int, error) {
	want := c.want[c.at:]
	if len(b) > len(want) || !bytes.Equal(b, want[:len(b)]) {
		at := c.at
		for i := 0; i < min(len(b), len(want)) && b[i] == want[i]; i++ {
			at++
		}
		return 0, fmt.Errorf("%w: first at byte %d", ErrNotCanonical, at)
	}
	c.at += len(b)
	return len(b), nil
}

// builder makes the tree while the image is walked.
type builder struct {
	im     *Image
	root   *tree.Node
	links  map[uint64]*linked // inodes with several names
	alg    fsverity.Algorithm
	memory uint64
}

// linked is an inode with several names.
type linked struct {
	node         *tree.Node
	names, nlink uint32
}

// buildFrame is a directory that is being made.
type buildFrame struct {
	node      *tree.Node
	subdirs   uint32
	stubs     int   // names "00" to "ff" of the root
	whiteouts bool  // it has whiteouts that were escaped
	marks     marks // of its attributes
}

// marks are attributes that the writer may have added; by themselves they look
// like those of a user.
type marks uint8

const (
	markWhiteout marks = 1 << iota
	markUserWhiteout
	markWhiteouts
	markUserWhiteouts
	markOpaque
	markUserOpaque
)

// markAttrs are the marks as they are stored.
var markAttrs = [...]struct {
	mark        marks
	name, value string
}{
	{markWhiteout, attrWhiteout, ""},
	{markUserWhiteout, attrUserWhiteout, ""},
	{markWhiteouts, attrWhiteouts, ""},
	{markUserWhiteouts, attrUserWhiteouts, ""},
	{markOpaque, attrEscapedOpaque, opaqueHasWhiteouts},
	{markUserOpaque, attrUserOpaque, opaqueHasWhiteouts},
}

// Rough costs in bytes of a tree.
const (
	nodeCost  = 256
	entryCost = 64
	xattrCost = 48
)

func (b *builder) spend(n uint64) error {
	b.memory += n
	if b.memory > b.im.limits.Memory {
		return fmt.Errorf("read image: its tree needs more than %d bytes of memory", b.im.limits.Memory)
	}
	return nil
}

// add makes the node of an inode and gives it its first name in dir, which is
// nil for the root.
func (b *builder) add(dir *buildFrame, n *diskInode, name string, attrs []tree.Xattr, ref *objectRef) (buildFrame, error) {
	var f buildFrame
	if err := b.spend(nodeCost + entryCost + uint64(len(name)+xattrCost*len(attrs))); err != nil {
		return f, err
	}
	if n.mtime.Nsec >= 1e9 {
		return f, corrupt("inode %d has %d nanoseconds in its time", n.nid, n.mtime.Nsec)
	}
	if dir != nil && dir.node == b.root && b.im.version.epoch1() && isStubName(name) {
		dir.stubs++
		if n.isWhiteout() {
			return f, b.checkStub(n, attrs)
		}
	}
	node := &tree.Node{}
	if n.kind == tree.Directory {
		node = tree.NewDirectory()
	}
	node.Kind, node.Mode, node.UID, node.GID, node.Mtime = n.kind, n.mode, n.uid, n.gid, n.mtime
	var err error
	if f.marks, err = b.addAttrs(node, n, attrs); err != nil {
		return f, err
	}
	if err := b.addData(dir, node, n, &f, ref); err != nil {
		return f, err
	}
	f.node = node
	if dir == nil {
		b.root = node
		return f, nil
	}
	dir.node.SetEntry(name, node)
	if n.kind != tree.Directory && n.nlink != 1 {
		if n.nlink == 0 || node.Kind == tree.CharDevice && node.Rdev == 0 {
			return f, corrupt("inode %d has a link count of %d", n.nid, n.nlink)
		}
		b.links[n.nid] = &linked{node: node, names: 1, nlink: n.nlink}
	}
	return f, nil
}

// checkStub checks that a whiteout of the root is the one that the writer
// adds; it is then left out.
func (b *builder) checkStub(n *diskInode, attrs []tree.Xattr) error {
	want := tree.Node{Kind: tree.CharDevice, Mode: stubMode, UID: b.root.UID, GID: b.root.GID, Mtime: b.root.Mtime}
	if v, ok := b.root.Xattr(attrSELinux); ok {
		want.Xattrs = []tree.Xattr{{Name: attrSELinux, Value: v}}
	}
	got := tree.Node{Kind: n.kind, Mode: n.mode, UID: n.uid, GID: n.gid, Mtime: n.mtime, Xattrs: attrs}
	if n.nlink != 1 || !sameStub(&got, &want) {
		return corrupt("inode %d is a whiteout of the root, and not as the writer makes it", n.nid)
	}
	return nil
}

// addAttrs undoes the escaping of attributes, and leaves out those of the
// writer.
func (b *builder) addAttrs(node *tree.Node, n *diskInode, attrs []tree.Xattr) (marks, error) {
	if len(attrs) == 0 {
		return 0, nil
	}
	var found marks
	node.Xattrs = make([]tree.Xattr, 0, len(attrs))
	for _, x := range attrs {
		if m := b.markOf(n, x); m != 0 && found&m == 0 {
			found |= m
			continue
		}
		if strings.HasPrefix(x.Name, overlayPrefix) {
			if !strings.HasPrefix(x.Name, escapedPrefix) {
				continue // the object's, and the root's opaque mark
			}
			x.Name = unescapeName(x.Name)
		}
		node.Xattrs = append(node.Xattrs, x)
	}
	if len(node.Xattrs) == 0 {
		node.Xattrs = nil
		return found, nil
	}
	slices.SortFunc(node.Xattrs, func(x, y tree.Xattr) int { return cmp.Compare(x.Name, y.Name) })
	for i := 1; i < len(node.Xattrs); i++ {
		if node.Xattrs[i-1].Name == node.Xattrs[i].Name {
			return 0, corrupt("inode %d has attribute %q twice", n.nid, node.Xattrs[i].Name)
		}
	}
	return found, nil
}

func unescapeName(name string) string {
	if rest, ok := strings.CutPrefix(name, escapedPrefix); ok {
		return overlayPrefix + rest
	}
	return name
}

// markOf is the mark that an attribute may be.
func (b *builder) markOf(n *diskInode, x tree.Xattr) marks {
	if !b.im.version.epoch1() || len(x.Value) > 1 {
		return 0
	}
	var possible marks
	switch {
	case n.kind == tree.Directory:
		possible = markWhiteouts | markUserWhiteouts
		if b.im.version >= V1 {
			possible |= markOpaque | markUserOpaque
		}
	case n.kind == tree.Regular && n.size == 0:
		possible = markWhiteout | markUserWhiteout
	default:
		return 0
	}
	for i := range markAttrs {
		if m := &markAttrs[i]; possible&m.mark != 0 && x.Name == m.name && string(x.Value) == m.value {
			return m.mark
		}
	}
	return 0
}

// keepMarks makes attributes of marks that were the user's after all.
func keepMarks(node *tree.Node, nid uint64, found marks) error {
	for i := range markAttrs {
		if m := &markAttrs[i]; found&m.mark != 0 {
			name := unescapeName(m.name)
			if _, ok := node.Xattr(name); ok {
				return corrupt("inode %d has attribute %q twice", nid, name)
			}
			node.SetXattr(name, []byte(m.value))
		}
	}
	return nil
}

// addData sets what depends on the file type.
func (b *builder) addData(dir *buildFrame, node *tree.Node, n *diskInode, f *buildFrame, ref *objectRef) error {
	if n.layout != layoutChunk && (ref.metacopy || ref.redirect) {
		return corrupt("inode %d names an object and has content", n.nid)
	}
	switch n.kind {
	case tree.Symlink:
		node.Target = string(b.im.content(n))
		return b.spend(n.size)
	case tree.BlockDevice:
		node.Rdev = uint64(n.u)
	case tree.CharDevice:
		if n.isWhiteout() && b.im.version.epoch1() {
			return corrupt("inode %d is a whiteout that is not escaped", n.nid)
		}
		node.Rdev = uint64(n.u)
	case tree.Regular:
		if n.layout == layoutChunk {
			return b.addObject(node, n, ref)
		}
		if both := markWhiteout | markUserWhiteout; f.marks == both {
			node.Kind = tree.CharDevice
			dir.whiteouts = true
			return nil
		}
		node.Size = n.size
		node.Content = b.im.content(n)
		if n.blocks > 0 && n.tailSize > 0 {
			if err := b.spend(n.size); err != nil {
				return err
			}
		}
		return keepMarks(node, n.nid, f.marks)
	}
	return nil
}

func (b *builder) addObject(node *tree.Node, n *diskInode, ref *objectRef) error {
	if ref.digest.IsZero() {
		return fmt.Errorf("read image: inode %d names no object by its digest", n.nid)
	}
	if !ref.pathIsDigest() {
		return fmt.Errorf("read image: inode %d has digest %s, and path %q", n.nid, ref.digest, ref.path)
	}
	if b.alg == 0 {
		b.alg = ref.digest.Algorithm()
	}
	if b.alg != ref.digest.Algorithm() {
		return corrupt("inode %d has a digest of %s among those of %s", n.nid, ref.digest.Algorithm(), b.alg)
	}
	node.Size, node.Object = n.size, ref.digest
	return nil
}

// link gives an inode that was met before a further name.
func (b *builder) link(dir *buildFrame, n *diskInode, name string) error {
	l := b.links[n.nid]
	if l == nil || l.names == l.nlink {
		return corrupt("inode %d has more than the %d names that it says", n.nid, n.nlink)
	}
	if err := b.spend(entryCost + uint64(len(name))); err != nil {
		return err
	}
	if dir.node == b.root && isStubName(name) {
		dir.stubs++
	}
	l.names++
	dir.node.SetEntry(name, l.node)
	return nil
}

// leave completes a directory; up is the one that it is in, nil for the root.
func (b *builder) leave(up, f *buildFrame, n *diskInode) error {
	if up != nil {
		up.subdirs++
	}
	if n.nlink != 2+f.subdirs {
		return corrupt("directory %d has a link count of %d and %d subdirectories", n.nid, n.nlink, f.subdirs)
	}
	if b.im.version.epoch1() && up == nil && f.stubs != 256 {
		return corrupt("the root has %d of the 256 names \"00\" to \"ff\"", f.stubs)
	}
	if !f.whiteouts {
		return keepMarks(f.node, n.nid, f.marks)
	}
	want := markWhiteouts | markUserWhiteouts
	if b.im.version >= V1 {
		want |= markOpaque | markUserOpaque
	}
	if f.marks != want {
		return corrupt("directory %d has whiteouts and is not marked for them", n.nid)
	}
	return nil
}
