// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/internal/filelock"
	"github.com/cfs-pull/cfs-pull/internal/loopfs"
	"github.com/cfs-pull/cfs-pull/internal/ocilayout"
	"github.com/cfs-pull/cfs-pull/internal/realimage"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// copyOptions are the options of a store below dir that podman can use, too:
// it does not take long run roots.
func copyOptions(t testing.TB, dir string) Options {
	t.Helper()
	run := check(os.MkdirTemp("/tmp", "cstor"))(t)
	t.Cleanup(func() { must(t, os.RemoveAll(run)) })
	o := Options{GraphRoot: dir, RunRoot: run, LockTimeout: 2 * time.Minute, Log: testLog(t)}
	unmountStore(t, o)
	return o
}

// podmanStore is a store below dir that podman has made, with the images of the
// references.
func podmanStore(t testing.TB, dir string, refs ...string) *Store {
	t.Helper()
	o := copyOptions(t, dir)
	for _, ref := range refs {
		out := check(runPodman(t, o, "pull", "-q", ref))(t)
		name := "localhost/" + ref[strings.LastIndexByte(ref, ':')+1:] + ":latest"
		check(runPodman(t, o, "tag", strings.TrimSpace(out), name))(t)
	}
	s := check(OpenExisting(t.Context(), o))(t)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func emptyStore(t testing.TB, dir string) *Store {
	t.Helper()
	return openStore(t, copyOptions(t, dir))
}

// layoutDir is a directory for a layout: podman makes a name of its path, which
// must not have capitals.
func layoutDir(t testing.TB) string {
	t.Helper()
	dir := check(os.MkdirTemp("/tmp", "layout"))(t)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return filepath.Join(dir, "l")
}

// oddImage is an image with what a store makes mistakes with, and a layer that
// hides parts of the one below.
func oddImage(t testing.TB) string {
	t.Helper()
	dir := layoutDir(t)
	w := check(ocilayout.Create(dir))(t)
	when := time.Unix(1700000000, 123456789)
	add := func(tw *tar.Writer, h tar.Header, content string) error {
		h.ModTime, h.Size, h.Format = when, int64(len(content)), tar.FormatPAX
		if err := tw.WriteHeader(&h); err != nil {
			return err
		}
		_, err := io.WriteString(tw, content)
		return err
	}
	random := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	for i := range random {
		random[i] ^= byte(i * i >> 8)
	}
	const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	must(t, w.AddLayer(ocilayout.Gzip, func(tw *tar.Writer) error {
		return errors.Join(
			add(tw, tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o555}, ""),
			add(tw, tar.Header{Typeflag: tar.TypeDir, Name: "usr/", Mode: 0o755}, ""),
			add(tw, tar.Header{Typeflag: tar.TypeReg, Name: "usr/large", Mode: 0o644}, string(random)),
			add(tw, tar.Header{Typeflag: tar.TypeReg, Name: "usr/large2", Mode: 0o644}, string(random[:5000])),
			add(tw, tar.Header{Typeflag: tar.TypeReg, Name: "usr/none", Mode: 0}, string(random[:300])),
			add(tw, tar.Header{Typeflag: tar.TypeReg, Name: "usr/setuid", Mode: 0o4755, Uid: 7, Gid: 8}, string(random[:8192])),
			add(tw, tar.Header{
				Typeflag: tar.TypeReg, Name: "usr/ping", Mode: 0o755,
				PAXRecords: map[string]string{"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.x": "y"},
			}, string(random[:4097])),
			add(tw, tar.Header{Typeflag: tar.TypeReg, Name: "usr/small", Mode: 0o644}, "small"),
			add(tw, tar.Header{Typeflag: tar.TypeReg, Name: "usr/new\nline", Mode: 0o644}, string(random[:100])),
			add(tw, tar.Header{Typeflag: tar.TypeReg, Name: "usr/\xff\xfe", Mode: 0o644}, string(random[:200])),
			add(tw, tar.Header{Typeflag: tar.TypeLink, Name: "usr/linked", Linkname: "usr/large", Mode: 0o644}, ""),
			add(tw, tar.Header{Typeflag: tar.TypeSymlink, Name: "usr/sym", Linkname: "../../../../etc/passwd"}, ""),
			add(tw, tar.Header{Typeflag: tar.TypeChar, Name: "usr/null", Mode: 0o666, Devmajor: 1, Devminor: 3}, ""),
			add(tw, tar.Header{Typeflag: tar.TypeFifo, Name: "usr/fifo", Mode: 0o600}, ""),
			add(tw, tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o700, Uid: 3, Gid: 4}, ""),
			add(tw, tar.Header{Typeflag: tar.TypeReg, Name: "etc/hidden", Mode: 0o644}, string(random[:400])),
		)
	}))
	must(t, w.AddLayer(ocilayout.Zstd, func(tw *tar.Writer) error {
		return errors.Join(
			add(tw, tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755}, ""),
			add(tw, tar.Header{Typeflag: tar.TypeReg, Name: "etc/.wh.hidden"}, ""),
			add(tw, tar.Header{Typeflag: tar.TypeDir, Name: "usr/", Mode: 0o755}, ""),
			add(tw, tar.Header{Typeflag: tar.TypeReg, Name: "usr/.wh.small"}, ""),
			add(tw, tar.Header{Typeflag: tar.TypeReg, Name: "usr/large2", Mode: 0o600}, string(random[100:7000])),
			add(tw, tar.Header{Typeflag: tar.TypeDir, Name: "opt/", Mode: 0o755}, ""),
			add(tw, tar.Header{Typeflag: tar.TypeReg, Name: "opt/.wh..wh..opq"}, ""),
		)
	}))
	must(t, w.Finish("odd", v1.ImageConfig{}))
	return "oci:" + dir + ":odd"
}

