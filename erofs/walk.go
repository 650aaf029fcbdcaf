// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"math"
	"slices"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Objects are the objects that the image refers to, in byte order and without
// repetition. A digest and a path that name different objects both count.
//
// It checks the structure of the whole image, and fails rather than leave out
// an object: garbage collection depends on it.
func (im *Image) Objects() ([]fsverity.Digest, error) {
	seen := map[fsverity.Digest]struct{}{}
	if err := im.EachObject(func(d fsverity.Digest) { seen[d] = struct{}{} }); err != nil {
		return nil, err
	}
	all := make([]fsverity.Digest, 0, len(seen))
	for d := range seen {
		all = append(all, d)
	}
	var a, b [fsverity.MaxDigestSize]byte
	slices.SortFunc(all, func(x, y fsverity.Digest) int {
		return bytes.Compare(x.AppendBytes(a[:0]), y.AppendBytes(b[:0]))
	})
	return all, nil
}

// EachObject is [Image.Objects] for callers that keep their own account of
// objects: f is called in the order of the image and repeatedly for an object
// that several inodes refer to, also before an error is returned.
func (im *Image) EachObject(f func(fsverity.Digest)) error {
	w := &walker{im: im, object: f}
	return w.walk()
}

// Check is EachObject with the rules that composefs has beyond the structure:
// an image of format 0 or 1 has all names "00" to "ff" in its root and
// whiteouts nowhere else, and one of format 2 has no escaped whiteouts.
func (im *Image) Check(f func(fsverity.Digest)) error {
	w := &walker{im: im, object: f, restricted: true}
	if err := w.walk(); err != nil {
		return err
	}
	if im.version.epoch1() && w.stubs != 256 {
		return corrupt("the root has %d of the 256 names \"00\" to \"ff\"", w.stubs)
	}
	return nil
}

// walker visits every inode of an image once. No two inodes and no two
// directories may share bytes, so that the work is proportional to the size of
// the image.
type walker struct {
	im     *Image
	object func(fsverity.Digest)
	build  *builder // makes the tree, if there is one

	restricted bool // apply the rules of Check
	stubs      int  // names "00" to "ff" of the root

	attrs   attrReader
	claimed bitmap // 32-byte slots that belong to something
	visited bitmap // slots where a visited inode begins
	count   uint64
	stack   []walkFrame

	inodesEnd  uint64 // behind the last inode
	firstBlock uint64 // offset of the first data block
}

// walkFrame is an open directory.
type walkFrame struct {
	inode  diskInode
	parent uint64
	dir    dirReader
	dot    bool // "." and ".." were there
	dotdot bool
	node   buildFrame
}

func (w *walker) walk() error {
	w.attrs.im = w.im
	slots := uint64(len(w.im.data)) / slotSize
	w.claimed, w.visited = newBitmap(slots), newBitmap(slots)
	w.firstBlock = uint64(len(w.im.data))
	w.claimed.claim(0, metaStart/slotSize)

	root, err := w.im.inode(w.im.rootNid)
	if err != nil {
		return err
	}
	if root.kind != tree.Directory {
		return corrupt("the root is no directory")
	}
	if err := w.visit(&root, ""); err != nil {
		return err
	}
	for len(w.stack) > 0 {
		f := &w.stack[len(w.stack)-1]
		more, err := f.dir.next()
		switch {
		case err != nil:
			return err
		case more:
			err = w.entry(f)
		default:
			err = w.leave(f)
		}
		if err != nil {
			return err
		}
	}
	if w.count != w.im.inodes {
		return corrupt("%d inodes were found, and its superblock says %d", w.count, w.im.inodes)
	}
	return w.checkRegions()
}

// checkRegions checks that inodes, shared attributes and blocks follow each
// other.
func (w *walker) checkRegions() error {
	end := w.inodesEnd
	if w.attrs.sharedMax > 0 {
		if w.attrs.sharedMin < end {
			return corrupt("shared attributes are among the inodes")
		}
		end = w.attrs.sharedMax
	}
	if end > w.firstBlock {
		return corrupt("data blocks are among the inodes")
	}
	return nil
}

