// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package selinux

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// TestVectorPolicy reads the policy out of the image "selinux" and compares
// the labels of the image's paths with those of a scan of all lines.
func TestVectorPolicy(t *testing.T) {
	layout := filepath.Join(testutil.Vectors(t), "oci", "layout")
	type descriptor struct {
		Digest      string            `json:"digest"`
		Annotations map[string]string `json:"annotations"`
	}
	open := func(digest string) io.ReadCloser {
		f, err := os.Open(filepath.Join(layout, "blobs", strings.ReplaceAll(digest, ":", "/")))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	decode := func(r io.ReadCloser, v any) {
		defer r.Close()
		if err := json.NewDecoder(r).Decode(v); err != nil {
			t.Fatal(err)
		}
	}
	var index struct{ Manifests []descriptor }
	f, err := os.Open(filepath.Join(layout, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	decode(f, &index)
	files := map[string][]byte{}
	kinds := map[string]byte{}
	for _, image := range index.Manifests {
		if image.Annotations["org.opencontainers.image.ref.name"] != "selinux" {
			continue
		}
		var manifest struct{ Layers []descriptor }
		decode(open(image.Digest), &manifest)
		for _, layer := range manifest.Layers {
			blob := open(layer.Digest)
			defer blob.Close()
			z, err := gzip.NewReader(blob)
			if err != nil {
				t.Fatal(err)
			}
			for r := tar.NewReader(z); ; {
				h, err := r.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				name := path.Join("/", h.Name)
				if kinds[name] = '-'; h.Typeflag >= '2' && h.Typeflag <= '6' {
					kinds[name] = "lcbdp"[h.Typeflag-'2']
				}
				if files[name], err = io.ReadAll(r); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	policyType, ok := ParseConfig(files["/etc/selinux/config"])
	if !ok {
		t.Fatal("no SELINUXTYPE in the image's /etc/selinux/config")
	}
	file := func(suffix string) []byte {
		return files["/etc/selinux/"+policyType+"/contexts/files/file_contexts"+suffix]
	}
	src := Sources{FileContexts: file(""), Local: file(".local"), Homedirs: file(".homedirs"), Subs: file(".subs"), SubsDist: file(".subs_dist")}
	if len(src.FileContexts) == 0 || len(src.SubsDist) == 0 {
		t.Fatal("the image has no policy")
	}
	p, scan := mustParse(t, src), newNaive(t, src)
	labels := map[string]bool{}
	for name, kind := range kinds {
		got, ok := p.Lookup(name, kind)
		want, wantOK := scan.lookup(name, kind)
		if got != want && ok || ok != wantOK {
			t.Errorf("Lookup(%q, %q) = %q, %v, want %q, %v", name, kind, got, ok, want, wantOK)
		}
		labels[got] = true
	}
	if err := p.Err(); err != nil {
		t.Error(err)
	}
	if len(labels) < 8 {
		t.Errorf("only %d labels in %d paths", len(labels), len(kinds))
	}
}
