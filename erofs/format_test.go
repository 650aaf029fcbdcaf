// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"encoding/json"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"testing"
)

// TestNameFilter is the only guard against a wrong filter: no tool notices
// one, but the kernel does not find the attributes then.
func TestNameFilter(t *testing.T) {
	type want struct {
		Index  uint8
		Suffix string
		Hash   string `json:"xxh32"`
		Bit    int
	}
	var file struct {
		Names []struct {
			Name string
			V01  want `json:"v0_v1"`
			V2   want
		} `json:"xattr_name_filter"`
	}
	data, err := os.ReadFile(filepath.Join("testdata", "name_filter.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Names) < 18 {
		t.Fatalf("only %d names", len(file.Names))
	}
	for _, v := range file.Names {
		for version, want := range map[Version]want{V0: v.V01, V1: v.V01, V2: v.V2} {
			index, suffix := splitXattrName(v.Name, version)
			if index != want.Index || suffix != want.Suffix {
				t.Errorf("%s %q: prefix %d and %q, want %d and %q", version, v.Name, index, suffix, want.Index, want.Suffix)
			}
			if got := fmt.Sprintf("%08x", xxh32(suffix, filterSeed+uint32(index))); got != want.Hash {
				t.Errorf("%s %q: hash %s, want %s", version, v.Name, got, want.Hash)
			}
			if got := bits.TrailingZeros32(filterBit(index, suffix)); got != want.Bit {
				t.Errorf("%s %q: bit %d, want %d", version, v.Name, got, want.Bit)
			}
		}
	}
}

func TestBitmapClaim(t *testing.T) {
	for _, c := range []struct {
		from, to uint64
		ok       bool
	}{
		{0, 36, true}, {36, 64, true}, {35, 36, false}, {64, 64, true}, {64, 300, true},
		{299, 301, false}, {301, 302, true}, {302, 320, true}, {300, 301, true}, {100, 101, false},
	} {
		t.Run(fmt.Sprintf("%d-%d", c.from, c.to), func(t *testing.T) {
			b := newBitmap(320)
			for _, done := range [][2]uint64{{0, 36}, {36, 64}, {64, 300}} {
				if c.ok && c.from >= done[0] && c.to <= done[1] {
					break
				}
				b.claim(done[0], done[1])
			}
			if got := b.claim(c.from, c.to); got != c.ok {
				t.Errorf("claim(%d, %d) = %t", c.from, c.to, got)
			}
			for i := range uint64(320) {
				if in := i >= c.from && i < c.to; c.ok && in && !b.has(i) {
					t.Errorf("%d is not in the set", i)
				}
			}
		})
	}
}

func TestChunkBits(t *testing.T) {
	for _, c := range []struct {
		size   uint64
		bits   uint
		chunks uint64
	}{
		{1, 12, 1}, {2, 12, 1}, {4096, 12, 1}, {4097, 13, 1}, {1 << 20, 20, 1}, {1<<20 + 1, 21, 1},
		{1 << 43, 43, 1}, {1<<43 + 1, 43, 2}, {1 << 53, 43, 1024}, {1<<64 - 1, 43, 1 << 21},
	} {
		if got := chunkBits(c.size); got != c.bits {
			t.Errorf("chunkBits(%d) = %d, want %d", c.size, got, c.bits)
		}
		if got := chunkCount(c.size, c.bits); got != c.chunks {
			t.Errorf("chunkCount(%d, %d) = %d, want %d", c.size, c.bits, got, c.chunks)
		}
	}
}
