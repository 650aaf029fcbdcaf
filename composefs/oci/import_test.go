// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
)

func newTestRepo(t *testing.T) (*composefs.Repo, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "repo")
	if _, err := composefs.Init(t.Context(), path, composefs.InitOptions{AllowMissingVerity: true}); err != nil {
		t.Fatal(err)
	}
	repo, err := composefs.Open(t.Context(), path, composefs.OpenOptions{AllowMissingVerity: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := repo.Close(); err != nil {
			t.Error(err)
		}
	})
	return repo, path
}

// tarHeader is the header of one file, without its body.
func tarHeader(t *testing.T, h *tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// endless repeats a block for ever and counts what was read of it.
type endless struct {
	block []byte
	n     int64
}

func (r *endless) Read(p []byte) (n int, err error) {
	for n < len(p) {
		n += copy(p[n:], r.block[(r.n+int64(n))%int64(len(r.block)):])
	}
	r.n += int64(n)
	return n, nil
}

// bytesOnly is a layer without files.
type bytesOnly struct{ io.Reader }

func (bytesOnly) NextFile(uint64) *LayerFile                 { return nil }
func (bytesOnly) Explain(_ context.Context, err error) error { return err }
func (bytesOnly) Close() error                               { return nil }

// TestInlineBytesAreBounded frames a layer of empty files faster than anything
// takes its segments.
func TestInlineBytesAreBounded(t *testing.T) {
	const most = 16 << 20
	repo, _ := newTestRepo(t)
	in := &endless{block: tarHeader(t, &tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644})}
	synctest.Test(t, func(t *testing.T) {
		im := NewImporter(repo, ImporterOptions{Workers: 1})
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = im.frame(ctx, bytesOnly{in}, newSegments()) }()
		synctest.Wait()
		cancel()
		synctest.Wait()
		im.Close()
	})
	if in.n > most {
		t.Errorf("%d bytes wait for the splitstream, at most %d are reasonable", in.n, most)
	}
}

// stalling is a blob that delivers some bytes and then nothing until its
// context ends.
type stalling struct {
	ctx context.Context
	io.Reader
}

func (s *stalling) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		<-s.ctx.Done()
		err = context.Cause(s.ctx)
	}
	return n, err
}

func (s *stalling) Close() error { return nil }

// TestStoreFails makes sure that a layer whose first file cannot be stored is
// not read to its end, nor waited for.
func TestStoreFails(t *testing.T) {
	repo, path := newTestRepo(t)
	if err := os.WriteFile(filepath.Join(path, "objects"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int64{"large file": 1 << 40, "small file": 1000} {
		t.Run(name, func(t *testing.T) {
			im := NewImporter(repo, ImporterOptions{})
			defer im.Close()
			content := io.LimitReader(&endless{block: []byte{1}}, min(size, 4<<20))
			head := tarHeader(t, &tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644, Size: size})
			open := func(ctx context.Context) (io.ReadCloser, error) {
				return &stalling{ctx, io.MultiReader(bytes.NewReader(head), content)}, nil
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := im.ImportLayer(ctx, OpenBlob(open, Limits{}), DigestOf(nil))
			if !errors.Is(err, unix.ENOTDIR) {
				t.Fatalf("import: %v, want that objects/ is not a directory", err)
			}
			if ctx.Err() != nil {
				t.Error("the import ended only with its context")
			}
		})
	}
}

// TestTransferErrorIsNotMalformed breaks the transfer in the header of a
// compressed layer.
func TestTransferErrorIsNotMalformed(t *testing.T) {
	repo, _ := newTestRepo(t)
	im := NewImporter(repo, ImporterOptions{})
	defer im.Close()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Name = "a name that makes the header longer"
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("connection reset")
	for _, n := range []int{2, 5, 20, b.Len() - 2} {
		open := func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(b.Bytes()[:n]), errReader{broken})), nil
		}
		_, err := im.ImportLayer(t.Context(), OpenBlob(open, Limits{}), DigestOf(nil))
		if !errors.Is(err, broken) || errors.Is(err, ErrMalformed) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestManifestSizes(t *testing.T) {
	layer := `{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"` + DigestOf(nil).String() + `","size":9223372036854775807}`
	for n, ok := range map[string]bool{layer: true, layer + "," + layer: false} {
		_, err := ParseManifest([]byte(`{"config":{"mediaType":"` + mediaTypeOCIConfig + `","digest":"` + DigestOf(nil).String() + `"},"layers":[` + n + `]}`))
		if ok != (err == nil) || !ok && !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", n, err)
		}
	}
}

// TestCauseIsReported cuts a layer short, in the middle of files, and wants the
// reason and not what followed from it.
func TestCauseIsReported(t *testing.T) {
	repo, _ := newTestRepo(t)
	im := NewImporter(repo, ImporterOptions{})
	defer im.Close()
	broken := errors.New("connection reset")
	for _, size := range []int64{1000, 2 << 20} {
		head := tarHeader(t, &tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644, Size: size})
		for range 20 {
			for _, end := range []error{broken, io.EOF} {
				open := func(context.Context) (io.ReadCloser, error) {
					body := io.LimitReader(&endless{block: []byte{1}}, size/2)
					return io.NopCloser(io.MultiReader(bytes.NewReader(head), body, errReader{end})), nil
				}
				want := end
				if end == io.EOF {
					want = ErrMalformed
				}
				if _, err := im.ImportLayer(t.Context(), OpenBlob(open, Limits{}), DigestOf(nil)); !errors.Is(err, want) {
					t.Fatalf("a file of %d bytes that ends with %v: %v", size, end, err)
				}
			}
		}
	}
}
