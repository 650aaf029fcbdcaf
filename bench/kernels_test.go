// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package bench measures the kernels of a pull and a whole pull from memory.
//
// Every benchmark works on the same synthetic operating system layer: the
// sizes of its files follow those of a real one, most of them small and most
// of the bytes in few large ones. Results are bytes and files per second.
//
//	go test -run ^$ -bench . ./bench
//
// With TMPDIR=/dev/shm the disk has no part in it; otherwise a pull waits for
// the disk once, as it must.
package bench

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/tarraw"
)

// layer is a tar archive in memory.
type layer struct {
	tar   []byte
	files int
}

// fileSizes are sizes of files with their share in thousandths, after a Debian
// system with a kernel.
var fileSizes = []struct{ share, size int }{
	{220, 40}, {300, 1500}, {250, 6000}, {150, 20_000}, {60, 80_000}, {15, 400_000}, {5, 3_000_000},
}

// newLayer makes a layer of that many files. Their content compresses about
// as well as programs do.
func newLayer(b *testing.B, files int) *layer {
	b.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = make([]byte, 4+random.IntN(24))
		for j := range words[i] {
			words[i][j] = byte(random.Uint32())
		}
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	write := func(h *tar.Header, content []byte) {
		if err := w.WriteHeader(h); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			b.Fatal(err)
		}
	}
	dir := func(name string) { write(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, nil) }
	dir("usr")
	for i := range files {
		if i%64 == 0 {
			dir(fmt.Sprintf("usr/d%d", i/64))
		}
		size := 0
		for p := random.IntN(1000); ; size++ {
			if p -= fileSizes[size].share; p < 0 {
				break
			}
		}
		content := make([]byte, 0, fileSizes[size].size)
		for want := fileSizes[size].size/2 + random.IntN(fileSizes[size].size); len(content) < want; {
			content = append(content, words[random.IntN(len(words))]...)
		}
		write(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/d%d/f%d", i/64, i), Mode: 0o644, Size: int64(len(content))}, content)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return &layer{tar: buf.Bytes(), files: files}
}

const benchFiles = 4000

// report adds the files to the figures of a benchmark.
func report(b *testing.B, size, files int) {
	b.SetBytes(int64(size))
	b.ReportMetric(float64(files)*float64(b.N)/b.Elapsed().Seconds(), "files/s")
}

func BenchmarkVerityDigest(b *testing.B) {
	data := make([]byte, 64<<20)
	for _, alg := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
		for _, size := range []int{4 << 10, 64 << 10, len(data)} {
			b.Run(fmt.Sprintf("%s/%dKiB", alg.HashName(), size>>10), func(b *testing.B) {
				for b.Loop() {
					fsverity.Sum(alg, data[:size])
				}
				report(b, size, 1)
			})
		}
	}
}

