// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/loopfs"
	"github.com/cfs-pull/cfs-pull/internal/repodump"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// copyImage copies an image between two repositories by their paths.
func copyImage(t *testing.T, ctx context.Context, to, from, reference string) (*oci.Copied, error) {
	t.Helper()
	open := func(path string, readOnly bool) *composefs.Repo {
		r, err := composefs.Open(ctx, path, composefs.OpenOptions{ReadOnly: readOnly, AllowMissingVerity: true})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	source, target := open(from, true), open(to, false)
	copied, err := oci.Copy(ctx, target, source, oci.CopyOptions{Reference: reference})
	if closeErr := errors.Join(source.Close(), target.Close()); closeErr != nil {
		t.Error(closeErr)
	}
	return copied, err
}

func dumpOf(t *testing.T, repo string) *repodump.Repository {
	t.Helper()
	dump, err := repodump.Dump(repo)
	if err != nil {
		t.Fatal(err)
	}
	return dump
}

// TestCopy copies images between repositories of the same and of different
// kinds: the result is that of a pull.
func TestCopy(t *testing.T) {
	layout := filepath.Join(ociVectors(t), "layout")
	for _, image := range []string{"layers", "layer-twice", "empty-layer", "tar-forms", "xattrs", "special", "annotated", "boot-modules", "selinux"} {
		for _, c := range []struct{ from, to string }{
			{"sha512-1", "sha512-1"}, {"sha512-2", "sha512-2"}, {"sha512-1", "sha256-1"}, {"sha256-1", "sha512-1"},
		} {
			t.Run(image+"/"+c.from+" to "+c.to, func(t *testing.T) {
				t.Parallel()
				pull := func(kind string) string {
					o := pullOptions(newRepo(t, kinds[kind]), "oci:"+layout+":"+image)
					o.Tag = "tag/" + image
					mustPull(t, o)
					return o.Repo
				}
				source, want, got := pull(c.from), pull(c.to), newRepo(t, kinds[c.to])
				before := inodes(t, source)
				copied, err := copyImage(t, t.Context(), got, source, "tag/"+image)
				if err != nil {
					t.Fatal(err)
				}
				if !copied.Changed || copied.LayersPresent != 0 || len(copied.Warnings) > 0 {
					t.Errorf("the result is %+v", copied)
				}
				if diff := cmp.Diff(dumpOf(t, want), dumpOf(t, got)); diff != "" {
					t.Errorf("the copy differs from a pull (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(before, inodes(t, source)); diff != "" {
					t.Errorf("the source was changed:\n%s", diff)
				}

				there := inodes(t, got)
				again, err := copyImage(t, t.Context(), got, source, copied.ManifestDigest.String())
				if err != nil {
					t.Fatal(err)
				}
				if again.Changed || again.LayersPresent != again.Layers || again.ConfigStream != copied.ConfigStream {
					t.Errorf("the second result is %+v", again)
				}
				if diff := cmp.Diff(there, inodes(t, got)); diff != "" {
					t.Errorf("the second copy changed something:\n%s", diff)
				}
			})
		}
	}
}

// TestCopyFormats copies into a repository with more EROFS formats: those that
// the source does not have are made, those that it has stay, for kernel
// arguments that name them.
func TestCopyFormats(t *testing.T) {
	o := pullOptions(newRepo(t, kinds["sha512-1"]), "oci:"+filepath.Join(ociVectors(t), "layout")+":boot-modules")
	v1 := mustPull(t, o)
	direct := o
	direct.Repo = newRepo(t, kinds["sha512-2"])
	v2 := mustPull(t, direct)
	target := newRepo(t, kinds["sha512-2"])
	copied, err := copyImage(t, t.Context(), target, o.Repo, v1.Tag)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]fsverity.Digest{
		"composefs.image": v2.Image.ID, "composefs.image.boot": v2.BootImage.ID,
		"composefs.image.v1": v1.Image.ID, "composefs.image.boot.v1": v1.BootImage.ID,
	}
	if diff := cmp.Diff(want, copied.Images, cmp.Comparer(func(a, b fsverity.Digest) bool { return a == b })); diff != "" {
		t.Errorf("images (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{v1.Tag}, copied.Tags); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
}

// TestCopyReflinks makes sure that a copy takes no space where it need not.
func TestCopyReflinks(t *testing.T) {
	for _, kind := range []loopfs.Kind{loopfs.XFS, loopfs.Btrfs} {
		t.Run(string(kind), func(t *testing.T) {
			t.Setenv("TMPDIR", loopfs.MountSize(t, kind, 1<<30))
			t.Run("copy", testCopyReflinks) // with temporary directories there
		})
	}
}

func testCopyReflinks(t *testing.T) {
	o := pullOptions(newRepo(t, kinds["sha512-1"]), "oci:"+randomLayers(t, 3, 2<<20)+":latest")
	o.NoBoot = true
	first := mustPull(t, o)
	copied, err := copyImage(t, t.Context(), newRepo(t, kinds["sha512-1"]), o.Repo, first.Tag)
	if err != nil {
		t.Fatal(err)
	}
	s := copied.Stats
	if n := s.ObjectsReflinked.Load(); n != first.Stats.Objects.Copied || s.ObjectsStored.Load() != 0 {
		t.Errorf("%d objects reflinked, %d copied; there are %d", n, s.ObjectsStored.Load(), first.Stats.Objects.Copied)
	}
}

// TestCopyForeignRepository copies from repositories that composefs-rs wrote.
func TestCopyForeignRepository(t *testing.T) {
	vectors := testutil.Vectors(t)
	source := unpackRepository(t, filepath.Join(vectors, "repos", "sha512-1.tar.zst"))
	layout := filepath.Join(vectors, "oci", "layout")
	for _, image := range []string{"layers", "boot-modules", "selinux", "xattrs"} {
		o := pullOptions(newRepo(t, kinds["sha512-1"]), "oci:"+layout+":"+image)
		want := mustPull(t, o)
		target := newRepo(t, kinds["sha512-1"])
		copied, err := copyImage(t, t.Context(), target, source, want.ManifestDigest.String())
		if err != nil {
			t.Fatal(err)
		}
		if len(copied.Warnings) > 0 {
			t.Errorf("%s: %q", image, copied.Warnings)
		}
		if diff := cmp.Diff(dumpOf(t, o.Repo), dumpOf(t, target)); diff != "" {
			t.Errorf("%s: the copy differs from a pull (-want +got):\n%s", image, diff)
		}
	}
}

// TestCopyBroken copies from repositories that are not what they say. Nothing
// of that gets a name, except layers that are right.
func TestCopyBroken(t *testing.T) {
	layout := filepath.Join(ociVectors(t), "layout")
	for name, c := range map[string]struct {
		damage func(t *testing.T, repo string) // boot-modules is in it
		want   error
		says   string
	}{
		"content": {func(t *testing.T, repo string) {
			rewriteObject(t, repo, layerObject(t, repo), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		}, composefs.ErrIntegrity, "objects/"},
		"length": {func(t *testing.T, repo string) {
			rewriteObject(t, repo, layerObject(t, repo), func(b []byte) []byte { return append(b, 0) })
		}, composefs.ErrIntegrity, "objects/"},
		"missing object": {func(t *testing.T, repo string) {
			if err := os.Remove(objectFile(repo, layerObject(t, repo))); err != nil {
				t.Fatal(err)
			}
		}, os.ErrNotExist, "objects/"},
		"fifo": {func(t *testing.T, repo string) {
			file := objectFile(repo, layerObject(t, repo))
			if err := errors.Join(os.Remove(file), os.Symlink("/dev/zero", file)); err != nil {
				t.Fatal(err)
			}
		}, composefs.ErrIntegrity, "objects/"},
		"other layer": {func(t *testing.T, repo string) {
			// The stream of one layer under the name of another.
			o := pullOptions(repo, "oci:"+layout+":selinux")
			mustPull(t, o)
			relink(t, repo, "oci-layer-")
		}, oci.ErrIntegrity, "layer 1 of 1"},
		"config": {func(t *testing.T, repo string) {
			rewriteObject(t, repo, documentObject(t, repo, "oci-config-"), func(b []byte) []byte { return append(b, '\n') })
		}, oci.ErrIntegrity, "oci-config-"},
		"manifest": {func(t *testing.T, repo string) {
			rewriteObject(t, repo, documentObject(t, repo, "oci-manifest-"), func(b []byte) []byte { return append(b, '\n') })
		}, oci.ErrIntegrity, "oci-manifest-"},
	} {
		t.Run(name, func(t *testing.T) {
			o := pullOptions(newRepo(t, kinds["sha512-1"]), "oci:"+layout+":boot-modules")
			o.Tag = "os"
			mustPull(t, o)
			c.damage(t, o.Repo)
			target := newRepo(t, kinds["sha512-1"])
			_, err := copyImage(t, t.Context(), target, o.Repo, "os")
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("copy: %v, want %v about %q", err, c.want, c.says)
			}
			if got := dumpOf(t, target).Links; len(got) > 0 {
				t.Errorf("the target has links: %v", got)
			}
		})
	}
}

// TestCopyWrongImage copies from a repository whose config names an EROFS image
// that its layers do not make.
func TestCopyWrongImage(t *testing.T) {
	o := pullOptions(newRepo(t, kinds["sha512-1"]), "oci:"+filepath.Join(ociVectors(t), "layout")+":boot-modules")
	first := mustPull(t, o)
	recommit(t, o.Repo, first, func(im *oci.Image) { im.Images["composefs.image.boot.v1"] = first.Image.ID })
	target := newRepo(t, kinds["sha512-1"])
	copied, err := copyImage(t, t.Context(), target, o.Repo, first.Tag)
	if err != nil {
		t.Fatal(err)
	}
	if got := copied.Images["composefs.image.boot.v1"]; got != first.BootImage.ID {
		t.Errorf("the boot image is %s, want %s", got, first.BootImage.ID)
	}
	if len(copied.Warnings) != 1 || !strings.Contains(copied.Warnings[0], first.Image.ID.String()) {
		t.Errorf("warnings %q", copied.Warnings)
	}
}

// TestCopyRefused tries what makes no sense.
func TestCopyRefused(t *testing.T) {
	o := pullOptions(newRepo(t, kinds["sha512-1"]), "oci:"+filepath.Join(ociVectors(t), "layout")+":layers")
	first := mustPull(t, o)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(o.Repo, link); err != nil {
		t.Fatal(err)
	}
	if _, err := copyImage(t, t.Context(), link, o.Repo, first.Tag); !errors.Is(err, oci.ErrSameRepository) {
		t.Errorf("copy to itself: %v", err)
	}
	target := newRepo(t, kinds["sha512-1"])
	for reference, check := range map[string]func(error) bool{
		"absent":                func(err error) bool { _, ok := errors.AsType[*oci.NotFoundError](err); return ok },
		"":                      func(err error) bool { return errors.Is(err, oci.ErrReference) },
		first.Image.ID.String(): func(err error) bool { return errors.Is(err, oci.ErrReference) },
	} {
		if _, err := copyImage(t, t.Context(), target, o.Repo, reference); !check(err) {
			t.Errorf("copy %q: %v", reference, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	opened, err := composefs.Open(ctx, target, composefs.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	source, err := composefs.Open(ctx, o.Repo, composefs.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	cancel()
	if _, err := oci.Copy(ctx, opened, source, oci.CopyOptions{Reference: first.Tag}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if got := dumpOf(t, target).Links; len(got) > 0 {
		t.Errorf("the target has links: %v", got)
	}
}

// objectFile is an object's path.
func objectFile(repo string, id string) string { return filepath.Join(repo, "objects", id[:2], id[2:]) }

// layerObject is an object of more than one kilobyte of a repository's layer.
func layerObject(t *testing.T, repo string) string {
	t.Helper()
	for name, s := range dumpOf(t, repo).Streams {
		if !strings.HasPrefix(name, "oci-layer-") {
			continue
		}
		for _, id := range s.Objects {
			if info, err := os.Stat(objectFile(repo, id)); err == nil && info.Size() > 1<<10 {
				return id
			}
		}
	}
	t.Fatal("no layer has an object of a kilobyte")
	return ""
}

// documentObject is the bytes of the only manifest or config.
func documentObject(t *testing.T, repo, prefix string) string {
	t.Helper()
	for name, s := range dumpOf(t, repo).Streams {
		if strings.HasPrefix(name, prefix) {
			return s.Objects[0]
		}
	}
	t.Fatalf("no stream %s…", prefix)
	return ""
}

func rewriteObject(t *testing.T, repo, id string, change func([]byte) []byte) {
	t.Helper()
	file := objectFile(repo, id)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, change(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// relink makes all streams whose names begin with prefix lead to the objects of
// each other, and everything that named one name the other: the object files
// change places.
func relink(t *testing.T, repo, prefix string) {
	t.Helper()
	links, err := filepath.Glob(filepath.Join(repo, "streams", prefix+"*"))
	if err != nil || len(links) != 2 {
		t.Fatalf("streams %v, %v", links, err)
	}
	var contents [2][]byte
	var files [2]string
	for i, link := range links {
		if files[i], err = filepath.EvalSymlinks(link); err == nil {
			contents[i], err = os.ReadFile(files[i])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range files {
		if err := os.WriteFile(files[i], contents[1-i], 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