// usage is how many bytes of a file system are in use.
func usage(t testing.TB, dir string) int64 {
	t.Helper()
	must(t, syncfs(dir))
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

func syncfs(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// sameImages compares an image in two stores: the records, the trees that podman
// mounts, and the layers on disk.
func sameImages(t *testing.T, want, got *Store, id string) {
	t.Helper()
	a, b := check(want.Lookup(id))(t), check(got.Lookup(id))(t)
	ignore := cmp.Options{cmpopts.IgnoreUnexported(Image{}), cmpopts.IgnoreFields(Image{}, "GraphRoot", "Created"), cmp.Comparer(func(a, b oci.Digest) bool { return a == b })}
	if diff := cmp.Diff(a, b, ignore); diff != "" {
		t.Errorf("image (-source +copy):\n%s", diff)
	}
	from, to := check(want.Layers(a))(t), check(got.Layers(b))(t)
	if len(from) != len(to) {
		t.Fatalf("%d layers, want %d", len(to), len(from))
	}
	for i := range from {
		if from[i].ID != to[i].ID || from[i].DiffID != to[i].DiffID || from[i].Parent != to[i].Parent ||
			from[i].CompressedDigest != to[i].CompressedDigest || from[i].UncompressedSize != to[i].UncompressedSize || to[i].TarSplitPath == "" {
			t.Errorf("layer %d is %+v, want %+v", i, to[i], from[i])
		}
		if !bytes.Equal(plainSplit(t, from[i].TarSplitPath), plainSplit(t, to[i].TarSplitPath)) {
			t.Errorf("layer %d has other tar-split metadata", i)
		}
		trees := []realimage.Tree{}
		for _, l := range []Layer{from[i], to[i]} {
			tree := check(realimage.Scan(l.DiffDir, realimage.KeepAll))(t)
			// Libraries before 1.50 do not apply the archive's entry for the root,
			// and that of podman 4 is one; package unpack tests it.
			delete(tree, ".")
			for name, e := range tree {
				// Neither whiteouts nor directories without an entry have a time of
				// their own.
				if e.Type == "char" && e.Rdev == "0:0" || e.Type == "dir" && time.Since(time.Unix(e.Sec, 0)) < time.Hour {
					e.Sec, e.Nsec = 0, 0
				}
				tree[name] = e
			}
			trees = append(trees, tree)
		}
		if diff := realimage.Diff(trees[0], trees[1], 10); len(diff) > 0 {
			t.Errorf("layer %d differs:\n%s", i, strings.Join(diff, "\n"))
		}
	}
}

func plainSplit(t testing.TB, path string) []byte {
	t.Helper()
	split := check(openTarSplit(path))(t)
	defer split.Close()
	return check(io.ReadAll(split.in))(t)
}

func TestCopyImage(t *testing.T) {
	testutil.RequireRoot(t)
	odd := oddImage(t)
	for _, test := range []struct {
		name   string
		kind   loopfs.Kind
		shared bool // source and target are on one file system
	}{
		{"xfs", loopfs.XFS, true}, {"btrfs", loopfs.Btrfs, true}, {"ext4", loopfs.Ext4, true}, {"across", loopfs.XFS, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			base := loopfs.Mount(t, test.kind)
			target := base
			if !test.shared {
				target = loopfs.Mount(t, loopfs.XFS)
			}
			refs := []string{odd, vector(t, "annotated")}
			from := podmanStore(t, filepath.Join(base, "host"), refs...)
			to := emptyStore(t, filepath.Join(target, "owned"))
			for _, name := range []string{"odd", "annotated"} {
				img := check(from.Lookup("localhost/" + name))(t)
				events := &eventLog{}
				r, err := to.CopyImage(t.Context(), from, img, PullOptions{MinFree: -1, Events: events.add})
				must(t, err)
				if !r.Fetched || r.ImageID != img.ID || r.ManifestDigest != img.ManifestDigest {
					t.Errorf("%s: result %+v, want the ids of %s", name, r, img.ID)
				}
				clones := test.shared && test.kind.Reflinks()
				if clones && r.Copy.BytesCopied != 0 || !clones && r.Copy.BytesCloned != 0 || name == "odd" && r.Copy.Files != 9 {
					t.Errorf("%s: files came in this way: %+v", name, r.Copy)
				}
				checkCopyEvents(t, events.events, img)
				sameImages(t, from, to, img.ID)
				before := tree(t, to.graphRoot)
				again, err := to.CopyImage(t.Context(), from, img, PullOptions{MinFree: -1})
				must(t, err)
				if again.Fetched || again.Changed || again.LayersPresent != again.Layers {
					t.Errorf("%s: second copy: %+v", name, again)
				}
				if diff := cmp.Diff(before, tree(t, to.graphRoot)); diff != "" {
					t.Errorf("%s: the second copy changed something:\n%s", name, diff)
				}
			}
			if left := check(os.ReadDir(filepath.Join(to.graphRoot, tempDirs)))(t); len(left) > 0 {
				t.Errorf("temporary directories are left: %v", left)
			}
			// podman finds it by the digest that it was pulled by, and sees the
			// same tree.
			id := check(from.Lookup("localhost/odd"))(t).ID
			listing := podman(t, to, "images", "--digests", "--no-trunc", "--format", "{{.Digest}} {{.ID}} {{.Repository}}:{{.Tag}}")
			img := check(to.Lookup(id))(t)
			if want := img.ManifestDigest.String() + " sha256:" + id + " localhost/odd:latest"; !strings.Contains(listing, want) {
				t.Errorf("podman lists\n%s, want %q", listing, want)
			}
			theirs, ours := mountedTree(t, from, id), mountedTree(t, to, id)
			if len(ours) < 15 {
				t.Errorf("the tree has only %d names", len(ours))
			}
			if diff := realimage.Diff(theirs, ours, 10); len(diff) > 0 {
				t.Errorf("podman mounts another tree:\n%s", strings.Join(diff, "\n"))
			}
		})
	}
}

// checkCopyEvents checks that the progress of an image's copy adds up.
func checkCopyEvents(t *testing.T, events []Event, img *Image) {
	t.Helper()
	m := check(oci.ParseManifest(img.Manifest))(t)
	var total, fetched int64
	stored := 0
	for _, l := range m.Layers {
		total += l.Size
	}
	for _, e := range events {
		if e.Kind == EventFetched {
			fetched += e.Bytes
		}
		if e.Kind == EventStored {
			stored++
		}
	}
	if len(events) == 0 || events[0].Kind != EventTotals || events[0].Total != total || fetched != total || stored != len(m.Layers) {
		t.Errorf("%d bytes and %d layers of %d and %d were announced in %+v", fetched, stored, total, len(m.Layers), events)
	}
}

// mountedTree is what podman mounts of an image.
func mountedTree(t testing.TB, s *Store, id string) realimage.Tree {
	t.Helper()
	dir := strings.TrimSpace(podman(t, s, "image", "mount", id))
	defer podman(t, s, "image", "unmount", id)
	tree := check(realimage.Scan(dir, realimage.KeepAll))(t)
	root := tree["."]
	root.Sec, root.Nsec = 0, 0 // a layer without an entry for it has the time of its unpacking
	tree["."] = root
	return tree
}

// Files of a copy share their blocks with those of the source.
func TestCopySharesBlocks(t *testing.T) {
	testutil.RequireRoot(t)
	for _, kind := range []loopfs.Kind{loopfs.XFS, loopfs.Btrfs} {
		t.Run(string(kind), func(t *testing.T) {
			base := loopfs.Mount(t, kind)
			const size = 16 << 20
			layout := layoutDir(t)
			w := check(ocilayout.Create(layout))(t)
			must(t, w.AddLayer(ocilayout.Gzip, func(tw *tar.Writer) error {
				data := make([]byte, 1<<20)
				for i := range size >> 20 {
					for j := range data {
						data[j] = byte(i*j ^ j>>8)
					}
					if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
						return err
					}
					if _, err := tw.Write(data); err != nil {
						return err
					}
				}
				return nil
			}))
			must(t, w.Finish("large", v1.ImageConfig{}))
			from := podmanStore(t, filepath.Join(base, "host"), "oci:"+layout+":large")
			to := emptyStore(t, filepath.Join(base, "owned"))
			before := usage(t, base)
			r, err := to.CopyNamed(t.Context(), from, "localhost/large", PullOptions{MinFree: -1, Names: []string{"example.com/os:1"}})
			must(t, err)
			if r.Copy.BytesCloned != size || r.Copy.Files != size>>20 {
				t.Errorf("copied %+v, want %d bytes cloned", r.Copy, size)
			}
			if grown := usage(t, base) - before; grown > size/20 {
				t.Errorf("the copy of %d bytes takes %d", size, grown)
			}
			if diff := cmp.Diff([]string{"example.com/os:1"}, check(to.Lookup(r.ImageID))(t).Names); diff != "" {
				t.Errorf("names (-want +got):\n%s", diff)
			}
		})
	}
}

