// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/ocilayout"
	"github.com/cfs-pull/cfs-pull/internal/repodump"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

// fsck checks a repository.
func fsck(t *testing.T, path string, o oci.FsckOptions) *oci.FsckReport {
	t.Helper()
	repo, err := composefs.Open(t.Context(), path, composefs.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := repo.Close(); err != nil {
			t.Error(err)
		}
	}()
	report, err := oci.Fsck(t.Context(), repo, o)
	if err != nil {
		t.Fatal(err)
	}
	if report.OK != (report.Errors == 0) || report.Errors+report.Warnings != len(report.Findings)+report.Omitted {
		t.Errorf("the report contradicts itself: %+v", report)
	}
	return report
}

func wantClean(t *testing.T, r *oci.FsckReport) {
	t.Helper()
	if !r.OK || len(r.Findings) > 0 {
		t.Errorf("the repository is not clean: %+v", r.Findings)
	}
}

// unpackRepo unpacks a repository of the vectors.
func unpackRepo(t *testing.T, kind string) string {
	t.Helper()
	repo := filepath.Join(t.TempDir(), "repo")
	if err := os.Mkdir(repo, 0o700); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(testutil.Vectors(t), "repos", kind+".tar.zst")
	testutil.RequireTool(t, "zstd", "zstd")
	if out, err := exec.Command(testutil.RequireTool(t, "tar", "tar"), "--zstd", "-xf", archive, "-C", repo).CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v\n%s", archive, err, out)
	}
	if err := os.Chmod(repo, 0o700); err != nil {
		t.Fatal(err)
	}
	return repo
}

// TestFsckVectors checks what the reference tools left.
func TestFsckVectors(t *testing.T) {
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			repo := unpackRepo(t, kind)
			full := fsck(t, repo, oci.FsckOptions{})
			wantClean(t, full)
			c := full.Counts
			if c.Manifests != 7 || c.Tags != 7 || c.Images != 14 || c.ImagesRebuilt != 14 || c.Objects != 153 || c.BytesRead == 0 {
				t.Errorf("checked was %+v", c)
			}
			quick := fsck(t, repo, oci.FsckOptions{Quick: true})
			wantClean(t, quick)
			if q := quick.Counts; q.BytesRead != 0 || q.ImagesRebuilt != 0 || q.Objects != c.Objects || q.Manifests != 7 {
				t.Errorf("a quick check did %+v", q)
			}
			wantClean(t, fsck(t, repo, oci.FsckOptions{Repair: true, DropDamaged: true}))
		})
	}
	// What releases before meta.json left, once it is there: only the padding
	// of some layers is gone.
	for kind, meta := range map[string]composefs.Meta{
		"old-sha256": composefs.NewMeta(fsverity.SHA256, composefs.FormatConfig{Default: erofs.V1}),
		"old-sha512": composefs.NewMeta(fsverity.SHA512, composefs.FormatConfig{Default: erofs.V1}),
	} {
		t.Run(kind, func(t *testing.T) {
			repo := unpackRepo(t, kind)
			text, err := meta.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(repo, "meta.json"), text, 0o644); err != nil {
				t.Fatal(err)
			}
			r := fsck(t, repo, oci.FsckOptions{})
			if !r.OK || r.Counts.Manifests != 4 || r.ByKind[oci.LayerPaddingLost] == 0 || len(r.ByKind) != 1 {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestFsckPulled checks what our own pulls leave.
func TestFsckPulled(t *testing.T) {
	vectors := ociVectors(t)
	for kind, init := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			repo := newRepo(t, init)
			files, err := filepath.Glob(filepath.Join(vectors, "expect", "*.json"))
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				image := strings.TrimSuffix(filepath.Base(file), ".json")
				o := pullOptions(repo, "oci:"+filepath.Join(vectors, "layout")+":"+image)
				o.Tag = "tag/" + image
				_, err := pipeline.Direct(t.Context(), o)
				checkOutcome(t, image, err)
				one := fsck(t, repo, oci.FsckOptions{Image: o.Tag})
				wantClean(t, one)
				if one.Counts.Manifests != 1 || one.Counts.ImagesRebuilt < 2 || one.Counts.Objects == 0 {
					t.Errorf("%s: %+v", image, one.Counts)
				}
			}
			r := fsck(t, repo, oci.FsckOptions{})
			wantClean(t, r)
			if int(r.Counts.Manifests) < len(files)-3 || r.Counts.ImagesRebuilt < 2*r.Counts.Manifests { // some images are the same
				t.Errorf("%+v", r.Counts)
			}
		})
	}
	t.Run("refused images", func(t *testing.T) {
		repo := newRepo(t, composefs.InitOptions{})
		for _, image := range []string{"bad-no-usr", "bad-missing-parent", "bad-truncated", "bad-diffid", "bad-blob"} {
			if _, err := pipeline.Direct(t.Context(), pullOptions(repo, "oci:"+filepath.Join(vectors, "layout")+":"+image)); err == nil {
				t.Errorf("%s was accepted", image)
			}
		}
		wantClean(t, fsck(t, repo, oci.FsckOptions{}))
	})
}

