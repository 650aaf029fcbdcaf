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

	"github.com/cfs-pull/cfs-pull/fsverity"
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
	value  valueRef
	shared int32 // index in attrTable.shared, if there is more than one user
}

// attr is an attribute of the inode at hand.
type attr struct {
	name  int32
	value []byte
}

// attrTable interns the attributes of an image.
type attrTable struct {
	names  []attrName
	byName map[string]int32

	pairs  []attrPair
	values valueStore
	slots  []attrSlot // hash table over pairs
	seed   maphash.Seed
	refs   []int32 // pairs of the inodes
	hasACL bool

	shared  []int32  // pairs of the shared table in their order
	offsets []uint64 // and where they begin in it

	// Space for the inode at hand.
	metacopy []byte
	redirect []byte
	inode    []attr
}

// attrSlot is a place in the hash table.
type attrSlot struct {
	hash uint32
	pair int32 // + 1; 0 is a free slot
}

// valueStore keeps values without a pointer to each, which spares the garbage
// collector the most numerous part of an image.
type valueStore struct {
	chunks [][]byte
}

// valueRef is a value in a valueStore.
type valueRef struct {
	chunk, start uint32
	size         uint32
}

const valueChunk = 1 << 20 // bytes; more than any value has

func (s *valueStore) add(value []byte) valueRef {
	last := len(s.chunks) - 1
	if last < 0 || len(s.chunks[last])+len(value) > cap(s.chunks[last]) {
		// The first chunk is small, as many images are.
		size := valueChunk
		if last < 0 {
			size = max(valueChunk/64, len(value))
		}
		s.chunks = append(s.chunks, make([]byte, 0, size))
		last++
	}
	ref := valueRef{chunk: uint32(last), start: uint32(len(s.chunks[last])), size: uint32(len(value))}
	s.chunks[last] = append(s.chunks[last], value...)
	return ref
}

