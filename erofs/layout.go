// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"fmt"
	"math"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
)

// layOut gives every inode, the shared table and the data blocks their places.
func (p *plan) layOut() error {
	pos := uint64(metaStart)
	for _, i := range p.order {
		n := &p.nodes[i]
		var err error
		if p.version.epoch1() {
			err = p.sizeData(n)
		} else {
			err = p.sizeDataV2(n)
		}
		if err != nil {
			return fmt.Errorf("lay out image: %q: %w", p.path(i), err)
		}
		pos = alignUp(pos, slotSize)
		switch {
		case !p.version.epoch1():
			pos, err = n.placeV2(pos)
			if err != nil {
				return fmt.Errorf("lay out image: %q: %w", p.path(i), err)
			}
		case n.kind == tree.Symlink:
			pos = n.placeSymlink(pos)
		default:
			pos = n.place(pos)
		}
		n.pos = pos
		pos += n.headSize() + uint64(n.tail)
		p.dataBlocks += uint64(n.blocks)
	}
	p.inodesEnd = alignUp(pos, slotSize)
	p.dataStart = alignUp(p.inodesEnd+p.sharedSize, blockSize)

	if nid := p.nodes[0].pos / slotSize; nid > math.MaxUint16 {
		return fmt.Errorf("lay out image: the root has so many attributes that its number is %d", nid)
	}
	// This also bounds references to shared attributes, which count words.
	if p.size()/blockSize > math.MaxUint32 || (p.inodesEnd+p.sharedSize)/xattrAlign > math.MaxUint32 {
		return fmt.Errorf("lay out image: %d bytes are too many for the format", p.size())
	}
	block := p.dataStart / blockSize
	for _, i := range p.order {
		n := &p.nodes[i]
		if n.blocks > 0 {
			n.firstBlock = uint32(block)
			block += uint64(n.blocks)
		}
	}
	return nil
}

// headSize is the size of an inode with its attributes.
func (n *node) headSize() uint64 { return uint64(n.header) + uint64(n.attrSize) }

// sizeData chooses, for V0 and V1, what of an inode's data is beside it and
// what is in blocks, and the size of its header.
func (p *plan) sizeData(n *node) error {
	n.layout = layoutPlain
	size := n.size
	switch {
	case n.kind == tree.Directory:
		n.blocks, n.tail = splitDirectory(p.entries(n))
		n.size = uint64(n.blocks)*blockSize + uint64(n.tail)
		size = n.size
	case n.kind == tree.Symlink:
		n.tail = uint32(len(n.src.Target))
	case n.external:
		n.layout = layoutChunk
		chunks := chunkCount(n.size, chunkBits(n.size))
		if chunks > maxChunks {
			return fmt.Errorf("a file of %d bytes is too large", n.size)
		}
		n.tail = uint32(chunks * chunkIndexSize)
	case n.kind == tree.Regular:
		if n.size/blockSize > math.MaxUint32/2 {
			return fmt.Errorf("a file of %d bytes is too large", n.size)
		}
		n.blocks, n.tail = uint32(n.size/blockSize), uint32(n.size%blockSize)
		if n.tail > maxTail {
			n.blocks, n.tail = n.blocks+1, 0
		}
	default:
		n.size = 0 // never stored, but see Inode.Size
	}
	if n.layout != layoutChunk && n.tail > 0 {
		n.layout = layoutInline
	}
	n.header = extendedSize
	n.compact = n.mtime == p.minTime && n.nlink <= math.MaxUint16 &&
		n.uid <= math.MaxUint16 && n.gid <= math.MaxUint16 && size <= math.MaxUint32
	if n.compact {
		n.header = compactSize
	}
	return nil
}

// sizeDataV2 does the same for V2: only directories have blocks.
func (p *plan) sizeDataV2(n *node) error {
	n.header = extendedSize
	n.layout = layoutPlain
	switch {
	case n.kind == tree.Directory:
		n.blocks, n.tail = splitDirectory(p.entries(n))
		n.size = uint64(n.blocks)*blockSize + uint64(n.tail)
	case n.kind == tree.Symlink:
		n.tail = uint32(len(n.src.Target))
	case n.external:
		n.layout = layoutChunk
		n.tail = chunkIndexSize // one hole, whatever the size
		return nil
	case n.kind == tree.Regular:
		if len(n.src.Content) >= blockSize {
			return fmt.Errorf("%d bytes of content do not fit into an image of V2", len(n.src.Content))
		}
		n.tail = uint32(len(n.src.Content))
	}
	if n.tail > 0 {
		n.layout = layoutInline
	}
	return nil
}

// splitDirectory is the number of blocks of a directory, and of bytes in the
// rest that stays beside the inode.
func splitDirectory(ents []dirent) (blocks, tail uint32) {
	for i := range ents {
		size := uint32(direntSize + len(ents[i].name))
		if tail+size > blockSize {
			blocks, tail = blocks+1, 0
		}
		tail += size
	}
	if tail > maxTail {
		blocks, tail = blocks+1, 0
	}
	return blocks, tail
}

// placeSymlink finds the place of a symbolic link in V0 and V1: all of it is in
// one block, as older kernels demand. A target that is too long for that goes
// to a block of its own, after the inode got its place.
func (n *node) placeSymlink(pos uint64) uint64 {
	total := n.headSize() + uint64(n.tail)
	crosses := pos/blockSize != (pos+total-1)/blockSize
	if total >= blockSize {
		n.blocks, n.tail, n.layout = 1, 0, layoutPlain
	}
	if crosses {
		return alignUp(pos, blockSize)
	}
	return pos
}

// place finds the place of any other inode in V0 and V1: its tail is in one
// block.
func (n *node) place(pos uint64) uint64 {
	room := blockSize - (pos+n.headSize())%blockSize
	if room >= uint64(n.tail) {
		return pos
	}
	// The inode moves by as much as its tail has to, in whole slots.
	pad := alignUp(room, slotSize)
	room = blockSize - (pos+n.headSize()+pad)%blockSize
	if room >= uint64(n.tail) {
		return pos + pad
	}
	// Only a map of more than a thousand chunks comes here.
	n.blocks, n.tail = n.blocks+1, 0
	return alignUp(pos, blockSize)
}

// placeV2 finds the place of an inode in V2. The test looks at one byte more
// than there is, so that some inodes move without need.
func (n *node) placeV2(pos uint64) (uint64, error) {
	if n.layout != layoutInline {
		return pos, nil
	}
	start := pos + n.headSize()
	if last := start - 1; last/blockSize != (start+n.size%blockSize)/blockSize {
		pos = alignUp(pos+blockSize-last%blockSize, slotSize)
		start = pos + n.headSize()
	}
	if start%blockSize+uint64(n.tail) > blockSize {
		return 0, fmt.Errorf("%d bytes of data do not fit beside the inode, as V2 wants it", n.tail)
	}
	return pos, nil
}
