// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fsverity

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// vector is one entry of testdata/digests.json, which says where its expected
// values come from.
type vector struct {
	Alg    string
	Fill   string // how the content is made; empty when Text is the content
	Text   string
	Size   int
	Digest string
}

func (v vector) algorithm(tb testing.TB) Algorithm {
	tb.Helper()
	alg, err := ParseAlgorithm("fsverity-" + v.Alg + "-12")
	if err != nil {
		tb.Fatal(err)
	}
	return alg
}

func (v vector) content(tb testing.TB) []byte {
	tb.Helper()
	switch v.Fill {
	case "":
		return []byte(v.Text)
	case "0x5a repeated":
		return bytes.Repeat([]byte{0x5a}, v.Size)
	case "0x00 repeated":
		return make([]byte, v.Size)
	case "byte i = i mod 251":
		b := make([]byte, v.Size)
		for i := range b {
			b[i] = byte(i % 251)
		}
		return b
	}
	tb.Fatalf("unknown fill %q", v.Fill)
	return nil
}

func readVectors(tb testing.TB) []vector {
	tb.Helper()
	raw, err := os.ReadFile("testdata/digests.json")
	if err != nil {
		tb.Fatal(err)
	}
	var file struct{ Digests []vector }
	if err := json.Unmarshal(raw, &file); err != nil {
		tb.Fatal(err)
	}
	if len(file.Digests) != 48 {
		tb.Fatalf("testdata/digests.json has %d digests, want 48", len(file.Digests))
	}
	return file.Digests
}

func TestVectors(t *testing.T) {
	t.Parallel()
	for _, v := range readVectors(t) {
		t.Run(fmt.Sprintf("%s/%s%s/%d", v.Alg, v.Fill, v.Text, v.Size), func(t *testing.T) {
			if testing.Short() && v.Size > 1<<20 {
				t.Skip("large content: run without -short")
			}
			alg, data := v.algorithm(t), v.content(t)
			if len(data) != v.Size {
				t.Fatalf("made %d bytes, want %d", len(data), v.Size)
			}
			if got := Sum(alg, data).String(); got != v.Digest {
				t.Errorf("Sum = %s, want %s", got, v.Digest)
			}
			got, n, err := SumReader(alg, bytes.NewReader(data))
			if err != nil || n != int64(v.Size) || got.String() != v.Digest {
				t.Errorf("SumReader = %s, %d, %v, want %s, %d", got, n, err, v.Digest, v.Size)
			}
			got, n, err = SumFile(alg, tempFile(t, data))
			if err != nil || n != int64(v.Size) || got.String() != v.Digest {
				t.Errorf("SumFile = %s, %d, %v, want %s, %d", got, n, err, v.Digest, v.Size)
			}
		})
	}
}

// tempFile is a file that holds data, opened read-only at its start.
func tempFile(tb testing.TB, data []byte) *os.File {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "content")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		tb.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	return f
}

// naiveSum follows the definition of the format, level by level, with every
// level whole in memory.
func naiveSum(alg Algorithm, data []byte) []byte {
	hash := func(p []byte) []byte {
		if alg == SHA256 {
			sum := sha256.Sum256(p)
			return sum[:]
		}
		sum := sha512.Sum512(p)
		return sum[:]
	}
	hashLevel := func(p []byte) []byte {
		var out []byte
		for len(p) > 0 {
			block := make([]byte, BlockSize)
			n := copy(block, p)
			p = p[n:]
			out = append(out, hash(block)...)
		}
		return out
	}
	root := hashLevel(data)
	for len(root) > alg.Size() {
		root = hashLevel(root)
	}
	desc := make([]byte, 256)
	desc[0], desc[1], desc[2] = 1, byte(alg), 12
	binary.LittleEndian.PutUint64(desc[8:], uint64(len(data)))
	copy(desc[16:80], root)
	return hash(desc)
}

// boundarySizes are sizes at and around every place where the tree changes its
// shape, up to two levels and a bit.
func boundarySizes(alg Algorithm) []int {
	arity := BlockSize / alg.Size()
	sizes := []int{0, 1, 2, 63, 64, 65}
	for _, blocks := range []int{1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, arity, 2 * arity, 8 * arity, 9 * arity, arity * arity, 8 * arity * arity} {
		n := blocks * BlockSize
		if n > 32<<20 {
			continue
		}
		sizes = append(sizes, n-1, n, n+1, n+BlockSize, n-BlockSize)
	}
	return sizes
}