// visit takes an inode that was not met before; a directory is opened.
func (w *walker) visit(n *diskInode, name string) error {
	w.count++
	if w.count > w.im.inodes {
		return corrupt("there are more than the %d inodes that its superblock says", w.im.inodes)
	}
	attrs, err := w.attrs.read(n)
	if err != nil {
		return err
	}
	ref, err := findObject(attrs)
	if err != nil {
		return err
	}
	if n.layout == layoutChunk && !w.im.version.epoch1() && !ref.digest.IsZero() {
		n.tailSize = chunkIndexSize
		if err := w.im.checkHoles(n); err != nil {
			return err
		}
	}
	if err := w.claim(n); err != nil {
		return err
	}
	if w.restricted && !w.im.version.epoch1() && n.kind == tree.Regular &&
		slices.ContainsFunc(attrs, func(x tree.Xattr) bool { return x.Name == attrWhiteout }) {
		return corrupt("inode %d is an escaped whiteout, which format 2 does not have", n.nid)
	}
	if w.object != nil {
		if !ref.digest.IsZero() {
			w.object(ref.digest)
		}
		if ref.redirect && !ref.pathIsDigest() {
			if d, ok := ref.redirectDigest(); ok {
				w.object(d)
			}
		}
	}
	var node buildFrame
	if w.build != nil {
		var dir *buildFrame
		if len(w.stack) > 0 {
			dir = &w.stack[len(w.stack)-1].node
		}
		if node, err = w.build.add(dir, n, name, attrs, &ref); err != nil {
			return err
		}
	}
	if n.kind != tree.Directory {
		return nil
	}
	if len(w.stack) >= tree.MaxDepth {
		return corrupt("more than %d directories below each other", tree.MaxDepth)
	}
	parent := n.nid
	if len(w.stack) > 0 {
		parent = w.stack[len(w.stack)-1].inode.nid
	}
	w.stack = append(w.stack, walkFrame{inode: *n, parent: parent, node: node, dir: newDirReader(w.im, n)})
	return nil
}

// claim takes the bytes of an inode and of its blocks.
func (w *walker) claim(n *diskInode) error {
	first, end := n.start/slotSize, (n.end()+slotSize-1)/slotSize
	if !w.claimed.claim(first, end) ||
		!w.claimed.claim(n.block*(blockSize/slotSize), (n.block+n.blocks)*(blockSize/slotSize)) {
		return corrupt("inode %d overlaps something else", n.nid)
	}
	w.visited.claim(first, first+1)
	w.inodesEnd = max(w.inodesEnd, n.end())
	if n.blocks > 0 {
		w.firstBlock = min(w.firstBlock, n.block*blockSize)
	}
	return nil
}

// entry handles the directory entry that was just read.
func (w *walker) entry(f *walkFrame) error {
	d := &f.dir
	switch {
	case len(d.name) == 1 && d.name[0] == '.':
		if d.nid != f.inode.nid || d.fileType != direntTypes[tree.Directory] {
			return corrupt("entry \".\" of directory %d is another inode", f.inode.nid)
		}
		f.dot = true
		return nil
	case len(d.name) == 2 && d.name[0] == '.' && d.name[1] == '.':
		if d.nid != f.parent || d.fileType != direntTypes[tree.Directory] {
			return corrupt("entry \"..\" of directory %d is not its parent", f.inode.nid)
		}
		f.dotdot = true
		return nil
	}
	n, err := w.im.inode(d.nid)
	if err != nil {
		return err
	}
	if d.fileType != direntTypes[n.kind] {
		return corrupt("entry %q of directory %d has type %d, and its inode another one", d.name, f.inode.nid, d.fileType)
	}
	if w.restricted && w.im.version.epoch1() {
		inRoot := len(w.stack) == 1
		if inRoot && isStubName(string(d.name)) {
			w.stubs++
		}
		if !inRoot && n.isWhiteout() {
			return corrupt("inode %d is a whiteout that is not escaped", n.nid)
		}
	}
	name := ""
	if w.build != nil {
		name = d.nameString()
	}
	if !w.visited.has(d.nid) {
		return w.visit(&n, name)
	}
	if n.kind == tree.Directory {
		return corrupt("directory %d has two names", d.nid)
	}
	if w.build != nil {
		return w.build.link(&f.node, &n, name)
	}
	return nil
}