func (s *valueStore) get(ref valueRef) []byte {
	return s.chunks[ref.chunk][ref.start : ref.start+ref.size]
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
	t.slots = make([]attrSlot, 1<<10)
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

// intern is the number of a pair; it counts the use. The value is copied.
func (t *attrTable) intern(a attr) int32 {
	if 4*len(t.pairs) >= 3*len(t.slots) {
		t.grow()
	}
	hash := uint32(maphash.Bytes(t.seed, a.value)>>32) ^ uint32(a.name)*0x9e3779b1
	mask := uint32(len(t.slots) - 1)
	at := hash & mask
	for ; t.slots[at].pair != 0; at = (at + 1) & mask {
		slot := t.slots[at]
		if slot.hash != hash {
			continue
		}
		if p := &t.pairs[slot.pair-1]; p.name == a.name && bytes.Equal(t.values.get(p.value), a.value) {
			p.users++
			return slot.pair - 1
		}
	}
	t.pairs = append(roomFor(t.pairs, 1), attrPair{name: a.name, users: 1, value: t.values.add(a.value)})
	t.slots[at] = attrSlot{hash: hash, pair: int32(len(t.pairs))}
	return int32(len(t.pairs) - 1)
}

func (t *attrTable) grow() {
	old := t.slots
	t.slots = make([]attrSlot, 4*len(old))
	mask := uint32(len(t.slots) - 1)
	for _, slot := range old {
		if slot.pair == 0 {
			continue
		}
		at := slot.hash & mask
		for t.slots[at].pair != 0 {
			at = (at + 1) & mask
		}
		t.slots[at] = slot
	}
}

// entrySize is the size of a pair's entry in the image.
func (t *attrTable) entrySize(pair *attrPair) uint64 {
	return alignUp(uint64(xattrEntryHeader+len(t.names[pair.name].suffix))+uint64(pair.value.size), xattrAlign)
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
			p.addObjectAttrs(i, n)
			p.addMarks(i, n)
			t.sortInode()
		} else {
			p.addObjectAttrs(i, n)
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
	for _, x := range n.src.Xattrs {
		name := x.Name
		if strings.HasPrefix(name, overlayPrefix) {
			name = escapedPrefix + name[len(overlayPrefix):]
		}
		t.inode = append(t.inode, attr{name: t.name(name, p.version), value: x.Value})
	}
}

// addObjectAttrs names an external file's content. The names are free: those
// of the tree were escaped.
func (p *plan) addObjectAttrs(i int32, n *node) {
	if !n.external {
		return
	}
	t := &p.attrs
	t.metacopy = appendMetacopy(t.metacopy[:0], n.src.Object)
	t.inode = append(t.inode, attr{name: nameMetacopy, value: t.metacopy})
	t.redirect = append(t.redirect[:0], '/')
	switch {
	case p.redirects == nil:
		t.redirect = appendObjectPath(t.redirect, n.src.Object)
	case p.redirects[i] != "":
		t.redirect = append(t.redirect, p.redirects[i]...)
	default:
		return
	}
	t.inode = append(t.inode, attr{name: nameRedirect, value: t.redirect})
}

// appendMetacopy appends overlayfs's struct ovl_metacopy: version 0, length,
// flags, algorithm, digest. It is empty if the digest is not known.
func appendMetacopy(b []byte, d fsverity.Digest) []byte {
	if d.IsZero() {
		return b
	}
	alg := d.Algorithm()
	return d.AppendBytes(append(b, 0, byte(4+alg.Size()), 0, byte(alg)))
}

// appendObjectPath appends "hh/rest".
func appendObjectPath(b []byte, d fsverity.Digest) []byte {
	var raw [fsverity.MaxDigestSize]byte
	digest := d.AppendBytes(raw[:0])
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

// sortInode sorts the attributes of the inode at hand: few, and nearly sorted.
func (t *attrTable) sortInode() {
	for i := 1; i < len(t.inode); i++ {
		for k := i; k > 0 && t.compareAttrs(t.inode[k-1], t.inode[k]) > 0; k-- {
			if i > maxInsertion {
				slices.SortStableFunc(t.inode, t.compareAttrs)
				return
			}
			t.inode[k-1], t.inode[k] = t.inode[k], t.inode[k-1]
		}
	}
}

// maxInsertion is the number of attributes up to which sorting them may take
// quadratic time.
const maxInsertion = 16

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
	if len(a) != len(b) {
		return cmp.Compare(len(a), len(b))
	}
	return bytes.Compare(a, b)
}

// buildSharedTable orders the shared pairs: descending by full name and value
// in V0 and V1, ascending by prefix number, suffix and value in V2.
func (p *plan) buildSharedTable() {
	t := &p.attrs
	for i := range t.pairs {
		if t.pairs[i].users > 1 {
			t.shared = append(roomFor(t.shared, 1), int32(i))
		}
	}
	slices.SortFunc(t.shared, func(i, j int32) int {
		a, b := &t.pairs[i], &t.pairs[j]
		if a.name != b.name {
			an, bn := &t.names[a.name], &t.names[b.name]
			if p.version.epoch1() {
				return cmp.Compare(bn.full, an.full)
			}
			return cmp.Or(cmp.Compare(an.index, bn.index), cmp.Compare(an.suffix, bn.suffix))
		}
		av, bv := t.values.get(a.value), t.values.get(b.value)
		if p.version.epoch1() {
			return compareValues(bv, av)
		}
		return bytes.Compare(av, bv)
	})
	t.offsets = make([]uint64, len(t.shared))
	for k, i := range t.shared {
		t.pairs[i].shared = int32(k)
		t.offsets[k] = p.sharedSize
		p.sharedSize += t.entrySize(&t.pairs[i])
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
			size += p.attrs.entrySize(pair)
		}
	}
	if n.shared > 255 {
		return fmt.Errorf("lay out image: %q: %d attributes are shared with other files, at most 255 can be", p.path(i), n.shared)
	}
	if (size-xattrAreaHeader)/xattrAlign+1 > maxIcount {
		return fmt.Errorf("lay out image: %q: %d bytes of attributes, at most %d fit", p.path(i), size, (maxIcount-1)*xattrAlign+xattrAreaHeader)
	}
	n.attrSize = uint32(size)
	return nil
}

// icount is the inode field that holds the size of the attribute area.
func (n *node) icount() uint16 {
	if n.attrSize == 0 {
		return 0
	}
	return uint16((n.attrSize-xattrAreaHeader)/xattrAlign + 1)
}
