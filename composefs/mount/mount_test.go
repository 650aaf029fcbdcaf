// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package mount_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/mount"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/loopfs"
	"github.com/cfs-pull/cfs-pull/internal/realimage"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
	"github.com/cfs-pull/cfs-pull/pipeline"
	"github.com/cfs-pull/cfs-pull/pipeline/fetch"
)

func TestMain(m *testing.M) {
	unix.Umask(0o022) // modes are compared
	os.Exit(m.Run())
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// layout is the module's layout of conformance images.
func layout(tb testing.TB) string {
	return filepath.Join(testutil.ModuleRoot(tb), "testdata", "oci", "layout")
}

// pull pulls an image of the layout into a repository and opens that.
func pull(tb testing.TB, path, image string) (*composefs.Repo, *pipeline.Result) {
	tb.Helper()
	testutil.RequireRoot(tb)
	r, err := pipeline.Direct(tb.Context(), pipeline.Options{
		Reference: "oci:" + layout(tb) + ":" + image, Repo: path, AllowMissingVerity: true, Init: true, AllowNoBoot: true,
		Fetch: fetch.Options{InsecurePolicy: true, OS: "linux", Architecture: "amd64"},
	})
	must(tb, err)
	repo, err := composefs.Open(tb.Context(), path, composefs.OpenOptions{})
	must(tb, err)
	tb.Cleanup(func() { must(tb, repo.Close()) })
	return repo, r
}

// system is what must be as before when everything is unmounted: mounts and
// loop devices of this test, whose paths have its name. Others run beside it.
func system(tb testing.TB) string {
	tb.Helper()
	test, _, _ := strings.Cut(tb.Name(), "/")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(tb, err)
	var own strings.Builder
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "/"+test) || strings.Contains(line, "cfs-pull-mount-") {
			own.WriteString(line)
		}
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(tb, err)
	for _, name := range loops {
		if file, err := os.ReadFile(name); err == nil && strings.Contains(string(file), "/"+test) {
			own.Write(file)
		}
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "cfs-pull-mount-*"))
	must(tb, err)
	return own.String() + strings.Join(left, "\n")
}

// sameSystem wants the system to be as before.
func sameSystem(tb testing.TB, before string) {
	tb.Helper()
	if diff := cmp.Diff(before, system(tb)); diff != "" {
		tb.Errorf("mounts and loop devices (-before +after):\n%s", diff)
	}
}

func unmount(tb testing.TB, target string) {
	tb.Helper()
	if err := mount.Unmount(target, false); err != nil {
		tb.Error(err)
		loopfs.Unmount(tb, target)
	}
}

// unpack unpacks the layers of an image without whiteouts with tar(1), as one
// archive so that it sets the times of directories last.
func unpack(tb testing.TB, image string) string {
	tb.Helper()
	tar := testutil.RequireTool(tb, "tar", "tar")
	root := tb.TempDir()
	must(tb, os.Chmod(root, 0o755))
	blob := func(digest string) string {
		return filepath.Join(layout(tb), "blobs", strings.Replace(digest, ":", "/", 1))
	}
	read := func(path string, to any) {
		raw, err := os.ReadFile(path)
		must(tb, err)
		must(tb, json.Unmarshal(raw, to))
	}
	var index struct {
		Manifests []struct {
			Digest      string
			Annotations map[string]string
		}
	}
	read(filepath.Join(layout(tb), "index.json"), &index)
	for _, m := range index.Manifests {
		if m.Annotations["org.opencontainers.image.ref.name"] != image {
			continue
		}
		var manifest struct{ Layers []struct{ Digest string } }
		read(blob(m.Digest), &manifest)
		var layers bytes.Buffer
		for _, l := range manifest.Layers {
			compressed, err := os.Open(blob(l.Digest))
			must(tb, err)
			defer compressed.Close()
			layer, err := gzip.NewReader(compressed)
			must(tb, err)
			_, err = layers.ReadFrom(layer)
			must(tb, err)
		}
		cmd := exec.Command(tar, "--extract", "--same-owner", "--same-permissions", "--numeric-owner", "--ignore-zeros",
			"--delay-directory-restore", "--xattrs", "--xattrs-include=*", "--directory", root)
		cmd.Stdin = &layers
		if out, err := cmd.CombinedOutput(); err != nil {
			tb.Fatalf("tar: %v\n%s", err, out)
		}
		return root
	}
	tb.Fatalf("image %s is not in the layout", image)
	return ""
}

