// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fsverity

import (
	"encoding/binary"
	"errors"
	"io"
)

const (
	// maxLevels is the most levels a tree can have: 2^64 bytes are 2^52
	// blocks, and a level has at most a 64th of the hashes of the one below.
	maxLevels = 10

	// readSize is how many bytes ReadFrom asks its reader for.
	readSize = 128 << 10

	descriptorSize = 256
)

var errFinished = errors.New("write to a finished fs-verity hasher: call Reset first")

// Hasher computes the fs-verity digest of what is written to it. Make one with
// [NewHasher]. It is not safe for concurrent use.
//
// Whole blocks are hashed where they lie in the caller's slice. Buffers are
// allocated when content first needs them and kept by Reset: one of at most
// eight blocks for content, and one as large per level of the tree.
type Hasher struct {
	alg   Algorithm
	batch int // bytes that hashBlocks likes to get at once, whole blocks
	size  uint64

	tail     []byte // content that does not fill a batch yet, length batch
	tailFill int
	levels   [maxLevels]level
	read     []byte // buffer of ReadFrom

	done   bool
	digest Digest
}

// level holds hashes of one level of the tree that are not hashed into the
// level above yet. A full buffer stays until the next hash arrives: only then
// is it known that there is a level above. So a level is in use exactly when
// its fill is not zero.
type level struct {
	buf  []byte // length of a batch
	fill int    // bytes in use, whole digests
}

// NewHasher makes a Hasher for alg. For an algorithm that is not
// [Algorithm.Valid], Sum gives the zero Digest.
func NewHasher(alg Algorithm) *Hasher {
	return &Hasher{alg: alg, batch: batchBlocks(alg) * BlockSize}
}

// Reset makes the Hasher as new, for the next file. It keeps its buffers.
func (h *Hasher) Reset() {
	h.size = 0
	h.tailFill = 0
	for i := range h.levels {
		h.levels[i].fill = 0
	}
	h.done = false
	h.digest = Digest{}
}

// Size is the number of bytes written since the last Reset.
func (h *Hasher) Size() uint64 { return h.size }

// Write adds content. It fails only after Sum without a Reset, and then
// changes nothing.
func (h *Hasher) Write(p []byte) (int, error) {
	if h.done {
		return 0, errFinished
	}
	written := len(p)
	h.size += uint64(written)
	if h.tailFill > 0 {
		n := copy(h.tail[h.tailFill:], p)
		h.tailFill += n
		p = p[n:]
		if h.tailFill < len(h.tail) {
			return written, nil
		}
		h.addBlocks(0, h.tail)
		h.tailFill = 0
	}
	if whole := len(p) - len(p)%h.batch; whole > 0 {
		h.addBlocks(0, p[:whole])
		p = p[whole:]
	}
	if len(p) > 0 {
		if h.tail == nil {
			h.tail = make([]byte, h.batch)
		}
		h.tailFill = copy(h.tail, p)
	}
	return written, nil
}

// ReadFrom adds everything r has, up to its io.EOF. It returns the number of
// bytes read.
func (h *Hasher) ReadFrom(r io.Reader) (int64, error) {
	if h.read == nil {
		h.read = make([]byte, readSize)
	}
	var total int64
	for {
		n, err := r.Read(h.read)
		if n > 0 {
			total += int64(n)
			if _, werr := h.Write(h.read[:n]); werr != nil {
				return total, werr
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// Sum finishes the file and returns its digest. Calling it again gives the
// same digest; call Reset before the next file.
func (h *Hasher) Sum() Digest {
	if !h.done {
		h.done = true
		h.digest = h.finish()
	}
	return h.digest
}

// addBlocks hashes whole blocks and adds the hashes to level i.
func (h *Hasher) addBlocks(i int, blocks []byte) {
	l := &h.levels[i]
	if l.buf == nil {
		l.buf = make([]byte, h.batch)
	}
	size := h.alg.Size()
	for len(blocks) > 0 {
		if l.fill == len(l.buf) {
			h.addBlocks(i+1, l.buf)
			l.fill = 0
		}
		n := min(len(blocks)/BlockSize, (len(l.buf)-l.fill)/size)
		hashBlocks(h.alg, l.buf[l.fill:l.fill+n*size], blocks[:n*BlockSize])
		l.fill += n * size
		blocks = blocks[n*BlockSize:]
	}
}

// finish hashes what is left at every level, from the content upwards, until
// one hash remains, and returns the digest of the descriptor.
func (h *Hasher) finish() Digest {
	if h.tailFill > 0 {
		h.addBlocks(0, pad(h.tail, h.tailFill))
	}
	var root []byte // none for an empty file: all zero bytes
	for i := 0; h.size > 0; i++ {
		l := &h.levels[i]
		if l.fill == h.alg.Size() && (i == maxLevels-1 || h.levels[i+1].fill == 0) {
			root = l.buf[:l.fill]
			break
		}
		h.addBlocks(i+1, pad(l.buf, l.fill))
	}
	return descriptorDigest(h.alg, h.size, root)
}

// pad zeroes buf from fill to the end of its block and returns the blocks in
// use.
func pad(buf []byte, fill int) []byte {
	end := (fill + BlockSize - 1) / BlockSize * BlockSize
	clear(buf[fill:end])
	return buf[:end]
}

// descriptorDigest hashes the descriptor of a file of size bytes whose tree
// has the given root; an empty root stands for all zero bytes.
func descriptorDigest(alg Algorithm, size uint64, root []byte) Digest {
	if !alg.Valid() {
		return Digest{}
	}
	var desc [descriptorSize]byte
	desc[0] = 1 // version
	desc[1] = byte(alg)
	desc[2] = 12 // log2(BlockSize)
	binary.LittleEndian.PutUint64(desc[8:], size)
	copy(desc[16:16+MaxDigestSize], root)
	d := Digest{alg: alg}
	hashOne(alg, d.sum[:alg.Size()], desc[:])
	return d
}
