// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
)

// attrName is an attribute name as it is stored.
type attrName struct {
	full   string
	suffix string
	index  uint8
	filter uint32 // its bit
}

// attrPair is a name with a value. A pair that more than one inode has is
// stored once, in the shared table.
type attrPair struct {
	name   int32
	users  int32
	value  []byte
	size   uint64 // of the entry
	offset uint64 // in the shared table
}

// attr is an attribute of the inode at hand.
type attr struct {
	name  int32
	value []byte
	// scratch says that value's bytes will be overwritten.
	scratch bool
}

// attrTable interns the attributes of an image.
type attrTable struct {
	names  []attrName
	byName map[string]int32

	pairs  []attrPair
	slots  []int32 // hash table over pairs: index + 1
	seed   maphash.Seed
	shared []int32 // pairs of the shared table in their order
	refs   []int32 // pairs of the inodes
	hasACL bool

	arena    []byte // copies of values that the writer made
	metacopy []byte
	redirect []byte
	inode    []attr
}

// Names that the writer adds have fixed numbers.
const (
	nameMetacopy = iota
	nameRedirect
	nameOpaque
	nameWhiteout
	nameUserWhiteout
	nameWhiteouts
	nameUserWhiteouts
	nameEscapedOpaque
	nameUserOpaque
)

func (t *attrTable) init(v Version, inodes int) {
	t.byName = map[string]int32{}
	t.seed = maphash.MakeSeed()
	t.slots = make([]int32, 1<<10)
	t.refs = make([]int32, 0, 2*inodes)
	for _, name := range [...]string{
		nameMetacopy: attrMetacopy, nameRedirect: attrRedirect, nameOpaque: attrOpaque,
		nameWhiteout: attrWhiteout, nameUserWhiteout: attrUserWhiteout,
		nameWhiteouts: attrWhiteouts, nameUserWhiteouts: attrUserWhiteouts,
		nameEscapedOpaque: attrEscapedOpaque, nameUserOpaque: attrUserOpaque,
	} {
		t.name(name, v)
	}
}

// name is the number of a name.
func (t *attrTable) name(full string, v Version) int32 {
	if i, ok := t.byName[full]; ok {
		return i
	}
	i := int32(len(t.names))
	index, suffix := splitXattrName(full, v)
	t.names = append(t.names, attrName{full: full, suffix: suffix, index: index, filter: filterBit(index, suffix)})
	t.byName[full] = i
	return i
}

// intern is the number of a pair; it counts the use.
func (t *attrTable) intern(a attr) int32 {
	if 4*len(t.pairs) >= 3*len(t.slots) {
		t.grow()
	}
	slot, found := t.find(a.name, a.value)
	if found {
		i := t.slots[slot] - 1
		t.pairs[i].users++
		return i
	}
	value := a.value
	if a.scratch {
		if len(t.arena)+len(value) > cap(t.arena) {
			t.arena = make([]byte, 0, max(64<<10, len(value)))
		}
		start := len(t.arena)
		t.arena = append(t.arena, value...)
		value = t.arena[start:len(t.arena):len(t.arena)]
	}
	t.pairs = append(t.pairs, attrPair{
		name: a.name, users: 1, value: value,
		size: xattrEntrySize(t.names[a.name].suffix, value),
	})
	t.slots[slot] = int32(len(t.pairs))
	return int32(len(t.pairs) - 1)
}

// find is the slot of a pair, or the one where it has to go.
func (t *attrTable) find(name int32, value []byte) (slot int, found bool) {
	mask := len(t.slots) - 1
	slot = int(maphash.Bytes(t.seed, value)+uint64(name)*0x9e3779b97f4a7c15) & mask
	for {
		i := t.slots[slot]
		if i == 0 {
			return slot, false
		}
		if p := &t.pairs[i-1]; p.name == name && bytes.Equal(p.value, value) {
			return slot, true
		}
		slot = (slot + 1) & mask
	}
}

func (t *attrTable) grow() {
	t.slots = make([]int32, 2*len(t.slots))
	for i := range t.pairs {
		slot, _ := t.find(t.pairs[i].name, t.pairs[i].value)
		t.slots[slot] = int32(i + 1)
	}
}

// collectAttrs makes the attributes of every inode, and chooses those that are
// shared.
func (p *plan) collectAttrs() error {
	t := &p.attrs
	t.init(p.version, len(p.order))
	for _, i := range p.order {
		n := &p.nodes[i]
		t.inode = t.inode[:0]
		if p.version.epoch1() {
			p.addOwnAttrs(n)
			p.addObjectAttrs(n)
			p.addMarks(i, n)
			slices.SortStableFunc(t.inode, t.compareAttrs)
		} else {
			p.addObjectAttrs(n)
			p.addOwnAttrs(n)
		}
		n.firstRef, n.refs = int32(len(t.refs)), int32(len(t.inode))
		for _, a := range t.inode {
			t.refs = append(t.refs, t.intern(a))
			name := &t.names[a.name]
			t.hasACL = t.hasACL || p.rules.hasACL(name.index, name.suffix)
		}
	}
	p.buildSharedTable()
	for _, i := range p.order {
		if err := p.sizeAttrs(i); err != nil {
			return err
		}
	}
	return nil
}

// addOwnAttrs adds the attributes of the tree, escaped. The order is that of
// the unescaped names, which V2 keeps.
func (p *plan) addOwnAttrs(n *node) {
	t := &p.attrs
	for _, x := range n.xattrs {
		name := x.Name
		if strings.HasPrefix(name, overlayPrefix) {
			name = escapedPrefix + name[len(overlayPrefix):]
		}
		t.inode = append(t.inode, attr{name: t.name(name, p.version), value: x.Value})
	}
}

