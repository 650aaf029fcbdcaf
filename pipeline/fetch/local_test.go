// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/cfs-pull/cfs-pull/internal/testregistry"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// layoutNames are the names of the images in a layout.
func layoutNames(t *testing.T, dir string) map[string]testregistry.Descriptor {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "index.json"))
	must(t, err)
	var index struct{ Manifests []testregistry.Descriptor }
	must(t, json.Unmarshal(data, &index))
	names := map[string]testregistry.Descriptor{}
	for _, d := range index.Manifests {
		names[d.Annotations["org.opencontainers.image.ref.name"]] = d
	}
	return names
}

// TestVectorLayout reads every image of the conformance layout. What the
// images are about is for the importer; here only bad-blob is bad.
func TestVectorLayout(t *testing.T) {
	dir := filepath.Join(testutil.Vectors(t), "oci", "layout")
	for name, d := range layoutNames(t, dir) {
		t.Run(name, func(t *testing.T) {
			img := mustOpen(t, "oci:"+dir+":"+name, testOptions(t))
			if name == "multi-arch" {
				if img.IndexDigest.String() != d.Digest {
					t.Errorf("IndexDigest = %s, want %s", img.IndexDigest, d.Digest)
				}
			} else if img.ManifestDigest.String() != d.Digest {
				t.Errorf("ManifestDigest = %s, want %s", img.ManifestDigest, d.Digest)
			}
			if name == "bad-blob" {
				_, err := readLayer(t, img, 0)
				wantError[*IntegrityError](t, err)
				return
			}
			config, layers := readAll(t, img)
			var c struct {
				RootFS struct {
					DiffIDs []string `json:"diff_ids"`
				} `json:"rootfs"`
			}
			must(t, json.Unmarshal(config, &c))
			if same := len(c.RootFS.DiffIDs) == len(layers); same == (name == "bad-diffid-count") {
				t.Errorf("%d diff_ids, %d layers", len(c.RootFS.DiffIDs), len(layers))
			}
			for i, data := range layers {
				want := CompressionNone
				switch {
				case bytes.HasPrefix(data, []byte{0x1f, 0x8b}):
					want = CompressionGzip
				case bytes.HasPrefix(data, []byte{0x28, 0xb5, 0x2f, 0xfd}):
					want = CompressionZstd
				}
				if got := img.Layers[i].Compression; got != want {
					t.Errorf("layer %d: Compression = %v, content is %v", i, got, want)
				}
			}
		})
	}
}

func TestVectorPlatforms(t *testing.T) {
	dir := filepath.Join(testutil.Vectors(t), "oci", "layout")
	digests := map[string]digest.Digest{}
	for _, arch := range []string{"amd64", "arm64"} {
		o := testOptions(t)
		o.Architecture = arch
		digests[arch] = mustOpen(t, "oci:"+dir+":multi-arch", o).ManifestDigest
	}
	if digests["amd64"] == digests["arm64"] {
		t.Errorf("same manifest for amd64 and arm64")
	}
	o := testOptions(t)
	o.Architecture = "riscv64"
	_, err := Open(t.Context(), "oci:"+dir+":multi-arch", o)
	wantError[*NotFoundError](t, err)
	if want := "no image for platform linux/riscv64; there are: linux/amd64, linux/arm64"; !strings.Contains(err.Error(), want) {
		t.Errorf("error %q does not say %q", err, want)
	}
}

// TestVectorDir reads the Docker image in dir: form.
func TestVectorDir(t *testing.T) {
	dir := filepath.Join(testutil.Vectors(t), "oci", "dir-docker-types")
	img := mustOpen(t, "dir:"+dir, testOptions(t))
	manifest, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	must(t, err)
	if !bytes.Equal(img.Manifest, manifest) {
		t.Errorf("manifest is not that of the directory")
	}
	if img.MediaType != MediaTypeDockerManifest {
		t.Errorf("MediaType = %s", img.MediaType)
	}
	if len(img.Layers) != 1 || img.Layers[0].Compression != CompressionGzip {
		t.Errorf("Layers = %+v", img.Layers)
	}
	readAll(t, img)
}

