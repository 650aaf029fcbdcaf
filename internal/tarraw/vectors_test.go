// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package tarraw

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/klauspost/compress/zstd"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Annotations map[string]string `json:"annotations"`
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// vectorLayers returns the uncompressed layers of each image of the layout,
// by image name and diff_id order. Images of several platforms are left out.
func vectorLayers(t *testing.T) map[string][][]byte {
	t.Helper()
	layout := filepath.Join(testutil.Vectors(t), "oci", "layout")
	blob := func(digest string) string {
		return filepath.Join(layout, "blobs", strings.ReplaceAll(digest, ":", "/"))
	}
	var index struct {
		Manifests []descriptor `json:"manifests"`
	}
	readJSON(t, filepath.Join(layout, "index.json"), &index)
	images := map[string][][]byte{}
	for _, image := range index.Manifests {
		name := image.Annotations["org.opencontainers.image.ref.name"]
		if !strings.Contains(image.MediaType, "manifest.v1+json") || name == "bad-blob" {
			continue // bad-blob has a layer that is not what its digest says
		}
		var manifest struct {
			Layers []descriptor `json:"layers"`
		}
		readJSON(t, blob(image.Digest), &manifest)
		for _, layer := range manifest.Layers {
			b, err := os.ReadFile(blob(layer.Digest))
			if err != nil {
				t.Fatal(err)
			}
			images[name] = append(images[name], decompress(t, b))
		}
	}
	return images
}

func decompress(t *testing.T, b []byte) []byte {
	t.Helper()
	var r io.Reader = bytes.NewReader(b)
	switch {
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		r = z
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		r = z
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestVectors compares the chunks of every layer with those that cfsctl made
// of it, as an independent reader lists them.
func TestVectors(t *testing.T) {
	vectors := testutil.Vectors(t)
	compared := 0
	for name, layers := range vectorLayers(t) {
		if strings.HasPrefix(name, "bad-") {
			continue
		}
		var expect map[string]struct {
			Repository struct {
				Streams map[string]struct {
					Chunks []string `json:"chunks"`
				} `json:"streams"`
			} `json:"repository"`
		}
		path := filepath.Join(vectors, "oci", "expect", name+".json")
		if _, err := os.Stat(path); err != nil {
			t.Logf("%s: no expectation", name)
			continue
		}
		readJSON(t, path, &expect)
		for kind, repository := range expect {
			alg := fsverity.SHA512
			if strings.HasPrefix(kind, "sha256") {
				alg = fsverity.SHA256
			}
			for i, layer := range layers {
				id := fmt.Sprintf("oci-layer-sha256:%x", sha256.Sum256(layer))
				stream, ok := repository.Repository.Streams[id]
				if !ok {
					t.Errorf("%s, %s, layer %d: %s is not expected", name, kind, i, id)
					continue
				}
				_, pieces, err := frame(bytes.NewReader(layer), Limits{})
				if err != nil {
					t.Errorf("%s, layer %d: %v", name, i, err)
					continue
				}
				var got []string
				for _, p := range pieces {
					if p.inline {
						got = append(got, fmt.Sprintf("inline %d %x", len(p.data), sha256.Sum256([]byte(p.data))))
					} else {
						got = append(got, fmt.Sprintf("object %d %s", len(p.data), fsverity.Sum(alg, []byte(p.data))))
					}
				}
				if diff := cmp.Diff(stream.Chunks, got); diff != "" {
					t.Errorf("%s, %s, layer %d (-cfsctl +got):\n%s", name, kind, i, diff)
				}
				compared++
			}
		}
	}
	if compared < 60 {
		t.Errorf("only %d layers were compared", compared)
	}
}

// TestBadVectors frames the layers that must be refused for their archive, and
// those that must be refused later, when the tree is built.
func TestBadVectors(t *testing.T) {
	rules := map[string]string{
		"bad-negative-mtime": RulePaxTime,
		"bad-sparse":         RuleSparse,
		"bad-truncated":      RuleTruncated,
		"bad-checksum":       RuleChecksum,
	}
	layers := vectorLayers(t)
	for name := range rules {
		if len(layers[name]) == 0 {
			t.Errorf("no image %s", name)
		}
	}
	for name, layers := range layers {
		if !strings.HasPrefix(name, "bad-") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			var failed error
			for _, layer := range layers {
				if _, _, err := frame(bytes.NewReader(layer), Limits{}); err != nil {
					failed = err
				}
			}
			if rule := rules[name]; rule != "" {
				e := wantRule(t, failed, rule)
				if e.Entry == "" {
					t.Errorf("error names no member: %v", failed)
				}
				t.Log(failed)
			} else if failed != nil {
				t.Error(failed)
			}
		})
	}
}

// TestSplitstreams writes each layer as a splitstream file and reads the
// members back from it.
func TestSplitstreams(t *testing.T) {
	for name, layers := range vectorLayers(t) {
		if strings.HasPrefix(name, "bad-") {
			continue
		}
		for _, layer := range layers {
			entries, pieces, err := frame(bytes.NewReader(layer), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			again, err := readStream(writeStream(t, pieces))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if diff := cmp.Diff(entries, again, cmpopts.IgnoreFields(Entry{}, "Object")); diff != "" {
				t.Errorf("%s (-archive +splitstream):\n%s", name, diff)
			}
			bodies := objects(pieces)
			for _, e := range again {
				if !e.External() {
					continue
				}
				if e.Object != bodies[0] {
					t.Errorf("%s: %s has object %s, want %s", name, e.Name, e.Object, bodies[0])
				}
				bodies = bodies[1:]
			}
		}
	}
}

func objects(pieces []piece) []fsverity.Digest {
	var all []fsverity.Digest
	for _, p := range pieces {
		if !p.inline {
			all = append(all, object(p.data))
		}
	}
	return all
}

func writeStream(t *testing.T, pieces []piece) *splitstream.ChunkReader {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "stream"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w, err := splitstream.NewWriter(f, fsverity.SHA256, splitstream.Layer)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pieces {
		if p.inline {
			_, err = w.Write([]byte(p.data))
		} else {
			err = w.External(object(p.data), uint64(len(p.data)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r, err := splitstream.NewReader(f, info.Size(), splitstream.ReaderOptions{Algorithm: fsverity.SHA256, ContentType: splitstream.Layer})
	if err != nil {
		t.Fatal(err)
	}
	chunks, err := r.Chunks()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(chunks.Close)
	return chunks
}