// addObjectAttrs names an external file's content. The names are free: those
// of the tree were escaped.
func (p *plan) addObjectAttrs(n *node) {
	if !n.external {
		return
	}
	t := &p.attrs
	t.metacopy = appendMetacopy(t.metacopy[:0], n)
	t.inode = append(t.inode, attr{name: nameMetacopy, value: t.metacopy, scratch: true})
	t.redirect = t.redirect[:0]
	switch {
	case n.redirect != "":
		t.redirect = append(append(t.redirect, '/'), n.redirect...)
	case !p.rules.literal:
		t.redirect = appendObjectPath(t.redirect, n)
	default:
		return
	}
	t.inode = append(t.inode, attr{name: nameRedirect, value: t.redirect, scratch: true})
}

// appendMetacopy appends overlayfs's struct ovl_metacopy: version 0, length,
// flags, algorithm, digest. It is empty if the digest is not known.
func appendMetacopy(b []byte, n *node) []byte {
	if n.digest == nil {
		return b
	}
	alg := n.digest.Algorithm()
	b = append(b, 0, byte(4+alg.Size()), 0, byte(alg))
	return n.digest.AppendBytes(b)
}

// appendObjectPath appends "/hh/rest".
func appendObjectPath(b []byte, n *node) []byte {
	if n.digest == nil {
		return b
	}
	var raw [64]byte
	digest := n.digest.AppendBytes(raw[:0])
	b = append(b, '/')
	b = hex.AppendEncode(b, digest[:1])
	b = append(b, '/')
	return hex.AppendEncode(b, digest[1:])
}

// addMarks adds what V0 and V1 need of escaped whiteouts, and the root's mark.
func (p *plan) addMarks(i int32, n *node) {
	if n.whiteout {
		p.mark(nameWhiteout, "")
		p.mark(nameUserWhiteout, "")
	}
	if n.hasWhiteouts {
		p.mark(nameWhiteouts, "")
		p.mark(nameUserWhiteouts, "")
		if p.version >= V1 {
			p.mark(nameEscapedOpaque, opaqueHasWhiteouts)
			p.mark(nameUserOpaque, opaqueHasWhiteouts)
		}
	}
	if i == 0 {
		p.mark(nameOpaque, opaqueRoot)
	}
}

func (p *plan) mark(name int32, value string) {
	t := &p.attrs
	if p.rules.literal {
		for i := range t.inode {
			if t.inode[i].name == name {
				t.inode[i] = attr{name: name, value: []byte(value)}
				return
			}
		}
	}
	t.inode = append(t.inode, attr{name: name, value: []byte(value)})
}

// compareAttrs is the order of V0 and V1: by full name. The value matters only
// where composefs-rs writes a name twice.
func (t *attrTable) compareAttrs(a, b attr) int {
	if a.name != b.name {
		return cmp.Compare(t.names[a.name].full, t.names[b.name].full)
	}
	return compareValues(a.value, b.value)
}

// compareValues compares by length first.
func compareValues(a, b []byte) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), bytes.Compare(a, b))
}

// buildSharedTable orders the shared pairs: descending by full name and value
// in V0 and V1, ascending by prefix number, suffix and value in V2.
func (p *plan) buildSharedTable() {
	t := &p.attrs
	for i := range t.pairs {
		if t.pairs[i].users > 1 {
			t.shared = append(t.shared, int32(i))
		}
	}
	slices.SortFunc(t.shared, func(i, j int32) int {
		a, b := &t.pairs[i], &t.pairs[j]
		an, bn := &t.names[a.name], &t.names[b.name]
		if p.version.epoch1() {
			return cmp.Or(cmp.Compare(bn.full, an.full), compareValues(b.value, a.value))
		}
		return cmp.Or(cmp.Compare(an.index, bn.index), cmp.Compare(an.suffix, bn.suffix), bytes.Compare(a.value, b.value))
	})
	for _, i := range t.shared {
		t.pairs[i].offset = p.sharedSize
		p.sharedSize += t.pairs[i].size
	}
}

// sizeAttrs decides which attributes of an inode are references, and computes
// the size of its attribute area.
func (p *plan) sizeAttrs(i int32) error {
	n := &p.nodes[i]
	if n.refs == 0 {
		return nil
	}
	size := uint64(xattrAreaHeader)
	for _, ref := range p.attrs.refs[n.firstRef : n.firstRef+n.refs] {
		pair := &p.attrs.pairs[ref]
		if pair.users > 1 && int(n.shared) < p.rules.sharedLimit() {
			n.shared++
			size += xattrRefSize
		} else {
			size += pair.size
		}
	}
	n.attrSize = size
	if n.shared > 255 {
		return fmt.Errorf("lay out image: %q: %d attributes are shared with other files, at most 255 can be", p.path(i), n.shared)
	}
	if (size-xattrAreaHeader)/xattrAlign+1 > maxIcount {
		return fmt.Errorf("lay out image: %q: %d bytes of attributes, at most %d fit", p.path(i), size, (maxIcount-1)*xattrAlign+xattrAreaHeader)
	}
	return nil
}

// icount is the inode field that holds the size of the attribute area.
func (n *node) icount() uint16 {
	if n.attrSize == 0 {
		return 0
	}
	return uint16((n.attrSize-xattrAreaHeader)/xattrAlign + 1)
}