// TestVectorRegistry serves some of the layout from a registry and compares.
func TestVectorRegistry(t *testing.T) {
	dir := filepath.Join(testutil.Vectors(t), "oci", "layout")
	reg, o := startRegistry(t, testregistry.Options{})
	names := []string{"layers", "sizes-zstd", "multi-arch", "annotated"}
	reg.PutLayout(t, "vectors/image", dir, names...)
	for _, name := range names {
		fromDir := mustOpen(t, "oci:"+dir+":"+name, o)
		fromReg := mustOpen(t, reg.Host()+"/vectors/image:"+name, o)
		if !bytes.Equal(fromDir.Manifest, fromReg.Manifest) || fromDir.IndexDigest != fromReg.IndexDigest {
			t.Errorf("%s: the registry has another manifest", name)
		}
		if diff := cmp.Diff(fromDir.Layers, fromReg.Layers); diff != "" {
			t.Errorf("%s: layers (-dir +registry):\n%s", name, diff)
		}
	}
}

// writeLayout writes an OCI layout whose index.json has these descriptors.
func writeLayout(t *testing.T, entries ...testregistry.Descriptor) string {
	t.Helper()
	dir := t.TempDir()
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": entries})
	must(t, err)
	writeFile(t, filepath.Join(dir, "index.json"), index)
	writeFile(t, filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return dir
}

func putLayoutBlob(t *testing.T, dir, mediaType string, data []byte) testregistry.Descriptor {
	t.Helper()
	d := testregistry.Descriptor{MediaType: mediaType, Digest: testregistry.Sum(data), Size: int64(len(data))}
	writeFile(t, filepath.Join(dir, "blobs", "sha256", digest.Digest(d.Digest).Encoded()), data)
	return d
}

// layoutImage makes an image with one plain layer and returns its descriptor
// and its blobs.
func layoutImage(t *testing.T, name, config, layer string) (testregistry.Descriptor, [][]byte) {
	t.Helper()
	describe := func(mediaType, data string) testregistry.Descriptor {
		return testregistry.Descriptor{MediaType: mediaType, Digest: testregistry.Sum([]byte(data)), Size: int64(len(data))}
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": MediaTypeOCIManifest,
		"config": describe("application/vnd.oci.image.config.v1+json", config),
		"layers": []any{describe("application/vnd.oci.image.layer.v1.tar", layer)},
	})
	must(t, err)
	d := describe(MediaTypeOCIManifest, string(manifest))
	if name != "" {
		d.Annotations = map[string]string{"org.opencontainers.image.ref.name": name}
	}
	return d, [][]byte{manifest, []byte(config), []byte(layer)}
}

