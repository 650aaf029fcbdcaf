// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
)

// WriteOptions choose the image. The zero value writes V0.
type WriteOptions struct {
	Version Version
}

// Write writes the image of a tree, identical to the one that composefs-rs
// makes. It neither changes nor keeps the tree. It fails if the tree holds what
// no image can: names, targets and attributes beyond the limits of package
// tree, directories with two names, whiteouts with two names, regular files
// without content, objects of two algorithms.
func Write(w io.Writer, root *tree.Node, o WriteOptions) error {
	p, err := planTree(root, o.Version)
	if err != nil {
		return err
	}
	return p.writeTo(w)
}

// Marshal is Write into memory.
func Marshal(root *tree.Node, v Version) ([]byte, error) {
	p, err := planTree(root, v)
	if err != nil {
		return nil, err
	}
	return p.marshal()
}

func (p *plan) marshal() ([]byte, error) {
	if p.size() > math.MaxInt {
		return nil, fmt.Errorf("write image: %d bytes do not fit into memory", p.size())
	}
	e := emitter{buf: make([]byte, 0, p.size())}
	if err := p.emit(&e); err != nil {
		return nil, err
	}
	return e.buf, nil
}

func (p *plan) writeTo(w io.Writer) error {
	e := emitter{w: w, buf: make([]byte, 0, 2*flushSize)}
	if err := p.emit(&e); err != nil {
		return err
	}
	return e.flush()
}

// flushSize is how many bytes the emitter gathers.
const flushSize = 256 << 10

// emitter is the growing image: bytes that are flushed, and a buffer. Without
// a writer it keeps everything.
type emitter struct {
	w       io.Writer
	buf     []byte
	flushed uint64
}

// pos is the position in the image.
func (e *emitter) pos() uint64 { return e.flushed + uint64(len(e.buf)) }

func (e *emitter) flush() error {
	if e.w == nil || len(e.buf) == 0 {
		return nil
	}
	n, err := e.w.Write(e.buf)
	if err == nil && n != len(e.buf) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	e.flushed += uint64(len(e.buf))
	e.buf = e.buf[:0]
	return nil
}

// settle flushes when enough was gathered.
func (e *emitter) settle() error {
	if len(e.buf) < flushSize {
		return nil
	}
	return e.flush()
}

// extend appends n zero bytes, n small, and returns them.
func (e *emitter) extend(n int) []byte {
	var zero [superOffset]byte
	start := len(e.buf)
	for n > 0 {
		k := min(n, len(zero))
		e.buf = append(e.buf, zero[:k]...)
		n -= k
	}
	return e.buf[start:]
}

// fill appends zero bytes up to position pos.
func (e *emitter) fill(pos uint64) error {
	if pos < e.pos() || pos-e.pos() > 2*blockSize {
		return fmt.Errorf("write image: at %d, which should be %d", e.pos(), pos)
	}
	e.extend(int(pos - e.pos()))
	return nil
}

// emit writes the image in one forward pass.
func (p *plan) emit(e *emitter) error {
	p.emitHeader(e.extend(superOffset))
	p.emitSuperblock(e.extend(superSize))
	for ino, i := range p.order {
		n := &p.nodes[i]
		if err := e.fill(n.pos); err != nil {
			return err
		}
		p.emitInode(e, n, uint32(ino))
		p.emitAttrs(e, n)
		p.emitTail(e, n)
		if err := e.settle(); err != nil {
			return err
		}
	}
	if err := e.fill(p.inodesEnd); err != nil {
		return err
	}
	for _, i := range p.attrs.shared {
		p.emitAttr(e, &p.attrs.pairs[i])
		if err := e.settle(); err != nil {
			return err
		}
	}
	if err := e.fill(p.dataStart); err != nil {
		return err
	}
	for _, i := range p.order {
		if n := &p.nodes[i]; n.blocks > 0 {
			if err := p.emitBlocks(e, n); err != nil {
				return err
			}
		}
	}
	return e.fill(p.size())
}

func (p *plan) emitHeader(b []byte) {
	put32(b, hdrMagic, composefsMagic)
	put32(b, hdrVersion, composefsVersion1)
	if p.version.epoch1() && p.attrs.hasACL {
		put32(b, hdrFlags, flagHasACL)
	}
	put32(b, hdrComposefs, uint32(p.version))
}

func (p *plan) emitSuperblock(b []byte) {
	put32(b, sbMagic, erofsMagic)
	put32(b, sbCompat, compatMtime|compatFilter)
	b[sbBlockBits] = blockBits
	put16(b, sbRootNid, uint16(p.nodes[0].pos/slotSize))
	put64(b, sbInodes, uint64(len(p.order)))
	put32(b, sbBlocks, uint32(p.size()/blockSize))
	if p.version.epoch1() {
		put64(b, sbBuildTime, uint64(p.minTime.Sec))
		put32(b, sbBuildNsec, p.minTime.Nsec)
		put32(b, sbXattrBlock, uint32(p.inodesEnd/blockSize))
	}
}

// inodeU is the inode's union field: block address, device or chunk format.
func (p *plan) inodeU(n *node) uint32 {
	switch {
	case n.layout == layoutChunk && !p.version.epoch1():
		return v2ChunkFormat
	case n.layout == layoutChunk:
		// A map in a block loses the low half of its address to the format;
		// both reference implementations do this.
		return n.firstBlock&0xffff0000 | uint32(chunkBits(n.size)-blockBits)
	case n.kind == tree.CharDevice || n.kind == tree.BlockDevice:
		return n.rdev
	}
	return n.firstBlock
}

