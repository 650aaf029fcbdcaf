// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/ocilayout"
	"github.com/cfs-pull/cfs-pull/internal/repodump"
	"github.com/cfs-pull/cfs-pull/internal/testregistry"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

// mustPull pulls and returns the result of a pull that succeeds.
func mustPull(t *testing.T, o pipeline.Options) *pipeline.Result {
	t.Helper()
	result, err := pipeline.Direct(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// inodes lists every file of a repository with its inode number, so that
// replaced files show. The lock's file is left out.
func inodes(t *testing.T, repo string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(repo, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == filepath.Join(repo, "bootc") {
			return fs.SkipDir
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		target := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			target, err = os.Readlink(path)
		}
		found[path] = fmt.Sprintf("%d %s %s", info.Sys().(*syscall.Stat_t).Ino, info.Mode(), target)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestSecondPullDoesNothing(t *testing.T) {
	registry := testregistry.New(t, testregistry.Options{})
	registry.PutLayout(t, "example/os", filepath.Join(ociVectors(t), "layout"), "layers", "multi-arch")
	for _, image := range []string{"layers", "multi-arch"} {
		t.Run(image, func(t *testing.T) {
			o := pullOptions(newRepo(t, composefs.InitOptions{}), registry.Host()+"/example/os:"+image)
			o.Fetch.RegistriesConf = registry.InsecureConf(t)
			first := mustPull(t, o)
			if !first.Changed || !first.Tagged {
				t.Errorf("first pull: %+v", first)
			}
			before := inodes(t, o.Repo)
			manifests, blobs := registry.Count(testregistry.Manifest), registry.Count(testregistry.Blob)
			second := mustPull(t, o)
			if second.Changed || !second.Tagged || second.Stats.LayersPresent != second.Stats.Layers {
				t.Errorf("second pull: %+v", second)
			}
			if n := registry.Count(testregistry.Manifest) - manifests; n != 1 {
				t.Errorf("the second pull cost %d manifest requests, want 1", n)
			}
			if n := registry.Count(testregistry.Blob) - blobs; n != 0 {
				t.Errorf("the second pull cost %d blob requests, want 0", n)
			}
			if diff := cmp.Diff(before, inodes(t, o.Repo)); diff != "" {
				t.Errorf("the second pull changed the repository:\n%s", diff)
			}
			if first.ManifestVerity != second.ManifestVerity || first.ConfigVerity != second.ConfigVerity {
				t.Error("the second pull reports other streams")
			}
			if diff := cmp.Diff(first.BootEntries, second.BootEntries); diff != "" {
				t.Errorf("the second pull reports other boot entries:\n%s", diff)
			}
		})
	}
}

// unpackRepository unpacks an archive with a repository and returns where that
// is.
func unpackRepository(t *testing.T, archive string) string {
	t.Helper()
	tarTool := testutil.RequireTool(t, "tar", "tar")
	testutil.RequireTool(t, "zstd", "zstd")
	dir := t.TempDir()
	if out, err := exec.Command(tarTool, "--zstd", "-xf", archive, "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("unpack: %v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "meta.json")); err == nil {
		return dir
	}
	names, err := filepath.Glob(filepath.Join(dir, "*", "meta.json"))
	if err != nil || len(names) != 1 {
		t.Fatalf("no repository in %s", archive)
	}
	return filepath.Dir(names[0])
}

// TestForeignRepository pulls into a repository that composefs-rs wrote.
func TestForeignRepository(t *testing.T) {
	vectors := testutil.Vectors(t)
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			repo := unpackRepository(t, filepath.Join(vectors, "repos", kind+".tar.zst"))
			before := inodes(t, repo)
			for _, image := range []string{"layers", "boot-modules", "selinux", "sizes", "tar-forms", "xattrs", "special"} {
				result := mustPull(t, pullOptions(repo, "oci:"+filepath.Join(vectors, "oci", "layout")+":"+image))
				if result.Changed || result.Stats.LayersPresent != result.Stats.Layers {
					t.Errorf("%s: changed %v, %d of %d layers present", image,
						result.Changed, result.Stats.LayersPresent, result.Stats.Layers)
				}
			}
			if diff := cmp.Diff(before, inodes(t, repo)); diff != "" {
				t.Errorf("pulls of what is there changed the repository:\n%s", diff)
			}
		})
	}
}