func TestLayoutSelection(t *testing.T) {
	a, blobsA := layoutImage(t, "a", `{"os":"linux","architecture":"amd64"}`, "layer a")
	armA, blobsArmA := layoutImage(t, "a", `{"os":"linux","architecture":"arm64"}`, "layer a for arm64")
	b, blobsB := layoutImage(t, "b", `{"os":"linux","architecture":"s390x"}`, "layer b")
	none, blobsNone := layoutImage(t, "", `{"os":"linux","architecture":"amd64"}`, "layer")
	layout := func(entries ...testregistry.Descriptor) string {
		dir := writeLayout(t, entries...)
		for _, blobs := range [][][]byte{blobsA, blobsArmA, blobsB, blobsNone} {
			for _, data := range blobs {
				putLayoutBlob(t, dir, "", data)
			}
		}
		return dir
	}
	for _, test := range []struct {
		name    string
		entries []testregistry.Descriptor
		suffix  string
		arch    string
		want    string
		err     error // a value of the wanted type
	}{
		{name: "the only one", entries: []testregistry.Descriptor{b}, want: b.Digest},
		{name: "the only one, trailing colon", entries: []testregistry.Descriptor{b}, suffix: ":", want: b.Digest},
		{name: "by name", entries: []testregistry.Descriptor{a, b}, suffix: ":b", want: b.Digest},
		{name: "by position", entries: []testregistry.Descriptor{a, b}, suffix: ":@1", want: b.Digest},
		{name: "by platform", entries: []testregistry.Descriptor{armA, a}, suffix: ":a", want: a.Digest},
		{name: "by other platform", entries: []testregistry.Descriptor{a, armA}, arch: "arm64", want: armA.Digest},
		{name: "no platform suits", entries: []testregistry.Descriptor{a, armA}, arch: "s390x", err: &NotFoundError{}},
		{name: "same twice", entries: []testregistry.Descriptor{b, b}, want: b.Digest},
		{name: "no name", entries: []testregistry.Descriptor{none}, want: none.Digest},
		{name: "several names", entries: []testregistry.Descriptor{a, b}, err: &UsageError{}},
		{name: "named and not", entries: []testregistry.Descriptor{none, b}, err: &UsageError{}},
		{name: "absent name", entries: []testregistry.Descriptor{a, b}, suffix: ":c", err: &NotFoundError{}},
		{name: "absent position", entries: []testregistry.Descriptor{a, b}, suffix: ":@2", err: &NotFoundError{}},
		{name: "empty", err: &NotFoundError{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := testOptions(t)
			if test.arch != "" {
				o.Architecture = test.arch
			}
			img, err := Open(t.Context(), "oci:"+layout(test.entries...)+test.suffix, o)
			switch test.err.(type) {
			case *UsageError:
				wantError[*UsageError](t, err)
			case *NotFoundError:
				wantError[*NotFoundError](t, err)
			default:
				must(t, err)
				defer img.Close()
				if img.ManifestDigest.String() != test.want {
					t.Errorf("ManifestDigest = %s, want %s", img.ManifestDigest, test.want)
				}
				readAll(t, img)
			}
		})
	}
}

func TestHostileLayout(t *testing.T) {
	image, blobs := layoutImage(t, "a", `{"os":"linux","architecture":"amd64"}`, "layer")
	blobFile := func(dir string, data []byte) string {
		return filepath.Join(dir, "blobs", "sha256", digest.FromBytes(data).Encoded())
	}
	fresh := func(t *testing.T) string {
		dir := writeLayout(t, image)
		for _, data := range blobs {
			putLayoutBlob(t, dir, "", data)
		}
		return dir
	}
	open := func(t *testing.T, dir string) error {
		img, err := Open(t.Context(), "oci:"+dir+":a", testOptions(t))
		if err != nil {
			return err
		}
		defer img.Close()
		if _, err := img.Config(t.Context()); err != nil {
			return err
		}
		_, err = readLayer(t, img, 0)
		return err
	}
	must(t, open(t, fresh(t)))

	t.Run("manifest with other content", func(t *testing.T) {
		dir := fresh(t)
		writeFile(t, blobFile(dir, blobs[0]), append(blobs[0], ' '))
		if e := wantError[*IntegrityError](t, open(t, dir)); e.Layer != PartManifest {
			t.Errorf("%+v", e)
		}
	})
	t.Run("config with other content", func(t *testing.T) {
		dir := fresh(t)
		writeFile(t, blobFile(dir, blobs[1]), bytes.ToUpper(blobs[1]))
		if e := wantError[*IntegrityError](t, open(t, dir)); e.Layer != PartConfig {
			t.Errorf("%+v", e)
		}
	})
	t.Run("layer too long", func(t *testing.T) {
		dir := fresh(t)
		writeFile(t, blobFile(dir, blobs[2]), append(blobs[2], 0))
		if e := wantError[*IntegrityError](t, open(t, dir)); e.Layer != 0 {
			t.Errorf("%+v", e)
		}
	})
	t.Run("layer absent", func(t *testing.T) {
		dir := fresh(t)
		must(t, os.Remove(blobFile(dir, blobs[2])))
		wantError[*NotFoundError](t, open(t, dir))
	})
	for i, part := range []string{"manifest", "config", "layer"} {
		t.Run(part+" is a FIFO", func(t *testing.T) {
			dir := fresh(t)
			must(t, os.Remove(blobFile(dir, blobs[i])))
			must(t, syscall.Mkfifo(blobFile(dir, blobs[i]), 0o600))
			if err := open(t, dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
				t.Errorf("error %v", err)
			}
		})
	}
	for _, name := range []string{"index.json", "manifest"} {
		t.Run("huge "+name, func(t *testing.T) {
			dir := fresh(t)
			path := filepath.Join(dir, name)
			if name == "manifest" {
				path = blobFile(dir, blobs[0])
			}
			must(t, os.Truncate(path, 1<<40))
			var err error
			allocated := allocatedBy(func() { err = open(t, dir) })
			if err == nil || allocated > 16<<20 {
				t.Errorf("error %v, %d bytes allocated", err, allocated)
			}
		})
	}
	t.Run("layout absent", func(t *testing.T) {
		wantError[*NotFoundError](t, open(t, filepath.Join(t.TempDir(), "absent")))
		wantError[*NotFoundError](t, open(t, filepath.Join(t.TempDir(), "absent", "deeper")))
	})
}

