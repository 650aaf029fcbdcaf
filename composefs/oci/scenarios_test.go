// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// The scenarios here are those that composefs-rs pins for images: specification
// section 6.4.

// layerTar is a layer of files, by name: a directory when the name ends in a
// slash, a symbolic link when the content begins with "->", else a file.
func layerTar(tb testing.TB, files ...string) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		name, content, _ := strings.Cut(f, "=")
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if target, ok := strings.CutPrefix(content, "->"); ok {
			h.Typeflag, h.Linkname, h.Size, content = tar.TypeSymlink, target, 0, ""
		}
		if err := w.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// baseLayers are an image of five layers with four files that are objects.
func baseLayers(tb testing.TB) [][]byte {
	tb.Helper()
	text := func(n int) string { return strings.Repeat(fmt.Sprintf("%d ", n), n)[:n] }
	return [][]byte{
		layerTar(tb, "usr/", "usr/bin/", "usr/lib/", "usr/share/", "etc/", "var/", "tmp/"),
		layerTar(tb, "usr/", "usr/bin/", "usr/bin/busybox="+text(4096), "usr/bin/sh=->busybox"),
		layerTar(tb, "usr/", "usr/bin/", "usr/bin/ls=->busybox", "usr/bin/cat=->busybox"),
		layerTar(tb, "etc/", "etc/os-release=ID=test\nVERSION_ID=1.0\n", "etc/hostname=test-host", "etc/passwd="+text(100)),
		layerTar(tb, "usr/", "usr/share/", "usr/share/doc/", "usr/share/doc/README="+text(512), "var/", "var/data/", "var/data/app.json="+text(256)),
	}
}

func importTar(tb testing.TB, repo *composefs.Repo, layer []byte) fsverity.Digest {
	tb.Helper()
	im := NewImporter(repo, ImporterOptions{})
	defer im.Close()
	open := func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil }
	id, err := im.ImportLayer(tb.Context(), OpenBlob(open, Limits{}), DigestOf(layer))
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

// newImage imports layers and makes the documents of an image of them, as a
// pull does.
func newImage(tb testing.TB, repo *composefs.Repo, comment string, layers [][]byte, tags ...string) *Image {
	tb.Helper()
	im := &Image{Layers: map[Digest]fsverity.Digest{}, Tags: tags}
	var descriptors []string
	for _, layer := range layers {
		d := DigestOf(layer)
		im.Layers[d] = importTar(tb, repo, layer)
		im.DiffIDs = append(im.DiffIDs, d)
		descriptors = append(descriptors, fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}`, d, len(layer)))
	}
	ids, err := json.Marshal(im.DiffIDs)
	if err != nil {
		tb.Fatal(err)
	}
	im.Config = fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","comment":%q,"rootfs":{"type":"layers","diff_ids":%s}}`, comment, ids)
	im.Manifest = fmt.Appendf(nil, `{"schemaVersion":2,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[%s]}`,
		mediaTypeOCIConfig, DigestOf(im.Config), len(im.Config), strings.Join(descriptors, ","))
	return im
}

func commitImage(tb testing.TB, repo *composefs.Repo, im *Image) Digest {
	tb.Helper()
	c, err := Commit(tb.Context(), repo, im)
	if err != nil {
		tb.Fatal(err)
	}
	return c.ManifestDigest
}

// commitArtifact commits an artifact of one blob, which its config does not
// know of.
func commitArtifact(tb testing.TB, repo *composefs.Repo, content string, tags ...string) (manifest Digest, blob fsverity.Digest) {
	tb.Helper()
	blob, _, err := repo.Put([]byte(content))
	if err != nil {
		tb.Fatal(err)
	}
	layer, err := repo.WriteStream(splitstream.Blob, func(w *splitstream.Writer) error { return w.External(blob, uint64(len(content))) })
	if err != nil {
		tb.Fatal(err)
	}
	d := DigestOf([]byte(content))
	if err := repo.LinkStream(LayerStream(d), layer); err != nil {
		tb.Fatal(err)
	}
	config, err := writeDocument(repo, splitstream.Config, []byte("{}"), nil)
	if err != nil {
		tb.Fatal(err)
	}
	configDigest := DigestOf([]byte("{}"))
	if err := repo.LinkStream(ConfigStream(configDigest), config); err != nil {
		tb.Fatal(err)
	}
	raw := fmt.Appendf(nil, `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":2},"layers":[{"mediaType":"text/spdx+json","digest":%q,"size":%d}]}`,
		configDigest, d, len(content))
	stream, err := writeDocument(repo, splitstream.Manifest, raw, []ref{{configRef + configDigest.String(), config}, {d.String(), layer}})
	if err != nil {
		tb.Fatal(err)
	}
	manifest = DigestOf(raw)
	if err := repo.LinkStream(ManifestStream(manifest), stream); err != nil {
		tb.Fatal(err)
	}
	for _, tag := range tags {
		if err := repo.SetStreamRef(must(EncodeTag(tag))(tb), ManifestStream(manifest)); err != nil {
			tb.Fatal(err)
		}
	}
	return manifest, blob
}

