// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"errors"
	"fmt"
	"io"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
)

// ErrCorrupt is wrapped by every error about the content of an image, as
// opposed to errors of reading it.
var ErrCorrupt = errors.New("not a valid composefs image")

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// Limits bound what the reader spends on an image. A zero field means its
// default.
type Limits struct {
	Size   int64  // bytes of the image, which is read into memory
	Inodes uint64 // reachable inodes
	Memory uint64 // bytes of the tree that [Image.Tree] makes, roughly
}

// The defaults of Limits. The image of an operating system with 64,000 inodes
// has 10 MB.
const (
	DefaultSize   = 1 << 30
	DefaultInodes = 1 << 22
	DefaultMemory = 4 << 30
)

// Image is an image that is open for reading. It does not change and can be
// used concurrently.
type Image struct {
	data    []byte
	limits  Limits
	version Version
	rootNid uint64
	inodes  uint64 // as the superblock says
	time    tree.Time
	xattrs  uint64 // what references to shared attributes are relative to
	filter  bool   // the name filters are valid
}

// Open reads an image of size bytes, with default limits, and checks its
// headers.
func Open(r io.ReaderAt, size int64) (*Image, error) {
	return OpenLimits(r, size, Limits{})
}

// OpenLimits is Open with other limits.
func OpenLimits(r io.ReaderAt, size int64, l Limits) (*Image, error) {
	if l.Size <= 0 {
		l.Size = DefaultSize
	}
	if l.Inodes == 0 {
		l.Inodes = DefaultInodes
	}
	if l.Memory == 0 {
		l.Memory = DefaultMemory
	}
	switch {
	case size < blockSize || size%blockSize != 0:
		return nil, corrupt("its size of %d bytes is no multiple of %d", size, blockSize)
	case size > l.Size:
		return nil, fmt.Errorf("open image: %d bytes, at most %d are allowed", size, l.Size)
	}
	// What is no image at all should not cost memory.
	head := make([]byte, metaStart)
	if err := readFull(r, head, 0); err != nil {
		return nil, err
	}
	im := &Image{limits: l}
	if err := im.parseHeader(head); err != nil {
		return nil, err
	}
	if err := im.parseSuperblock(head[superOffset:], uint64(size)); err != nil {
		return nil, err
	}
	im.data = make([]byte, size)
	copy(im.data, head)
	if err := readFull(r, im.data[metaStart:], metaStart); err != nil {
		return nil, err
	}
	return im, nil
}

func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read image: %w", err)
}

// Version is the version of the image.
func (im *Image) Version() Version { return im.version }

// Size is the size of the image in bytes.
func (im *Image) Size() int64 { return int64(len(im.data)) }

func (im *Image) parseHeader(b []byte) error {
	version := le32(b, hdrComposefs)
	switch {
	case le32(b, hdrMagic) != composefsMagic:
		return corrupt("no composefs header")
	case le32(b, hdrVersion) != composefsVersion1:
		return corrupt("header version %d", le32(b, hdrVersion))
	case version > uint32(V2):
		return corrupt("composefs version %d", version)
	case le32(b, hdrFlags)&^flagHasACL != 0:
		return corrupt("header flags %#x", le32(b, hdrFlags))
	}
	im.version = Version(version)
	return nil
}

