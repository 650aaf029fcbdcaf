// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/ocilayout"
	"github.com/cfs-pull/cfs-pull/internal/repodump"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

func links(t *testing.T, repo string) map[string]string {
	t.Helper()
	dump, err := repodump.Dump(repo)
	if err != nil {
		t.Fatal(err)
	}
	return dump.Links
}

// TestUntagOnError makes sure that a pull takes back only what it tagged: the
// tags of before may keep what the machine runs.
func TestUntagOnError(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layout")
	if err := noBootLayout(dir, "os"); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "layout")
	if err := noBootLayout(other, "next"); err != nil {
		t.Fatal(err)
	}
	o := pullOptions(newRepo(t, composefs.InitOptions{}), "oci:"+dir+":os")
	o.Tag = "os"
	mustPull(t, o)
	before := links(t, o.Repo)

	o.AllowNoBoot, o.UntagOnError = false, true
	result, err := pipeline.Direct(t.Context(), o)
	if !errors.Is(err, pipeline.ErrNoBootEntries) {
		t.Fatalf("pull: %v", err)
	}
	if diff := cmp.Diff(before, links(t, o.Repo)); diff != "" {
		t.Errorf("tags of an earlier pull were changed:\n%s", diff)
	}
	if !result.Tagged {
		t.Error("the image is still tagged, the result says it is not")
	}

	o.Reference = "oci:" + other + ":next"
	result, err = pipeline.Direct(t.Context(), o)
	if !errors.Is(err, pipeline.ErrNoBootEntries) {
		t.Fatalf("pull: %v", err)
	}
	if result.Tagged {
		t.Error("the image is not tagged, the result says it is")
	}
	for name, target := range links(t, o.Repo) {
		if strings.HasPrefix(name, "streams/refs/") && before[name] != target {
			t.Errorf("%s leads to %s, before it was %q", name, target, before[name])
		}
		delete(before, name)
	}
	if len(before) > 0 {
		t.Errorf("links are gone: %v", before)
	}
}

// noBootLayout writes an image with nothing to boot.
func noBootLayout(dir, name string) error {
	w, err := ocilayout.Create(dir)
	if err != nil {
		return err
	}
	err = w.AddLayer(ocilayout.Gzip, func(tw *tar.Writer) error {
		for _, d := range []string{"usr/", "usr/" + name, "boot/", "sysroot/"} {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755}); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, w.Finish(name, v1.ImageConfig{}))
}

// TestLayersAreKept makes sure that layers are not fetched again because a
// later stage failed or was interrupted.
func TestLayersAreKept(t *testing.T) {
	wantLayers := func(t *testing.T, repo string, n int) {
		t.Helper()
		names := slices.Sorted(maps.Keys(links(t, repo)))
		for _, name := range names {
			if !strings.HasPrefix(name, "streams/oci-layer-") {
				t.Errorf("%s was written", name)
			}
		}
		if len(names) != n {
			t.Errorf("there are the links %v, want %d layers", names, n)
		}
	}
	t.Run("image without /usr", func(t *testing.T) {
		repo := newRepo(t, composefs.InitOptions{})
		_, err := pipeline.Direct(t.Context(), pullOptions(repo, "oci:"+filepath.Join(ociVectors(t), "layout")+":bad-no-usr"))
		if !errors.Is(err, oci.ErrMalformed) {
			t.Fatalf("pull: %v", err)
		}
		wantLayers(t, repo, 1)
	})
	t.Run("interrupted while images are built", func(t *testing.T) {
		o := pullOptions(newRepo(t, composefs.InitOptions{}), "oci:"+randomLayers(t, 2, 100<<10)+":latest")
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		stop := errors.New("stopped by the test")
		o.Events = func(e pipeline.Event) {
			if e.Task == pipeline.TaskBootImage {
				cancel(stop)
			}
		}
		result, err := pipeline.Direct(ctx, o)
		if !errors.Is(err, stop) {
			t.Fatalf("pull: %v", err)
		}
		if result.Tagged || result.Image != nil || !result.Changed {
			t.Errorf("the pull went on after the interruption: %+v", result)
		}
		wantLayers(t, o.Repo, 2)
	})
}

// TestLostImage makes sure that a config that names an EROFS image which is
// gone does not pass that on.
func TestLostImage(t *testing.T) {
	o := pullOptions(newRepo(t, composefs.InitOptions{}), "oci:"+filepath.Join(ociVectors(t), "layout")+":boot-modules")
	first := mustPull(t, o)
	want := links(t, o.Repo)
	lost := fsverity.Sum(fsverity.SHA512, []byte("lost"))
	recommit(t, o.Repo, first, func(im *oci.Image) { im.Images["composefs.image"] = lost })
	if err := os.Remove(filepath.Join(o.Repo, "images", lost.String())); err != nil {
		t.Fatal(err)
	}
	again := mustPull(t, o)
	dump, err := repodump.Dump(o.Repo)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := dump.Streams[oci.ConfigStream(again.ConfigDigest)].Named["composefs.image"]; ok {
		t.Errorf("the config still names the lost image %s", got)
	}
	if diff := cmp.Diff(want, dump.Links); diff != "" {
		t.Errorf("links differ (-want +got):\n%s", diff)
	}
	if third := mustPull(t, o); third.Changed {
		t.Error("the third pull changed something")
	}
}

