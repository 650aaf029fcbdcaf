// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package erofs

import "math/bits"

// The primes of XXH32.
const (
	xxPrime1 = 2654435761
	xxPrime2 = 2246822519
	xxPrime3 = 3266489917
	xxPrime4 = 668265263
	xxPrime5 = 374761393
)

// xxh32 is the XXH32 hash, which the kernel uses for the filter of attribute
// names.
func xxh32(s string, seed uint32) uint32 {
	word := func(i int) uint32 {
		return uint32(s[i]) | uint32(s[i+1])<<8 | uint32(s[i+2])<<16 | uint32(s[i+3])<<24
	}
	i := 0
	var h uint32
	if len(s) >= 16 {
		p1 := uint32(xxPrime1)
		v := [4]uint32{seed + p1 + xxPrime2, seed + xxPrime2, seed, seed - p1}
		for ; i <= len(s)-16; i += 16 {
			for lane := range v {
				v[lane] = bits.RotateLeft32(v[lane]+word(i+4*lane)*xxPrime2, 13) * xxPrime1
			}
		}
		h = bits.RotateLeft32(v[0], 1) + bits.RotateLeft32(v[1], 7) +
			bits.RotateLeft32(v[2], 12) + bits.RotateLeft32(v[3], 18)
	} else {
		h = seed + xxPrime5
	}
	h += uint32(len(s))
	for ; i+4 <= len(s); i += 4 {
		h = bits.RotateLeft32(h+word(i)*xxPrime3, 17) * xxPrime4
	}
	for ; i < len(s); i++ {
		h = bits.RotateLeft32(h+uint32(s[i])*xxPrime5, 11) * xxPrime1
	}
	h ^= h >> 15
	h *= xxPrime2
	h ^= h >> 13
	h *= xxPrime3
	h ^= h >> 16
	return h
}