func scan(tb testing.TB, root string, keep func(string) bool) realimage.Tree {
	tb.Helper()
	tree, err := realimage.Scan(root, keep)
	must(tb, err)
	return tree
}

func sameTree(tb testing.TB, want, got realimage.Tree) {
	tb.Helper()
	if len(want) < 10 {
		tb.Errorf("only %d paths to compare", len(want))
	}
	if d := realimage.Diff(want, got, 20); len(d) > 0 {
		tb.Errorf("the mounted tree differs:\n%s", strings.Join(d, "\n"))
	}
}

// kernels are the ways to mount on this and on older kernels.
var kernels = map[string]mount.Kernel{
	"newest": {}, "no file-backed EROFS": {NoFileBacked: true}, "no layers by descriptor": {NoLayerFiles: true},
	"neither": {NoFileBacked: true, NoLayerFiles: true},
}

// TestMount compares mounts with the layers as tar unpacks them.
func TestMount(t *testing.T) {
	const image = "boot-modules"
	want := map[bool]realimage.Tree{}
	for _, kind := range loopfs.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			repo, result := pull(t, filepath.Join(loopfs.Mount(t, kind), "repo"), image)
			before := system(t)
			if want[false] == nil {
				want[false] = scan(t, unpack(t, image), realimage.KeepCapabilities).Plain()
				want[true] = want[false].Boot(nil)
			}
			for name, kernel := range kernels {
				for boot, id := range map[bool]fsverity.Digest{false: result.Image.ID, true: result.BootImage.ID} {
					target := t.TempDir()
					if err := kernel.Image(repo, id, target, mount.Options{}); err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					// The backing file of a loop device is an object.
					if got := strings.Contains(system(t), "/objects/"); got != kernel.NoFileBacked {
						t.Errorf("%s: mounted through a loop device: %t", name, got)
					}
					sameTree(t, want[boot], scan(t, target, realimage.KeepAll))
					if err := os.WriteFile(filepath.Join(target, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
						t.Errorf("%s: write to a read-only mount: %v", name, err)
					}
					unmount(t, target)
					sameSystem(t, before)
				}
			}
		})
	}
}

// TestReadWrite keeps changes from one mount to the next, outside the
// repository.
func TestReadWrite(t *testing.T) {
	dir := loopfs.Mount(t, loopfs.Ext4)
	repo, result := pull(t, filepath.Join(dir, "repo"), "boot-modules")
	for name, kernel := range kernels {
		t.Run(name, func(t *testing.T) {
			before := system(t)
			// A comma and a backslash are special in lists of options.
			target, upper := t.TempDir(), filepath.Join(dir, name+`, changes\here`)
			o := mount.Options{Upper: upper}
			must(t, kernel.Image(repo, result.Image.ID, target, o))
			original := scan(t, target, realimage.KeepAll)
			const file = "usr/lib/os-release"
			content, err := os.ReadFile(filepath.Join(target, file))
			must(t, err)
			must(t, os.WriteFile(filepath.Join(target, file), append(content, "changed\n"...), 0o644))
			must(t, os.WriteFile(filepath.Join(target, "new"), []byte("new"), 0o644))
			must(t, os.Chmod(filepath.Join(target, "etc"), 0o700))
			must(t, os.RemoveAll(filepath.Join(target, "boot")))
			changed := scan(t, target, realimage.KeepAll)

			other := t.TempDir()
			if err := kernel.Image(repo, result.Image.ID, other, o); !errors.Is(err, mount.ErrUpper) || !strings.Contains(err.Error(), target) {
				t.Errorf("a second mount with the same upper directory: %v", err)
				unmount(t, other)
			}
			unmount(t, target)
			sameSystem(t, before)

			must(t, kernel.Image(repo, result.Image.ID, target, o))
			sameTree(t, changed, scan(t, target, realimage.KeepAll))
			unmount(t, target)
			must(t, kernel.Image(repo, result.Image.ID, target, mount.Options{}))
			sameTree(t, original, scan(t, target, realimage.KeepAll))
			unmount(t, target)
			sameSystem(t, before)

			got, err := os.ReadFile(filepath.Join(upper, "upper", file))
			if err != nil || string(got) != string(content)+"changed\n" {
				t.Errorf("the upper directory has %q, %v", got, err)
			}
		})
	}
}