// Layers that are there already are used, whatever image has brought them.
func TestCopyReusesLayers(t *testing.T) {
	testutil.RequireRoot(t)
	base := loopfs.Mount(t, loopfs.XFS)
	from := podmanStore(t, filepath.Join(base, "host"), vector(t, "empty-layer"), vector(t, "sizes"), vector(t, "annotated"))
	to := emptyStore(t, filepath.Join(base, "owned"))
	pull(t, to, vector(t, "sizes"), "example.com/sizes:latest")
	present := check(to.Layers(check(to.Lookup("example.com/sizes"))(t)))(t)
	created := check(os.Stat(present[0].DiffDir))(t).Sys()
	r, err := to.CopyNamed(t.Context(), from, "localhost/sizes", PullOptions{MinFree: -1})
	must(t, err)
	if r.Fetched || r.LayersPresent != r.Layers || !slices.Contains(r.Names, "localhost/sizes:latest") || !slices.Contains(r.Names, "example.com/sizes:latest") {
		t.Errorf("copy of an image that was pulled: %+v", r)
	}
	if diff := cmp.Diff(created, check(os.Stat(present[0].DiffDir))(t).Sys()); diff != "" {
		t.Errorf("the layer's directory changed:\n%s", diff)
	}
	for _, name := range []string{"empty-layer", "annotated"} {
		_, err := to.CopyNamed(t.Context(), from, "localhost/"+name, PullOptions{MinFree: -1})
		must(t, err)
		sameImages(t, from, to, check(from.Lookup("localhost/"+name))(t).ID)
	}
}