// leave closes a directory.
func (w *walker) leave(f *walkFrame) error {
	if !f.dot || !f.dotdot {
		return corrupt("directory %d has no entry \".\" or \"..\"", f.inode.nid)
	}
	if w.build != nil {
		var up *buildFrame
		if len(w.stack) > 1 {
			up = &w.stack[len(w.stack)-2].node
		}
		if err := w.build.leave(up, &f.node, &f.inode); err != nil {
			return err
		}
	}
	*f = walkFrame{}
	w.stack = w.stack[:len(w.stack)-1]
	return nil
}

// dirReader reads the entries of a directory in the order of the image, which
// must be byte order.
type dirReader struct {
	im       *Image
	inode    diskInode
	block    uint64 // blocks that were read
	tailDone bool

	data   []byte // of the block at hand
	names  string // data from its first name on, once it is wanted
	base   int    // where the names begin
	count  int
	record int // record

	// The entry at hand.
	name     []byte
	from     int // of the name in data
	nid      uint64
	fileType uint8
	prev     []byte
}

func newDirReader(im *Image, n *diskInode) dirReader {
	return dirReader{im: im, inode: *n}
}

// next reads an entry, or reports the end.
func (d *dirReader) next() (bool, error) {
	if d.record == d.count {
		if more, err := d.nextBlock(); !more || err != nil {
			return false, err
		}
	}
	rec := d.data[d.record*direntSize:]
	from, to := int(le16(rec, direntNameOff)), len(d.data)
	d.record++
	if d.record < d.count {
		to = int(le16(rec[direntSize:], direntNameOff))
	} else if from <= to && !d.tailDone {
		// The last name of a block ends where the padding begins.
		if i := bytes.IndexByte(d.data[from:], 0); i >= 0 {
			to = from + i
			if len(bytes.Trim(d.data[to:], "\x00")) > 0 {
				return false, corrupt("directory %d has something behind its names", d.inode.nid)
			}
		}
	}
	if from < d.base || from >= to || to > len(d.data) || to-from > tree.MaxName {
		return false, corrupt("directory %d has a name at %d to %d", d.inode.nid, from, to)
	}
	d.prev = d.name
	d.name, d.from = d.data[from:to], from
	d.nid, d.fileType = le64(rec, direntNid), rec[direntType]
	if bytes.IndexByte(d.name, '/') >= 0 || bytes.IndexByte(d.name, 0) >= 0 {
		return false, corrupt("directory %d has the name %q", d.inode.nid, d.name)
	}
	if d.prev != nil && bytes.Compare(d.prev, d.name) >= 0 {
		return false, corrupt("the names %q and %q of directory %d are not in order", d.prev, d.name, d.inode.nid)
	}
	return true, nil
}

// nextBlock goes to the next block of directory data.
func (d *dirReader) nextBlock() (bool, error) {
	n := &d.inode
	switch {
	case d.block < n.blocks:
		at := (n.block + d.block) * blockSize
		d.data = d.im.data[at : at+min(blockSize, n.size-d.block*blockSize)]
		d.block++
	case n.tailSize > 0 && !d.tailDone:
		d.data = d.im.tailData(n)
		d.tailDone = true
	default:
		return false, nil
	}
	if len(d.data) < direntSize {
		return false, corrupt("directory %d has a block of %d bytes", n.nid, len(d.data))
	}
	d.base = int(le16(d.data, direntNameOff))
	if d.base == 0 || d.base%direntSize != 0 || d.base >= len(d.data) {
		return false, corrupt("directory %d has its first name at %d", n.nid, d.base)
	}
	d.count, d.record, d.names = d.base/direntSize, 0, ""
	return true, nil
}

// nameString is the name at hand. The names of a block share memory.
func (d *dirReader) nameString() string {
	if d.names == "" {
		d.names = string(d.data[d.base:])
	}
	return d.names[d.from-d.base : d.from-d.base+len(d.name)]
}

// bitmap is a set of small numbers.
type bitmap []uint64

func newBitmap(n uint64) bitmap { return make(bitmap, n/64+1) }

func (b bitmap) has(i uint64) bool { return b[i/64]&(1<<(i%64)) != 0 }

// claim adds [from, to), and reports whether none of it was in the set.
func (b bitmap) claim(from, to uint64) bool {
	for i := from; i < to; {
		mask := uint64(math.MaxUint64) << (i % 64)
		next := i - i%64 + 64
		if next > to {
			mask &= math.MaxUint64 >> (next - to)
			next = to
		}
		word := &b[i/64]
		if *word&mask != 0 {
			return false
		}
		*word |= mask
		i = next
	}
	return true
}