func TestUpperRefused(t *testing.T) {
	dir := loopfs.Mount(t, loopfs.Ext4)
	repo, result := pull(t, filepath.Join(dir, "repo"), "boot-modules")
	target := t.TempDir()
	before := system(t)
	must(t, os.Mkdir(filepath.Join(dir, "real"), 0o755))
	must(t, os.Symlink("real", filepath.Join(dir, "link")))
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
	must(t, os.MkdirAll(filepath.Join(dir, "odd"), 0o755))
	must(t, os.Symlink("../real", filepath.Join(dir, "odd", "upper")))
	for _, name := range []string{"link", "file", "odd", "absent/new"} {
		err := mount.Image(repo, result.Image.ID, target, mount.Options{Upper: filepath.Join(dir, name)})
		if !errors.Is(err, mount.ErrUpper) {
			t.Errorf("upper directory %s: %v", name, err)
		}
		sameSystem(t, before)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "real")); err != nil || len(entries) > 0 {
		t.Errorf("something was made behind a link: %v, %v", entries, err)
	}
	// A file system that cannot be an upper layer.
	top := t.TempDir()
	must(t, mount.Image(repo, result.Image.ID, top, mount.Options{Upper: filepath.Join(dir, "real")}))
	below := system(t)
	for name, kernel := range kernels {
		err := kernel.Image(repo, result.Image.ID, target, mount.Options{Upper: filepath.Join(top, "upper")})
		var refused *mount.KernelError
		if !errors.As(err, &refused) || refused.Message == "" || !strings.Contains(refused.Remedy, "ext4") {
			t.Errorf("%s: upper directory on an overlay: %v, %+v", name, err, refused)
		}
		sameSystem(t, below)
	}
	unmount(t, top)
	sameSystem(t, before)
}

func TestRestrictions(t *testing.T) {
	repo, result := pull(t, filepath.Join(t.TempDir(), "repo"), "boot-modules")
	for want, o := range map[string]mount.Options{
		"ro,relatime":                     {},
		"ro,nosuid,nodev,noexec,relatime": {NoSuid: true, NoDev: true, NoExec: true},
	} {
		target := t.TempDir()
		must(t, mount.Image(repo, result.Image.ID, target, o))
		line := mountLine(t, target)
		if !strings.Contains(line, " "+want+" ") || !strings.Contains(line, " overlay composefs:"+result.Image.ID.String()+" ") {
			t.Errorf("options %+v: %q", o, line)
		}
		unmount(t, target)
	}
}

func mountLine(tb testing.TB, target string) string {
	tb.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(tb, err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " "+target+" ") {
			return line
		}
	}
	return ""
}

func TestTargetRefused(t *testing.T) {
	repo, result := pull(t, filepath.Join(t.TempDir(), "repo"), "boot-modules")
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.Mkdir(at("real"), 0o755))
	must(t, os.Symlink("real", at("link")))
	must(t, os.WriteFile(at("file"), nil, 0o644))
	before := system(t)
	refused := func(name string) {
		t.Helper()
		if err := mount.Image(repo, result.Image.ID, dir+"/"+name, mount.Options{}); !errors.Is(err, mount.ErrTarget) {
			t.Errorf("mount on %s: %v", name, err)
		}
	}
	for _, name := range []string{"absent", "link", "link/", "file"} {
		refused(name)
		sameSystem(t, before)
	}
	must(t, mount.Image(repo, result.Image.ID, at("real"), mount.Options{}))
	refused("real")
	refused("link/../real")
	// The same image a second time elsewhere.
	other := t.TempDir()
	must(t, mount.Image(repo, result.Image.ID, other, mount.Options{}))
	unmount(t, other)
	unmount(t, at("link/../real"))
	sameSystem(t, before)
}

func TestUnmountRefused(t *testing.T) {
	repo, result := pull(t, filepath.Join(t.TempDir(), "repo"), "boot-modules")
	before := system(t)
	target := t.TempDir()
	for _, path := range []string{target, filepath.Join(target, "absent"), "/proc", "/"} {
		if err := mount.Unmount(path, true); !errors.Is(err, mount.ErrNotMounted) {
			t.Errorf("unmount %s: %v", path, err)
		}
	}
	sameSystem(t, before)

	must(t, mount.Image(repo, result.Image.ID, target, mount.Options{}))
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(target, link))
	if err := mount.Unmount(link, false); !errors.Is(err, mount.ErrNotMounted) {
		t.Errorf("unmount through a link: %v", err)
	}
	f, err := os.Open(target)
	must(t, err)
	if err := mount.Unmount(target, false); !errors.Is(err, mount.ErrBusy) {
		t.Errorf("unmount what is in use: %v", err)
	}
	must(t, mount.Unmount(target, true))
	if line := mountLine(t, target); line != "" {
		t.Errorf("still mounted: %s", line)
	}
	must(t, f.Close())
	sameSystem(t, before)

	// Another overlay is not ours, and stays.
	overlay(t, target)
	if err := mount.Unmount(target, true); !errors.Is(err, mount.ErrNotMounted) {
		t.Errorf("unmount another overlay: %v", err)
	}
	loopfs.Unmount(t, target)
	sameSystem(t, before)
}

