// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fsverity

import (
	"crypto/sha256"
	"crypto/sha512"
)

// batchBlocks is how many blocks hashBlocks likes to get at once.
func batchBlocks(Algorithm) int { return 1 }

// hashBlocks hashes each 4096-byte block of src. The hashes follow one another
// in dst, which has room for exactly as many.
func hashBlocks(alg Algorithm, dst, src []byte) {
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
