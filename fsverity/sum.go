// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fsverity

import (
	"fmt"
	"io"
	"math"
	"os"
)

// Sum is the fs-verity digest of data. Up to one block it allocates nothing.
func Sum(alg Algorithm, data []byte) Digest {
	if len(data) > BlockSize {
		h := NewHasher(alg)
		h.Write(data) // a new Hasher takes every write
		return h.Sum()
	}
	if len(data) == 0 {
		return descriptorDigest(alg, 0, nil)
	}
	var block [BlockSize]byte
	var root [MaxDigestSize]byte
	copy(block[:], data)
	hashOne(alg, root[:alg.Size()], block[:])
	return descriptorDigest(alg, uint64(len(data)), root[:alg.Size()])
}

// SumReader is the fs-verity digest of everything r has, and its size in
// bytes.
func SumReader(alg Algorithm, r io.Reader) (Digest, int64, error) {
	h := NewHasher(alg)
	n, err := h.ReadFrom(r)
	if err != nil {
		return Digest{}, n, fmt.Errorf("read content to hash: %w", err)
	}
	return h.Sum(), n, nil
}

// SumFile is the fs-verity digest of f's content, computed in user space, and
// its size in bytes. It reads from the start of f and leaves f's offset alone.
func SumFile(alg Algorithm, f *os.File) (Digest, int64, error) {
	info, err := f.Stat()
	if err != nil {
		return Digest{}, 0, fmt.Errorf("read size of file to hash: %w", err)
	}
	h := NewHasher(alg)
	if info.Mode().IsRegular() && info.Size() < readSize {
		// One byte more than the content, so that the first read sees its
		// end, and no less than a block for files that grow or have no size.
		h.read = make([]byte, max(info.Size()+1, BlockSize))
	}
	n, err := h.ReadFrom(io.NewSectionReader(f, 0, math.MaxInt64))
	if err != nil {
		return Digest{}, n, fmt.Errorf("hash %s: %w", f.Name(), err)
	}
	return h.Sum(), n, nil
}