func TestSumAgainstDefinition(t *testing.T) {
	t.Parallel()
	rng := rand.NewChaCha8([32]byte{1})
	for _, alg := range []Algorithm{SHA256, SHA512} {
		sizes := boundarySizes(alg)
		data := make([]byte, 33<<20)
		rng.Read(data)
		for _, n := range sizes {
			if testing.Short() && n > 1<<20 {
				continue
			}
			want := naiveSum(alg, data[:n])
			if got := Sum(alg, data[:n]); !bytes.Equal(got.Bytes(), want) {
				t.Errorf("Sum(%s, %d bytes) = %s, want %x", alg, n, got, want)
			}
		}
	}
}

// TestWriteSplits writes the same content in pieces of many sizes. However it
// is cut, the digest is that of the whole.
func TestWriteSplits(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 3<<20+12345)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	for _, alg := range []Algorithm{SHA256, SHA512} {
		h := NewHasher(alg) // one for all: Reset must leave nothing behind
		check := func(name string, n int, pieces func(int) int) {
			t.Helper()
			h.Reset()
			for rest := data[:n]; len(rest) > 0; {
				k := min(len(rest), pieces(len(rest)))
				if w, err := h.Write(rest[:k]); w != k || err != nil {
					t.Fatalf("Write = %d, %v, want %d", w, err, k)
				}
				rest = rest[k:]
			}
			want := naiveSum(alg, data[:n])
			if got := h.Sum(); !bytes.Equal(got.Bytes(), want) || h.Size() != uint64(n) {
				t.Errorf("%s, %s, %d bytes: digest %s, size %d, want %x", alg, name, n, got, h.Size(), want)
			}
		}
		for _, n := range []int{0, 1, 4095, 4096, 4097, 65 * BlockSize, 2*64*BlockSize + 1} {
			check("byte at a time", n, func(int) int { return 1 })
		}
		for _, size := range []int{7, 512, 4095, 4096, 4097, 8192, 32 << 10, 32<<10 + 1, 1 << 20} {
			check(fmt.Sprintf("pieces of %d", size), len(data), func(int) int { return size })
		}
		for range 50 {
			check("random pieces", rng.IntN(len(data)), func(rest int) int { return rng.IntN(min(rest, 100_000)) + 1 })
		}
		check("first a byte, then the rest", len(data), func(rest int) int {
			if rest == len(data) {
				return 1
			}
			return rest
		})
	}
}

func TestReaders(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("0123456789abcde"), 60_000)
	want := Sum(SHA512, data)
	for name, r := range map[string]io.Reader{
		"half reads":         iotest.HalfReader(bytes.NewReader(data)),
		"data with its EOF":  iotest.DataErrReader(bytes.NewReader(data)),
		"one byte at a time": iotest.OneByteReader(bytes.NewReader(data)),
	} {
		got, n, err := SumReader(SHA512, r)
		if err != nil || n != int64(len(data)) || got != want {
			t.Errorf("%s: SumReader = %s, %d, %v, want %s, %d", name, got, n, err, want, len(data))
		}
	}

	broken := errors.New("broken pipe of a test")
	got, n, err := SumReader(SHA512, io.MultiReader(bytes.NewReader(data[:100]), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) || !got.IsZero() || n != 100 {
		t.Errorf("SumReader of a failing reader = %q, %d, %v, want no digest, 100, %v", got, n, err, broken)
	}
}

func TestSumFileKeepsOffset(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte{7}, readSize+99)
	f := tempFile(t, data)
	if _, err := f.Seek(5000, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	got, n, err := SumFile(SHA256, f)
	if err != nil || n != int64(len(data)) || got != Sum(SHA256, data) {
		t.Errorf("SumFile = %s, %d, %v, want the digest of all %d bytes", got, n, err, len(data))
	}
	if offset, err := f.Seek(0, io.SeekCurrent); offset != 5000 || err != nil {
		t.Errorf("offset after SumFile = %d, %v, want 5000", offset, err)
	}
	f.Close()
	if _, _, err := SumFile(SHA256, f); !errors.Is(err, os.ErrClosed) {
		t.Errorf("SumFile of a closed file: %v, want %v", err, os.ErrClosed)
	}
}

func TestHasherAfterSum(t *testing.T) {
	t.Parallel()
	h := NewHasher(SHA512)
	h.Write([]byte("hello world"))
	want := Sum(SHA512, []byte("hello world"))
	if got := h.Sum(); got != want {
		t.Errorf("Sum = %s, want %s", got, want)
	}
	if n, err := h.Write([]byte("more")); n != 0 || err == nil {
		t.Errorf("Write after Sum = %d, %v, want an error", n, err)
	}
	if got := h.Sum(); got != want || h.Size() != 11 {
		t.Errorf("second Sum = %s of %d bytes, want %s of 11", got, h.Size(), want)
	}
	h.Reset()
	if got, want := h.Sum(), Sum(SHA512, nil); got != want {
		t.Errorf("Sum after Reset = %s, want that of nothing, %s", got, want)
	}
}

