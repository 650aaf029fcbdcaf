// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package splitstream

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// layer is what a distribution's layer leaves inline: a header for each of n
// files, some with a small body, and the objects between them.
func layer(tb testing.TB, n int) (headers [][]byte, ids []fsverity.Digest) {
	tb.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		must(tb, tw.WriteHeader(&tar.Header{
			Name: fmt.Sprintf("usr/share/package-%d/locale/file-%x.mo", i/40, rng.Uint32()),
			Mode: 0o644, Size: rng.Int64N(100000), ModTime: time.Unix(1700000000+rng.Int64N(1000), 0),
			PAXRecords: map[string]string{"SCHILY.xattr.user.test": fmt.Sprint(i % 7)},
		}))
		headers = append(headers, b.Bytes())
		ids = append(ids, fsverity.Sum(fsverity.SHA512, fmt.Append(nil, i)))
	}
	return headers, ids
}

func BenchmarkWriter(b *testing.B) {
	headers, ids := layer(b, 10000)
	f := newFile(b)
	var inline, compressed int64
	b.ReportAllocs()
	for b.Loop() {
		must(b, f.Truncate(0))
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			b.Fatal(err)
		}
		w, err := NewWriter(f, fsverity.SHA512, Layer)
		must(b, err)
		for i, h := range headers {
			if _, err := w.Write(h); err != nil {
				b.Fatal(err)
			}
			must(b, w.External(ids[i], 1000))
		}
		must(b, w.Finish())
		inline = int64(w.InlineBytes())
		st, err := f.Stat()
		must(b, err)
		compressed = st.Size()
	}
	b.SetBytes(inline)
	b.ReportMetric(float64(compressed-64*int64(len(ids)))/float64(inline), "compressed/inline")
}

func BenchmarkChunks(b *testing.B) {
	headers, ids := layer(b, 10000)
	r, _ := write512(b, headers, ids)
	buf := make([]byte, 64<<10)
	b.SetBytes(int64(r.Size() - 1000*uint64(len(ids))))
	b.ReportAllocs()
	for b.Loop() {
		c, err := r.Chunks()
		must(b, err)
		for {
			chunk, err := c.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			must(b, err)
			if chunk.Inline {
				if _, err := io.ReadFull(c, buf[:chunk.Length]); err != nil {
					b.Fatal(err)
				}
			}
		}
		c.Close()
	}
}

// BenchmarkOpen is what garbage collection does with each stream.
func BenchmarkOpen(b *testing.B) {
	headers, ids := layer(b, 10000)
	_, raw := write512(b, headers, ids)
	b.ReportAllocs()
	for b.Loop() {
		r, err := NewReader(bytes.NewReader(raw), int64(len(raw)), ReaderOptions{})
		must(b, err)
		if len(r.ObjectRefs()) != len(ids) {
			b.Fatal("objects are missing")
		}
	}
}

func write512(tb testing.TB, headers [][]byte, ids []fsverity.Digest) (*Reader, []byte) {
	tb.Helper()
	f := newFile(tb)
	w, err := NewWriter(f, fsverity.SHA512, Layer)
	must(tb, err)
	for i, h := range headers {
		if _, err := w.Write(h); err != nil {
			tb.Fatal(err)
		}
		must(tb, w.External(ids[i], 1000))
	}
	must(tb, w.Finish())
	st, err := f.Stat()
	must(tb, err)
	raw := make([]byte, st.Size())
	if _, err := f.ReadAt(raw, 0); err != nil {
		tb.Fatal(err)
	}
	r, err := NewReader(bytes.NewReader(raw), st.Size(), ReaderOptions{})
	must(tb, err)
	return r, raw
}