// must takes apart what a function returns.
func must[T any](v T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		return v
	}
}

// removed are the counts of a collection.
type removed struct{ Objects, Streams, Images, Refs int }

// collectGarbage runs a dry run and a collection, which must agree, and a second
// collection, which must do nothing.
func collectGarbage(tb testing.TB, repo *composefs.Repo) removed {
	tb.Helper()
	run := func(o composefs.GCOptions) removed {
		unlock := must(repo.LockExclusive(tb.Context(), -1))(tb)
		defer func() { _ = unlock() }()
		r := must(CollectGarbage(tb.Context(), repo, o))(tb)
		return removed{int(r.Objects), len(r.Streams), len(r.Images), len(r.Refs)}
	}
	would := run(composefs.GCOptions{DryRun: true})
	did := run(composefs.GCOptions{})
	if would != did {
		tb.Errorf("a dry run says %+v, the collection %+v", would, did)
	}
	if again := run(composefs.GCOptions{}); again != (removed{}) {
		tb.Errorf("a second collection removes %+v", again)
	}
	return did
}

func wantRemoved(tb testing.TB, repo *composefs.Repo, what string, want removed) {
	tb.Helper()
	if diff := cmp.Diff(want, collectGarbage(tb, repo)); diff != "" {
		tb.Errorf("%s: removed (-want +got):\n%s", what, diff)
	}
}

// sound checks the whole repository.
func sound(tb testing.TB, repo *composefs.Repo) {
	tb.Helper()
	report := must(Fsck(tb.Context(), repo, FsckOptions{}))(tb)
	for _, f := range report.Findings {
		if f.Severity == composefs.Error {
			tb.Errorf("fsck: %+v", f)
		}
	}
}

func hasStream(tb testing.TB, repo *composefs.Repo, name string) bool {
	tb.Helper()
	_, err := repo.StreamID(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		tb.Fatal(err)
	}
	return err == nil
}

func hasManifest(tb testing.TB, repo *composefs.Repo, d Digest) bool {
	tb.Helper()
	return hasStream(tb, repo, ManifestStream(d))
}

// An image that was committed before its EROFS image was made: the documents
// that name it replace the first ones.
func TestScenarioErofsLater(t *testing.T) {
	repo, _ := newTestRepo(t)
	manifest := commitImage(t, repo, newImage(t, repo, "base", baseLayers(t), "gctest:v1"))
	wantRemoved(t, repo, "after the pull", removed{})
	if up := must(Upgrade(t.Context(), repo, Limits{}))(t); up.Images != 1 {
		t.Fatalf("upgraded %+v", up)
	}
	wantRemoved(t, repo, "with an EROFS image", removed{Objects: 2})
	sound(t, repo)
	if doc := must(OpenManifest(repo, manifest))(t); DigestOf(doc.Raw) != manifest {
		t.Error("the manifest has changed")
	}
	must(RemoveTag(repo, "gctest:v1"))(t)
	// Five layers, four files, two documents and their streams, one EROFS image.
	wantRemoved(t, repo, "without the tag", removed{Objects: 14, Streams: 7, Images: 1})
	sound(t, repo)
}

// What only the manifest of an artifact leads to, by way of a layer's stream.
func TestScenarioArtifact(t *testing.T) {
	repo, _ := newTestRepo(t)
	_, blob := commitArtifact(t, repo, `{"spdxVersion":"SPDX-2.3","name":"example"}`, "my-sbom:v1")
	wantRemoved(t, repo, "with a tag", removed{})
	if ok, err := repo.HasObject(blob, -1); !ok || err != nil {
		t.Errorf("the blob is there: %t, %v", ok, err)
	}
	sound(t, repo)
	must(RemoveTag(repo, "my-sbom:v1"))(t)
	// The blob, two documents, and three streams.
	wantRemoved(t, repo, "without the tag", removed{Objects: 6, Streams: 3})
}

