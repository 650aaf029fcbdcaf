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
)

// rules are the points in which composefs-rs, which starts from a tree, and
// mkcomposefs, which starts from a dumpfile, make different images of what is
// the same input otherwise.
type rules struct {
	// literal is mkcomposefs: link counts are as given, a name is canonical
	// where it is said to be, and a generated attribute replaces one of the
	// same name (composefs-rs writes both).
	literal bool
}

// sharedLimit is the number of references to shared attributes that one inode
// may have; what exceeds it stays with the inode. The count is one byte:
// composefs-rs has no other limit, and more than that is refused.
func (r rules) sharedLimit() int {
	if r.literal {
		return 128
	}
	return math.MaxInt
}

// earlier orders modification times for the smallest of the image. composefs-rs
// compares the seconds as unsigned: a time before 1970 is late for it.
func (r rules) earlier(a, b tree.Time) bool {
	if a.Sec != b.Sec {
		if r.literal {
			return a.Sec < b.Sec
		}
		return uint64(a.Sec) < uint64(b.Sec)
	}
	return a.Nsec < b.Nsec
}

// hasACL reports whether an attribute sets the header's ACL flag.
func (r rules) hasACL(index uint8, suffix string) bool {
	return (index == indexACLAccess || index == indexACLDefault) && (suffix == "" || !r.literal)
}

// node is one inode on its way into the image. There is one for each inode, so
// that it is small, and what is needed once stays in the tree.
type node struct {
	src   *tree.Node // as given; attributes are not escaped
	mtime tree.Time
	size  uint64 // i_size
	pos   uint64 // of the inode in the image

	uid, gid uint32
	nlink    uint32
	rdev     uint32

	firstEnt int32 // directory: range in plan.ents, sorted,
	ents     int32 // "." and ".." included
	up       int32 // canonical directory
	firstRef int32 // attributes: range in attrTable.refs
	refs     int32
	shared   int32 // how many of them are references

	attrSize   uint32
	blocks     uint32 // own data blocks
	tail       uint32 // bytes after the attributes
	firstBlock uint32

	mode   uint16 // permission bits
	kind   tree.Kind
	layout uint8
	header uint8 // bytes: compactSize or extendedSize

	external     bool // regular, and its content is an object
	whiteout     bool // a whiteout in the escaped form of V0 and V1
	stub         bool // a whiteout of the root, 00 to ff
	hasWhiteouts bool // a directory that has escaped whiteouts
	compact      bool
}

func newNode(src *tree.Node) node {
	return node{
		src: src, kind: src.Kind, mode: uint16(src.Mode & 0o7777),
		uid: src.UID, gid: src.GID, nlink: 1, mtime: src.Mtime,
	}
}

// Placeholders for a node in a dirent.
const (
	entSelf   = -1 // "."
	entParent = -2 // ".."
)

// dirent is one name in a directory. A link is a further name of an inode that
// has its canonical name elsewhere.
type dirent struct {
	name string
	node int32
	link bool
}

// plan is an image before it is written.
type plan struct {
	version Version
	rules   rules
	nodes   []node // the root first
	ents    []dirent
	// redirects are, by node, what external files have for a path; nil where
	// it follows from the digest.
	redirects []string
	order     []int32 // writing order
	attrs     attrTable
	minTime   tree.Time

	inodesEnd  uint64
	sharedSize uint64
	dataStart  uint64
	dataBlocks uint64
}

// size is the size of the image in bytes.
func (p *plan) size() uint64 { return p.dataStart + p.dataBlocks*blockSize }

// entries are the sorted entries of a directory, "." and ".." included.
func (p *plan) entries(n *node) []dirent {
	return p.ents[n.firstEnt : n.firstEnt+n.ents]
}

// complete does everything between the input and the bytes.
func (p *plan) complete() error {
	if len(p.nodes) > math.MaxInt32/4 || len(p.ents) > math.MaxInt32/4 {
		return fmt.Errorf("lay out image: %d inodes are too many", len(p.nodes))
	}
	if p.version.epoch1() {
		p.addStubs()
	}
	if err := p.number(); err != nil {
		return err
	}
	if p.version.epoch1() {
		if err := p.escapeWhiteouts(); err != nil {
			return err
		}
	}
	p.minTime = p.nodes[0].mtime
	for i := range p.nodes {
		if p.rules.earlier(p.nodes[i].mtime, p.minTime) {
			p.minTime = p.nodes[i].mtime
		}
	}
	if err := p.collectAttrs(); err != nil {
		return err
	}
	return p.layOut()
}

// number fixes the writing order, the canonical directory of each inode and
// the link counts of directories.
func (p *plan) number() error {
	seen := make([]bool, len(p.nodes))
	visit := func(i, up int32) error {
		if seen[i] {
			return errors.New("number inodes: an inode has two canonical names")
		}
		seen[i] = true
		p.nodes[i].up = up
		if p.nodes[i].kind == tree.Directory {
			p.nodes[i].nlink = 2
			if i != 0 {
				p.nodes[up].nlink++
			}
		}
		return nil
	}
	// Breadth-first for V0 and V1. The tree of V2 was read depth-first, and
	// that is its order; the walk then checks it only.
	queue := make([]int32, 1, len(p.nodes))
	if err := visit(0, 0); err != nil {
		return err
	}
	for head := 0; head < len(queue); head++ {
		i := queue[head]
		for _, e := range p.entries(&p.nodes[i]) {
			if e.link {
				continue
			}
			if err := visit(e.node, i); err != nil {
				return err
			}
			queue = append(queue, e.node)
		}
	}
	if len(queue) != len(p.nodes) {
		return fmt.Errorf("number inodes: %d of %d are in no directory", len(p.nodes)-len(queue), len(p.nodes))
	}
	if !p.version.epoch1() {
		for i := range queue {
			queue[i] = int32(i)
		}
	}
	p.order = queue
	return nil
}

// path names a node in an error message.
func (p *plan) path(i int32) string {
	if i == 0 {
		return "/"
	}
	var names []string
	for i != 0 && len(names) <= len(p.nodes) {
		up := p.nodes[i].up
		for _, e := range p.entries(&p.nodes[up]) {
			if e.node == i && !e.link {
				names = append(names, e.name)
				break
			}
		}
		i = up
	}
	slices.Reverse(names)
	return "/" + strings.Join(names, "/")
}

// roomFor makes room for n more elements. It doubles: append's smaller steps
// copy a large image's tables a dozen times.
func roomFor[T any](s []T, n int) []T {
	if len(s)+n <= cap(s) {
		return s
	}
	return slices.Grow(s, max(n, len(s), 512))
}

func compareEnts(a, b dirent) int { return cmp.Compare(a.name, b.name) }