// The manifest's index and whatever else belongs to an image comes along;
// signatures do not.
func TestCopyDocuments(t *testing.T) {
	testutil.RequireRoot(t)
	from, to := emptyStore(t, filepath.Join(t.TempDir(), "host")), emptyStore(t, filepath.Join(t.TempDir(), "owned"))
	src := openSource(t, vector(t, "multi-arch"), fetchOptions(t))
	src.Index = []byte(`{"schemaVersion":2,"manifests":[]}`)
	r := check(from.Pull(t.Context(), src, PullOptions{Names: []string{"example.com/multi:latest"}, MinFree: -1}))(t)
	w := check(from.writer(t.Context()))(t)
	for key, data := range map[string]string{"signatures": "sig", "signature-abc": "sig", "notes": "kept"} {
		must(t, w.lib.SetImageBigData(r.ImageID, key, []byte(data), nil))
	}
	img := check(from.Lookup(r.ImageID))(t)
	if _, err := to.CopyImage(t.Context(), from, img, PullOptions{MinFree: -1}); err != nil {
		t.Fatal(err)
	}
	index := oci.DigestOf(src.Index)
	got := check(to.Lookup(index.String()))(t)
	want := []string{img.ConfigDigest.String(), manifestKey, manifestKey + "-" + img.ManifestDigest.String(), manifestKey + "-" + index.String(), "notes"}
	slices.Sort(want)
	slices.Sort(got.bigDataNames)
	if diff := cmp.Diff(want, got.bigDataNames); diff != "" {
		t.Errorf("documents (-want +got):\n%s", diff)
	}
	if data := check(got.bigData("notes", 100))(t); string(data) != "kept" {
		t.Errorf("notes are %q", data)
	}
}