func TestHostileDir(t *testing.T) {
	image, blobs := layoutImage(t, "", `{}`, "layer")
	fresh := func(t *testing.T) string {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "version"), []byte("Directory Transport Version: 1.1\n"))
		writeFile(t, filepath.Join(dir, "manifest.json"), blobs[0])
		for _, data := range blobs[1:] {
			writeFile(t, filepath.Join(dir, digest.FromBytes(data).Encoded()), data)
		}
		return dir
	}
	img := mustOpen(t, "dir:"+fresh(t), testOptions(t))
	if img.ManifestDigest.String() != image.Digest {
		t.Errorf("ManifestDigest = %s, want %s", img.ManifestDigest, image.Digest)
	}
	readAll(t, img)
	for _, name := range []string{"version", "manifest.json", "signature-1"} {
		t.Run("huge "+name, func(t *testing.T) {
			dir := fresh(t)
			writeFile(t, filepath.Join(dir, name), nil)
			must(t, os.Truncate(filepath.Join(dir, name), 1<<40))
			if _, err := Open(t.Context(), "dir:"+dir, testOptions(t)); err == nil || !strings.Contains(err.Error(), "larger than the limit") {
				t.Errorf("error %v", err)
			}
		})
	}
	t.Run("manifest is a FIFO", func(t *testing.T) {
		dir := fresh(t)
		must(t, os.Remove(filepath.Join(dir, "manifest.json")))
		must(t, syscall.Mkfifo(filepath.Join(dir, "manifest.json"), 0o600))
		if _, err := Open(t.Context(), "dir:"+dir, testOptions(t)); err == nil {
			t.Error("no error")
		}
	})
	t.Run("absent", func(t *testing.T) {
		_, err := Open(t.Context(), "dir:"+filepath.Join(t.TempDir(), "absent"), testOptions(t))
		wantError[*NotFoundError](t, err)
	})
}

// packDir packs a directory as a tar file.
func packDir(t *testing.T, dir string, compress bool) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	var out io.Writer = f
	if compress {
		z := gzip.NewWriter(f)
		defer z.Close()
		out = z
	}
	w := tar.NewWriter(out)
	must(t, w.AddFS(os.DirFS(dir)))
	must(t, w.Close())
	return path
}

