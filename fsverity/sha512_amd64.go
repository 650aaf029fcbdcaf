// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

//go:build !purego

package fsverity

import (
	"encoding/binary"

	"golang.org/x/sys/cpu"
)

// The engines, by the number of blocks that they hash side by side: each lane
// of a vector register computes the SHA-512 of another block.
const (
	engineAVX2   engine = 4
	engineAVX512 engine = 8
)

// bestEngine is the fastest one of this machine.
func bestEngine() engine {
	switch {
	case cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW:
		return engineAVX512
	case cpu.X86.HasAVX2:
		return engineAVX2
	}
	return engineOne
}

// least is how many blocks make a call of the engine faster than hashing them
// one by one, with the lanes that are left over wasted.
func (e engine) least() int {
	if e == engineAVX512 {
		return 2
	}
	return 3
}

// hashLanes hashes 1 to e blocks with one call of the engine's kernel.
func (e engine) hashLanes(dst, src []byte) {
	count := len(src) / BlockSize
	var state [maxEngine * 8]uint64 // word i of lane l at i*e+l
	for i, word := range sha512Initial {
		for lane := range int(e) {
			state[i*int(e)+lane] = word
		}
	}
	var lanes, ends [maxEngine]*byte
	for lane := range lanes {
		// Lanes that are left over do the last block again.
		lanes[lane] = &src[min(lane, count-1)*BlockSize]
		ends[lane] = &sha512Ending[0]
	}
	if e == engineAVX512 {
		sha512x8(&state, &lanes, BlockSize/sha512Chunk, &sha512Constants)
		sha512x8(&state, &ends, 1, &sha512Constants)
	} else {
		sha512x4(&state, &lanes, BlockSize/sha512Chunk, &sha512Constants)
		sha512x4(&state, &ends, 1, &sha512Constants)
	}
	for lane := range count {
		for i := range 8 {
			binary.BigEndian.PutUint64(dst[lane*64+i*8:], state[i*int(e)+lane])
		}
	}
}

// sha512x4 and sha512x8 add chunks*128 bytes of each lane to the lanes'
// SHA-512 states. sha512x4 needs AVX2 and uses the first four lanes; sha512x8
// needs AVX512F and AVX512BW.
//
//go:noescape
func sha512x4(state *[maxEngine * 8]uint64, lanes *[maxEngine]*byte, chunks int, constants *[80]uint64)

//go:noescape
func sha512x8(state *[maxEngine * 8]uint64, lanes *[maxEngine]*byte, chunks int, constants *[80]uint64)

const (
	maxEngine   = int(engineAVX512)
	sha512Chunk = 128 // bytes that SHA-512 compresses at a time
)

// sha512Ending is what SHA-512 adds to a message of one block: a bit, zeros
// and the length of 4096*8 bits, big endian.
var sha512Ending = [sha512Chunk]byte{0: 0x80, sha512Chunk - 2: BlockSize * 8 >> 8}

// sha512Initial is the state that SHA-512 starts with (FIPS 180-4, 5.3.5).
var sha512Initial = [8]uint64{
	0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
	0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
}

// sha512Constants has the constant of each round (FIPS 180-4, 4.2.3).
var sha512Constants = [80]uint64{
	0x428a2f98d728ae22, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbc,
	0x3956c25bf348b538, 0x59f111f1b605d019, 0x923f82a4af194f9b, 0xab1c5ed5da6d8118,
	0xd807aa98a3030242, 0x12835b0145706fbe, 0x243185be4ee4b28c, 0x550c7dc3d5ffb4e2,
	0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235, 0xc19bf174cf692694,
	0xe49b69c19ef14ad2, 0xefbe4786384f25e3, 0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65,
	0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd4, 0x76f988da831153b5,
	0x983e5152ee66dfab, 0xa831c66d2db43210, 0xb00327c898fb213f, 0xbf597fc7beef0ee4,
	0xc6e00bf33da88fc2, 0xd5a79147930aa725, 0x06ca6351e003826f, 0x142929670a0e6e70,
	0x27b70a8546d22ffc, 0x2e1b21385c26c926, 0x4d2c6dfc5ac42aed, 0x53380d139d95b3df,
	0x650a73548baf63de, 0x766a0abb3c77b2a8, 0x81c2c92e47edaee6, 0x92722c851482353b,
	0xa2bfe8a14cf10364, 0xa81a664bbc423001, 0xc24b8b70d0f89791, 0xc76c51a30654be30,
	0xd192e819d6ef5218, 0xd69906245565a910, 0xf40e35855771202a, 0x106aa07032bbd1b8,
	0x19a4c116b8d2d0c8, 0x1e376c085141ab53, 0x2748774cdf8eeb99, 0x34b0bcb5e19b48a8,
	0x391c0cb3c5c95a63, 0x4ed8aa4ae3418acb, 0x5b9cca4f7763e373, 0x682e6ff3d6b2b8a3,
	0x748f82ee5defb2fc, 0x78a5636f43172f60, 0x84c87814a1f0ab72, 0x8cc702081a6439ec,
	0x90befffa23631e28, 0xa4506cebde82bde9, 0xbef9a3f7b2c67915, 0xc67178f2e372532b,
	0xca273eceea26619c, 0xd186b8c721c0c207, 0xeada7dd6cde0eb1e, 0xf57d4f7fee6ed178,
	0x06f067aa72176fba, 0x0a637dc5a2c898a6, 0x113f9804bef90dae, 0x1b710b35131c471b,
	0x28db77f523047d84, 0x32caab7b40c72493, 0x3c9ebe0a15c9bebc, 0x431d67c49c100d4c,
	0x4cc5d4becb3e42b6, 0x597f299cfc657e2a, 0x5fcb6fab3ad6faec, 0x6c44198c4a475817,
}