func TestInvalidAlgorithm(t *testing.T) {
	t.Parallel()
	for _, alg := range []Algorithm{0, 3, 255} {
		for _, n := range []int{0, 1, 5000, 300_000} {
			if got := Sum(alg, make([]byte, n)); !got.IsZero() {
				t.Errorf("Sum with algorithm %d of %d bytes = %s, want none", alg, n, got)
			}
		}
	}
}

func TestNoAllocation(t *testing.T) {
	data := make([]byte, 2<<20+100)
	for _, alg := range []Algorithm{SHA256, SHA512} {
		if n := testing.AllocsPerRun(100, func() { Sum(alg, data[:4096]) }); n != 0 {
			t.Errorf("%s: Sum of one block allocates %v times", alg, n)
		}
		h := NewHasher(alg)
		r := bytes.NewReader(data)
		run := func() {
			h.Reset()
			h.Write(data[:100])
			h.Write(data[100:])
			h.Sum()
			h.Reset()
			r.Reset(data)
			h.ReadFrom(r)
			h.Sum()
		}
		if n := testing.AllocsPerRun(5, run); n != 0 {
			t.Errorf("%s: a Hasher in its second use allocates %v times", alg, n)
		}
	}
}

// TestAgainstTool compares with fsverity-utils on content of random sizes.
func TestAgainstTool(t *testing.T) {
	t.Parallel()
	tool := testutil.RequireTool(t, "fsverity", "fsverity")
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(3, 4))
	var paths []string
	var contents [][]byte
	for i := range 40 {
		data := make([]byte, rng.IntN(1<<(6+i%17)))
		for j := range data {
			data[j] = byte(rng.Uint32())
		}
		path := filepath.Join(dir, fmt.Sprintf("%02d", i))
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		paths, contents = append(paths, path), append(contents, data)
	}
	for _, alg := range []Algorithm{SHA256, SHA512} {
		args := append([]string{"digest", "--compact", "--block-size=4096", "--hash-alg=" + alg.HashName()}, paths...)
		out, err := exec.CommandContext(t.Context(), tool, args...).Output()
		if err != nil {
			t.Fatalf("%s: %v", tool, err)
		}
		lines := strings.Fields(string(out))
		if len(lines) != len(contents) {
			t.Fatalf("%s printed %d digests, want %d", tool, len(lines), len(contents))
		}
		for i, want := range lines {
			if got := Sum(alg, contents[i]).String(); got != want {
				t.Errorf("%s of %d bytes = %s, the tool says %s", alg, len(contents[i]), got, want)
			}
		}
	}
}

// FuzzHasher cuts content in two pieces, repeats it to reach several levels,
// and compares with the definition.
func FuzzHasher(f *testing.F) {
	f.Add([]byte("hello world"), uint16(3), uint8(1), false)
	f.Add([]byte{}, uint16(0), uint8(0), true)
	f.Add(bytes.Repeat([]byte{1}, 4096), uint16(4095), uint8(65), true)
	f.Add(bytes.Repeat([]byte{2}, 4097), uint16(4096), uint8(255), false)
	f.Fuzz(func(t *testing.T, piece []byte, cut uint16, times uint8, sha256 bool) {
		alg := SHA512
		if sha256 {
			alg = SHA256
		}
		data := bytes.Repeat(piece[:min(len(piece), BlockSize+1)], int(times)%70)
		want := naiveSum(alg, data)
		at := min(int(cut), len(data))
		h := NewHasher(alg)
		h.Write(data[:at])
		h.Write(data[at:])
		if got := h.Sum(); !bytes.Equal(got.Bytes(), want) {
			t.Errorf("Hasher = %s, want %x", got, want)
		}
		if got := Sum(alg, data); !bytes.Equal(got.Bytes(), want) {
			t.Errorf("Sum = %s, want %x", got, want)
		}
	})
}

func BenchmarkHasher(b *testing.B) {
	for _, alg := range []Algorithm{SHA256, SHA512} {
		for _, size := range []int{1 << 10, 4 << 10, 64 << 10, 1 << 20, 16 << 20} {
			b.Run(fmt.Sprintf("%s/%dKiB", alg.HashName(), size>>10), func(b *testing.B) {
				data := make([]byte, size)
				h := NewHasher(alg)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					h.Reset()
					h.Write(data)
					h.Sum()
				}
			})
		}
	}
}

func BenchmarkSumFile(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 4 << 20} {
		b.Run(fmt.Sprintf("sha512/%dKiB", size>>10), func(b *testing.B) {
			f := tempFile(b, make([]byte, size))
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := SumFile(SHA512, f); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