// What is wrong with the source is found, named, and not copied.
func TestCopyDamaged(t *testing.T) {
	testutil.RequireRoot(t)
	outside := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(outside, bytes.Repeat([]byte("s"), 5000), 0o600))
	for _, test := range []struct {
		name   string
		damage func(t *testing.T, file string)
	}{
		{"changed byte", func(t *testing.T, file string) {
			f := check(os.OpenFile(file, os.O_RDWR, 0))(t)
			defer f.Close()
			check(f.WriteAt([]byte{'!'}, 1234))(t)
		}},
		{"shorter", func(t *testing.T, file string) { must(t, os.Truncate(file, 4999)) }},
		{"longer", func(t *testing.T, file string) { must(t, os.Truncate(file, 5001)) }},
		{"missing", func(t *testing.T, file string) { must(t, os.Remove(file)) }},
		{"link that leads out", func(t *testing.T, file string) {
			must(t, os.Remove(file))
			must(t, os.Symlink(outside, file))
		}},
		{"directory that leads out", func(t *testing.T, file string) {
			dir := filepath.Dir(file)
			must(t, os.Rename(dir, dir+".gone"))
			target := filepath.Join(filepath.Dir(outside), "usr")
			must(t, os.MkdirAll(target, 0o755))
			must(t, os.WriteFile(filepath.Join(target, "large2"), bytes.Repeat([]byte("s"), 5000), 0o600))
			must(t, os.Symlink(target, dir))
		}},
		{"device", func(t *testing.T, file string) {
			must(t, os.Remove(file))
			must(t, unix.Mknod(file, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))))
		}},
		{"pipe", func(t *testing.T, file string) {
			must(t, os.Remove(file))
			must(t, unix.Mkfifo(file, 0o600))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			base := t.TempDir()
			from := emptyStore(t, filepath.Join(base, "host"))
			id := pull(t, from, oddImage(t), "localhost/odd:latest").ImageID
			img := check(from.Lookup(id))(t)
			layers := check(from.Layers(img))(t)
			file := filepath.Join(layers[0].DiffDir, "usr/large2")
			test.damage(t, file)
			to := emptyStore(t, filepath.Join(base, "owned"))
			_, err := to.CopyImage(t.Context(), from, img, PullOptions{MinFree: -1})
			name := file
			if test.name == "directory that leads out" {
				name = filepath.Dir(file) // whatever is looked for in it first
			}
			if !errors.Is(err, oci.ErrIntegrity) || !strings.Contains(err.Error(), name) {
				t.Errorf("error %v, want one that names %s", err, name)
			}
			if images := check(to.Images())(t); len(images) > 0 {
				t.Errorf("an image came to be: %+v", images[0])
			}
			err = filepath.WalkDir(to.graphRoot, func(path string, e os.DirEntry, err error) error {
				if err == nil && e.Type().IsRegular() && bytes.Contains(check(os.ReadFile(path))(t), []byte("ssssssssss")) {
					t.Errorf("%s has what is outside of the store", path)
				}
				return err
			})
			must(t, err)
			if left := check(os.ReadDir(filepath.Join(to.graphRoot, tempDirs)))(t); len(left) > 0 {
				t.Errorf("temporary directories are left: %v", left)
			}
		})
	}
}