// overlay mounts an overlay that is no composefs.
func overlay(tb testing.TB, target string) {
	tb.Helper()
	options := "lowerdir=" + tb.TempDir() + ":" + tb.TempDir()
	must(tb, unix.Mount("overlay", target, "overlay", 0, options))
}

// TestDamagedImage changes a byte of an image, and what its name leads to.
func TestDamagedImage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "repo")
	repo, result := pull(t, path, "boot-modules")
	before, target := system(t), t.TempDir()
	refused := func(want error, text string) {
		t.Helper()
		for name, kernel := range kernels {
			err := kernel.Image(repo, result.Image.ID, target, mount.Options{})
			if !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
		}
		sameSystem(t, before)
	}
	object := filepath.Join(path, "objects", result.Image.ID.ObjectPath())
	content, err := os.ReadFile(object)
	must(t, err)
	replace := func(b []byte) {
		t.Helper()
		must(t, os.Remove(object))
		must(t, os.WriteFile(object, b, 0o644))
	}
	damaged := slices.Clone(content)
	damaged[len(damaged)-1]++ // the kernel would not notice
	replace(damaged)
	refused(composefs.ErrIntegrity, "its digest is ")
	replace(content)

	// The link leads to the boot image.
	link := filepath.Join(path, "images", result.Image.ID.String())
	must(t, os.Remove(link))
	must(t, os.Symlink("../objects/"+result.BootImage.ID.ObjectPath(), link))
	refused(composefs.ErrIntegrity, "its link leads to")
	must(t, os.Remove(link))
	refused(os.ErrNotExist, "")

	// A file of that name and content elsewhere.
	must(t, os.Symlink("../objects/"+result.Image.ID.ObjectPath(), link))
	must(t, os.Rename(object, filepath.Join(path, "elsewhere")))
	must(t, os.Symlink("../../elsewhere", object))
	refused(composefs.ErrIntegrity, "link")
	must(t, os.Remove(object))
	must(t, os.Rename(filepath.Join(path, "elsewhere"), object))
	must(t, mount.Image(repo, result.Image.ID, target, mount.Options{}))
	unmount(t, target)

	// fs-verity is asked for, and this image was not given it.
	err = mount.Image(repo, result.Image.ID, target, mount.Options{RequireVerity: true})
	if !errors.Is(err, composefs.ErrVerityUnavailable) {
		t.Errorf("mount an image without fs-verity: %v", err)
	}
	sameSystem(t, before)
}

// TestHostileImage has an image whose digest is right and whose structure is
// not, which the kernel must not get to see.
func TestHostileImage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "repo")
	repo, result := pull(t, path, "boot-modules")
	content, err := os.ReadFile(filepath.Join(path, "objects", result.Image.ID.ObjectPath()))
	must(t, err)
	before, target := system(t), t.TempDir()
	for name, change := range map[string]func([]byte){
		"superblock":  func(b []byte) { b[1024+36]++ },                  // number of blocks
		"magic":       func(b []byte) { b[1024] ^= 0xff },               //
		"root inode":  func(b []byte) { b[1024+14], b[1024+15] = 1, 0 }, // inside the header
		"inode count": func(b []byte) { b[1024+16] ^= 1 },
	} {
		hostile := slices.Clone(content)
		change(hostile)
		id, _, err := repo.Put(hostile)
		must(t, err)
		must(t, repo.LinkImage(id))
		if err := mount.Image(repo, id, target, mount.Options{}); err == nil || strings.Contains(err.Error(), "kernel") {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				unmount(t, target)
			}
		}
		if _, err := oci.OpenErofs(repo, id); err == nil && name != "root inode" && name != "inode count" {
			t.Errorf("%s: opened", name)
		}
		sameSystem(t, before)
	}
}
