// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
)

// Version is the version of the image format, as the composefs header
// (composefs_version) has it.
type Version uint8

// The versions.
const (
	V0 Version = 0 // as C mkcomposefs; no opaque marks beside whiteouts
	V1 Version = 1 // the default of composefs-rs and bootc
	V2 Version = 2 // composefs-rs before 0.8, and sealed images in the field
)

// Valid reports whether v is a known version.
func (v Version) Valid() bool { return v <= V2 }

// String is "V0", "V1" or "V2".
func (v Version) String() string { return fmt.Sprintf("V%d", uint8(v)) }

// epoch1 reports whether v has the layout of the C implementation.
func (v Version) epoch1() bool { return v <= V1 }

// This file holds every offset and magic number of the format; all integers
// are little-endian.

const (
	blockBits = 12
	blockSize = 1 << blockBits // bytes
	slotSize  = 32             // inodes start on multiples; nid = offset / slotSize

	superOffset = 1024
	superSize   = 128
	metaStart   = superOffset + superSize // where the first inode may be
)

// The composefs header, at offset 0.
const (
	composefsMagic    = 0xd078629a
	composefsVersion1 = 1 // of the header itself; the image's Version is a field of it
	headerSize        = 32

	hdrMagic     = 0
	hdrVersion   = 4
	hdrFlags     = 8
	hdrComposefs = 12
	hdrUnused    = 16

	flagHasACL = 1
)

// The EROFS superblock, relative to superOffset.
const (
	erofsMagic = 0xe0f5e1e2

	sbMagic         = 0
	sbChecksum      = 4
	sbCompat        = 8
	sbBlockBits     = 12
	sbExtSlots      = 13
	sbRootNid       = 14
	sbInodes        = 16
	sbBuildTime     = 24
	sbBuildNsec     = 32
	sbBlocks        = 36
	sbMetaBlock     = 40
	sbXattrBlock    = 44
	sbIncompat      = 80
	sbComprAlgs     = 84
	sbExtraDevices  = 86
	sbPrefixCount   = 91
	sbPackedNid     = 96
	sbFilterReserve = 104

	compatChecksum = 1
	compatMtime    = 2
	compatFilter   = 4

	incompatChunked = 4
)

// Inodes. i_format is one bit for the header size and three for the layout.
const (
	compactSize  = 32
	extendedSize = 64

	formatExtended = 1
	layoutPlain    = 0
	layoutInline   = 4
	layoutChunk    = 8
	layoutMask     = 0xe

	inoFormat = 0
	inoIcount = 2
	inoMode   = 4

	compactNlink = 6
	compactBytes = 8
	compactU     = 16
	compactIno   = 20
	compactUID   = 24
	compactGID   = 26

	extendedBytes = 8
	extendedU     = 16
	extendedIno   = 20
	extendedUID   = 24
	extendedGID   = 28
	extendedMtime = 32
	extendedNsec  = 40
	extendedNlink = 44
)

// Chunk maps: one four-byte index for each chunk, all ones for a hole.
const (
	chunkIndexSize = 4
	maxChunks      = blockSize / chunkIndexSize
	chunkBitsMask  = 31
	maxChunkBits   = blockBits + chunkBitsMask
	v2ChunkFormat  = 31
)

// Directory records, 12 bytes each: nid, offset of the name, file type.
const (
	direntSize    = 12
	direntNid     = 0
	direntNameOff = 8
	direntType    = 10
)

// Attributes: an area of 12 bytes, references and entries after the inode.
const (
	xattrAreaHeader  = 12
	xattrRefSize     = 4
	xattrEntryHeader = 4
	xattrAlign       = 4
	filterSeed       = 0x25bbe08f
	maxIcount        = 65535
)

// The limit below which the rest of a directory or of a file stays beside the
// inode (V0 and V1 files; directories in every version).
const maxTail = blockSize / 2

// The file types of directory records, by Kind.
var direntTypes = [...]uint8{
	tree.Regular:     1,
	tree.Directory:   2,
	tree.CharDevice:  3,
	tree.BlockDevice: 4,
	tree.FIFO:        5,
	tree.Socket:      6,
	tree.Symlink:     7,
}

// xattrPrefixes are the prefixes that are stored as a number. No one of them
// is a prefix of another name in the list, so their order is free. Index 5,
// lustre, is in V2 only.
var xattrPrefixes = [...]string{
	0: "",
	1: "user.",
	2: "system.posix_acl_access",
	3: "system.posix_acl_default",
	4: "trusted.",
	5: "lustre.",
	6: "security.",
}

const (
	indexACLAccess  = 2
	indexACLDefault = 3
	indexLustre     = 5
)

// splitXattrName is the number of a name's prefix, and the rest of the name.
func splitXattrName(name string, v Version) (index uint8, suffix string) {
	for i := 1; i < len(xattrPrefixes); i++ {
		if i == indexLustre && v.epoch1() {
			continue
		}
		p := xattrPrefixes[i]
		if len(name) >= len(p) && name[:len(p)] == p {
			return uint8(i), name[len(p):]
		}
	}
	return 0, name
}

// filterBit is the bit of the name filter that stands for an attribute. The
// filter is inverted: a set bit says that no such attribute is there.
func filterBit(index uint8, suffix string) uint32 {
	return 1 << (xxh32(suffix, filterSeed+uint32(index)) & 31)
}

// alignUp rounds n up to a multiple of a, a power of two.
func alignUp(n, a uint64) uint64 { return (n + a - 1) &^ (a - 1) }

// chunkBits is the logarithm of the chunk size for a file of size bytes: one
// chunk holds the file where that is possible (V0 and V1).
func chunkBits(size uint64) uint {
	n := uint(1)
	if size > 1 {
		n = uint(bits.Len64(size - 1))
	}
	return min(max(n, blockBits), maxChunkBits)
}

// chunkCount is the number of chunks of 1<<bits bytes in size bytes.
func chunkCount(size uint64, bits uint) uint64 {
	n := size >> bits
	if size&(1<<bits-1) != 0 {
		n++
	}
	return n
}

func le16(b []byte, off int) uint16 { return binary.LittleEndian.Uint16(b[off:]) }
func le32(b []byte, off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }
func le64(b []byte, off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }

func put16(b []byte, off int, v uint16) { binary.LittleEndian.PutUint16(b[off:], v) }
func put32(b []byte, off int, v uint32) { binary.LittleEndian.PutUint32(b[off:], v) }
func put64(b []byte, off int, v uint64) { binary.LittleEndian.PutUint64(b[off:], v) }