// A layer that our unpacker does not take, but the library does, is stored by
// the library.
func TestCopyOddLayer(t *testing.T) {
	testutil.RequireRoot(t)
	layout := layoutDir(t)
	w := check(ocilayout.Create(layout))(t)
	must(t, w.AddLayer(ocilayout.Gzip, func(tw *tar.Writer) error {
		for _, h := range []tar.Header{
			{Typeflag: tar.TypeDir, Name: "real/", Mode: 0o755}, {Typeflag: tar.TypeSymlink, Name: "link", Linkname: "/real"},
			{Typeflag: tar.TypeReg, Name: "link/file", Mode: 0o644, Size: 1000},
		} {
			if err := tw.WriteHeader(&h); err != nil {
				return err
			}
			if _, err := tw.Write(bytes.Repeat([]byte{'x'}, int(h.Size))); err != nil {
				return err
			}
		}
		return nil
	}))
	must(t, w.Finish("odd", v1.ImageConfig{}))
	from, to := emptyStore(t, filepath.Join(t.TempDir(), "host")), emptyStore(t, filepath.Join(t.TempDir(), "owned"))
	img := check(from.Lookup(pull(t, from, "oci:"+layout+":odd", "localhost/odd:latest").ImageID))(t)
	r, err := to.CopyImage(t.Context(), from, img, PullOptions{MinFree: -1})
	must(t, err)
	if !r.Fetched || r.Copy.BytesCloned != 0 {
		t.Errorf("result %+v", r)
	}
	sameImages(t, from, to, img.ID)
	layers := check(to.Layers(check(to.Lookup(img.ID))(t)))(t)
	if data := check(os.ReadFile(filepath.Join(layers[0].DiffDir, "real/file")))(t); len(data) != 1000 {
		t.Errorf("the file has %d bytes", len(data))
	}
}

// A name that moves to another image meanwhile is followed.
func TestCopyMovedName(t *testing.T) {
	testutil.RequireRoot(t)
	from, to := emptyStore(t, filepath.Join(t.TempDir(), "host")), emptyStore(t, filepath.Join(t.TempDir(), "owned"))
	first := pull(t, from, vector(t, "sizes"), "localhost/os:latest")
	second := pull(t, from, vector(t, "bound"), "localhost/other:latest")
	w := check(from.writer(t.Context()))(t)
	moved := false
	r, err := to.CopyNamed(t.Context(), from, "localhost/os", PullOptions{MinFree: -1, Names: []string{"localhost/os:latest"}, Events: func(e Event) {
		if e.Kind == EventStored && !moved {
			moved = true
			must(t, w.lib.AddNames(second.ImageID, []string{"localhost/os:latest"}))
		}
	}})
	must(t, err)
	if r.ImageID != second.ImageID {
		t.Errorf("copied %s, want %s; the name was moved from %s: %v", r.ImageID, second.ImageID, first.ImageID, moved)
	}
	if img := check(to.Lookup("localhost/os"))(t); img.ID != second.ImageID {
		t.Errorf("the copy's name leads to %s", img.ID)
	}
	if _, err := to.CopyNamed(t.Context(), from, "localhost/absent", PullOptions{}); err == nil {
		t.Error("an absent image was copied")
	} else if _, ok := errors.AsType[*NotFoundError](err); !ok {
		t.Errorf("absent image: %v", err)
	}
}