// pulledImage is a repository with one image of two layers and two EROFS
// images, and the names of what is in it.
type pulledImage struct {
	options  pipeline.Options
	repo     string
	manifest oci.Digest
	config   oci.Digest
	diffIDs  []oci.Digest

	manifestStream, configStream fsverity.Digest
	manifestObject, configObject fsverity.Digest // the JSON documents
	layers                       []fsverity.Digest
	plain, boot                  fsverity.Digest
	file                         fsverity.Digest // in the lower layer
	names                        *strings.Replacer
}

const largeFile = "usr/lib/large"

func pullImage(t *testing.T) *pulledImage {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	w, err := ocilayout.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	entry := func(tw *tar.Writer, name, content string) error {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}
		if content != "" {
			h.Typeflag, h.Mode, h.Size = tar.TypeReg, 0o644, int64(len(content))
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		_, err := tw.Write([]byte(content))
		return err
	}
	large := strings.Repeat("content of the lower layer\n", 1000)
	err = errors.Join(
		w.AddLayer(ocilayout.Gzip, func(tw *tar.Writer) error {
			return errors.Join(entry(tw, "boot/", ""), entry(tw, "boot/file", "not in the boot image"), entry(tw, "sysroot/", ""), entry(tw, "usr/", ""), entry(tw, "usr/lib/", ""), entry(tw, largeFile, large))
		}),
		w.AddLayer(ocilayout.Gzip, func(tw *tar.Writer) error {
			return entry(tw, "usr/lib/other", strings.Repeat("content of the upper layer\n", 100))
		}),
		w.Finish("os", v1.ImageConfig{Labels: map[string]string{"containers.bootc": "1"}}),
	)
	if err != nil {
		t.Fatal(err)
	}
	p := &pulledImage{options: pullOptions(newRepo(t, composefs.InitOptions{}), "oci:"+dir+":os")}
	p.options.Tag = "os"
	p.repo = p.options.Repo
	result := mustPull(t, p.options)
	p.manifest, p.config = result.ManifestDigest, result.ConfigDigest
	p.manifestStream, p.configStream = result.ManifestVerity, result.ConfigVerity
	p.plain, p.boot = result.Image.ID, result.BootImage.ID
	p.file = fsverity.Sum(fsverity.SHA512, []byte(large))
	p.with(t, func(repo *composefs.Repo) {
		manifest, err := oci.OpenManifest(repo, p.manifest)
		if err != nil {
			t.Fatal(err)
		}
		config, err := oci.OpenConfig(repo, p.config)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := oci.ParseConfig(config.Raw, 2)
		if err != nil {
			t.Fatal(err)
		}
		p.manifestObject, p.configObject, p.diffIDs = manifest.Object, config.Object, parsed.DiffIDs
		for _, d := range p.diffIDs {
			p.layers = append(p.layers, config.Refs[d.String()])
		}
	})
	p.names = strings.NewReplacer(
		"streams/"+oci.ManifestStream(p.manifest), "<manifest>", "streams/"+oci.ConfigStream(p.config), "<config>",
		"streams/"+oci.LayerStream(p.diffIDs[0]), "<lower>", "streams/"+oci.LayerStream(p.diffIDs[1]), "<upper>",
		"images/"+p.plain.String(), "<plain>", "images/"+p.boot.String(), "<boot>",
		p.manifestStream.ObjectPath(), "<manifest>", p.configStream.ObjectPath(), "<config>",
		p.manifestObject.ObjectPath(), "<manifest JSON>", p.configObject.ObjectPath(), "<config JSON>",
		p.layers[0].ObjectPath(), "<lower>", p.layers[1].ObjectPath(), "<upper>",
		p.plain.ObjectPath(), "<plain>", p.boot.ObjectPath(), "<boot>", p.file.ObjectPath(), "<file>",
		"localhost%2Fbootc-"+p.manifest.String(), "<bootc>",
	)
	return p
}