func TestOCIArchive(t *testing.T) {
	image, blobs := layoutImage(t, "a", `{"os":"linux","architecture":"amd64"}`, "layer")
	dir := writeLayout(t, image)
	for _, data := range blobs {
		putLayoutBlob(t, dir, "", data)
	}
	for _, compress := range []bool{false, true} {
		path := packDir(t, dir, compress)
		for _, suffix := range []string{"", ":a"} {
			o := testOptions(t)
			img := mustOpen(t, "oci-archive:"+path+suffix, o)
			if img.ManifestDigest.String() != image.Digest {
				t.Errorf("ManifestDigest = %s, want %s", img.ManifestDigest, image.Digest)
			}
			if _, layers := readAll(t, img); string(layers[0]) != "layer" {
				t.Errorf("layer %q", layers[0])
			}
			if left, _ := filepath.Glob(filepath.Join(o.TempDir, "*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		}
		_, err := Open(t.Context(), "oci-archive:"+path+":b", testOptions(t))
		wantError[*NotFoundError](t, err)
	}
	t.Run("unpacked where there is space", func(t *testing.T) {
		path := packDir(t, dir, true)
		for name, test := range map[string]struct{ unpackDir, tempDir string }{
			"in UnpackDir":             {t.TempDir(), filepath.Join(t.TempDir(), "absent")},
			"UnpackDir cannot have it": {filepath.Join(t.TempDir(), "absent"), t.TempDir()},
		} {
			o := testOptions(t)
			o.UnpackDir, o.TempDir = test.unpackDir, test.tempDir
			img, err := Open(t.Context(), "oci-archive:"+path, o)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			readAll(t, img)
			for _, dir := range []string{test.unpackDir, test.tempDir} {
				if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
					t.Errorf("%s: left behind: %v", name, left)
				}
			}
			must(t, img.Close())
		}
	})
	t.Run("truncated", func(t *testing.T) {
		data, err := os.ReadFile(packDir(t, dir, false))
		must(t, err)
		// The last member is one that is not needed.
		last := bytes.Index(data, []byte("oci-layout\x00"))
		if last < 0 {
			t.Fatal("no oci-layout in the archive")
		}
		needed := bytes.LastIndexByte(data[:last], '}') + 1
		path := filepath.Join(t.TempDir(), "image.tar")
		for size := 0; size < needed; size += 101 {
			writeFile(t, path, data[:size])
			img, err := Open(t.Context(), "oci-archive:"+path, testOptions(t))
			if err == nil {
				img.Close()
				t.Errorf("the first %d of %d bytes were accepted", size, len(data))
			}
			if IsRetryable(err) {
				t.Errorf("retryable: %v", err)
			}
		}
	})
	t.Run("absent", func(t *testing.T) {
		_, err := Open(t.Context(), "oci-archive:"+filepath.Join(t.TempDir(), "absent.tar"), testOptions(t))
		wantError[*NotFoundError](t, err)
	})
}

// TestDockerArchive reads a file laid out as docker save does it: one layer
// plain, one compressed, one a link to the first.
func TestDockerArchive(t *testing.T) {
	first, second := []byte("first layer"), bytes.Repeat([]byte("second layer "), 1000)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err := z.Write(second)
	must(t, err)
	must(t, z.Close())
	config, err := json.Marshal(map[string]any{
		"os": "linux", "architecture": "amd64",
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{
			testregistry.Sum(first), testregistry.Sum(second), testregistry.Sum(first),
		}},
	})
	must(t, err)
	write := func(t *testing.T, manifest string) string {
		path := filepath.Join(t.TempDir(), "image.tar")
		f, err := os.Create(path)
		must(t, err)
		defer f.Close()
		w := tar.NewWriter(f)
		for _, file := range []struct {
			name string
			data []byte
		}{
			{"manifest.json", []byte(manifest)}, {"config.json", config},
			{"1/layer.tar", first}, {"2/layer.tar", packed.Bytes()},
		} {
			must(t, w.WriteHeader(&tar.Header{Name: file.name, Size: int64(len(file.data)), Mode: 0o644}))
			_, err = w.Write(file.data)
			must(t, err)
		}
		must(t, w.WriteHeader(&tar.Header{Name: "3/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../1/layer.tar"}))
		must(t, w.Close())
		return path
	}
	const layers = `"Layers":["1/layer.tar","2/layer.tar","3/layer.tar"]`
	path := write(t, `[{"Config":"config.json","RepoTags":["os.test/image:v1"],`+layers+`}]`)
	for _, suffix := range []string{"", ":os.test/image:v1", ":@0"} {
		img := mustOpen(t, "docker-archive:"+path+suffix, testOptions(t))
		gotConfig, got := readAll(t, img)
		if !bytes.Equal(gotConfig, config) {
			t.Errorf("config %s", gotConfig)
		}
		if diff := cmp.Diff([][]byte{first, second, first}, got); diff != "" {
			t.Errorf("layers (-want +got):\n%s", diff)
		}
		if img.MediaType != MediaTypeDockerManifest || img.Layers[1].Compression != CompressionNone {
			t.Errorf("MediaType = %s, Compression = %v", img.MediaType, img.Layers[1].Compression)
		}
		if img.ManifestDigest != digest.FromBytes(img.Manifest) {
			t.Errorf("ManifestDigest = %s", img.ManifestDigest)
		}
	}
	for name, test := range map[string]struct{ manifest, suffix string }{
		"absent tag":      {`[{"Config":"config.json","RepoTags":["os.test/image:v1"],` + layers + `}]`, ":os.test/image:v2"},
		"absent position": {`[{"Config":"config.json",` + layers + `}]`, ":@1"},
		"empty":           {`[]`, ""},
		"absent config":   {`[{"Config":"../config.json",` + layers + `}]`, ""},
		"absent layer":    {`[{"Config":"config.json","Layers":["1/layer.tar","2/layer.tar","/etc/passwd"]}]`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			img, err := Open(t.Context(), "docker-archive:"+write(t, test.manifest)+test.suffix, testOptions(t))
			if err == nil {
				img.Close()
				if name != "absent layer" { // the third is the first by its diff_id
					t.Error("no error")
				}
				return
			}
			wantError[*NotFoundError](t, err)
		})
	}
	t.Run("layer of another diff_id", func(t *testing.T) {
		img := mustOpen(t, "docker-archive:"+write(t, `[{"Config":"config.json","Layers":["2/layer.tar","2/layer.tar","1/layer.tar"]}]`), testOptions(t))
		_, err := readLayer(t, img, 0)
		wantError[*IntegrityError](t, err)
	})
	t.Run("several images", func(t *testing.T) {
		_, err := Open(t.Context(), "docker-archive:"+write(t, `[{"Config":"config.json","RepoTags":["a:1"]},{"Config":"config.json","RepoTags":["b:1"]}]`), testOptions(t))
		wantError[*UsageError](t, err)
	})
}

