// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/storage"
	"go.podman.io/storage/pkg/archive"

	"github.com/cfs-pull/cfs-pull/internal/ocilayout"
)

// layerFiles are the files of a layer: contents by name.
type layerFiles map[string][]byte

// noise is content that does not compress.
func noise(seed, size int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	data := make([]byte, size)
	_, _ = r.Read(data)
	return data
}

// makeImage makes an image in a layout and returns the reference to it.
func makeImage(tb testing.TB, c ocilayout.Compression, layers ...layerFiles) string {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "layout")
	w := check(ocilayout.Create(dir))(tb)
	for _, files := range layers {
		must(tb, w.AddLayer(c, func(t *tar.Writer) error { return writeFiles(t, files) }))
	}
	must(tb, w.Finish("latest", v1.ImageConfig{Labels: map[string]string{"containers.bootc": "1"}}))
	return "oci:" + dir + ":latest"
}

func writeFiles(t *tar.Writer, files layerFiles) error {
	directories := map[string]bool{}
	for name, content := range files {
		// The library's check expects directories to be in the archive.
		if dir, _, ok := strings.Cut(name, "/"); ok && !directories[dir] {
			directories[dir] = true
			err := t.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755})
			if err != nil {
				return err
			}
		}
		err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))})
		if err != nil {
			return err
		}
		if _, err := t.Write(content); err != nil {
			return err
		}
	}
	return nil
}

// layeredImage has three layers of half a megabyte that do not compress.
func layeredImage(tb testing.TB) string {
	tb.Helper()
	var layers []layerFiles
	for i := range 3 {
		layers = append(layers, layerFiles{"file" + string(rune('0'+i)): noise(i, 512<<10)})
	}
	return makeImage(tb, ocilayout.Gzip, layers...)
}

// countLayers makes a source count how often each layer is opened.
func countLayers(src *Source) *[8]atomic.Int32 {
	var counts [8]atomic.Int32
	open := src.Layer
	src.Layer = func(ctx context.Context, i int) (io.ReadCloser, error) {
		counts[i].Add(1)
		return open(ctx, i)
	}
	return &counts
}

func opened(counts *[8]atomic.Int32) (out []int) {
	for i := range counts {
		if n := counts[i].Load(); n > 0 {
			out = append(out, i)
		}
	}
	return out
}

// breakLayer makes the reader of layer i fail with err after half of the blob,
// the first times that it is opened.
func breakLayer(src *Source, i, times int, err func() error) {
	var opened atomic.Int32
	open := src.Layer
	src.Layer = func(ctx context.Context, index int) (io.ReadCloser, error) {
		r, openErr := open(ctx, index)
		if openErr != nil || index != i || int(opened.Add(1)) > times {
			return r, openErr
		}
		return &brokenReader{ReadCloser: r, left: 100 << 10, err: err}, nil
	}
}

type brokenReader struct {
	io.ReadCloser
	left int
	err  func() error
}

func (r *brokenReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, r.err()
	}
	n, err := r.ReadCloser.Read(p[:min(len(p), r.left)])
	r.left -= n
	return n, err
}

// readArchive is what the library makes of a layer's files: the original
// archive.
func readArchive(tb testing.TB, s *Store, layer string) []byte {
	tb.Helper()
	w := check(s.writer(tb.Context()))(tb)
	plain := archive.Uncompressed
	r := check(w.lib.Diff("", layer, &storage.DiffOptions{Compression: &plain}))(tb)
	data := check(io.ReadAll(r))(tb)
	must(tb, r.Close())
	return data
}

var errBroken = errors.New("connection lost")