// TestInterruptedRewrite pulls after a crash between the link of a config and
// those of the manifests that name it: all of them must follow.
func TestInterruptedRewrite(t *testing.T) {
	o := pullOptions(newRepo(t, composefs.InitOptions{}), "oci:"+filepath.Join(ociVectors(t), "layout")+":boot-modules")
	o.NoBoot = true
	first := mustPull(t, o)
	manifests := map[oci.Digest]string{first.ManifestDigest: "", addManifest(t, o.Repo, first): ""}
	link := func(d oci.Digest) string { return filepath.Join(o.Repo, "streams", oci.ManifestStream(d)) }
	for d := range manifests {
		target, err := os.Readlink(link(d))
		if err != nil {
			t.Fatal(err)
		}
		manifests[d] = target
	}
	o.NoBoot = false
	mustPull(t, o)
	for d, target := range manifests {
		if err := errors.Join(os.Remove(link(d)), os.Symlink(target, link(d))); err != nil {
			t.Fatal(err)
		}
	}
	if result := mustPull(t, o); !result.Changed {
		t.Error("nothing was repaired")
	}
	dump, err := repodump.Dump(o.Repo)
	if err != nil {
		t.Fatal(err)
	}
	config := oci.ConfigStream(first.ConfigDigest)
	for d := range manifests {
		if got := dump.Streams[oci.ManifestStream(d)].Named["config:"+first.ConfigDigest.String()]; got != config {
			t.Errorf("manifest %s names config %q, want %s", d, got, config)
		}
	}
}

// TestLinksToOtherKinds pulls into a repository whose links lead to streams of
// other kinds than their names say.
func TestLinksToOtherKinds(t *testing.T) {
	o := pullOptions(newRepo(t, composefs.InitOptions{}), "oci:"+filepath.Join(ociVectors(t), "layout")+":boot-modules")
	first := mustPull(t, o)
	want, err := repodump.Dump(o.Repo)
	if err != nil {
		t.Fatal(err)
	}
	streams := filepath.Join(o.Repo, "streams")
	manifest, err := os.Readlink(filepath.Join(streams, oci.ManifestStream(first.ManifestDigest)))
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.Readlink(filepath.Join(streams, oci.ConfigStream(first.ConfigDigest)))
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(streams)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		target := manifest
		if strings.HasPrefix(e.Name(), "oci-manifest-") {
			target = config
		}
		if e.IsDir() {
			continue
		}
		path := filepath.Join(streams, e.Name())
		if err := errors.Join(os.Remove(path), os.Symlink(target, path)); err != nil {
			t.Fatal(err)
		}
	}
	mustPull(t, o)
	got, err := repodump.Dump(o.Repo)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the repository was not repaired:\n%s", diff)
	}
}

// TestDiskFull fills the file system in the middle of a layer and goes on when
// there is space again.
func TestDiskFull(t *testing.T) {
	testutil.RequireRoot(t)
	const size = 24 << 20
	mount := t.TempDir()
	if err := unix.Mount("none", mount, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	for name, file := range map[string]int{"small files": 512 << 10, "large files": 8 << 20} {
		t.Run(name, func(t *testing.T) {
			// It compresses well, so that the look at the free space finds enough.
			image := layoutOf(t, ocilayout.Zstd, func(tw *tar.Writer) error {
				for n := 0; n < 3*size/2/file; n++ {
					h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/f%d", n), Mode: 0o644, Size: int64(file)}
					if err := tw.WriteHeader(h); err != nil {
						return err
					}
					if _, err := tw.Write(bytes.Repeat([]byte{byte(n), byte(file >> 20)}, file/2)); err != nil {
						return err
					}
				}
				return nil
			})
			repo := filepath.Join(mount, "repo")
			if _, err := composefs.Init(t.Context(), repo, composefs.InitOptions{AllowMissingVerity: true}); err != nil {
				t.Fatal(err)
			}
			o := pullOptions(repo, image)
			o.NoBoot, o.Limits.MaxRatio = true, 1<<40
			result, err := pipeline.Direct(t.Context(), o)
			if !errors.Is(err, unix.ENOSPC) || result.Tagged {
				t.Fatalf("pull to a full file system: %v, %+v", err, result)
			}
			if got := links(t, repo); len(got) > 0 {
				t.Errorf("links were written: %v", got)
			}
			if leaked := temporaries(t, repo); len(leaked) > 0 {
				t.Errorf("temporary files are left: %v", leaked)
			}
			if err := unix.Mount("none", mount, "", unix.MS_REMOUNT, fmt.Sprintf("size=%d", 4*size)); err != nil {
				t.Fatal(err)
			}
			if again := mustPull(t, o); again.Stats.Objects.Present == 0 {
				t.Error("nothing of the first pull was used")
			}
			links(t, repo)
			if err := errors.Join(os.RemoveAll(repo), unix.Mount("none", mount, "", unix.MS_REMOUNT, fmt.Sprintf("size=%d", size))); err != nil {
				t.Fatal(err)
			}
		})
	}
}