func (im *Image) parseSuperblock(b []byte, size uint64) error {
	switch {
	case le32(b, sbMagic) != erofsMagic:
		return corrupt("no EROFS superblock")
	case b[sbBlockBits] != blockBits:
		return corrupt("blocks of 2^%d bytes", b[sbBlockBits])
	case le32(b, sbCompat)&^(compatChecksum|compatMtime|compatFilter) != 0:
		return corrupt("compatible features %#x", le32(b, sbCompat))
	case le32(b, sbIncompat)&^incompatChunked != 0:
		return corrupt("incompatible features %#x", le32(b, sbIncompat))
	case b[sbExtSlots] != 0 || le16(b, sbComprAlgs) != 0 || le16(b, sbExtraDevices) != 0 ||
		b[sbPrefixCount] != 0 || le64(b, sbPackedNid) != 0 || b[sbFilterReserve] != 0:
		return corrupt("its superblock asks for what composefs does not use")
	case le32(b, sbMetaBlock) != 0:
		return corrupt("its inodes begin in block %d", le32(b, sbMetaBlock))
	case uint64(le32(b, sbBlocks))*blockSize != size:
		return corrupt("it has %d bytes, and its superblock says %d blocks", size, le32(b, sbBlocks))
	case uint64(le32(b, sbXattrBlock))*blockSize > size:
		return corrupt("its shared attributes begin in block %d", le32(b, sbXattrBlock))
	case le32(b, sbBuildNsec) >= 1e9:
		return corrupt("%d nanoseconds in its time", le32(b, sbBuildNsec))
	}
	im.rootNid = uint64(le16(b, sbRootNid))
	im.inodes = le64(b, sbInodes)
	im.time = tree.Time{Sec: int64(le64(b, sbBuildTime)), Nsec: le32(b, sbBuildNsec)}
	im.xattrs = uint64(le32(b, sbXattrBlock)) * blockSize
	im.filter = le32(b, sbCompat)&compatFilter != 0
	if im.inodes > size/slotSize {
		return corrupt("%d inodes in %d bytes", im.inodes, size)
	}
	if im.inodes > im.limits.Inodes {
		return fmt.Errorf("open image: %d inodes, at most %d are allowed", im.inodes, im.limits.Inodes)
	}
	return nil
}

// diskInode is an inode as it is stored. All that it refers to is inside the
// image.
type diskInode struct {
	nid      uint64
	kind     tree.Kind
	layout   uint8
	mode     uint32 // permission bits
	nlink    uint32
	uid, gid uint32
	u        uint32
	size     uint64
	mtime    tree.Time

	start    uint64 // bytes [start, tail) are the header and the attributes
	attrs    uint64 // offset of the attribute area
	tail     uint64 // offset of inline data
	tailSize uint64
	block    uint64 // own data blocks
	blocks   uint64
}

// end is the offset behind everything that is at the inode's place.
func (n *diskInode) end() uint64 { return n.tail + n.tailSize }

func (n *diskInode) isWhiteout() bool { return n.kind == tree.CharDevice && n.u == 0 }

// inode decodes and checks the inode of that number.
func (im *Image) inode(nid uint64) (diskInode, error) {
	n := diskInode{nid: nid}
	size := uint64(len(im.data))
	if nid < metaStart/slotSize || nid >= size/slotSize {
		return n, corrupt("inode %d is outside", nid)
	}
	n.start = nid * slotSize
	b := im.data[n.start:]
	format := le16(b, inoFormat)
	if format&^(layoutMask|formatExtended) != 0 {
		return n, corrupt("inode %d has format %#x", nid, format)
	}
	n.layout = uint8(format & layoutMask)
	mode := le16(b, inoMode)
	var ok bool
	if n.kind, ok = tree.KindOfMode(uint32(mode)); !ok {
		return n, corrupt("inode %d has mode %o", nid, mode)
	}
	n.mode = uint32(mode) & 0o7777
	if format&formatExtended == 0 {
		n.attrs = n.start + compactSize
		n.nlink = uint32(le16(b, compactNlink))
		n.size = uint64(le32(b, compactBytes))
		n.u = le32(b, compactU)
		n.uid, n.gid = uint32(le16(b, compactUID)), uint32(le16(b, compactGID))
		n.mtime = im.time
	} else {
		n.attrs = n.start + extendedSize
		if n.attrs > size {
			return n, corrupt("inode %d is outside", nid)
		}
		n.nlink = le32(b, extendedNlink)
		n.size = le64(b, extendedBytes)
		n.u = le32(b, extendedU)
		n.uid, n.gid = le32(b, extendedUID), le32(b, extendedGID)
		n.mtime = tree.Time{Sec: int64(le64(b, extendedMtime)), Nsec: le32(b, extendedNsec)}
	}
	n.tail = n.attrs
	if icount := uint64(le16(b, inoIcount)); icount > 0 {
		n.tail += xattrAreaHeader + (icount-1)*xattrAlign
	}
	if err := im.placeData(&n); err != nil {
		return n, err
	}
	if n.end() > size || n.block+n.blocks > size/blockSize {
		return n, corrupt("inode %d reaches outside", nid)
	}
	return n, nil
}

