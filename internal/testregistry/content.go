// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package testregistry

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Descriptor is an OCI descriptor, for tests that write their own manifests.
type Descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	URLs        []string          `json:"urls,omitempty"`
	Platform    *Platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Platform is the platform of a descriptor in an index.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

// Sum is the digest of data, "sha256:…".
func Sum(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// put sends a request past the front of the registry: without a log, without
// credentials, without faults.
func (r *Registry) put(tb testing.TB, method, path, contentType string, body []byte) {
	tb.Helper()
	req := httptest.NewRequest(method, path, bytes.NewReader(body))
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	answer := httptest.NewRecorder()
	r.inner.ServeHTTP(answer, req)
	if answer.Code != http.StatusCreated {
		tb.Fatalf("%s %s: status %d: %s", method, path, answer.Code, answer.Body)
	}
}

// PutBlob stores a blob.
func (r *Registry) PutBlob(tb testing.TB, repository, mediaType string, data []byte) Descriptor {
	tb.Helper()
	d := Descriptor{MediaType: mediaType, Digest: Sum(data), Size: int64(len(data))}
	r.put(tb, http.MethodPost, fmt.Sprintf("/v2/%s/blobs/uploads/?digest=%s", repository, d.Digest), "", data)
	return d
}

// PutManifest stores a manifest or an index under its digest, and under tag
// unless that is empty.
func (r *Registry) PutManifest(tb testing.TB, repository, tag, mediaType string, data []byte) Descriptor {
	tb.Helper()
	d := Descriptor{MediaType: mediaType, Digest: Sum(data), Size: int64(len(data))}
	if tag == "" {
		tag = d.Digest
	}
	r.put(tb, http.MethodPut, fmt.Sprintf("/v2/%s/manifests/%s", repository, tag), mediaType, data)
	return d
}

// PutImage stores an image of go-containerregistry.
func (r *Registry) PutImage(tb testing.TB, repository, tag string, img v1.Image) Descriptor {
	tb.Helper()
	layers, err := img.Layers()
	check(tb, err)
	for _, layer := range layers {
		body, err := layer.Compressed()
		check(tb, err)
		data, err := io.ReadAll(body)
		check(tb, err)
		check(tb, body.Close())
		r.PutBlob(tb, repository, "", data)
	}
	config, err := img.RawConfigFile()
	check(tb, err)
	r.PutBlob(tb, repository, "", config)
	mediaType, err := img.MediaType()
	check(tb, err)
	manifest, err := img.RawManifest()
	check(tb, err)
	return r.PutManifest(tb, repository, tag, string(mediaType), manifest)
}

// PutLayout stores the images of an OCI layout: the one called NAME there as
// repository:NAME. Of several, only those in names; all when that is empty.
func (r *Registry) PutLayout(tb testing.TB, repository, dir string, names ...string) {
	tb.Helper()
	var index struct{ Manifests []Descriptor }
	data, err := os.ReadFile(filepath.Join(dir, "index.json"))
	check(tb, err)
	check(tb, json.Unmarshal(data, &index))
	wanted := map[string]bool{}
	for _, name := range names {
		wanted[name] = true
	}
	for _, d := range index.Manifests {
		name := d.Annotations["org.opencontainers.image.ref.name"]
		if len(names) == 0 || wanted[name] {
			r.putLayoutManifest(tb, repository, name, dir, d)
		}
	}
}

func (r *Registry) putLayoutManifest(tb testing.TB, repository, tag, dir string, d Descriptor) {
	tb.Helper()
	data := layoutBlob(tb, dir, d.Digest)
	var m struct {
		Config    *Descriptor
		Layers    []Descriptor
		Manifests []Descriptor
	}
	check(tb, json.Unmarshal(data, &m))
	for _, child := range m.Manifests {
		r.putLayoutManifest(tb, repository, "", dir, child)
	}
	if m.Config != nil {
		r.PutBlob(tb, repository, "", layoutBlob(tb, dir, m.Config.Digest))
	}
	for _, layer := range m.Layers {
		r.PutBlob(tb, repository, "", layoutBlob(tb, dir, layer.Digest))
	}
	r.PutManifest(tb, repository, tag, d.MediaType, data)
}

func layoutBlob(tb testing.TB, dir, digest string) []byte {
	tb.Helper()
	algorithm, hash, _ := strings.Cut(digest, ":")
	data, err := os.ReadFile(filepath.Join(dir, "blobs", algorithm, hash))
	check(tb, err)
	return data
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
