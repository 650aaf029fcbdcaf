// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/bootc"
	"github.com/cfs-pull/cfs-pull/composefs/mount"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/loopfs"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

// vectorImages are the images in the repositories of the vectors.
var vectorImages = []string{"layers", "boot-modules", "selinux", "sizes", "tar-forms", "xattrs", "special"}

// bootcSystem is a physical root with a repository that cfsctl made and
// deployments as bootc makes them.
type bootcSystem struct {
	root, repo, run, cmdline string
	images                   map[string]expectation
}

func newBootcSystem(t *testing.T) *bootcSystem {
	t.Helper()
	dir := t.TempDir()
	s := &bootcSystem{
		root: filepath.Join(dir, "sysroot"), run: filepath.Join(dir, "run"), cmdline: filepath.Join(dir, "cmdline"),
		images: map[string]expectation{},
	}
	s.repo = filepath.Join(s.root, "composefs")
	for _, d := range []string{s.root, s.run} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(testutil.VectorRepository(t, "sha512-1"), s.repo); err != nil {
		t.Fatal(err)
	}
	for _, image := range vectorImages {
		s.images[image] = readExpectation(t, filepath.Join(testutil.Vectors(t), "oci"), image)["sha512-1"]
	}
	if _, err := pipeline.GC(t.Context(), pipeline.GCOptions{Repo: s.repo, Bootc: s.bootc()}); err != nil {
		t.Fatal(err) // what cfsctl left over is not what the tests are about
	}
	return s
}

func (s *bootcSystem) bootc() bootc.Options { return bootc.Options{RunDir: s.run, Cmdline: s.cmdline} }