func TestScenarioTags(t *testing.T) {
	repo, _ := newTestRepo(t)
	shared := layerTar(t, "usr/", "usr/shared="+strings.Repeat("shared ", 100))
	one := commitImage(t, repo, newImage(t, repo, "one", [][]byte{shared}, "original:v1"))
	two := commitImage(t, repo, newImage(t, repo, "two", [][]byte{shared, layerTar(t, "usr/", "usr/own="+strings.Repeat("own ", 100))}))

	// The image without a tag goes; the layer that both have stays.
	wantRemoved(t, repo, "an image without a tag", removed{Objects: 6, Streams: 3})
	if !hasManifest(t, repo, one) || hasManifest(t, repo, two) || !hasStream(t, repo, LayerStream(DigestOf(shared))) {
		t.Error("the wrong image is gone")
	}
	sound(t, repo)

	// Two tags: the image stays until the last is gone.
	must(SetTag(repo, "alias:latest", one))(t)
	if tags := must(List(t.Context(), repo, false))(t); len(tags) != 2 {
		t.Errorf("images %+v", tags)
	}
	must(RemoveTag(repo, "original:v1"))(t)
	wantRemoved(t, repo, "one tag less", removed{})
	must(RemoveTag(repo, "alias:latest"))(t)
	// By its digest it can still be opened.
	if _, err := OpenManifest(repo, one); err != nil {
		t.Error(err)
	}
	wantRemoved(t, repo, "no tag", removed{Objects: 6, Streams: 3})
	if hasManifest(t, repo, one) {
		t.Error("the manifest is still there")
	}
	absent := &NotFoundError{}
	if _, err := RemoveTag(repo, "alias:latest"); !errors.As(err, &absent) {
		t.Errorf("untag again: %v", err)
	}
	if _, err := SetTag(repo, "gone", one); err == nil {
		t.Error("an image that is not there was tagged")
	}
	if _, err := SetTag(repo, "@x", one); err == nil {
		t.Error("a name with @ was accepted")
	}
}

// Artifacts that refer to an image go with it, others stay.
func TestScenarioReferrers(t *testing.T) {
	repo, _ := newTestRepo(t)
	var subjects, artifacts []Digest
	for i := range 2 {
		s := commitImage(t, repo, newImage(t, repo, fmt.Sprint(i), nil, fmt.Sprintf("subject%d:v1", i)))
		a, _ := commitArtifact(t, repo, fmt.Sprintf("signature of subject %d", i))
		if err := repo.SetStreamRef(referrerPrefix+s.String()+"/"+a.String(), ManifestStream(a)); err != nil {
			t.Fatal(err)
		}
		subjects, artifacts = append(subjects, s), append(artifacts, a)
	}
	wantRemoved(t, repo, "both tagged", removed{})
	must(RemoveTag(repo, "subject0:v1"))(t)
	// Of the image: two documents and their streams. Of the artifact, whose
	// config is the other's as well: blob, layer, manifest and its stream.
	wantRemoved(t, repo, "one tag less", removed{Objects: 8, Streams: 4, Refs: 1})
	for i, want := range []bool{false, true} {
		if hasManifest(t, repo, subjects[i]) != want || hasManifest(t, repo, artifacts[i]) != want {
			t.Errorf("subject or artifact %d: want %t", i, want)
		}
		if got := must(Referrers(repo, subjects[i]))(t); (len(got) == 1) != want {
			t.Errorf("referrers of subject %d: %v", i, got)
		}
	}
	sound(t, repo)
}

// Hazard 7.1.7: a layer that is imported again, or that another program has
// stored in another way meanwhile, keeps the stream that it has.
func TestScenarioLayerStoredTwice(t *testing.T) {
	repo, _ := newTestRepo(t)
	layer := baseLayers(t)[1]
	name := LayerStream(DigestOf(layer))
	// Another program's stream: the same archive, all of it inline.
	foreign, err := repo.WriteStream(splitstream.Layer, func(w *splitstream.Writer) error {
		_, err := w.Write(layer)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	first := newImage(t, repo, "first", [][]byte{layer}, "first")
	if slices.Contains(slices.Collect(maps.Values(first.Layers)), foreign) {
		t.Fatal("both programs store it in the same way")
	}
	// It links its stream after we imported ours and before we commit.
	if err := repo.LinkStream(name, foreign); err != nil {
		t.Fatal(err)
	}
	manifests := []Digest{
		commitImage(t, repo, first),
		commitImage(t, repo, newImage(t, repo, "second", [][]byte{layer}, "second")), // a second import
	}
	if id := must(repo.StreamID(name))(t); id != foreign {
		t.Errorf("the layer's link leads to %s", id)
	}
	collectGarbage(t, repo) // our stream and its file
	for _, m := range manifests {
		doc := must(OpenManifest(repo, m))(t)
		if got := doc.Refs[DigestOf(layer).String()]; got != foreign {
			t.Errorf("manifest %s names stream %s", m, got)
		}
	}
	sound(t, repo)
	must(RemoveTag(repo, "first"))(t)
	collectGarbage(t, repo)
	sound(t, repo)
	if !must(repo.HasObject(foreign, -1))(t) || !hasManifest(t, repo, manifests[1]) {
		t.Error("the other image lost its layer")
	}
}
