// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package erofs_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/composefs/dumpfile"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/erofs/internal/erofstest"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

var versions = []erofs.Version{erofs.V0, erofs.V1, erofs.V2}

func marshal(t testing.TB, root *tree.Node, v erofs.Version) []byte {
	t.Helper()
	image, err := erofs.Marshal(root, v)
	if err != nil {
		t.Fatalf("write %s: %v", v, err)
	}
	return image
}

func open(t testing.TB, image []byte) *erofs.Image {
	t.Helper()
	im, err := erofs.Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatalf("open image: %v", err)
	}
	return im
}

func dump(t testing.TB, root *tree.Node) string {
	t.Helper()
	var b strings.Builder
	if err := dumpfile.Write(&b, root, 0); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func parse(t testing.TB, text string) *tree.Node {
	t.Helper()
	root, err := dumpfile.ParseTree(strings.NewReader(text), dumpfile.ParseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// dropNanoseconds does to a tree what V2 does.
func dropNanoseconds(n *tree.Node) {
	n.Mtime.Nsec = 0
	for _, child := range n.Entries() {
		dropNanoseconds(child)
	}
}

// TestPinned compares with the digests that composefs-rs's tests pin.
func TestPinned(t *testing.T) {
	var file struct {
		Cases []struct {
			ID, Format, Dump string
			Verity256        string `json:"image_fsverity_sha256"`
			Verity512        string `json:"image_fsverity_sha512"`
		}
	}
	data, err := os.ReadFile(filepath.Join("testdata", "composefs_rs.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	for _, v := range file.Cases {
		t.Run(v.ID, func(t *testing.T) {
			image := marshal(t, parse(t, v.Dump), erofs.Version(v.Format[1]-'0'))
			alg, want := fsverity.SHA256, v.Verity256
			if want == "" {
				alg, want = fsverity.SHA512, v.Verity512
			}
			if got := fsverity.Sum(alg, image).String(); got != want {
				t.Errorf("digest %s, want %s", got, want)
			}
			if err := open(t, image).CheckCanonical(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRandomTrees writes, reads and writes again.
func TestRandomTrees(t *testing.T) {
	for seed := range 300 {
		r := rand.New(rand.NewPCG(uint64(seed), 3))
		root := erofstest.Random(r.IntN)
		want := dump(t, root)
		for _, v := range versions {
			image, err := erofs.Marshal(root, v)
			if err != nil {
				t.Fatalf("seed %d %s: %v", seed, v, err)
			}
			var streamed bytes.Buffer
			if err := erofs.Write(&streamed, root, erofs.WriteOptions{Version: v}); err != nil || !bytes.Equal(streamed.Bytes(), image) {
				t.Fatalf("seed %d %s: the streamed image differs: %v", seed, v, err)
			}
			im := open(t, image)
			back, err := im.Tree()
			if err != nil {
				t.Fatalf("seed %d %s: read: %v", seed, v, err)
			}
			if v == erofs.V2 {
				dropNanoseconds(root)
				want = dump(t, root)
			}
			if diff := cmp.Diff(want, dump(t, back)); diff != "" {
				t.Fatalf("seed %d %s: tree differs (-want +got):\n%s", seed, v, diff)
			}
			if err := im.CheckCanonical(); err != nil {
				t.Fatalf("seed %d %s: %v", seed, v, err)
			}
		}
	}
}

func TestObjects(t *testing.T) {
	a, b := erofstest.Digest(fsverity.SHA512, 1), erofstest.Digest(fsverity.SHA512, 2)
	root := tree.NewDirectory()
	sub := tree.NewDirectory()
	root.SetEntry("d", sub)
	for i, d := range []fsverity.Digest{a, b, a} {
		sub.SetEntry(fmt.Sprint(i), &tree.Node{Kind: tree.Regular, Size: 100, Object: d})
	}
	want := []string{a.String(), b.String()}
	if want[0] > want[1] {
		want[0], want[1] = want[1], want[0]
	}
	for _, v := range versions {
		objects, err := open(t, marshal(t, root, v)).Objects()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, d := range objects {
			got = append(got, d.String())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: objects differ (-want +got):\n%s", v, diff)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	object := erofstest.Digest(fsverity.SHA512, 1)
	loop := tree.NewDirectory()
	loop.SetEntry("x", loop)
	whiteout := &tree.Node{Kind: tree.CharDevice}
	deep := tree.NewDirectory()
	for range tree.MaxDepth - 1 {
		up := tree.NewDirectory()
		up.SetEntry("d", deep)
		deep = up
	}
	many := &tree.Node{Kind: tree.Regular}
	for i := range 256 {
		many.SetXattr(fmt.Sprintf("user.%d", i), nil)
	}
	manyToo := many.Clone()
	for _, c := range []struct {
		name    string
		entries map[string]*tree.Node
		version erofs.Version
		want    string
	}{
		{"cycle", map[string]*tree.Node{"d": loop}, erofs.V1, "second name"},
		{"hard-linked whiteout", map[string]*tree.Node{"a": whiteout, "b": whiteout}, erofs.V1, "hard link"},
		{"hard-linked whiteout", map[string]*tree.Node{"a": whiteout, "b": whiteout}, erofs.V2, "hard link"},
		{"too deep", map[string]*tree.Node{"d": deep}, erofs.V1, "below each other"},
		{"slash", map[string]*tree.Node{"a/b": {Kind: tree.FIFO}}, erofs.V1, "bad name"},
		{"dots", map[string]*tree.Node{"..": {Kind: tree.FIFO}}, erofs.V1, "bad name"},
		{"long name", map[string]*tree.Node{strings.Repeat("n", 256): {Kind: tree.FIFO}}, erofs.V1, "bad name"},
		{"no content", map[string]*tree.Node{"a": {Kind: tree.Regular, Size: 5}}, erofs.V1, "no object"},
		{"empty with object", map[string]*tree.Node{"a": {Kind: tree.Regular, Object: object}}, erofs.V1, "empty file"},
		{"long target", map[string]*tree.Node{"a": {Kind: tree.Symlink, Target: strings.Repeat("t", 4096)}}, erofs.V1, "4096 bytes"},
		{"no target", map[string]*tree.Node{"a": {Kind: tree.Symlink}}, erofs.V1, "0 bytes"},
		{"huge file", map[string]*tree.Node{"a": {Kind: tree.Regular, Size: 1<<53 + 1, Object: object}}, erofs.V1, "too large"},
		{"content in V2", map[string]*tree.Node{"a": {Kind: tree.Regular, Size: 4096, Content: make([]byte, 4096)}}, erofs.V2, "do not fit"},
		{"target in V2", map[string]*tree.Node{"a": {Kind: tree.Symlink, Target: strings.Repeat("t", 4095), Xattrs: []tree.Xattr{{Name: "user.a"}}}}, erofs.V2, "do not fit"},
		{"wide device", map[string]*tree.Node{"a": {Kind: tree.BlockDevice, Rdev: 1 << 32}}, erofs.V1, "32 bits"},
		{"256 shared attributes", map[string]*tree.Node{"a": many, "b": manyToo}, erofs.V1, "shared"},
		{"two algorithms", map[string]*tree.Node{
			"a": {Kind: tree.Regular, Size: 1, Object: object},
			"b": {Kind: tree.Regular, Size: 1, Object: erofstest.Digest(fsverity.SHA256, 1)},
		}, erofs.V1, "in a tree of"},
		{"unsorted attributes", map[string]*tree.Node{"a": {Kind: tree.FIFO, Xattrs: []tree.Xattr{{Name: "user.b"}, {Name: "user.a"}}}}, erofs.V1, "not in order"},
		{"nanoseconds", map[string]*tree.Node{"a": {Kind: tree.FIFO, Mtime: tree.Time{Nsec: 1e9}}}, erofs.V1, "nanoseconds"},
		{"no inode", map[string]*tree.Node{"a": nil}, erofs.V1, "no inode"},
		{"unknown version", nil, 3, "unknown version"},
	} {
		t.Run(fmt.Sprintf("%s in %s", c.name, c.version), func(t *testing.T) {
			root := tree.NewDirectory()
			for name, n := range c.entries {
				root.SetEntry(name, n)
			}
			_, err := erofs.Marshal(root, c.version)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

type failingWriter struct{ left int }

var errFull = errors.New("full")

func (w *failingWriter) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestWriteFails(t *testing.T) {
	root := erofstest.OS(3000)
	for _, left := range []int{0, 300 << 10} {
		if err := erofs.Write(&failingWriter{left: left}, root, erofs.WriteOptions{Version: erofs.V1}); !errors.Is(err, errFull) {
			t.Errorf("after %d bytes: error %v, want %v", left, err, errFull)
		}
	}
}

// TestComposefsRules covers where composefs-rs differs from mkcomposefs.
func TestComposefsRules(t *testing.T) {
	stub := tree.NewDirectory()
	stub.SetEntry("00", &tree.Node{Kind: tree.CharDevice, Mode: 0o644})
	if !bytes.Equal(marshal(t, stub, erofs.V1), marshal(t, tree.NewDirectory(), erofs.V1)) {
		t.Error("a whiteout of the root that looks like the generated one was escaped")
	}
	stub.Entry("00").Mode = 0o600
	back, err := open(t, marshal(t, stub, erofs.V1)).Tree()
	if err != nil {
		t.Fatal(err)
	}
	if n := back.Entry("00"); n == nil || n.Kind != tree.CharDevice || n.Mode != 0o600 {
		t.Errorf("whiteout 00 came back as %+v", n)
	}

	// The marks of a directory with whiteouts stand beside a user's.
	marked := tree.NewDirectory()
	marked.SetXattr("user.overlay.opaque", []byte("y"))
	marked.SetEntry("w", &tree.Node{Kind: tree.CharDevice})
	image := marshal(t, marked, erofs.V1)
	if n := bytes.Count(image, []byte("overlay.opaque")); n != 4 {
		t.Errorf("the image has %d opaque marks, want 4", n)
	}
	if err := open(t, image).CheckCanonical(); err != nil {
		t.Error(err)
	}

	// The smallest time is the smallest unsigned number.
	early := tree.NewDirectory()
	early.Mtime = tree.Time{Sec: 7}
	early.SetEntry("a", &tree.Node{Kind: tree.FIFO, Mtime: tree.Time{Sec: -1}})
	image = marshal(t, early, erofs.V1)
	if image[1024+24] != 7 {
		t.Errorf("build time starts with %#x, want 7", image[1024+24])
	}
}

// repositoryImages unpacks the EROFS images of a repository of the vectors.
func repositoryImages(t *testing.T, kind string) map[string][]byte {
	t.Helper()
	archive := filepath.Join(testutil.Vectors(t), "repos", kind+".tar.zst")
	zstd := testutil.RequireTool(t, "zstd", "zstd")
	dir := t.TempDir()
	unpack := exec.CommandContext(t.Context(), "sh", "-c", `"$0" -dc "$1" | tar -x -C "$2"`, zstd, archive, dir)
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v\n%s", archive, err, out)
	}
	images := map[string][]byte{}
	links, err := os.ReadDir(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if link.IsDir() {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, "images", link.Name()))
		if err != nil {
			t.Fatal(err)
		}
		images[link.Name()] = data
	}
	return images
}

// TestRepositoryImages reads the images that cfsctl wrote, and writes them
// again.
func TestRepositoryImages(t *testing.T) {
	for kind, want := range map[string]struct {
		alg     fsverity.Algorithm
		version erofs.Version
	}{
		"sha512-1": {fsverity.SHA512, erofs.V1},
		"sha512-2": {fsverity.SHA512, erofs.V2},
		"sha256-1": {fsverity.SHA256, erofs.V1},
	} {
		t.Run(kind, func(t *testing.T) {
			images := repositoryImages(t, kind)
			if len(images) < 10 {
				t.Fatalf("only %d images", len(images))
			}
			for id, data := range images {
				if got := fsverity.Sum(want.alg, data).String(); got != id {
					t.Errorf("image %s has digest %s", id, got)
				}
				im := open(t, data)
				if im.Version() != want.version {
					t.Errorf("image %s is %s, want %s", id, im.Version(), want.version)
				}
				if err := im.CheckCanonical(); err != nil {
					t.Errorf("image %s: %v", id, err)
				}
				objects, err := im.Objects()
				if err != nil || len(objects) == 0 {
					t.Errorf("image %s: %d objects, %v", id, len(objects), err)
				}
				for _, d := range objects {
					if d.Algorithm() != want.alg {
						t.Errorf("image %s: object of %s", id, d.Algorithm())
					}
				}
			}
		})
	}
}

// TestFsck lets erofs-utils look at what we write.
func TestFsck(t *testing.T) {
	fsck := testutil.RequireTool(t, "fsck.erofs", "erofs-utils")
	trees := map[string]*tree.Node{"os": erofstest.OS(2000)}
	for seed := range 12 {
		r := rand.New(rand.NewPCG(uint64(seed), 4))
		trees[fmt.Sprintf("random%d", seed)] = erofstest.Random(r.IntN)
	}
	dir := t.TempDir()
	for name, root := range trees {
		for _, v := range versions {
			path := filepath.Join(dir, fmt.Sprintf("%s.%s", name, v))
			if err := os.WriteFile(path, marshal(t, root, v), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.CommandContext(t.Context(), fsck, path).CombinedOutput(); err != nil {
				t.Errorf("%s %s: fsck.erofs: %v\n%s", name, v, err, out)
			}
		}
	}
}

// TestDumpRoundTrip takes trees through dumpfiles: the image by the rules of
// mkcomposefs for the dump is that of composefs-rs for the tree, where they
// agree at all.
func TestDumpRoundTrip(t *testing.T) {
	var agree func(n *tree.Node)
	agree = func(n *tree.Node) {
		n.RemoveXattr("user.overlay.whiteout")
		n.RemoveXattr("trusted.overlay.opaque")
		for _, child := range n.Entries() {
			agree(child)
		}
	}
	for seed := range 200 {
		root := erofstest.Random(rand.New(rand.NewPCG(uint64(seed), 6)).IntN)
		agree(root)
		text := dump(t, root)
		back := parse(t, text)
		if diff := cmp.Diff(text, dump(t, back)); diff != "" {
			t.Fatalf("seed %d: dump differs (-want +got):\n%s", seed, diff)
		}
		literal, err := dumpfile.Parse(strings.NewReader(text), dumpfile.ParseOptions{Compatible: true})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for _, v := range []erofs.Version{erofs.V0, erofs.V1} {
			want := marshal(t, root, v)
			if !bytes.Equal(marshal(t, back, v), want) {
				t.Fatalf("seed %d: the %s image of the dump's tree differs", seed, v)
			}
			var got bytes.Buffer
			if err := literal.WriteImage(&got, v, v); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Fatalf("seed %d: the %s image by mkcomposefs's rules differs", seed, v)
			}
		}
	}
}