func (s *bootcSystem) options() pipeline.GCOptions {
	return pipeline.GCOptions{Repo: s.repo, Sysroot: s.root, KeepRecent: -1, LockTimeout: -1, Bootc: s.bootc()}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// deploy makes the deployment of an image. Without origin it is as an
// interrupted bootc leaves it; oldOrigin is what older releases wrote.
func (s *bootcSystem) deploy(t *testing.T, image, origin string) {
	t.Helper()
	id := s.images[image].BootImageID
	dir := filepath.Join(s.root, "state", "deploy", id)
	if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if origin != "" {
		writeFile(t, filepath.Join(dir, id+".origin"), origin)
	}
}

func (s *bootcSystem) origin(image string) string {
	return oldOrigin + "\n[image]\nmanifest_digest = " + s.images[image].ManifestDigest + "\n"
}

const oldOrigin = "[origin]\ncontainer-image-reference = ostree-unverified-image:docker://example.com/os:latest\n"

// tag is bootc's tag of an image.
func (s *bootcSystem) tag(image string) string {
	return "localhost/bootc-" + s.images[image].ManifestDigest
}

func (s *bootcSystem) tagFile(tag string) string {
	return filepath.Join(s.repo, "streams/refs/oci", strings.ReplaceAll(tag, "/", "%2F"))
}

// tags are the tags that there are, bootc's by the name of the image.
func (s *bootcSystem) tags(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.repo, "streams/refs/oci"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		name := strings.ReplaceAll(e.Name(), "%2F", "/")
		for _, image := range vectorImages {
			if name == s.tag(image) {
				name = image
			}
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// gc collects and checks afterwards that the images which should be are there
// in full and that a second run does nothing.
func (s *bootcSystem) gc(t *testing.T, o pipeline.GCOptions, complete ...string) *pipeline.GCResult {
	t.Helper()
	dry := o
	dry.DryRun = true
	before := inodes(t, s.repo)
	would, err := pipeline.GC(t.Context(), dry)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, inodes(t, s.repo)); diff != "" {
		t.Errorf("the dry run changed:\n%s", diff)
	}
	did, err := pipeline.GC(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(would.Removed, did.Removed); diff != "" {
		t.Errorf("removed (-would +did):\n%s", diff)
	}
	if diff := cmp.Diff(would.TagsCreated, did.TagsCreated); diff != "" {
		t.Errorf("created tags (-would +did):\n%s", diff)
	}
	for _, image := range complete {
		s.checkComplete(t, image)
	}
	o.Keep = nil
	if again, err := pipeline.GC(t.Context(), o); len(complete) > 0 && (err != nil || again.Changed || len(again.TagsCreated) > 0) {
		t.Errorf("a second collection: %+v, %v", again, err)
	}
	return did
}

// checkComplete reads both EROFS images of an image and every object that
// they need.
func (s *bootcSystem) checkComplete(t *testing.T, image string) {
	t.Helper()
	want := s.images[image]
	for _, id := range []string{want.ImageID, want.BootImageID} {
		if _, err := os.Stat(filepath.Join(s.repo, "images", id)); err != nil {
			t.Errorf("%s: %v", image, err)
		}
	}
	for _, id := range want.Repository.FileObjects {
		if _, err := os.Stat(filepath.Join(s.repo, "objects", id[:2], id[2:])); err != nil {
			t.Errorf("%s: %v", image, err)
		}
	}
}

// Deployments keep their images, and bootc's other tags go. Tags of others are
// nobody's business.
func TestGCDeployments(t *testing.T) {
	s := newBootcSystem(t)
	s.deploy(t, "layers", s.origin("layers"))
	s.deploy(t, "selinux", oldOrigin) // its manifest is found by the boot image
	s.deploy(t, "sizes", "")          // interrupted, but may be booted
	writeFile(t, filepath.Join(s.run, "composefs/staged-deployment"),
		fmt.Sprintf(`{"depl_id": %q, "finalization_locked": true}`, s.images["xattrs"].BootImageID))
	writeFile(t, s.cmdline, "quiet composefs=?"+s.images["special"].BootImageID)
	for _, tag := range []string{"example.com/os:1", "localhost/bootc-mine", "localhost/bootc-sha256:" + strings.Repeat("0", 64)} {
		target := "../../oci-manifest-" + s.images["tar-forms"].ManifestDigest
		if err := os.Symlink(target, s.tagFile(tag)); err != nil {
			t.Fatal(err)
		}
	}
	got := s.gc(t, s.options(), "layers", "selinux", "sizes", "xattrs", "special", "tar-forms")
	want := []string{
		"example.com/os:1", "layers", "localhost/bootc-mine", "localhost/bootc-sha256:" + strings.Repeat("0", 64),
		"selinux", "sizes", "special", "xattrs",
	}
	if diff := cmp.Diff(want, s.tags(t)); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	removed := []string{s.tag("boot-modules"), s.tag("tar-forms")}
	slices.Sort(removed)
	if diff := cmp.Diff(removed, got.Removed.Tags); diff != "" {
		t.Errorf("removed tags (-want +got):\n%s", diff)
	}
	if got.Removed.Objects != 12 || len(got.Removed.Images) != 2 || !got.Changed || len(got.Deployments) != 5 || len(got.Warnings) != 0 {
		t.Errorf("%+v", got)
	}
	var staged, booted, named int
	for _, d := range got.Deployments {
		if d.Staged {
			staged++
		}
		if d.Booted {
			booted++
		}
		if !d.Manifest.IsZero() {
			named++
		}
	}
	if staged != 1 || booted != 1 || named != 5 {
		t.Errorf("%d staged, %d booted, %d with a manifest: %+v", staged, booted, named, got.Deployments)
	}
}

// Deployments whose tags are missing get them before anything is removed.
func TestGCCreatesTags(t *testing.T) {
	s := newBootcSystem(t)
	s.deploy(t, "layers", s.origin("layers"))
	s.deploy(t, "selinux", oldOrigin)
	for _, image := range vectorImages {
		if err := os.Remove(s.tagFile(s.tag(image))); err != nil {
			t.Fatal(err)
		}
	}
	got := s.gc(t, s.options(), "layers", "selinux")
	if diff := cmp.Diff([]string{"layers", "selinux"}, s.tags(t)); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	if len(got.TagsCreated) != 2 || len(got.Removed.Tags) != 0 || len(got.Removed.Images) != 10 {
		t.Errorf("%+v", got)
	}
}

// An image that nobody can name any more is kept for its deployment, and then
// no tag is removed.
func TestGCUnknownManifest(t *testing.T) {
	s := newBootcSystem(t)
	s.deploy(t, "layers", s.origin("layers"))
	s.deploy(t, "selinux", s.origin("selinux"))
	manifest := s.images["selinux"].ManifestDigest
	for _, name := range []string{s.tagFile(s.tag("selinux")), filepath.Join(s.repo, "streams/oci-manifest-"+manifest)} {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	got := s.gc(t, s.options(), "layers", "boot-modules", "sizes")
	if len(got.Removed.Tags) != 0 || len(got.TagsCreated) != 0 || len(got.Warnings) != 1 {
		t.Errorf("%+v", got)
	}
	repo, err := composefs.Open(t.Context(), s.repo, composefs.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	id, err := repo.ImageID(s.images["selinux"].BootImageID)
	if err != nil {
		t.Fatal(err)
	}
	image, err := oci.OpenErofs(repo, id)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := image.Objects()
	if err != nil || len(objects) == 0 {
		t.Fatalf("the deployment's image has %d objects, %v", len(objects), err)
	}
	for _, o := range objects {
		if ok, err := repo.HasObject(o, -1); !ok || err != nil {
			t.Errorf("object %s of the deployment is there: %t, %v", o, ok, err)
		}
	}
}

// Whatever cannot be told ends it with nothing removed.
func TestGCFailsClosed(t *testing.T) {
	foreign := strings.Repeat("ab", 64)
	tests := map[string]struct {
		breakIt func(*testing.T, *bootcSystem)
		want    error
	}{
		"origin that does not parse": {func(t *testing.T, s *bootcSystem) { s.deploy(t, "layers", "[image]\nmanifest_digest = x") }, bootc.ErrState},
		"origin that cannot be read": {func(t *testing.T, s *bootcSystem) {
			id := s.images["layers"].BootImageID
			dir := filepath.Join(s.root, "state/deploy", id, id+".origin")
			if err := errors.Join(os.Remove(dir), os.Mkdir(dir, 0o755)); err != nil {
				t.Fatal(err)
			}
		}, bootc.ErrState},
		"directory that is no deployment": {func(t *testing.T, s *bootcSystem) {
			writeFile(t, filepath.Join(s.root, "state/deploy/backup/x"), "")
		}, bootc.ErrState},
		"deployment of another repository": {func(t *testing.T, s *bootcSystem) {
			writeFile(t, filepath.Join(s.root, "state/deploy", foreign, "etc/x"), "")
		}, bootc.ErrState},
		"staged deployment that does not parse": {func(t *testing.T, s *bootcSystem) {
			writeFile(t, filepath.Join(s.run, "composefs/staged-deployment"), "{")
		}, bootc.ErrState},
		"image of a deployment is broken": {func(t *testing.T, s *bootcSystem) {
			id := s.images["layers"].BootImageID
			if err := os.Truncate(filepath.Join(s.repo, "objects", id[:2], id[2:]), 4096); err != nil {
				t.Fatal(err)
			}
		}, composefs.ErrUndecided},
		"tag to nothing": {func(t *testing.T, s *bootcSystem) {
			if err := os.Symlink("../../oci-manifest-x", s.tagFile("example.com/os:1")); err != nil {
				t.Fatal(err)
			}
		}, composefs.ErrUndecided},
	}
	for name, tt := range tests {
		for _, bare := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/bare %t", name, bare), func(t *testing.T) {
				t.Parallel()
				s := newBootcSystem(t)
				s.deploy(t, "layers", s.origin("layers"))
				tt.breakIt(t, s)
				o := s.options()
				if bare {
					o.Sysroot = ""
				}
				before := inodes(t, s.repo)
				got, err := pipeline.GC(t.Context(), o)
				if !errors.Is(err, tt.want) || got == nil || got.Changed {
					t.Errorf("result %+v, error %v, want %v", got, err, tt.want)
				}
				if diff := cmp.Diff(before, inodes(t, s.repo)); diff != "" {
					t.Errorf("it changed:\n%s", diff)
				}
			})
		}
	}
}

// Where it is not clear that the system is bootc's, no tag is removed; the
// deployments that there are keep their images all the same.
func TestGCRemovesNoTags(t *testing.T) {
	all := slices.Sorted(slices.Values(vectorImages))
	t.Run("with the repository alone", func(t *testing.T) {
		s := newBootcSystem(t)
		s.deploy(t, "layers", s.origin("layers"))
		if err := os.Remove(s.tagFile(s.tag("layers"))); err != nil {
			t.Fatal(err)
		}
		// By a link from elsewhere, too.
		link := filepath.Join(t.TempDir(), "repo")
		if err := os.Symlink(s.repo, link); err != nil {
			t.Fatal(err)
		}
		o := s.options()
		o.Repo, o.Sysroot = link, ""
		s.gc(t, o, vectorImages...)
		if diff := cmp.Diff(all, s.tags(t)); diff != "" {
			t.Errorf("tags (-want +got):\n%s", diff)
		}
	})
	t.Run("on another system", func(t *testing.T) {
		s := newBootcSystem(t)
		if got := s.gc(t, s.options(), vectorImages...); got.Changed {
			t.Errorf("%+v", got)
		}
		// The kernel's argument names an image of this repository.
		writeFile(t, s.cmdline, "composefs="+s.images["layers"].BootImageID)
		if err := os.Remove(s.tagFile(s.tag("layers"))); err != nil {
			t.Fatal(err)
		}
		if got := s.gc(t, s.options(), vectorImages...); len(got.TagsCreated) != 1 || len(got.Removed.Tags) != 0 {
			t.Errorf("%+v", got)
		}
	})
	t.Run("with no deployment", func(t *testing.T) {
		s := newBootcSystem(t)
		if err := os.MkdirAll(filepath.Join(s.root, "state/deploy"), 0o755); err != nil {
			t.Fatal(err)
		}
		if got := s.gc(t, s.options(), vectorImages...); got.Changed {
			t.Errorf("%+v", got)
		}
	})
	t.Run("recent", func(t *testing.T) {
		s := newBootcSystem(t)
		s.deploy(t, "layers", s.origin("layers"))
		old := unix.NsecToTimespec(time.Now().Add(-25 * time.Hour).UnixNano())
		for _, image := range []string{"layers", "sizes"} {
			if err := unix.UtimesNanoAt(unix.AT_FDCWD, s.tagFile(s.tag(image)), []unix.Timespec{old, old}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				t.Fatal(err)
			}
		}
		o := s.options()
		o.KeepRecent = 0
		got := s.gc(t, o, "layers", "selinux", "special")
		if diff := cmp.Diff([]string{s.tag("sizes")}, got.Removed.Tags); diff != "" {
			t.Errorf("removed tags (-want +got):\n%s", diff)
		}
	})
}

func TestGCKeep(t *testing.T) {
	s := newBootcSystem(t)
	s.deploy(t, "layers", s.origin("layers"))
	if err := os.Remove(s.tagFile(s.tag("xattrs"))); err != nil {
		t.Fatal(err)
	}
	for _, reference := range []string{"oci-manifest-sha256:00", "sha256:" + strings.Repeat("0", 64), "localhost/bootc-", "", strings.Repeat("0", 128)} {
		o := s.options()
		o.Keep = []string{reference}
		before := inodes(t, s.repo)
		if got, err := pipeline.GC(t.Context(), o); !errors.As(err, new(*pipeline.KeepError)) || got.Changed {
			t.Errorf("keep %q: %+v, %v", reference, got, err)
		}
		if diff := cmp.Diff(before, inodes(t, s.repo)); diff != "" {
			t.Errorf("keep %q changed:\n%s", reference, diff)
		}
	}
	o := s.options()
	o.Keep = []string{
		s.tag("selinux"), s.images["sizes"].ManifestDigest, "oci-manifest-" + s.images["xattrs"].ManifestDigest,
		s.images["special"].BootImageID,
	}
	got, err := pipeline.GC(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range []string{"layers", "selinux", "sizes", "xattrs"} {
		s.checkComplete(t, image)
	}
	if diff := cmp.Diff([]string{"layers", "selinux", "sizes"}, s.tags(t)); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(filepath.Join(s.repo, "images", s.images["special"].BootImageID)); err != nil {
		t.Error(err)
	}
	if len(got.Removed.Images) != 5 { // two of two images, and the plain one of special
		t.Errorf("removed images %v", got.Removed.Images)
	}
}

// The files of what is mounted stay, though nothing in the repository says that
// it is; what is mounted of another repository does not matter.
func TestGCKeepsMounted(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	var image fsverity.Digest
	mounted, other := filepath.Join(dir, `mounted, with\octal 040`), filepath.Join(dir, "other")
	for _, path := range []string{mounted, other} {
		o := pullOptions(path, "oci:"+filepath.Join(ociVectors(t), "layout")+":layers")
		o.Init = true
		image = mustPull(t, o).Image.ID
		if err := os.RemoveAll(filepath.Join(path, "streams/refs")); err != nil {
			t.Fatal(err)
		}
	}
	gc := func(repo string, want ...fsverity.Digest) *pipeline.GCResult {
		t.Helper()
		got, err := pipeline.GC(t.Context(), pipeline.GCOptions{Repo: repo, LockTimeout: -1, Bootc: bootc.Options{RunDir: dir, Cmdline: os.DevNull}})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got.Mounted, want) {
			t.Errorf("kept as mounted: %v, want %v", got.Mounted, want)
		}
		return got
	}
	repo, err := composefs.Open(t.Context(), mounted, composefs.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(mount.Image(repo, image, target, mount.Options{}), repo.Close()); err != nil {
		t.Fatal(err)
	}
	unmounted := false
	defer func() {
		if !unmounted {
			loopfs.Unmount(t, target)
		}
	}()
	gc(mounted, image)
	gc(other)
	if left := objectFiles(t, other); len(left) > 0 {
		t.Errorf("the repository that nothing is mounted of has %v", left)
	}
	read := 0
	err = filepath.WalkDir(target, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			read++
			_, err = os.ReadFile(path)
		}
		return err
	})
	if err != nil || read == 0 {
		t.Errorf("read %d files of the mounted image: %v", read, err)
	}
	loopfs.Unmount(t, target)
	unmounted = true
	gc(mounted)
	if left := objectFiles(t, mounted); len(left) > 0 {
		t.Errorf("after unmounting the repository has %v", left)
	}
}

// objectFiles are the objects of a repository.
func objectFiles(t *testing.T, repo string) []string {
	t.Helper()
	files, err := fs.Glob(os.DirFS(repo), "objects/??/*")
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// An old repository is upgraded first, by a dry run too, and only what the
// upgrade replaced is garbage.
func TestGCUpgrades(t *testing.T) {
	for _, dry := range []bool{true, false} {
		t.Run(fmt.Sprintf("dry run %t", dry), func(t *testing.T) {
			repo := testutil.VectorRepository(t, "old-sha512")
			o := pipeline.GCOptions{Repo: repo, DryRun: dry, LockTimeout: -1}
			got, err := pipeline.GC(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if got.Upgraded == nil || !got.Upgraded.Metadata || got.Upgraded.Images != 4 || got.Removed.Objects != 8 || len(got.Removed.Streams) != 0 {
				t.Errorf("%+v, upgraded %+v", got, got.Upgraded)
			}
			o.DryRun = false
			again, err := pipeline.GC(t.Context(), o)
			if err != nil || again.Upgraded != nil || again.Changed != dry {
				t.Errorf("second collection: %+v, %v", again, err)
			}
		})
	}
}

// A pull upgrades as well, and says so.
func TestPullUpgrades(t *testing.T) {
	vectors := testutil.Vectors(t)
	repo := testutil.VectorRepository(t, "old-sha512")
	o := pullOptions(repo, "oci:"+filepath.Join(vectors, "oci", "layout")+":layers")
	check := o
	if _, err := pipeline.Check(t.Context(), check); !errors.Is(err, composefs.ErrOldFormat) {
		t.Errorf("check: %v", err)
	}
	got := mustPull(t, o)
	if got.Upgraded == nil || !got.Upgraded.Metadata || got.Upgraded.Images != 4 || got.Stats.LayersPresent != got.Stats.Layers {
		t.Errorf("%+v, upgraded %+v", got, got.Upgraded)
	}
	want := readExpectation(t, filepath.Join(vectors, "oci"), "layers")["sha512-1"]
	if got.Image.ID.String() != want.ImageID || got.BootImage.ID.String() != want.BootImageID {
		t.Errorf("image %s, boot image %s", got.Image.ID, got.BootImage.ID)
	}
	if again := mustPull(t, o); again.Upgraded != nil || again.Changed {
		t.Errorf("second pull: %+v", again)
	}
}

// Two operations of this program exclude each other, and whoever waits in vain
// learns for whom.
func TestOperationLock(t *testing.T) {
	repo := newRepo(t, composefs.InitOptions{})
	layout := randomLayers(t, 1, 1000)
	pull := pullOptions(repo, "oci:"+layout+":latest")
	pull.NoBoot, pull.LockTimeout = true, 20*time.Millisecond
	release, err := composefs.LockOperation(t.Context(), repo, -1)
	if err != nil {
		t.Fatal(err)
	}
	operations := map[string]func() error{
		"pull": func() error { _, err := pipeline.Direct(t.Context(), pull); return err },
		"gc": func() error {
			_, err := pipeline.GC(t.Context(), pipeline.GCOptions{Repo: repo, LockTimeout: 20 * time.Millisecond})
			return err
		},
	}
	for name, do := range operations {
		err := do()
		if locked, ok := errors.AsType[*composefs.LockError](err); !ok || len(locked.Holders) != 1 || locked.Holders[0].PID != os.Getpid() {
			t.Errorf("%s beside another operation: %v", name, err)
		}
	}
	// Those that only look need not wait.
	if _, err := pipeline.GC(t.Context(), pipeline.GCOptions{Repo: repo, DryRun: true, LockTimeout: -1}); err != nil {
		t.Errorf("dry run: %v", err)
	}
	if _, err := pipeline.Check(t.Context(), pull); err != nil {
		t.Errorf("check: %v", err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pull", "gc", "pull"} {
		if err := operations[name](); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Other programs, which know only the repository's own lock, are waited for.
func TestGCWaitsForReaders(t *testing.T) {
	repo := newRepo(t, composefs.InitOptions{})
	other, err := os.Open(repo)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	o := pipeline.GCOptions{Repo: repo, LockTimeout: 20 * time.Millisecond}
	_, err = pipeline.GC(t.Context(), o)
	if locked, ok := errors.AsType[*composefs.LockError](err); !ok || !locked.Exclusive || len(locked.Holders) == 0 {
		t.Errorf("beside a reader: %v", err)
	}
	o.LockTimeout = time.Minute
	done := make(chan error)
	go func() {
		_, err := pipeline.GC(t.Context(), o)
		done <- err
	}()
	time.Sleep(50 * time.Millisecond)
	if err := unix.Flock(int(other.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("after the reader: %v", err)
	}
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("a lock was left: %v", err)
	}
}

// Tags that lead to nothing go when that is asked for.
func TestGCDropDangling(t *testing.T) {
	s := newBootcSystem(t)
	if err := os.Symlink("../../oci-manifest-x", s.tagFile("example.com/os:1")); err != nil {
		t.Fatal(err)
	}
	o := s.options()
	o.DropDangling = true
	got := s.gc(t, o, vectorImages...)
	if len(got.Removed.Refs) != 1 || got.Removed.Refs[0].Path != "streams/refs/oci/example.com%2Fos:1" || got.Removed.Objects != 0 {
		t.Errorf("%+v", got)
	}
}