func (p *plan) emitInode(e *emitter, n *node, ino uint32) {
	b := e.extend(int(n.header))
	mode := uint16(n.kind.TypeBits()) | n.mode
	put16(b, inoIcount, n.icount())
	put16(b, inoMode, mode)
	if n.compact {
		put16(b, inoFormat, uint16(n.layout))
		put16(b, compactNlink, uint16(n.nlink))
		put32(b, compactBytes, uint32(n.size))
		put32(b, compactU, p.inodeU(n))
		put32(b, compactIno, ino)
		put16(b, compactUID, uint16(n.uid))
		put16(b, compactGID, uint16(n.gid))
		return
	}
	put16(b, inoFormat, uint16(n.layout)|formatExtended)
	put64(b, extendedBytes, n.size)
	put32(b, extendedU, p.inodeU(n))
	put32(b, extendedUID, n.uid)
	put32(b, extendedGID, n.gid)
	put64(b, extendedMtime, uint64(n.mtime.Sec))
	put32(b, extendedNlink, n.nlink)
	if p.version.epoch1() {
		put32(b, extendedIno, ino)
		put32(b, extendedNsec, n.mtime.Nsec)
	} else {
		put32(b, extendedIno, uint32(n.pos/slotSize))
	}
}

func (p *plan) emitAttrs(e *emitter, n *node) {
	if n.refs == 0 {
		return
	}
	t := &p.attrs
	refs := t.refs[n.firstRef : n.firstRef+n.refs]
	var present uint32
	for _, ref := range refs {
		present |= t.names[t.pairs[ref].name].filter
	}
	b := e.extend(xattrAreaHeader)
	put32(b, 0, ^present)
	b[4] = uint8(n.shared)

	base := p.inodesEnd
	if p.version.epoch1() {
		base %= blockSize
	}
	left := n.shared
	for _, ref := range refs {
		if left == 0 {
			break
		}
		if pair := &t.pairs[ref]; pair.users > 1 {
			e.buf = binary.LittleEndian.AppendUint32(e.buf, uint32((base+t.offsets[pair.shared])/xattrAlign))
			left--
		}
	}
	left = n.shared
	for _, ref := range refs {
		if pair := &t.pairs[ref]; pair.users > 1 && left > 0 {
			left--
		} else {
			p.emitAttr(e, pair)
		}
	}
}

func (p *plan) emitAttr(e *emitter, pair *attrPair) {
	name := &p.attrs.names[pair.name]
	value := p.attrs.values.get(pair.value)
	start := len(e.buf)
	e.buf = append(e.buf, uint8(len(name.suffix)), name.index, uint8(len(value)), uint8(len(value)>>8))
	e.buf = append(e.buf, name.suffix...)
	e.buf = append(e.buf, value...)
	for (len(e.buf)-start)%xattrAlign != 0 {
		e.buf = append(e.buf, 0)
	}
}

// emitTail writes the data that is beside the inode.
func (p *plan) emitTail(e *emitter, n *node) {
	switch {
	case n.tail == 0:
	case n.kind == tree.Directory:
		ents := p.entries(n)
		for range n.blocks {
			ents = ents[entsInBlock(ents):]
		}
		p.emitEntries(e, n, ents)
	case n.kind == tree.Symlink:
		e.buf = append(e.buf, n.src.Target...)
	case n.layout == layoutChunk:
		emitHoles(e, n.tail)
	default:
		e.buf = append(e.buf, n.src.Content[len(n.src.Content)-int(n.tail):]...)
	}
}

func emitHoles(e *emitter, size uint32) {
	for range size / chunkIndexSize {
		e.buf = append(e.buf, 0xff, 0xff, 0xff, 0xff)
	}
}

// emitBlocks writes the data blocks of an inode.
func (p *plan) emitBlocks(e *emitter, n *node) error {
	ents := p.entries(n)
	content := n.src.Content
	for range n.blocks {
		end := e.pos() + blockSize
		switch {
		case n.kind == tree.Directory:
			k := entsInBlock(ents)
			p.emitEntries(e, n, ents[:k])
			ents = ents[k:]
		case n.kind == tree.Symlink:
			e.buf = append(e.buf, n.src.Target...)
		case n.layout == layoutChunk:
			emitHoles(e, blockSize)
		default:
			k := min(len(content), blockSize)
			e.buf = append(e.buf, content[:k]...)
			content = content[k:]
		}
		if err := e.fill(end); err != nil {
			return err
		}
		if err := e.settle(); err != nil {
			return err
		}
	}
	return nil
}

// entsInBlock is how many of the entries are in the next block.
func entsInBlock(ents []dirent) int {
	size := 0
	for i := range ents {
		size += direntSize + len(ents[i].name)
		if size > blockSize {
			return i
		}
	}
	return len(ents)
}

// emitEntries writes one block of directory data: the records, then the names.
func (p *plan) emitEntries(e *emitter, dir *node, ents []dirent) {
	nameOff := direntSize * len(ents)
	for i := range ents {
		var child *node
		switch ents[i].node {
		case entSelf:
			child = dir
		case entParent:
			child = &p.nodes[dir.up]
		default:
			child = &p.nodes[ents[i].node]
		}
		e.buf = binary.LittleEndian.AppendUint64(e.buf, child.pos/slotSize)
		e.buf = append(e.buf, uint8(nameOff), uint8(nameOff>>8), direntTypes[child.kind], 0)
		nameOff += len(ents[i].name)
	}
	for i := range ents {
		e.buf = append(e.buf, ents[i].name...)
	}
}