func BenchmarkTarFramer(b *testing.B) {
	l := newLayer(b, benchFiles)
	b.ResetTimer()
	for b.Loop() {
		r := tarraw.NewReader(bytes.NewReader(l.tar), func([]byte) error { return nil }, tarraw.Limits{})
		for {
			e, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
			if e.External() {
				if _, err := io.Copy(io.Discard, r); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	report(b, len(l.tar), l.files)
}

func BenchmarkSplitstream(b *testing.B) {
	header := make([]byte, 1024)
	copy(header, "usr/share/doc/package/copyright")
	ids := make([]fsverity.Digest, benchFiles)
	for i := range ids {
		ids[i] = fsverity.Sum(fsverity.SHA512, fmt.Append(nil, i))
	}
	dir := b.TempDir()
	size := 0
	b.ResetTimer()
	for b.Loop() {
		f, err := os.Create(filepath.Join(dir, "stream"))
		if err != nil {
			b.Fatal(err)
		}
		w, err := splitstream.NewWriter(f, fsverity.SHA512, splitstream.Layer)
		if err != nil {
			b.Fatal(err)
		}
		for i, id := range ids {
			header[100], header[101] = byte(i), byte(i>>8)
			if _, err := w.Write(header); err != nil {
				b.Fatal(err)
			}
			if err := w.External(id, 1000); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Finish(); err != nil {
			b.Fatal(err)
		}
		size = int(w.InlineBytes())
		f.Close()
	}
	report(b, size, len(ids))
}

func BenchmarkErofsWriter(b *testing.B) {
	l := newLayer(b, benchFiles)
	repo := newRepo(b)
	id := importLayer(b, repo, l.tar, oci.DigestOf(l.tar))
	m := oci.NewMerger(repo, oci.Limits{})
	if err := m.Layer(b.Context(), id); err != nil {
		b.Fatal(err)
	}
	for _, v := range []erofs.Version{erofs.V1, erofs.V2} {
		b.Run(v.String(), func(b *testing.B) {
			size := 0
			for b.Loop() {
				image, err := erofs.Marshal(m.Root(), v)
				if err != nil {
					b.Fatal(err)
				}
				size = len(image)
			}
			report(b, size, l.files)
		})
	}
}

func newRepo(b *testing.B) *composefs.Repo {
	b.Helper()
	path := filepath.Join(b.TempDir(), "repo")
	if _, err := composefs.Init(b.Context(), path, composefs.InitOptions{AllowMissingVerity: true}); err != nil {
		b.Fatal(err)
	}
	repo, err := composefs.Open(b.Context(), path, composefs.OpenOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := repo.Close(); err != nil {
			b.Error(err)
		}
	})
	return repo
}

func importLayer(b *testing.B, repo *composefs.Repo, blob []byte, diffID oci.Digest) fsverity.Digest {
	b.Helper()
	im := oci.NewImporter(repo, oci.ImporterOptions{})
	defer im.Close()
	open := func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(blob)), nil }
	id, err := im.ImportLayer(b.Context(), oci.OpenBlob(open, oci.Limits{}), diffID)
	if err != nil {
		b.Fatal(err)
	}
	return id
}

// BenchmarkPull imports a layer from memory into a new repository, merges it,
// builds the plain image and tags the result.
func BenchmarkPull(b *testing.B) {
	l := newLayer(b, benchFiles)
	diffID := oci.DigestOf(l.tar)
	for _, c := range []struct {
		name string
		blob []byte
	}{{"plain", l.tar}, {"gzip", gzipped(b, l.tar)}, {"zstd", zstdCompressed(b, l.tar)}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				repo := newRepo(b)
				b.StartTimer()
				pull(b, repo, c.blob, diffID)
			}
			report(b, len(l.tar), l.files)
		})
	}
}

func pull(b *testing.B, repo *composefs.Repo, blob []byte, diffID oci.Digest) {
	b.Helper()
	id := importLayer(b, repo, blob, diffID)
	m := oci.NewMerger(repo, oci.Limits{})
	if err := m.Layer(b.Context(), id); err != nil {
		b.Fatal(err)
	}
	if err := oci.Transform(m.Root(), oci.AllowlistOnly); err != nil {
		b.Fatal(err)
	}
	image, err := oci.BuildImage(repo, m.Root(), erofs.V1)
	if err != nil {
		b.Fatal(err)
	}
	_, err = oci.Commit(b.Context(), repo, &oci.Image{
		Manifest: []byte("{}"), Config: []byte("{}"), DiffIDs: []oci.Digest{diffID},
		Layers: map[oci.Digest]fsverity.Digest{diffID: id},
		Images: map[string]fsverity.Digest{oci.ImageKey(false, erofs.V1, oci.AllowlistOnly): image},
		Tags:   []string{"bench"},
	})
	if err != nil {
		b.Fatal(err)
	}
}

func gzipped(b *testing.B, data []byte) []byte {
	b.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		b.Fatal(err)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return buf.Bytes()
}

func zstdCompressed(b *testing.B, data []byte) []byte {
	b.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(data, nil)
}