// TestSkopeoArchives compares our readers of archives with what skopeo writes
// and what it reads from them.
func TestSkopeoArchives(t *testing.T) {
	skopeo := testutil.RequireTool(t, "skopeo", "skopeo")
	dir := filepath.Join(testutil.Vectors(t), "oci", "layout")
	run := func(args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), skopeo, append([]string{"--insecure-policy", "--tmpdir", t.TempDir()}, args...)...)
		cmd.Stderr = testWriter{t}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("skopeo %s: %v", strings.Join(args, " "), err)
		}
		return out
	}
	want := mustOpen(t, "oci:"+dir+":layers", testOptions(t))

	t.Run("oci-archive", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "image.tar")
		run("copy", "oci:"+dir+":layers", "oci-archive:"+path+":tag")
		img := mustOpen(t, "oci-archive:"+path+":tag", testOptions(t))
		if img.ManifestDigest != want.ManifestDigest {
			t.Errorf("ManifestDigest = %s, want %s", img.ManifestDigest, want.ManifestDigest)
		}
		readAll(t, img)
	})
	t.Run("docker-archive", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "image.tar")
		run("copy", "oci:"+dir+":layers", "docker-archive:"+path+":os.test/image:v1")
		img := mustOpen(t, "docker-archive:"+path, testOptions(t))
		_, layers := readAll(t, img)
		if len(layers) != len(want.Layers) {
			t.Errorf("%d layers, want %d", len(layers), len(want.Layers))
		}
		// The manifest is made up, so it should be made up as skopeo does it.
		if diff := cmp.Diff(string(run("inspect", "--raw", "docker-archive:"+path)), string(img.Manifest)); diff != "" {
			t.Errorf("manifest (-skopeo +ours):\n%s", diff)
		}
	})
	t.Run("dir", func(t *testing.T) {
		path := t.TempDir()
		run("copy", "--all", "oci:"+dir+":multi-arch", "dir:"+path)
		img := mustOpen(t, "dir:"+path, testOptions(t))
		if img.IndexDigest == "" || digest.FromBytes(img.Index) != img.IndexDigest {
			t.Errorf("IndexDigest %q, %d bytes of index", img.IndexDigest, len(img.Index))
		}
		readAll(t, img)
	})
}