// TestBootImageLater pulls without a boot image and then with one: the config
// changes, and every manifest that names it must follow.
func TestBootImageLater(t *testing.T) {
	layout := filepath.Join(ociVectors(t), "layout")
	o := pullOptions(newRepo(t, composefs.InitOptions{}), "oci:"+layout+":boot-modules")
	o.NoBoot = true
	first := mustPull(t, o)
	if first.BootImage != nil || first.Bootable {
		t.Errorf("there is a boot image: %+v", first)
	}
	other := addManifest(t, o.Repo, first)
	o.NoBoot = false
	second := mustPull(t, o)
	if !second.Changed || second.Stats.Objects.Copied != 0 {
		t.Errorf("second pull: %+v", second)
	}
	dump, err := repodump.Dump(o.Repo)
	if err != nil {
		t.Fatal(err)
	}
	config := oci.ConfigStream(second.ConfigDigest)
	for _, manifest := range []oci.Digest{second.ManifestDigest, other} {
		named := dump.Streams[oci.ManifestStream(manifest)].Named
		if got := named["config:"+second.ConfigDigest.String()]; got != config {
			t.Errorf("manifest %s names config %s, want %s", manifest, got, config)
		}
	}
	if got := dump.Streams[config].Named["composefs.image.boot.v1"]; got != "image:"+second.BootImage.ID.String() {
		t.Errorf("the config names boot image %s", got)
	}
}

// addManifest puts a second manifest of the same image into a repository.
func addManifest(t *testing.T, path string, r *pipeline.Result) oci.Digest {
	t.Helper()
	done := recommit(t, path, r, func(im *oci.Image) {
		im.Manifest = append(slices.Clone(im.Manifest), '\n')
		im.Tags = []string{"other"}
	})
	if done.ConfigStream != r.ConfigVerity {
		t.Error("the config was written again although nothing changed in it")
	}
	return done.ManifestDigest
}

