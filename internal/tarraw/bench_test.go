// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package tarraw

import (
	"io"
	"testing"
)

func benchmark(b *testing.B, member string, members int) {
	b.SetBytes(int64(len(member) * members))
	b.ReportAllocs()
	buf := make([]byte, 1<<20)
	for b.Loop() {
		r := NewReader(&repeat{member: member, n: members}, func([]byte) error { return nil }, Limits{})
		for {
			e, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
			if e.External() {
				if _, err := io.ReadFull(r, buf[:e.Size]); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	b.ReportMetric(float64(members)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

// The time of these includes making the archive, a copy of every byte.

func BenchmarkHeaders(b *testing.B) {
	benchmark(b, header(name("usr/share/doc/package/")), 10000)
}

func BenchmarkPaxHeaders(b *testing.B) {
	benchmark(b, pax("path", "usr/share/doc/package/file", "mtime", "1700000000.123456789")+header(), 10000)
}

func BenchmarkSmallFiles(b *testing.B) {
	benchmark(b, member(body(4096), name("usr/share/doc/package/file")), 10000)
}

func BenchmarkLargeFiles(b *testing.B) {
	benchmark(b, member(body(1<<20), name("usr/lib/package/file")), 200)
}

func BenchmarkStreamReader(b *testing.B) {
	const members = 10000
	text := member("", name("usr/share/doc/package/"), typ('5')) + member(body(20), name("usr/share/doc/package/file"))
	var pieces []piece
	for range members / 2 {
		pieces = append(pieces, piece{true, text})
	}
	b.SetBytes(int64(len(text) * members / 2))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := readStream(&fakeChunks{pieces: pieces}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(members)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