// with opens the repository.
func (p *pulledImage) with(t *testing.T, f func(*composefs.Repo)) {
	t.Helper()
	repo, err := composefs.Open(t.Context(), p.repo, composefs.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := repo.Close(); err != nil {
			t.Error(err)
		}
	}()
	f(repo)
}

func (p *pulledImage) object(id fsverity.Digest) string {
	return filepath.Join(p.repo, "objects", id.ObjectPath())
}

func (p *pulledImage) link(dir, name string) string { return filepath.Join(p.repo, dir, name) }

// remove removes a file or a link.
func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// flip changes a byte of an object; a negative offset counts from the end.
func (p *pulledImage) flip(t *testing.T, id fsverity.Digest, offset int) {
	t.Helper()
	raw, err := os.ReadFile(p.object(id))
	if err != nil {
		t.Fatal(err)
	}
	if offset < 0 {
		offset += len(raw)
	}
	raw[offset] ^= 1
	remove(t, p.object(id))
	if err := os.WriteFile(p.object(id), raw, 0o644); err != nil {
		t.Fatal(err)
	}
}

// leadTo makes a link lead elsewhere.
func leadTo(t *testing.T, path, target string) {
	t.Helper()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(target, path)); err != nil {
		t.Fatal(err)
	}
}

// writeStream stores a stream of a document and links it.
func (p *pulledImage) writeStream(t *testing.T, name string, ct splitstream.ContentType, raw []byte, refs map[string]fsverity.Digest) fsverity.Digest {
	t.Helper()
	var id fsverity.Digest
	p.with(t, func(repo *composefs.Repo) {
		object, _, err := repo.Put(raw)
		if err != nil {
			t.Fatal(err)
		}
		id, err = repo.WriteStream(ct, func(w *splitstream.Writer) error {
			for _, key := range slices.Sorted(maps.Keys(refs)) {
				if err := w.AddStreamRef(key, refs[key]); err != nil {
					return err
				}
			}
			return w.External(object, uint64(len(raw)))
		})
		if err == nil {
			err = repo.LinkStream(name, id)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	return id
}

// describe is a report's findings as text.
func (p *pulledImage) describe(r *oci.FsckReport) []string {
	out := []string{}
	for _, f := range r.Findings {
		text := p.names.Replace(fmt.Sprintf("%s %s", f.Kind, f.Path))
		if f.Severity == composefs.Warning {
			text = "warning: " + text
		}
		if f.Repairable {
			text += " (repairable)"
		}
		out = append(out, text)
	}
	return out
}

// heal says what puts damage right.
type heal uint8

const (
	byRepair heal = iota // and then the repository is as it was
	byPull
	byDropAndPull // a repair that drops damaged objects, and a pull
	byNothing     // that fsck or a pull could do
)

// imageDamages are what can be wrong with an image.
var imageDamages = []struct {
	name   string
	damage func(t *testing.T, p *pulledImage)
	found  []string
	quick  []string // nil: like found
	heal   heal
	left   []string // after a repair that does not heal
}{
	{name: "nothing", damage: func(*testing.T, *pulledImage) {}, heal: byRepair},

	// EROFS images are made again.
	{
		name:   "a plain image is missing",
		damage: func(t *testing.T, p *pulledImage) { remove(t, p.object(p.plain)) },
		found:  []string{"broken-symlink <plain> (repairable)"},
		quick:  []string{"broken-symlink <plain>"},
	},
	{
		name: "a boot image is missing, with its link",
		damage: func(t *testing.T, p *pulledImage) {
			remove(t, p.object(p.boot))
			remove(t, p.link("images", p.boot.String()))
		},
		found: []string{"missing-named-ref <config> (repairable)"},
		quick: []string{"missing-named-ref <config>"},
	},
	{
		name:   "a plain image is damaged where it does not show",
		damage: func(t *testing.T, p *pulledImage) { p.flip(t, p.plain, 1024+50) }, // the UUID
		found:  []string{"object-digest-mismatch objects/<plain> (repairable)"},
		quick:  []string{},
	},
	{
		name:   "a boot image is damaged",
		damage: func(t *testing.T, p *pulledImage) { p.flip(t, p.boot, 1024) },
		found:  []string{"image-invalid <boot> (repairable)", "object-digest-mismatch objects/<boot> (repairable)"},
		quick:  []string{"image-invalid <boot>"},
	},
	{
		name: "an image is empty, as after a power cut",
		damage: func(t *testing.T, p *pulledImage) {
			if err := os.Truncate(p.object(p.plain), 0); err != nil {
				t.Fatal(err)
			}
		},
		found: []string{"image-invalid <plain> (repairable)", "object-digest-mismatch objects/<plain> (repairable)"},
		quick: []string{"image-invalid <plain>", "object-digest-mismatch objects/<plain>"},
	},
	{
		name:   "an image has no link",
		damage: func(t *testing.T, p *pulledImage) { remove(t, p.link("images", p.boot.String())) },
		found:  []string{"image-not-linked <config> (repairable)"},
	},
	{
		name: "an image's link leads to another image",
		damage: func(t *testing.T, p *pulledImage) {
			leadTo(t, p.link("images", p.boot.String()), "../objects/"+p.plain.ObjectPath())
		},
		found: []string{"image-link-mismatch <boot> (repairable)"},
	},

	// Links of streams.
	{
		name:   "a layer has no link",
		damage: func(t *testing.T, p *pulledImage) { remove(t, p.link("streams", oci.LayerStream(p.diffIDs[0]))) },
		found:  []string{"layer-stream-missing <config>"},
	},
	{
		name:   "the config has no link",
		damage: func(t *testing.T, p *pulledImage) { remove(t, p.link("streams", oci.ConfigStream(p.config))) },
		found:  []string{"warning: named-ref-not-linked <manifest>"},
	},
	{
		name:   "the manifest has no link",
		damage: func(t *testing.T, p *pulledImage) { remove(t, p.link("streams", oci.ManifestStream(p.manifest))) },
		found:  []string{"broken-symlink streams/refs/oci/<bootc>", "broken-symlink streams/refs/oci/os"},
	},
	{
		name: "a layer's link leads to another layer",
		damage: func(t *testing.T, p *pulledImage) {
			leadTo(t, p.link("streams", oci.LayerStream(p.diffIDs[0])), "../objects/"+p.layers[1].ObjectPath())
		},
		found: []string{"layer-digest-mismatch <lower>", "warning: named-ref-not-linked <config>"},
		quick: []string{"warning: named-ref-not-linked <config>"},
	},

	// Streams of documents.
	{
		name:   "the stream of the config is missing",
		damage: func(t *testing.T, p *pulledImage) { remove(t, p.object(p.configStream)) },
		found:  []string{"broken-symlink <config>", "config-read-failed objects/<config>"},
	},
	{
		name:   "the stream of the config is damaged where it does not show",
		damage: func(t *testing.T, p *pulledImage) { p.flip(t, p.configStream, 12) },
		found:  []string{"object-digest-mismatch objects/<config>"},
		quick:  []string{},
	},
	{
		name:   "the stream of the config cannot be read",
		damage: func(t *testing.T, p *pulledImage) { p.flip(t, p.configStream, 0) },
		found:  []string{"object-digest-mismatch objects/<config>", "stream-open-failed <config>"},
		quick:  []string{"stream-open-failed <config>"},
	},
	{
		name:   "the stream of the manifest is missing",
		damage: func(t *testing.T, p *pulledImage) { remove(t, p.object(p.manifestStream)) },
		found: []string{
			"broken-symlink <manifest>", "broken-symlink streams/refs/oci/<bootc>", "broken-symlink streams/refs/oci/os",
		},
	},
	{
		name:   "the stream of the manifest is damaged",
		damage: func(t *testing.T, p *pulledImage) { p.flip(t, p.manifestStream, 11) },
		found:  []string{"object-digest-mismatch objects/<manifest>", "stream-open-failed <manifest>"},
		quick:  []string{"stream-open-failed <manifest>"},
	},
	{
		name: "the manifest does not name its config",
		damage: func(t *testing.T, p *pulledImage) {
			p.rewrite(t, oci.ManifestStream(p.manifest), splitstream.Manifest, func(refs map[string]fsverity.Digest) {
				delete(refs, "config:"+p.config.String())
			})
		},
		found: []string{"config-ref-missing <manifest>"},
	},
	{
		name: "the config does not name a layer",
		damage: func(t *testing.T, p *pulledImage) {
			p.rewriteConfig(t, func(refs map[string]fsverity.Digest) { delete(refs, p.diffIDs[1].String()) })
		},
		found: []string{"layer-ref-missing <config>"},
	},
	{
		name: "the manifest names a config of before",
		damage: func(t *testing.T, p *pulledImage) {
			target, err := os.Readlink(p.link("streams", oci.ManifestStream(p.manifest)))
			if err != nil {
				t.Fatal(err)
			}
			// The config that the manifest names is complete, the linked one
			// lacks the boot image.
			p.rewriteConfig(t, func(refs map[string]fsverity.Digest) { delete(refs, "composefs.image.boot.v1") })
			leadTo(t, p.link("streams", oci.ManifestStream(p.manifest)), target)
		},
		found: []string{"warning: named-ref-not-linked <manifest>"},
		heal:  byPull,
		left:  []string{},
	},
	{
		name: "the config's link leads to another config",
		damage: func(t *testing.T, p *pulledImage) {
			raw := []byte(`{"rootfs":{"type":"layers","diff_ids":[]}}`)
			other := oci.DigestOf(raw)
			id := p.writeStream(t, oci.ConfigStream(other), splitstream.Config, raw, nil)
			leadTo(t, p.link("streams", oci.ConfigStream(p.config)), "../objects/"+id.ObjectPath())
			remove(t, p.link("streams", oci.ConfigStream(other)))
		},
		found: []string{"config-digest-mismatch <config>", "warning: named-ref-not-linked <manifest>"},
	},
	{
		name: "the manifest's link leads to another manifest",
		damage: func(t *testing.T, p *pulledImage) {
			raw := []byte(`{"schemaVersion":2}`)
			other := oci.DigestOf(raw)
			id := p.writeStream(t, oci.ManifestStream(other), splitstream.Manifest, raw, nil)
			leadTo(t, p.link("streams", oci.ManifestStream(p.manifest)), "../objects/"+id.ObjectPath())
			remove(t, p.link("streams", oci.ManifestStream(other)))
		},
		found: []string{"manifest-digest-mismatch <manifest>"},
	},

	// What only a pull brings back.
	{
		name:   "a file is missing",
		damage: func(t *testing.T, p *pulledImage) { remove(t, p.object(p.file)) },
		found:  []string{"image-missing-object <plain>", "image-missing-object <boot>", "missing-object-ref <lower>"},
		heal:   byPull,
	},
	{
		name:   "a file is damaged",
		damage: func(t *testing.T, p *pulledImage) { p.flip(t, p.file, 100) },
		found:  []string{"object-digest-mismatch objects/<file>"},
		quick:  []string{},
		heal:   byDropAndPull,
		left:   []string{"image-missing-object <plain>", "image-missing-object <boot>", "missing-object-ref <lower>"},
	},
	{
		name:   "the stream of a layer is missing",
		damage: func(t *testing.T, p *pulledImage) { remove(t, p.object(p.layers[0])) },
		found:  []string{"broken-symlink <lower>", "layer-object-missing <config>"},
		heal:   byPull,
	},
	{
		name:   "the stream of a layer is damaged",
		damage: func(t *testing.T, p *pulledImage) { p.flip(t, p.layers[0], 12) },
		found:  []string{"object-digest-mismatch objects/<lower>"},
		quick:  []string{},
		heal:   byDropAndPull,
		left:   []string{"broken-symlink <lower>", "layer-object-missing <config>"},
	},
	{
		name:   "the config is damaged",
		damage: func(t *testing.T, p *pulledImage) { p.flip(t, p.configObject, 5) },
		found:  []string{"object-digest-mismatch objects/<config JSON>"},
		quick:  []string{"config-digest-mismatch <config>"},
		heal:   byDropAndPull,
		left:   []string{"missing-object-ref <config>"},
	},
	{
		name:   "the manifest is missing",
		damage: func(t *testing.T, p *pulledImage) { remove(t, p.object(p.manifestObject)) },
		found:  []string{"missing-object-ref <manifest>"},
		heal:   byPull,
	},

	// What nobody can put right.
	{
		name: "a config names another image",
		damage: func(t *testing.T, p *pulledImage) {
			p.rewriteConfig(t, func(refs map[string]fsverity.Digest) { refs["composefs.image.v1"] = p.boot })
		},
		found: []string{"image-rebuild-mismatch <config>"},
		quick: []string{},
		heal:  byNothing,
	},
	{
		name: "a config names layers that do not go together",
		damage: func(t *testing.T, p *pulledImage) {
			p.rewriteConfig(t, func(refs map[string]fsverity.Digest) { refs[p.diffIDs[0].String()] = p.layers[1] })
		},
		found: []string{"image-rebuild-failed <config>", "image-rebuild-failed <config>", "warning: named-ref-not-linked <config>"},
		quick: []string{"warning: named-ref-not-linked <config>"},
	},
	{
		name: "a config names an image in an unknown way",
		damage: func(t *testing.T, p *pulledImage) {
			p.rewriteConfig(t, func(refs map[string]fsverity.Digest) { refs["composefs.image.boot.v9"] = p.boot })
		},
		found: []string{"warning: image-key-unknown <config>"},
		heal:  byNothing,
	},
	{
		name: "tags that lead to no image",
		damage: func(t *testing.T, p *pulledImage) {
			leadTo(t, p.link("streams/refs/oci", "layer"), "../../"+oci.LayerStream(p.diffIDs[0]))
			leadTo(t, p.link("streams/refs/oci", "@digest"), "../../"+oci.ManifestStream(p.manifest))
			leadTo(t, p.link("streams/refs/oci", "a%2fb"), "../../"+oci.ManifestStream(p.manifest))
		},
		found: []string{
			"invalid-ref-name streams/refs/oci/@digest", "invalid-ref-name streams/refs/oci/a%2fb", "ref-resolve-failed streams/refs/oci/layer",
		},
		heal: byNothing,
	},
	{
		name: "referrers",
		damage: func(t *testing.T, p *pulledImage) {
			gone := oci.DigestOf([]byte("gone"))
			m := p.manifest.String()
			leadTo(t, p.link("streams/refs/oci-referrers/"+gone.String(), m), "../../../"+oci.ManifestStream(p.manifest))
			leadTo(t, p.link("streams/refs/oci-referrers/"+m, gone.String()), "../../../"+oci.ManifestStream(p.manifest))
			leadTo(t, p.link("streams/refs/oci-referrers/"+m, m), "../../../"+oci.ManifestStream(p.manifest))
		},
		found: []string{
			"warning: ref-resolve-failed streams/refs/oci-referrers/<self>/<gone>", "warning: referrer-dangling streams/refs/oci-referrers/<gone>/<self>",
		},
		heal: byNothing,
	},
	{
		name: "documents that are none",
		damage: func(t *testing.T, p *pulledImage) {
			manifest := []byte(`{"config": "none"`)
			p.writeStream(t, oci.ManifestStream(oci.DigestOf(manifest)), splitstream.Manifest, manifest, nil)
			config := []byte(`{"rootfs":{"type":"layers","diff_ids":["md5:0"]}}`)
			id := p.writeStream(t, oci.ConfigStream(oci.DigestOf(config)), splitstream.Config, config, nil)
			manifest = fmt.Appendf(nil, `{"config":{"mediaType":%q,"digest":%q},"layers":[]}`, v1.MediaTypeImageConfig, oci.DigestOf(config))
			p.writeStream(t, oci.ManifestStream(oci.DigestOf(manifest)), splitstream.Manifest, manifest,
				map[string]fsverity.Digest{"config:" + oci.DigestOf(config).String(): id})
		},
		found: []string{"config-parse-failed <a config>", "manifest-parse-failed <a manifest>"},
		heal:  byNothing,
	},
	{
		name: "an artifact without its layers",
		damage: func(t *testing.T, p *pulledImage) {
			config := []byte(`{}`)
			id := p.writeStream(t, oci.ConfigStream(oci.DigestOf(config)), splitstream.Config, config, nil)
			layers := []string{oci.DigestOf([]byte("one")).String(), oci.DigestOf([]byte("two")).String()}
			manifest := fmt.Appendf(nil, `{"config":{"mediaType":"application/vnd.example","digest":%q},"layers":[{"digest":%q},{"digest":%q}]}`,
				oci.DigestOf(config), layers[0], layers[1])
			p.writeStream(t, oci.ManifestStream(oci.DigestOf(manifest)), splitstream.Manifest, manifest, map[string]fsverity.Digest{
				"config:" + oci.DigestOf(config).String(): id, layers[1]: fsverity.Sum(fsverity.SHA512, []byte("gone")),
			})
		},
		found: []string{"artifact-layer-object-missing <a manifest>", "artifact-layer-ref-missing <a manifest>"},
		heal:  byNothing,
	},
	{
		name: "a sealed image without its EROFS image",
		damage: func(t *testing.T, p *pulledImage) {
			config := []byte(`{"config":{"Labels":{"containers.composefs.fsverity":"abc"}},"rootfs":{"type":"layers","diff_ids":[]}}`)
			id := p.writeStream(t, oci.ConfigStream(oci.DigestOf(config)), splitstream.Config, config, nil)
			manifest := fmt.Appendf(nil, `{"config":{"mediaType":%q,"digest":%q},"layers":[]}`, v1.MediaTypeImageConfig, oci.DigestOf(config))
			p.writeStream(t, oci.ManifestStream(oci.DigestOf(manifest)), splitstream.Manifest, manifest,
				map[string]fsverity.Digest{"config:" + oci.DigestOf(config).String(): id})
		},
		found: []string{"seal-image-missing <a config>"},
		heal:  byNothing,
	},
	{
		name: "a blob of another content, and a name that no image can have",
		damage: func(t *testing.T, p *pulledImage) {
			p.writeStream(t, "oci-blob-"+p.manifest.String(), splitstream.Blob, []byte("blob"), nil)
			p.writeStream(t, "oci-layer-sha512:00", splitstream.Blob, []byte("blob"), nil)
		},
		found: []string{"blob-digest-mismatch streams/oci-blob-<self>", "warning: entry-invalid-name streams/oci-layer-sha512:00"},
		quick: []string{"warning: entry-invalid-name streams/oci-layer-sha512:00"},
		heal:  byNothing,
	},
}

// rewrite writes a document's stream with other named refs, and links it.
func (p *pulledImage) rewrite(t *testing.T, name string, ct splitstream.ContentType, change func(map[string]fsverity.Digest)) fsverity.Digest {
	t.Helper()
	var raw []byte
	refs := map[string]fsverity.Digest{}
	p.with(t, func(repo *composefs.Repo) {
		id, err := repo.StreamID(name)
		if err != nil {
			t.Fatal(err)
		}
		tables, err := repo.StreamTables(id)
		if err != nil {
			t.Fatal(err)
		}
		for _, ref := range tables.Named {
			refs[ref.Name] = ref.ID
		}
		if raw, err = os.ReadFile(p.object(tables.Objects[0])); err != nil {
			t.Fatal(err)
		}
	})
	change(refs)
	return p.writeStream(t, name, ct, raw, refs)
}

// rewriteConfig rewrites the config, and the manifest with it.
func (p *pulledImage) rewriteConfig(t *testing.T, change func(map[string]fsverity.Digest)) {
	t.Helper()
	id := p.rewrite(t, oci.ConfigStream(p.config), splitstream.Config, change)
	p.rewrite(t, oci.ManifestStream(p.manifest), splitstream.Manifest, func(refs map[string]fsverity.Digest) {
		refs["config:"+p.config.String()] = id
	})
}

// anonymous replaces digests that a test does not name.
func (p *pulledImage) anonymous(found []string) []string {
	gone := oci.DigestOf([]byte("gone")).String()
	for i, text := range found {
		text = strings.NewReplacer(p.manifest.String(), "<self>", gone, "<gone>").Replace(text)
		for _, kind := range []string{"config", "manifest"} {
			if at := strings.Index(text, "streams/oci-"+kind+"-sha256:"); at >= 0 {
				text = text[:at] + "<a " + kind + ">"
			}
		}
		found[i] = text
	}
	slices.Sort(found)
	return found
}

func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }

func TestFsckDamage(t *testing.T) {
	for _, d := range imageDamages {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			p := pullImage(t)
			before, err := repodump.Dump(p.repo)
			if err != nil {
				t.Fatal(err)
			}
			d.damage(t, p)
			check := func(what string, want []string, o oci.FsckOptions) {
				t.Helper()
				r := fsck(t, p.repo, o)
				got := p.anonymous(p.describe(r))
				if diff := cmp.Diff(append([]string{}, sorted(want)...), got); diff != "" {
					t.Errorf("%s (-want +got):\n%s%s", what, diff, indent(r))
				}
				for _, f := range r.Findings {
					if f.Help == "" {
						t.Errorf("%s: %s says nothing that would help", what, f.Kind)
					}
				}
				if damaged := r.Counts.TagsDamaged > 0; damaged && r.OK {
					t.Errorf("%s: tags are damaged, and all is well", what)
				}
			}
			if d.quick == nil {
				d.quick = d.found
			}
			check("quick check", d.quick, oci.FsckOptions{Quick: true})
			check("full check", d.found, oci.FsckOptions{})
			if d.left == nil && d.heal != byRepair {
				d.left = d.found
			}
			check("after a repair", d.left, oci.FsckOptions{Repair: true, DropDamaged: d.heal == byDropAndPull})
			check("after a repair, anew", d.left, oci.FsckOptions{})
			if d.heal == byPull || d.heal == byDropAndPull {
				mustPull(t, p.options)
				check("after a pull", nil, oci.FsckOptions{})
			}
			if d.heal == byNothing {
				return
			}
			after, err := repodump.Dump(p.repo)
			if err != nil {
				t.Fatal(err)
			}
			before.FileObjects, after.FileObjects = nil, nil // tests leave objects behind
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("the repository is not what it was (-before +after):\n%s", diff)
			}
			if again := mustPull(t, p.options); again.Changed {
				t.Error("a pull still changed something")
			}
		})
	}
}