// recommit commits an image of a repository again, after change.
func recommit(t *testing.T, path string, r *pipeline.Result, change func(*oci.Image)) *oci.Committed {
	t.Helper()
	repo, err := composefs.Open(t.Context(), path, composefs.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	manifest, err := oci.OpenManifest(repo, r.ManifestDigest)
	if err != nil {
		t.Fatal(err)
	}
	config, err := oci.OpenConfig(repo, r.ConfigDigest)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := oci.ParseManifest(manifest.Raw)
	if err != nil {
		t.Fatal(err)
	}
	c, err := oci.ParseConfig(config.Raw, len(parsed.Layers))
	if err != nil {
		t.Fatal(err)
	}
	image := &oci.Image{
		Manifest: manifest.Raw, Config: config.Raw, DiffIDs: c.DiffIDs,
		Layers: map[oci.Digest]fsverity.Digest{}, Images: config.Images(),
	}
	for _, d := range c.DiffIDs {
		image.Layers[d] = config.Refs[d.String()]
	}
	change(image)
	done, err := oci.Commit(t.Context(), repo, image)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// TestMissingObject removes an object behind the back of a layer's stream, as
// newer bootc does with kernels of collected deployments.
func TestMissingObject(t *testing.T) {
	layout := filepath.Join(ociVectors(t), "layout")
	o := pullOptions(newRepo(t, composefs.InitOptions{}), "oci:"+layout+":boot-modules")
	first := mustPull(t, o)
	want, err := repodump.Dump(o.Repo)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(object string) error{
		"removed": os.Remove,
		"emptied": func(object string) error { return os.Truncate(object, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			object := first.BootEntries[0].Files[0].Object
			if err := damage(filepath.Join(o.Repo, "objects", object.ObjectPath())); err != nil {
				t.Fatal(err)
			}
			again := mustPull(t, o)
			if again.Stats.LayersPresent != 0 {
				t.Error("a layer without one of its objects counts as present")
			}
			if !again.Changed {
				t.Error("an object was restored, and the result says that nothing changed")
			}
			got, err := repodump.Dump(o.Repo)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the repository was not restored:\n%s", diff)
			}
		})
	}
}

// randomLayers writes an image of layers with random files.
func randomLayers(t *testing.T, layers int, size int64) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	w, err := ocilayout.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range layers {
		err := w.AddLayer(ocilayout.Gzip, func(tw *tar.Writer) error {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "usr/", Mode: 0o755}); err != nil {
				return err
			}
			data := make([]byte, size)
			_, _ = rand.Read(data)
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/f%d", i), Mode: 0o644, Size: size}); err != nil {
				return err
			}
			_, err := tw.Write(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish("latest", v1.ImageConfig{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestInterrupted(t *testing.T) {
	registry := testregistry.New(t, testregistry.Options{})
	layout := randomLayers(t, 3, 3<<20)
	registry.PutLayout(t, "example/os", layout)
	o := pullOptions(newRepo(t, composefs.InitOptions{}), registry.Host()+"/example/os:latest")
	o.Fetch.RegistriesConf = registry.InsecureConf(t)
	o.NoBoot = true

	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	after := int64(1 << 20)
	stalled := ""
	o.Events = func(e pipeline.Event) {
		// The first layer to start stalls; when the others are done the pull
		// is interrupted.
		if e.Layer != "" && e.State == pipeline.Started && stalled == "" {
			stalled = e.Layer
			registry.Inject(testregistry.Fault{Kind: testregistry.Blob, Target: e.Layer, Times: 1, StallAfter: &after})
		}
	}
	done := 0
	inject := o.Events
	o.Events = func(e pipeline.Event) {
		inject(e)
		if e.Layer != "" && e.State == pipeline.Done {
			if done++; done == 2 {
				cancel(stop)
			}
		}
	}
	begin := time.Now()
	result, err := pipeline.Direct(ctx, o)
	if !errors.Is(err, stop) && !errors.Is(err, context.Canceled) {
		t.Fatalf("pull: %v", err)
	}
	if took := time.Since(begin); took > 40*time.Second { // the stall would take two minutes
		t.Errorf("the pull took %v to stop", took)
	}
	if result.Tagged {
		t.Error("an interrupted pull is tagged")
	}
	dump, err := repodump.Dump(o.Repo)
	if err != nil {
		t.Fatal(err)
	}
	names := slices.Sorted(maps.Keys(dump.Links))
	if len(names) != 2 || !strings.HasPrefix(names[0], "streams/oci-layer-") || !strings.HasPrefix(names[1], "streams/oci-layer-") {
		t.Errorf("after the interruption there are the links %v, want two layers", names)
	}
	if leaked := temporaries(t, o.Repo); len(leaked) > 0 {
		t.Errorf("temporary files are left: %v", leaked)
	}
	registry.ClearFaults()
	blobs := registry.Count(testregistry.Blob)
	o.Events = nil
	again := mustPull(t, o)
	if again.Stats.LayersPresent != 2 {
		t.Errorf("%d layers were present, want 2", again.Stats.LayersPresent)
	}
	if n := registry.Count(testregistry.Blob) - blobs; n != 2 {
		t.Errorf("going on cost %d blob requests, want 2: the config and one layer", n)
	}
}

// TestArchiveIsUnpackedInRepository makes sure that a compressed archive needs
// no space but on the repository's file system.
func TestArchiveIsUnpackedInRepository(t *testing.T) {
	tarTool := testutil.RequireTool(t, "tar", "tar")
	archive := filepath.Join(t.TempDir(), "image.tar.gz")
	if out, err := exec.Command(tarTool, "-C", randomLayers(t, 1, 1000), "-czf", archive, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	o := pullOptions(newRepo(t, composefs.InitOptions{}), "oci-archive:"+archive)
	o.NoBoot = true
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "absent"))
	mustPull(t, o)
	names, err := os.ReadDir(o.Repo)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range names {
		if !slices.Contains([]string{"bootc", "images", "meta.json", "objects", "streams"}, e.Name()) {
			t.Errorf("%s was left in the repository", e.Name())
		}
	}
}

func TestEvents(t *testing.T) {
	layout := randomLayers(t, 2, 1<<20)
	o := pullOptions(newRepo(t, composefs.InitOptions{}), "oci:"+layout+":latest")
	o.NoBoot = true
	var last pipeline.Event
	layers := map[string]pipeline.State{}
	var first *pipeline.Event
	o.Events = func(e pipeline.Event) {
		if first == nil {
			first = &e
		}
		if e.Layer != "" {
			layers[e.Layer] = e.State
		}
		if e.Layer != "" || e.Task != pipeline.TaskPulling {
			return
		}
		if e.Bytes < last.Bytes || e.Bytes > e.Total || e.Total == 0 || last.Total != 0 && e.Total != last.Total {
			t.Errorf("%+v follows %+v", e, last)
		}
		last = e
	}
	result := mustPull(t, o)
	if first == nil || first.State != pipeline.Started || first.Total == 0 || first.Bytes != 0 {
		t.Errorf("the first event is %+v", first)
	}
	if last.State != pipeline.Done || last.Bytes != last.Total || last.Total != result.Stats.Bytes.Fetched {
		t.Errorf("the last event is %+v, %d bytes were fetched", last, result.Stats.Bytes.Fetched)
	}
	for layer, state := range layers {
		if state != pipeline.Done {
			t.Errorf("layer %s ended %s", layer, state)
		}
	}
	if len(layers) != 2 {
		t.Errorf("there were events of %d layers, want 2", len(layers))
	}
}