func TestCopyRefuses(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	from, to := emptyStore(t, filepath.Join(dir, "host")), emptyStore(t, filepath.Join(dir, "owned"))
	img := check(from.Lookup(pull(t, from, vector(t, "dirs"), "localhost/os:latest").ImageID))(t)
	if _, err := from.CopyImage(t.Context(), from, img, PullOptions{MinFree: -1}); err == nil || !strings.Contains(err.Error(), "same") {
		t.Errorf("copy of a store to itself: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("changed my mind")
	_, err := to.CopyImage(ctx, from, img, PullOptions{MinFree: -1, Events: func(e Event) {
		if e.Kind == EventFetched {
			cancel(reason)
		}
	}})
	if !errors.Is(err, reason) {
		t.Errorf("cancelled copy: %v", err)
	}
	if left := check(os.ReadDir(filepath.Join(to.graphRoot, tempDirs)))(t); len(left) > 0 {
		t.Errorf("temporary directories are left: %v", left)
	}
	if images := check(to.Images())(t); len(images) != 0 {
		t.Errorf("an image came to be: %+v", images[0])
	}
	_, err = to.CopyImage(t.Context(), from, img, PullOptions{MinFree: 1 << 62})
	if err == nil || !strings.Contains(err.Error(), "space") && !strings.Contains(err.Error(), "free") {
		t.Errorf("copy to a full file system: %v", err)
	}
}

// What a killed copy leaves goes when the store is opened next.
func TestTempDirIsRecovered(t *testing.T) {
	testutil.RequireRoot(t)
	s := emptyStore(t, filepath.Join(t.TempDir(), "root"))
	live := check(newTempDir(s.graphRoot))(t)
	stale := check(newTempDir(s.graphRoot))(t)
	must(t, os.WriteFile(filepath.Join(stale.path, "file"), []byte("x"), 0o600))
	stale.lock.Close() // what the kernel does for a process that dies
	check(s.writer(t.Context()))(t)
	if _, err := os.Lstat(stale.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the stale directory is still there (%v)", err)
	}
	if _, err := os.Lstat(live.path); err != nil {
		t.Errorf("the directory in use is gone: %v", err)
	}
	must(t, live.remove())
	if left := check(os.ReadDir(filepath.Join(s.graphRoot, tempDirs)))(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A store that another process keeps locked is waited for, and no longer than
// the time limit.
func TestCopyLocked(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	from, to := emptyStore(t, filepath.Join(dir, "host")), emptyStore(t, filepath.Join(dir, "owned"))
	img := check(from.Lookup(pull(t, from, vector(t, "sizes"), "localhost/os:latest").ImageID))(t)
	check(to.writer(t.Context()))(t)
	holder := exec.CommandContext(t.Context(), check(os.Executable())(t))
	holder.Env = append(os.Environ(), "CSTOR_TEST_HELPER=lock", "CSTOR_LOCK="+filepath.Join(to.graphRoot, layersLock))
	check(holder.StdinPipe())(t) // it holds the lock until that ends
	out := check(holder.StdoutPipe())(t)
	must(t, holder.Start())
	check(io.ReadFull(out, make([]byte, 1)))(t)
	to.options.LockTimeout = 300 * time.Millisecond
	_, err := to.CopyImage(t.Context(), from, img, PullOptions{MinFree: -1})
	if !errors.Is(err, filelock.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(holder.Process.Pid)) {
		t.Errorf("error %v, want one that names process %d", err, holder.Process.Pid)
	}
	must(t, holder.Process.Kill())
	_ = holder.Wait()
	to.options.LockTimeout = 2 * time.Minute
	_, err = to.CopyImage(t.Context(), from, img, PullOptions{MinFree: -1})
	must(t, err)
	sameImages(t, from, to, img.ID)
}
