// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"go.podman.io/storage/pkg/archive"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
)

// compressed is data as a blob.
func compressed(tb testing.TB, c oci.Compression, data []byte) []byte {
	tb.Helper()
	var b bytes.Buffer
	switch c {
	case oci.Gzip:
		w := gzip.NewWriter(&b)
		check(w.Write(data))(tb)
		must(tb, w.Close())
	case oci.Zstd:
		w := check(zstd.NewWriter(&b))(tb)
		check(w.Write(data))(tb)
		must(tb, w.Close())
	default:
		b.Write(data)
	}
	return b.Bytes()
}

// The library reads from the stream what is in the blob, and takes it for the
// same compression.
func TestLayerStream(t *testing.T) {
	for name, c := range map[string]oci.Compression{"plain": oci.Uncompressed, "gzip": oci.Gzip, "zstd": oci.Zstd} {
		for _, size := range []int{0, 1, 511, maxFrame - 1, maxFrame, maxFrame + 1, 3*maxFrame + 7} {
			t.Run(fmt.Sprintf("%s/%d", name, size), func(t *testing.T) {
				data := noise(size, size)
				if c == oci.Uncompressed && size > 1 {
					copy(data, "no magic number")
				}
				blob := compressed(t, c, data)
				open := func(want oci.Digest) *layerStream {
					b := check(oci.OpenLayerBlob(t.Context(), iotest.OneByteReader(bytes.NewReader(blob)), oci.Limits{}))(t)
					t.Cleanup(b.Close)
					return newLayerStream(t.Context(), b, want, func(oci.Digest) error { return errBroken })
				}
				framed, err := io.ReadAll(open(oci.DigestOf(data)))
				must(t, err)
				if got, want := archive.DetectCompression(framed[:min(10, len(framed))]), archive.DetectCompression(blob); got != want {
					t.Errorf("taken for compression %v, not %v", got, want)
				}
				r := check(archive.DecompressStream(bytes.NewReader(framed)))(t)
				got := check(io.ReadAll(r))(t)
				if !bytes.Equal(got, data) {
					t.Errorf("%d bytes, other than the %d of the blob", len(got), len(data))
				}
				// With another digest, the end of the archive is never delivered.
				framed, err = io.ReadAll(open(oci.DigestOf([]byte("other"))))
				if !errors.Is(err, errBroken) {
					t.Errorf("error %v", err)
				}
				if r, err := archive.DecompressStream(bytes.NewReader(framed)); err == nil && c != oci.Uncompressed && len(framed) > 0 {
					if _, err := io.ReadAll(r); err == nil {
						t.Error("the stream of a wrong archive has an end")
					}
				}
			})
		}
	}
}

// The stream is read no further than its context allows, and errors of the blob
// come through.
func TestLayerStreamErrors(t *testing.T) {
	data := noise(1, 1<<20)
	blob := compressed(t, oci.Gzip, data)
	for _, test := range []struct {
		name string
		in   io.Reader
		want error
	}{
		{"transfer", io.MultiReader(bytes.NewReader(blob[:len(blob)/2]), iotest.ErrReader(errBroken)), errBroken},
		{"truncated", bytes.NewReader(blob[:len(blob)-5]), oci.ErrMalformed},
		{"garbage", bytes.NewReader(append(bytes.Clone(blob), "garbage"...)), oci.ErrMalformed},
	} {
		b := check(oci.OpenLayerBlob(t.Context(), test.in, oci.Limits{}))(t)
		s := newLayerStream(t.Context(), b, oci.DigestOf(data), func(oci.Digest) error { return nil })
		if _, err := io.Copy(io.Discard, s); !errors.Is(err, test.want) {
			t.Errorf("%s: error %v, want %v", test.name, err, test.want)
		}
		b.Close()
	}
	b := check(oci.OpenLayerBlob(t.Context(), bytes.NewReader(blob), oci.Limits{MaxLayerSize: 1000}))(t)
	defer b.Close()
	s := newLayerStream(t.Context(), b, oci.DigestOf(data), func(oci.Digest) error { return nil })
	if _, err := io.Copy(io.Discard, s); !errors.Is(err, oci.ErrTooLarge) {
		t.Errorf("error %v", err)
	}
}