func indent(r *oci.FsckReport) string {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// TestFsckOneImage checks an image whatever else is wrong.
func TestFsckOneImage(t *testing.T) {
	p := pullImage(t)
	o := pullOptions(p.repo, "oci:"+filepath.Join(ociVectors(t), "layout")+":layers")
	other := mustPull(t, o)
	remove(t, p.object(other.Image.ID))
	for _, ref := range []string{"os", p.manifest.String(), "@" + p.manifest.String(), "localhost/bootc-" + p.manifest.String()} {
		r := fsck(t, p.repo, oci.FsckOptions{Image: ref})
		wantClean(t, r)
		if r.Counts.Manifests != 1 || r.Counts.ImagesRebuilt != 2 || r.Counts.Images != 2 || r.Image != ref {
			t.Errorf("%s: %+v", ref, r)
		}
	}
	p.flip(t, p.file, 0)
	r := fsck(t, p.repo, oci.FsckOptions{Image: "os"})
	if got := p.describe(r); !slices.Equal(got, []string{"object-digest-mismatch objects/<file>"}) {
		t.Errorf("findings %v", got)
	}
	if users := r.Findings[0].UsedBy; !slices.Equal(users, []string{oci.LayerStream(p.diffIDs[0])}) {
		t.Errorf("the damaged file is used by %v", users)
	}
	if r := fsck(t, p.repo, oci.FsckOptions{}); len(r.Findings) != 2 || r.Counts.TagsDamaged == 0 {
		t.Errorf("a check of everything found %+v", r)
	}
	p.with(t, func(repo *composefs.Repo) {
		for _, ref := range []string{"absent", p.plain.String(), ""} {
			_, err := oci.Fsck(t.Context(), repo, oci.FsckOptions{Image: ref, Quick: true})
			if (err == nil) != (ref == "") {
				t.Errorf("check of %q: %v", ref, err)
			}
		}
	})
}

// TestFsckRepairIsAlone does not repair while others use the repository, and a
// check does not mind them.
func TestFsckRepairIsAlone(t *testing.T) {
	p := pullImage(t)
	p.with(t, func(repo *composefs.Repo) {
		p.with(t, func(*composefs.Repo) {
			_, err := oci.Fsck(t.Context(), repo, oci.FsckOptions{Repair: true, LockTimeout: -1})
			if !errors.Is(err, composefs.ErrInUse) {
				t.Errorf("repair: %v", err)
			}
			if _, err := oci.Fsck(t.Context(), repo, oci.FsckOptions{}); err != nil {
				t.Errorf("check: %v", err)
			}
		})
	})
}