// placeData finds out where an inode's data is.
func (im *Image) placeData(n *diskInode) error {
	if n.layout == layoutChunk {
		return im.placeChunks(n)
	}
	switch n.kind {
	case tree.Directory, tree.Regular, tree.Symlink:
	default:
		if n.layout != layoutPlain || n.size != 0 {
			return corrupt("inode %d is special and has data", n.nid)
		}
		return nil
	}
	if n.size > uint64(len(im.data)) {
		return corrupt("inode %d has %d bytes of data", n.nid, n.size)
	}
	if n.kind == tree.Symlink && (n.size == 0 || n.size > tree.MaxTarget) {
		return corrupt("inode %d is a link of %d bytes", n.nid, n.size)
	}
	switch n.layout {
	case layoutPlain:
		n.blocks = (n.size + blockSize - 1) / blockSize
	case layoutInline:
		n.blocks, n.tailSize = n.size/blockSize, n.size%blockSize
		if n.tailSize == 0 {
			return corrupt("inode %d has no inline data", n.nid)
		}
		if n.tail%blockSize+n.tailSize > blockSize {
			return corrupt("the inline data of inode %d crosses blocks", n.nid)
		}
	default:
		return corrupt("inode %d has layout %d", n.nid, n.layout)
	}
	if n.blocks > 0 {
		n.block = uint64(n.u)
	}
	return nil
}

// placeChunks checks the chunk map of an external file. Its content is an
// object, so that it consists of holes.
func (im *Image) placeChunks(n *diskInode) error {
	if n.kind != tree.Regular || n.size == 0 {
		return corrupt("inode %d has chunks and is no file, or an empty one", n.nid)
	}
	if !im.version.epoch1() {
		if n.u != v2ChunkFormat {
			return corrupt("inode %d has chunk format %#x", n.nid, n.u)
		}
		// The map of a file without digest is missing altogether, so the
		// walk looks at it when it knows.
		return nil
	}
	bits := chunkBits(n.size)
	if n.u&0xffff != uint32(bits-blockBits) {
		return corrupt("inode %d has chunk format %#x and %d bytes", n.nid, n.u, n.size)
	}
	chunks := chunkCount(n.size, bits)
	if chunks > maxChunks {
		return corrupt("inode %d has %d bytes", n.nid, n.size)
	}
	n.tailSize = chunks * chunkIndexSize
	if room := blockSize - n.tail%blockSize; n.tailSize > room {
		// The map has a block of its own, whose address is not complete.
		n.tailSize = 0
		return nil
	}
	if n.u>>16 != 0 {
		return corrupt("inode %d has chunk format %#x", n.nid, n.u)
	}
	return im.checkHoles(n)
}

// checkHoles checks that a chunk map beside an inode is all holes.
func (im *Image) checkHoles(n *diskInode) error {
	if n.end() > uint64(len(im.data)) {
		return corrupt("inode %d reaches outside", n.nid)
	}
	for _, c := range im.data[n.tail:n.end()] {
		if c != 0xff {
			return corrupt("inode %d has chunks that are no holes", n.nid)
		}
	}
	return nil
}

// blockData is the bytes of an inode's blocks.
func (im *Image) blockData(n *diskInode) []byte {
	return im.data[n.block*blockSize : (n.block+n.blocks)*blockSize]
}

// tailData is the bytes beside an inode.
func (im *Image) tailData(n *diskInode) []byte { return im.data[n.tail:n.end()] }

// content is the data of a file or a link. Its memory is the image's, unless
// the data is in two places.
func (im *Image) content(n *diskInode) []byte {
	switch {
	case n.size == 0:
		return nil
	case n.blocks == 0:
		return im.tailData(n)[:n.size:n.size]
	case n.tailSize == 0:
		return im.blockData(n)[:n.size:n.size]
	}
	return append(append(make([]byte, 0, n.size), im.blockData(n)...), im.tailData(n)...)
}
