// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fsverity

import (
	"crypto/sha256"
	"crypto/sha512"
)

// batch is how many blocks a Hasher collects to hash them at once.
const batch = 8

// engine is a way to hash blocks with SHA-512. Its value is the number of
// blocks that it hashes side by side. Blocks are independent of each other,
// which is what makes fs-verity faster than plain SHA-512 on one core.
type engine int

// engineOne is the standard library, and what every other engine is tested
// against.
const engineOne engine = 1

// batchBlocks is how many blocks hashBlocks likes to get at once.
func batchBlocks(alg Algorithm) int {
	if alg == SHA512 && bestEngine() != engineOne {
		return batch
	}
	return 1
}

// hashBlocks hashes each 4096-byte block of src. The hashes follow one another
// in dst, which has room for exactly as many.
func hashBlocks(alg Algorithm, dst, src []byte) {
	if alg == SHA512 {
		bestEngine().hashBlocks(dst, src)
		return
	}
	hashEach(alg, dst, src)
}

// hashBlocks is the package's hashBlocks for SHA-512.
func (e engine) hashBlocks(dst, src []byte) {
	const size = sha512.Size
	if e != engineOne {
		for len(src) >= e.least()*BlockSize {
			n := min(int(e), len(src)/BlockSize)
			e.hashLanes(dst[:n*size], src[:n*BlockSize])
			dst, src = dst[n*size:], src[n*BlockSize:]
		}
	}
	hashEach(SHA512, dst, src)
}

// hashEach hashes blocks one by one.
func hashEach(alg Algorithm, dst, src []byte) {
	size := alg.Size()
	for len(src) > 0 {
		hashOne(alg, dst[:size], src[:BlockSize])
		dst, src = dst[size:], src[BlockSize:]
	}
}

// hashOne puts the plain hash of p, of any length, in dst.
func hashOne(alg Algorithm, dst, p []byte) {
	if alg == SHA256 {
		sum := sha256.Sum256(p)
		copy(dst, sum[:])
		return
	}
	sum := sha512.Sum512(p)
	copy(dst, sum[:])
}
