// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

//go:build !purego

package fsverity

import (
	"bytes"
	"fmt"
	"math/big"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/cpu"
)

// engines are those that this machine can run.
func engines() []engine {
	list := []engine{engineOne}
	if cpu.X86.HasAVX2 {
		list = append(list, engineAVX2)
	}
	if cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW {
		list = append(list, engineAVX512)
	}
	return list
}

// TestEngines compares every engine with the standard library on every number
// of blocks that leaves other lanes unused.
func TestEngines(t *testing.T) {
	t.Parallel()
	t.Logf("this machine runs the engines %v", engines())
	rng := rand.NewChaCha8([32]byte{2})
	for _, e := range engines() {
		for round := range 5 {
			for count := 1; count <= 3*int(e); count++ {
				// An odd start: nothing may rely on alignment.
				src := make([]byte, round+count*BlockSize)[round:]
				rng.Read(src)
				checkEngine(t, e, src)
			}
		}
		for _, fill := range []byte{0, 0xff, 0x80, 0x01} {
			checkEngine(t, e, bytes.Repeat([]byte{fill}, int(e)*BlockSize))
		}
	}
}

// checkEngine wants the standard library's hashes from e, in dst and nowhere
// else.
func checkEngine(t *testing.T, e engine, src []byte) {
	t.Helper()
	size := SHA512.Size()
	count := len(src) / BlockSize
	want := make([]byte, count*size)
	hashEach(SHA512, want, src)

	const guard = 0x5c
	space := bytes.Repeat([]byte{guard}, len(want)+2*size)
	before := bytes.Clone(src)
	e.hashBlocks(space[size:size+len(want)], src)
	for i := range count {
		if got, want := space[(i+1)*size:(i+2)*size], want[i*size:(i+1)*size]; !bytes.Equal(got, want) {
			t.Fatalf("engine %d: hash of block %d of %d is %x, want %x", e, i, count, got, want)
		}
	}
	edge := bytes.Repeat([]byte{guard}, size)
	if !bytes.Equal(space[:size], edge) || !bytes.Equal(space[size+len(want):], edge) {
		t.Fatalf("engine %d wrote outside of its destination", e)
	}
	if !bytes.Equal(src, before) {
		t.Fatalf("engine %d changed its source", e)
	}
}

// FuzzEngines gives the lanes contents that have nothing in common.
func FuzzEngines(f *testing.F) {
	f.Add([]byte("seed"), uint64(1), uint8(8))
	f.Add([]byte{}, uint64(0), uint8(1))
	f.Add(bytes.Repeat([]byte{0xff}, 4096), uint64(7), uint8(13))
	f.Fuzz(func(t *testing.T, piece []byte, seed uint64, count uint8) {
		src := make([]byte, (int(count)%20+1)*BlockSize)
		rng := rand.New(rand.NewPCG(seed, 0))
		for at := 0; at < len(src); at += BlockSize / 2 {
			if rng.IntN(2) == 0 {
				copy(src[at:], piece)
				continue
			}
			for i := range src[at : at+BlockSize/2] {
				src[at+i] = byte(rng.Uint32())
			}
		}
		for _, e := range engines() {
			checkEngine(t, e, src)
		}
	})
}

// TestConstants derives the tables from their definition: the first 64 bits of
// the fractional parts of the roots of the first primes, cube roots for the
// rounds and square roots for the initial state.
func TestConstants(t *testing.T) {
	t.Parallel()
	prime := int64(1)
	for i := range sha512Constants {
		for prime++; !big.NewInt(prime).ProbablyPrime(0); prime++ {
		}
		if got, want := sha512Constants[i], rootFraction(prime, 3); got != want {
			t.Errorf("constant of round %d is %#x, want %#x", i, got, want)
		}
		if i >= len(sha512Initial) {
			continue
		}
		if got, want := sha512Initial[i], rootFraction(prime, 2); got != want {
			t.Errorf("word %d of the initial state is %#x, want %#x", i, got, want)
		}
	}
}

// rootFraction is the first 64 bits of the fractional part of n^(1/degree): the
// low 64 bits of the largest x with x^degree <= n * 2^(64*degree).
func rootFraction(n int64, degree int64) uint64 {
	target := new(big.Int).Lsh(big.NewInt(n), uint(64*degree))
	x := new(big.Int)
	for bit := 80; bit >= 0; bit-- {
		x.SetBit(x, bit, 1)
		if new(big.Int).Exp(x, big.NewInt(degree), nil).Cmp(target) > 0 {
			x.SetBit(x, bit, 0)
		}
	}
	return new(big.Int).And(x, new(big.Int).SetUint64(1<<64-1)).Uint64()
}

func TestEnginesDoNotAllocate(t *testing.T) {
	src, dst := make([]byte, 19*BlockSize), make([]byte, 19*64)
	for _, e := range engines() {
		if n := testing.AllocsPerRun(10, func() { e.hashBlocks(dst, src) }); n != 0 {
			t.Errorf("engine %d allocates %v times", e, n)
		}
	}
}

func BenchmarkEngines(b *testing.B) {
	for _, count := range []int{2, 3, 4, 8, 64} {
		src, dst := make([]byte, count*BlockSize), make([]byte, count*64)
		for _, e := range engines() {
			b.Run(fmt.Sprintf("%dlanes/%dblocks", e, count), func(b *testing.B) {
				b.SetBytes(int64(len(src)))
				for b.Loop() {
					e.hashBlocks(dst, src)
				}
			})
		}
	}
}
