// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package splitstream

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// vector reads a file of testdata, whose README says where it comes from.
func vector(tb testing.TB, name string) []byte {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".hex"))
	if err != nil {
		tb.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func digest(tb testing.TB, s string) fsverity.Digest {
	tb.Helper()
	d, err := fsverity.ParseDigest(s)
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

// piece is a chunk with its inline bytes.
type piece struct {
	Inline string
	Object string
}

func pieces(tb testing.TB, r *Reader) []piece {
	tb.Helper()
	c, err := r.Chunks()
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	var out []piece
	for {
		chunk, err := c.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			tb.Fatal(err)
		}
		if !chunk.Inline {
			if got := r.ObjectRefs()[chunk.Index]; got != chunk.Object {
				tb.Errorf("object %d is %s, chunk says %s", chunk.Index, got, chunk.Object)
			}
			out = append(out, piece{Object: chunk.Object.String()})
			continue
		}
		b, err := io.ReadAll(c)
		if err != nil {
			tb.Fatal(err)
		}
		if uint64(len(b)) != chunk.Length {
			tb.Errorf("chunk of %d bytes has %d", chunk.Length, len(b))
		}
		out = append(out, piece{Inline: string(b)})
	}
}

const (
	fileA = "e40425eaca55b3aca9994575b03b1585ff756c4684395fa144ee2642aeaf1d49" // 100 times A
	fileB = "114ba21d5fc8636615337d5ee952546d454da9ee42145506bf5670bab7a7bee0" // 65 times B
)

func TestVectors(t *testing.T) {
	const (
		alpha = "61c07629b8a41273f190744a8545c132e6b784dcb2235bb31ade307a83e092ff"
		beta  = "ce472620ab69da46e385b0936865ef22f940e6bf55a083d3be37b1003795e221"
		gamma = "99ce11df4bb808a1e80ce69425dae527b64aa7a270bf99c4a6e24d66be270f3f"
		json  = "1dc5a7ea2c7a2d322c8ab613e8427bfe3fec9e6775b3c85896421a588d7c0e17"
	)
	zz := fsverity.Sum(fsverity.SHA256, []byte("zz"))
	aa := fsverity.Sum(fsverity.SHA256, []byte("aa"))
	tests := []struct {
		name    string
		id      string
		ct      ContentType
		size    uint64
		streams []string
		named   []NamedRef
		chunks  []piece
	}{
		{name: "empty", id: "7ff9fe4ec4e321464efd75c3fde78232cad5f8d6e7f11d31245043c163e16f8e"},
		{name: "inline", id: "fbf48665a4925a6b9a6d6d606228574b6db1ce2002db657c21647e948d3e2c91", size: 5, chunks: []piece{{Inline: "hello"}}},
		{name: "inline-old-header", id: "4e9616e123cbb13ef416f5a2cf445dbaa212fa89a6ba3e597e10b764ec6b2936", size: 5, chunks: []piece{{Inline: "hello"}}},
		{
			name: "mixed", id: "f01367777786685de4edc5ca2ac2962e0dedcee7b45d27aaf8d254525ef54d43", ct: 0xdeadbeef, size: 274,
			streams: []string{zz.String(), aa.String()},
			named:   []NamedRef{{"aa:bb", aa}, {"zz", zz}},
			chunks:  []piece{{Inline: "hdr"}, {Object: fileA}, {Inline: "mid"}, {Object: fileB}, {Object: fileA}, {Inline: "end"}},
		},
		{
			name: "config", id: "4839518dea22749f8ff233e7f7baec65f23dd5336462f46ad6884769af84bf95", ct: Config, size: 299,
			streams: []string{alpha, beta, gamma},
			named: []NamedRef{
				{"sha256:757d6903198804b6ed96421a93a9973f5facc0e445a2a6c61cb0129eb67026e2", digest(t, alpha)},
				{"sha256:77dd145166ef191089dabd4d2c52d32143850a3c81a074fedf48dca360e2dcb9", digest(t, beta)},
				{"sha256:9b57f0e91c403b650e9391fd5e4154cac5dc1469acc0f3312e6149aa34f160ef", digest(t, gamma)},
			},
			chunks: []piece{{Object: json}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := vector(t, tt.name)
			if got := fsverity.Sum(fsverity.SHA256, b).String(); got != tt.id {
				t.Errorf("fs-verity digest %s, want %s", got, tt.id)
			}
			r, err := NewReader(bytes.NewReader(b), int64(len(b)), ReaderOptions{Algorithm: fsverity.SHA256, ContentType: tt.ct})
			if err != nil {
				t.Fatal(err)
			}
			if r.ContentType() != tt.ct || r.Size() != tt.size {
				t.Errorf("type %s, size %d; want %s, %d", r.ContentType(), r.Size(), tt.ct, tt.size)
			}
			var streams []string
			for _, id := range r.StreamRefs() {
				streams = append(streams, id.String())
			}
			if diff := cmp.Diff(tt.streams, streams); diff != "" {
				t.Errorf("stream_refs (-want +got):\n%s", diff)
			}
			if len(tt.named) != len(r.NamedRefs()) {
				t.Errorf("named_refs %v, want %v", r.NamedRefs(), tt.named)
			}
			for i, n := range r.NamedRefs() {
				if n != tt.named[i] {
					t.Errorf("named ref %v, want %v", n, tt.named[i])
				}
				if id, ok := r.NamedRef(n.Name); !ok || id != n.ID {
					t.Errorf("look up %q: %s, %t", n.Name, id, ok)
				}
			}
			if _, ok := r.NamedRef("absent"); ok {
				t.Error("a name that is not there was found")
			}
			if diff := cmp.Diff(tt.chunks, pieces(t, r)); diff != "" {
				t.Errorf("chunks (-want +got):\n%s", diff)
			}
		})
	}
}

func TestVectorLayer(t *testing.T) {
	b := vector(t, "layer")
	r, err := NewReader(bytes.NewReader(b), int64(len(b)), ReaderOptions{ContentType: Layer})
	if err != nil {
		t.Fatal(err)
	}
	body := make([]byte, 1000)
	var out bytes.Buffer
	err = r.Reassemble(&out, func(id fsverity.Digest) (io.ReadCloser, error) {
		if id != fsverity.Sum(fsverity.SHA256, body) {
			t.Errorf("asked for object %s", id)
		}
		return io.NopCloser(bytes.NewReader(body)), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if out.Len() != 2560 || r.Size() != 2560 {
		t.Fatalf("%d bytes, size %d, want 2560", out.Len(), r.Size())
	}
	if got := out.Bytes(); string(got[:5]) != "alpha" || !bytes.Equal(got[512:], make([]byte, 2048)) {
		t.Errorf("not the tar: %q", got[:520])
	}
}
