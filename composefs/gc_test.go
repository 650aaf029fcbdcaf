// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// putObject stores content that is different for each seed.
func putObject(tb testing.TB, r *Repo, seed string) fsverity.Digest {
	tb.Helper()
	id, _, err := r.Put([]byte("the content of object " + seed))
	must(tb, err)
	return id
}

// named are named refs, in order.
type named []splitstream.NamedRef

// putStream stores a splitstream and links it, unless its name is empty.
func putStream(tb testing.TB, r *Repo, name string, refs named, objects ...fsverity.Digest) fsverity.Digest {
	tb.Helper()
	id := check(r.WriteStream(0x6761726261676521, func(w *splitstream.Writer) error {
		fmt.Fprintf(w, "stream %s", name)
		for _, ref := range refs {
			if err := w.AddStreamRef(ref.Name, ref.ID); err != nil {
				return err
			}
		}
		for _, o := range objects {
			if err := w.External(o, 100); err != nil {
				return err
			}
		}
		return nil
	}))(tb)
	if name != "" {
		must(tb, r.LinkStream(name, id))
	}
	return id
}

// putImage stores and links an EROFS image whose files are the objects.
func putImage(tb testing.TB, r *Repo, v erofs.Version, objects ...fsverity.Digest) fsverity.Digest {
	tb.Helper()
	root := tree.NewDirectory()
	root.Mode = 0o755
	for i, o := range objects {
		root.SetEntry(fmt.Sprintf("file%d", i), &tree.Node{Kind: tree.Regular, Mode: 0o644, Size: 100, Object: o})
	}
	var b bytes.Buffer
	must(tb, erofs.Write(&b, root, erofs.WriteOptions{Version: v}))
	id, _, err := r.Put(b.Bytes())
	must(tb, err)
	must(tb, r.LinkImage(id))
	return id
}

// collect runs a dry run and then garbage collection, which must agree, and
// then a second one, which must find nothing.
func collect(tb testing.TB, r *Repo, o GCOptions) *GCResult {
	tb.Helper()
	o.ListObjects = true
	before := files(tb, r.Path())
	dry := o
	dry.DryRun = true
	would := check(r.CollectGarbage(tb.Context(), dry))(tb)
	if diff := cmp.Diff(before, files(tb, r.Path())); diff != "" {
		tb.Fatalf("the dry run changed (-before +after):\n%s", diff)
	}
	did := check(collectOnce(tb, r, o))(tb)
	if diff := cmp.Diff(would, did, cmp.Comparer(func(a, b fsverity.Digest) bool { return a == b })); diff != "" {
		tb.Errorf("dry run and collection differ (-would +did):\n%s", diff)
	}
	o.Keep = existing(r, o.Keep)
	if again := check(collectOnce(tb, r, o))(tb); !again.Empty() {
		tb.Errorf("a second collection removed %+v", again)
	}
	if dangling := danglingLinks(tb, r.Path()); len(dangling) > 0 {
		tb.Errorf("links lead to nothing: %v", dangling)
	}
	return did
}

// existing are the names that there still is something of.
func existing(r *Repo, names []string) []string {
	var out []string
	for _, name := range names {
		for _, dir := range []string{"streams", "images"} {
			if _, err := r.entryID(dir, name); err == nil {
				out = append(out, name)
			}
		}
	}
	return out
}

func collectOnce(tb testing.TB, r *Repo, o GCOptions) (*GCResult, error) {
	tb.Helper()
	unlock := check(r.LockExclusive(tb.Context(), -1))(tb)
	defer func() { must(tb, unlock()) }()
	return r.CollectGarbage(tb.Context(), o)
}

// danglingLinks lists links that lead to nothing.
func danglingLinks(tb testing.TB, root string) []string {
	tb.Helper()
	var out []string
	for _, name := range files(tb, root) {
		if _, err := os.Stat(filepath.Join(root, name)); errors.Is(err, os.ErrNotExist) {
			out = append(out, name)
		}
	}
	return out
}

// has checks which objects are there.
func has(tb testing.TB, r *Repo, want bool, ids ...fsverity.Digest) {
	tb.Helper()
	for _, id := range ids {
		if got := check(r.HasObject(id, -1))(tb); got != want {
			tb.Errorf("object %s is there: %t", id, got)
		}
	}
}

// The counts that composefs-rs pins in its own tests: specification section
// 6.4.
func TestCollectGarbageCounts(t *testing.T) {
	tests := []struct {
		name                     string
		setup                    func(testing.TB, *Repo) (keep []string)
		objects, streams, images int
	}{
		{"nothing", func(testing.TB, *Repo) []string { return nil }, 0, 0, 0},
		{"a stream without ref", func(tb testing.TB, r *Repo) []string {
			putObject(tb, r, "A")
			putStream(tb, r, "test-stream", nil, putObject(tb, r, "B"))
			return nil
		}, 3, 1, 0},
		{"a stream kept by name", func(tb testing.TB, r *Repo) []string {
			putObject(tb, r, "A")
			putStream(tb, r, "test-stream", nil, putObject(tb, r, "B"))
			return []string{"test-stream"}
		}, 1, 0, 0},
		{"a stream kept by a ref", func(tb testing.TB, r *Repo) []string {
			putObject(tb, r, "A")
			putStream(tb, r, "test-stream", nil, putObject(tb, r, "B"))
			must(tb, r.SetStreamRef("ref-name", "test-stream"))
			return nil
		}, 1, 0, 0},
		{"a stream kept by a deep ref", func(tb testing.TB, r *Repo) []string {
			putObject(tb, r, "A")
			putStream(tb, r, "test-stream", nil, putObject(tb, r, "B"))
			must(tb, r.SetStreamRef("a/b/c", "test-stream"))
			return nil
		}, 1, 0, 0},
		{"a stream kept by another", func(tb testing.TB, r *Repo) []string {
			putObject(tb, r, "A")
			child := putStream(tb, r, "test-stream1", nil, putObject(tb, r, "B"))
			putStream(tb, r, "test-stream2", named{{Name: "any name", ID: child}}, putObject(tb, r, "C"))
			return []string{"test-stream2"}
		}, 1, 0, 0},
		{"two parents of one child", func(tb testing.TB, r *Repo) []string {
			putObject(tb, r, "loose")
			child := putStream(tb, r, "child", nil, putObject(tb, r, "B"))
			putStream(tb, r, "parent1", named{{Name: "child", ID: child}}, putObject(tb, r, "C"))
			putStream(tb, r, "parent2", named{{Name: "child", ID: child}}, putObject(tb, r, "D"))
			second := putStream(tb, r, "other", nil)
			_ = second
			return []string{"parent1"}
		}, 4, 2, 0}, // loose, D, parent2, other
		{"an image without ref", func(tb testing.TB, r *Repo) []string {
			putObject(tb, r, "A")
			putImage(tb, r, erofs.V1, putObject(tb, r, "B"))
			return nil
		}, 3, 0, 1},
		{"an image kept by name", func(tb testing.TB, r *Repo) []string {
			putObject(tb, r, "A")
			return []string{putImage(tb, r, erofs.V1, putObject(tb, r, "B")).String()}
		}, 1, 0, 0},
		{"an image kept by a ref", func(tb testing.TB, r *Repo) []string {
			putObject(tb, r, "A")
			must(tb, r.SetImageRef("ref-name", putImage(tb, r, erofs.V2, putObject(tb, r, "B"))))
			return nil
		}, 1, 0, 0},
		{"two images that overlap", func(tb testing.TB, r *Repo) []string {
			putObject(tb, r, "A")
			common := putObject(tb, r, "B")
			one := putImage(tb, r, erofs.V1, common, putObject(tb, r, "C"))
			putImage(tb, r, erofs.V1, common, putObject(tb, r, "D"))
			return []string{one.String()}
		}, 3, 0, 1},
		{"one image in two formats", func(tb testing.TB, r *Repo) []string {
			b := putObject(tb, r, "B")
			must(tb, r.SetImageRef("x", putImage(tb, r, erofs.V1, b)))
			putImage(tb, r, erofs.V2, b)
			return nil
		}, 1, 0, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := insecureRepo(t)
			keep := tt.setup(t, r)
			got := collect(t, r, GCOptions{Keep: keep})
			if int(got.Objects) != tt.objects || len(got.Streams) != tt.streams || len(got.Images) != tt.images {
				t.Errorf("removed %d objects, streams %v, images %v; want %d, %d, %d",
					got.Objects, got.Streams, got.Images, tt.objects, tt.streams, tt.images)
			}
			if (got.Bytes > 0) != (tt.objects > 0) || got.LinkedBytes != 0 || got.Missing != 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}

// Everything that is in use stays, whatever leads to it, and by however many
// steps.
func TestCollectGarbageKeeps(t *testing.T) {
	r := insecureRepo(t)
	a, b, c, d := putObject(t, r, "a"), putObject(t, r, "b"), putObject(t, r, "c"), putObject(t, r, "d")
	im := putImage(t, r, erofs.V1, a) // as a config names it: itself, not its files
	layer := putStream(t, r, "oci-layer-1", nil, a, b)
	config := putStream(t, r, "oci-config-1", named{{Name: "1", ID: layer}, {Name: "composefs.image.v1", ID: im}}, c)
	manifest := putStream(t, r, "oci-manifest-1", named{{Name: "config:1", ID: config}, {Name: "1", ID: layer}}, d)
	must(t, r.SetStreamRef("oci/tag", "oci-manifest-1"))
	before := files(t, r.Path())
	if got := collect(t, r, GCOptions{}); !got.Empty() {
		t.Errorf("removed %+v", got)
	}
	has(t, r, true, a, b, c, d, im, layer, config, manifest)
	if diff := cmp.Diff(before, files(t, r.Path())); diff != "" {
		t.Errorf("changed:\n%s", diff)
	}
	must(t, r.RemoveStreamRef("oci/tag"))
	got := collect(t, r, GCOptions{})
	if got.Objects != 8 || len(got.Streams) != 3 || len(got.Images) != 1 {
		t.Errorf("removed %+v", got)
	}
	if diff := cmp.Diff([]string{"meta.json"}, files(t, r.Path())); diff != "" {
		t.Errorf("left:\n%s", diff)
	}
}

// Hazard 7.1.2: a config that no link leads to any more, because another one
// took its name, keeps what only it refers to.
func TestCollectGarbageWalksOrphans(t *testing.T) {
	r := insecureRepo(t)
	json := putObject(t, r, "config JSON")
	im := putImage(t, r, erofs.V1)
	file := putObject(t, r, "file")
	layer := putStream(t, r, "", nil, file) // nor does one lead to the layer
	old := putStream(t, r, "oci-config-1", named{{Name: "layer", ID: layer}, {Name: "composefs.image.v1", ID: im}}, json)
	putStream(t, r, "oci-manifest-1", named{{Name: "config:1", ID: old}})
	must(t, r.SetStreamRef("oci/tag", "oci-manifest-1"))
	// Another manifest's rewrite replaces the config; that one is untagged.
	putStream(t, r, "oci-config-1", named{{Name: "composefs.image", ID: im}}, json, putObject(t, r, "other"))
	got := collect(t, r, GCOptions{})
	has(t, r, true, json, im, file, layer, old)
	if got.Objects != 2 || !cmp.Equal(got.Streams, []string{"oci-config-1"}) {
		t.Errorf("removed %+v", got)
	}
}

// A cycle, which no honest writer can make, and a long chain.
func TestCollectGarbageEndlessStreams(t *testing.T) {
	r := insecureRepo(t)
	// Without fs-verity nobody measures that an object has another content.
	a, b := putStream(t, r, "a", nil), putStream(t, r, "b", nil)
	for id, to := range map[fsverity.Digest]fsverity.Digest{a: b, b: a} {
		fake := putStream(t, r, "", named{{Name: "next", ID: to}, {Name: "self", ID: id}})
		must(t, os.Rename(objectPath(r, fake), objectPath(r, id)))
	}
	must(t, r.SetStreamRef("cycle", "a"))

	prev := putStream(t, r, "chain", nil, putObject(t, r, "the end"))
	for i := range 100 {
		prev = putStream(t, r, "", named{{Name: fmt.Sprint(i), ID: prev}})
	}
	must(t, r.LinkStream("head", prev))
	must(t, r.SetStreamRef("chain", "head"))
	if got := collect(t, r, GCOptions{}); !got.Empty() {
		t.Errorf("removed %+v", got)
	}
	must(t, r.RemoveStreamRef("chain"))
	if got := collect(t, r, GCOptions{}); got.Objects != 102 {
		t.Errorf("removed %d objects", got.Objects)
	}
}

// parent makes a stream that is in use and names another, which is linked if
// it has a name.
func parent(tb testing.TB, r *Repo, child string) fsverity.Digest {
	tb.Helper()
	id := putStream(tb, r, child, nil)
	putStream(tb, r, "parent", named{{Name: "x", ID: id}})
	must(tb, r.SetStreamRef("parent", "parent"))
	return id
}

// What cannot be read stops everything before anything is removed.
func TestCollectGarbageFailsClosed(t *testing.T) {
	in := func(r *Repo, path string) string { return filepath.Join(r.Path(), path) }
	tests := map[string]func(testing.TB, *Repo){
		"live stream is missing": func(tb testing.TB, r *Repo) {
			must(tb, os.Remove(objectPath(r, check(r.StreamID("live"))(tb))))
		},
		"live stream is malformed": func(tb testing.TB, r *Repo) {
			must(tb, os.WriteFile(objectPath(r, check(r.StreamID("live"))(tb)), []byte("SplitStream, or not"), 0o644))
		},
		"live stream is empty": func(tb testing.TB, r *Repo) {
			must(tb, os.Truncate(objectPath(r, check(r.StreamID("live"))(tb)), 0))
		},
		"linked child is malformed": func(tb testing.TB, r *Repo) {
			must(tb, os.WriteFile(objectPath(r, parent(tb, r, "child")), []byte("xxx"), 0o644))
		},
		"linked child is lost": func(tb testing.TB, r *Repo) {
			must(tb, os.Remove(objectPath(r, parent(tb, r, "child"))))
		},
		"unlinked child is lost": func(tb testing.TB, r *Repo) {
			must(tb, os.Remove(objectPath(r, parent(tb, r, ""))))
		},
		"unlinked child is malformed": func(tb testing.TB, r *Repo) {
			must(tb, os.Truncate(objectPath(r, parent(tb, r, "")), 100))
		},
		"live image is malformed": func(tb testing.TB, r *Repo) {
			id := putImage(tb, r, erofs.V1)
			must(tb, r.SetImageRef("x", id))
			must(tb, os.WriteFile(objectPath(r, id), make([]byte, 8192), 0o644))
		},
		"live image is missing": func(tb testing.TB, r *Repo) {
			id := putImage(tb, r, erofs.V1)
			must(tb, r.SetImageRef("x", id))
			must(tb, os.Remove(objectPath(r, id)))
		},
		"ref to a name that is not there": func(tb testing.TB, r *Repo) {
			must(tb, os.Symlink("../absent", in(r, "streams/refs/absent")))
		},
		"ref to nothing": func(tb testing.TB, r *Repo) {
			must(tb, os.Symlink("..", in(r, "streams/refs/absent")))
		},
		"file among the refs": func(tb testing.TB, r *Repo) {
			must(tb, os.WriteFile(in(r, "streams/refs/file"), nil, 0o644))
		},
		"file among the streams": func(tb testing.TB, r *Repo) {
			must(tb, os.WriteFile(in(r, "streams/file"), nil, 0o644))
		},
		"link to no object": func(tb testing.TB, r *Repo) {
			must(tb, os.Symlink("../objects/xy/z", in(r, "streams/bad")))
		},
		"link out of the repository": func(tb testing.TB, r *Repo) {
			must(tb, os.Symlink("/etc/passwd", in(r, "images/bad")))
		},
		"foreign name among the objects": func(tb testing.TB, r *Repo) {
			must(tb, os.MkdirAll(in(r, "objects/00"), 0o755))
			must(tb, os.WriteFile(in(r, "objects/00/README"), nil, 0o644))
		},
		"upper-case name among the objects": func(tb testing.TB, r *Repo) {
			must(tb, os.MkdirAll(in(r, "objects/00"), 0o755))
			must(tb, os.WriteFile(in(r, "objects/00/"+strings.Repeat("AB", 63)), nil, 0o644))
		},
		"directory in an object's place": func(tb testing.TB, r *Repo) {
			must(tb, os.MkdirAll(in(r, "objects/00/"+strings.Repeat("00", 63)), 0o755))
		},
		"file in a directory's place": func(tb testing.TB, r *Repo) {
			must(tb, os.WriteFile(in(r, "objects/zz"), nil, 0o644)) // nobody's business
			must(tb, os.RemoveAll(in(r, "objects/01")))
			must(tb, os.WriteFile(in(r, "objects/01"), nil, 0o644))
		},
		"refs directory that leads out": func(tb testing.TB, r *Repo) {
			must(tb, os.RemoveAll(in(r, "images")))
			must(tb, os.Symlink("/", in(r, "images")))
		},
	}
	for name, breakIt := range tests {
		for _, drop := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/drop dangling %t", name, drop), func(t *testing.T) {
				r := insecureRepo(t)
				putObject(t, r, "loose")
				putStream(t, r, "dead", nil)
				putStream(t, r, "live", nil, putObject(t, r, "used"))
				must(t, r.SetStreamRef("live", "live"))
				putImage(t, r, erofs.V1)
				must(t, os.Symlink("x", in(r, ".symlink-abcdefghijkl")))
				breakIt(t, r)
				before := files(t, r.Path())
				got, err := collectOnce(t, r, GCOptions{DropDangling: drop})
				dangling, isDangling := errors.AsType[*DanglingError](err)
				provable := strings.HasPrefix(name, "ref to") || strings.HasSuffix(name, "is missing")
				switch {
				case drop && provable:
					if err != nil || len(got.Refs) != 1 || got.Refs[0].Reason != DropDangling {
						t.Errorf("result %+v, %v", got, err)
					}
					return
				case provable != isDangling:
					t.Errorf("error %v, dangling: %t", err, provable)
				case isDangling && (len(dangling.Refs) != 1 || !strings.Contains(err.Error(), dangling.Refs[0].Path)):
					t.Errorf("error %v", err)
				}
				if !errors.Is(err, ErrUndecided) || got != nil {
					t.Errorf("result %+v, error %v, want %v", got, err, ErrUndecided)
				}
				if diff := cmp.Diff(before, files(t, r.Path())); diff != "" {
					t.Errorf("it changed (-before +after):\n%s", diff)
				}
			})
		}
	}
}

// Hazard 7.1.3: one bad ref blocks garbage collection only until it is asked
// to remove it.
func TestCollectGarbageDropDangling(t *testing.T) {
	r := insecureRepo(t)
	live := putObject(t, r, "used")
	putStream(t, r, "live", nil, live)
	must(t, r.SetStreamRef("oci/live", "live"))
	gone := putStream(t, r, "gone", nil)
	must(t, r.SetStreamRef("oci/gone", "gone"))
	must(t, os.Remove(objectPath(r, gone)))
	must(t, os.Symlink("../../oci-manifest-sha256:00", filepath.Join(r.Path(), "streams/refs/oci/never")))
	must(t, os.MkdirAll(filepath.Join(r.Path(), "images/refs"), 0o755))
	must(t, os.Symlink("../"+gone.String(), filepath.Join(r.Path(), "images/refs/never")))

	_, err := collectOnce(t, r, GCOptions{})
	if e, ok := errors.AsType[*DanglingError](err); !ok || len(e.Refs) != 3 {
		t.Fatalf("error %v", err)
	}
	got := collect(t, r, GCOptions{DropDangling: true})
	want := []DroppedRef{
		{"images/refs/never", gone.String(), DropDangling},
		{"streams/refs/oci/gone", "gone", DropDangling},
		{"streams/refs/oci/never", "oci-manifest-sha256:00", DropDangling},
	}
	if diff := cmp.Diff(want, got.Refs); diff != "" {
		t.Errorf("refs (-want +got):\n%s", diff)
	}
	if got.Objects != 0 || !cmp.Equal(got.Streams, []string{"gone"}) {
		t.Errorf("removed %+v", got)
	}
	has(t, r, true, live)
}

// Hazard 7.1.1: whatever step an interruption comes after, no link or ref leads
// to nothing.
func TestCollectGarbageInterrupted(t *testing.T) {
	r := insecureRepo(t)
	var streams, images []string
	for i := range 3 {
		o := putObject(t, r, fmt.Sprint(i))
		name := fmt.Sprintf("stream%d", i)
		putStream(t, r, name, nil, o)
		must(t, r.SetStreamRef("oci/"+name, name))
		streams = append(streams, name)
		images = append(images, putImage(t, r, erofs.V1, o).String())
	}
	for step := 0; ; step++ {
		copied := filepath.Join(t.TempDir(), "repo")
		must(t, os.CopyFS(copied, os.DirFS(r.Path())))
		c := openRepo(t, copied, noVerity(), OpenOptions{})
		unlock := check(c.LockExclusive(t.Context(), -1))(t)
		g := &collector{repo: c, options: GCOptions{Drop: []string{"oci/stream0", "oci/stream2"}}, result: &GCResult{}}
		must(t, g.mark(t.Context()))
		steps := check(g.steps())(t)
		for _, s := range steps[:step] {
			must(t, s(t.Context()))
		}
		must(t, unlock())
		if dangling := danglingLinks(t, copied); len(dangling) > 0 {
			t.Errorf("after step %d links lead to nothing: %v", step, dangling)
		}
		if step == len(steps) {
			if len(g.result.Streams) != 2 || g.result.Objects != 7 || len(g.result.Images) != len(images) {
				t.Errorf("removed %+v of %v", g.result, streams)
			}
			return
		}
		// The next run does the rest.
		if got := collect(t, c, GCOptions{Drop: g.options.Drop}); g.result.Empty() == (step > 0) && got.Empty() {
			t.Errorf("after step %d: %+v", step, got)
		}
		if got := len(check(c.StreamNames())(t)); got != 1 {
			t.Errorf("after step %d and another run there are %d streams", step, got)
		}
	}
}

// Refs that depend on a stream go with it, and do not keep each other.
func TestCollectGarbageDependents(t *testing.T) {
	r := insecureRepo(t)
	for _, name := range []string{"image", "signature", "timestamp", "lost", "orphan"} {
		putStream(t, r, name, nil, putObject(t, r, name))
	}
	must(t, r.SetStreamRef("tag", "image"))
	must(t, r.SetStreamRef("referrers/image/signature", "signature"))
	must(t, r.SetStreamRef("referrers/signature/timestamp", "timestamp"))
	must(t, r.SetStreamRef("referrers/gone/lost", "lost"))
	must(t, r.SetStreamRef("referrers/orphan/orphan", "orphan")) // keeps itself, if anything
	o := GCOptions{DependsOn: func(ref string) (string, bool) {
		parts := strings.Split(ref, "/")
		return parts[min(1, len(parts)-1)], parts[0] == "referrers"
	}}
	got := collect(t, r, o)
	want := []DroppedRef{
		{"streams/refs/referrers/gone/lost", "lost", DropDependent},
		{"streams/refs/referrers/orphan/orphan", "orphan", DropDependent},
	}
	if diff := cmp.Diff(want, got.Refs); diff != "" {
		t.Errorf("refs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"lost", "orphan"}, got.Streams); diff != "" {
		t.Errorf("streams (-want +got):\n%s", diff)
	}
	if entries := check(os.ReadDir(filepath.Join(r.Path(), "streams/refs/referrers")))(t); len(entries) != 2 {
		t.Errorf("directories left: %v", entries)
	}
	must(t, r.RemoveStreamRef("tag"))
	if got := collect(t, r, o); got.Objects != 6 || len(got.Streams) != 3 || len(got.Refs) != 2 {
		t.Errorf("without the tag: removed %+v", got)
	}
}

func TestCollectGarbageTemporaries(t *testing.T) {
	r := insecureRepo(t)
	putObject(t, r, "loose")
	in := func(path string) string { return filepath.Join(r.Path(), path) }
	foreign := []string{
		".symlink-short", ".symlink-abcdefghijk/", ".tmp-object-abcdefghijkl", "objects/.symlink-abcdefghijkl",
		"objects/.tmp-object-abcdefghijk_", "objects/README", "objects/.tmp-meta.json-abcdefghijkl",
	}
	for _, name := range foreign {
		if dir, ok := strings.CutSuffix(name, "/"); ok {
			must(t, os.Mkdir(in(dir), 0o755))
			continue
		}
		must(t, os.WriteFile(in(name), nil, 0o644))
	}
	must(t, os.MkdirAll(in("bootc/storage/objects"), 0o755)) // others' data
	must(t, os.WriteFile(in("bootc/storage/objects/x"), nil, 0o644))
	leaks := []string{".symlink-0aZ9bcdefghi", ".tmp-meta.json-ABCDEFGHIJ23", "objects/.tmp-object-abcdefghijkl"}
	must(t, os.Symlink("gone", in(leaks[0])))
	must(t, os.WriteFile(in(leaks[1]), nil, 0o644))
	must(t, os.WriteFile(in(leaks[2]), []byte("x"), 0o644))

	before := files(t, r.Path())
	got := collect(t, r, GCOptions{})
	if diff := cmp.Diff(leaks, got.Temporaries); diff != "" || got.Objects != 1 {
		t.Errorf("removed %+v, temporaries (-want +got):\n%s", got, diff)
	}
	if after := files(t, r.Path()); len(after) != len(before)-4 {
		t.Errorf("left %v", after)
	}
}

// Files with names elsewhere take space even when they are removed here.
func TestCollectGarbageCountsLinks(t *testing.T) {
	r := insecureRepo(t)
	id, other := putObject(t, r, "linked"), putObject(t, r, "not linked at all")
	must(t, os.Link(objectPath(r, id), filepath.Join(t.TempDir(), "elsewhere")))
	got := collect(t, r, GCOptions{})
	if got.Objects != 2 || got.Bytes != 28+39 || got.LinkedBytes != 28 {
		t.Errorf("%+v", got)
	}
	if diff := cmp.Diff(map[string]bool{id.String(): true, other.String(): true}, ids(got)); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
}

func ids(g *GCResult) map[string]bool {
	out := map[string]bool{}
	for _, id := range g.ObjectIDs {
		out[id.String()] = true
	}
	return out
}

// References to what is not there are counted; images that are gone do not
// keep garbage collection from working.
func TestCollectGarbageMissing(t *testing.T) {
	r := insecureRepo(t)
	gone := putObject(t, r, "gone")
	im := putImage(t, r, erofs.V1)
	putStream(t, r, "s", named{{Name: "composefs.image.v1", ID: im}}, gone)
	must(t, r.SetStreamRef("s", "s"))
	must(t, os.Remove(objectPath(r, gone)))
	must(t, os.Remove(objectPath(r, im)))
	got := collect(t, r, GCOptions{})
	if got.Missing != 2 || got.Objects != 0 || !cmp.Equal(got.Images, []string{im.String()}) {
		t.Errorf("%+v", got)
	}
}

func TestCollectGarbageKeepTypo(t *testing.T) {
	r := insecureRepo(t)
	putObject(t, r, "loose")
	if got, err := collectOnce(t, r, GCOptions{Keep: []string{"test-straem"}}); !errors.Is(err, ErrKeep) || got != nil {
		t.Errorf("%+v, %v", got, err)
	}
}

// Only the exclusive lock and a handle that nobody uses are good enough.
func TestCollectGarbageNeedsTheLock(t *testing.T) {
	r := insecureRepo(t)
	id := putObject(t, r, "loose")
	if got, err := r.CollectGarbage(t.Context(), GCOptions{}); err == nil {
		t.Errorf("without the lock: %+v", got)
	}
	temp := check(r.CreateTemp())(t)
	if got, err := collectOnce(t, r, GCOptions{}); !errors.Is(err, ErrInUse) {
		t.Errorf("beside a temporary file: %+v, %v", got, err)
	}
	temp.Discard()
	has(t, r, true, id)

	ro := openRepo(t, r.Path(), noVerity(), OpenOptions{ReadOnly: true})
	if got := check(ro.CollectGarbage(t.Context(), GCOptions{DryRun: true}))(t); got.Objects != 1 {
		t.Errorf("dry run of a handle for reading: %+v", got)
	}
	if _, err := ro.CollectGarbage(t.Context(), GCOptions{}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("handle for reading: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	if _, err := ro.CollectGarbage(ctx, GCOptions{DryRun: true}); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("cancelled: %v", err)
	}
}

// A repository with features that only readers may ignore is not collected.
func TestCollectGarbageUnknownFeatures(t *testing.T) {
	path := newRepoPath(t, noVerity(), InitOptions{AllowMissingVerity: true})
	meta := check(os.ReadFile(path + "/meta.json"))(t)
	meta = bytes.Replace(meta, []byte(`"v1_erofs"`), []byte(`"v1_erofs", "packed_refs"`), 1)
	must(t, os.WriteFile(path+"/meta.json", meta, 0o644))
	r := openRepo(t, path, noVerity(), OpenOptions{})
	if _, err := r.LockExclusive(t.Context(), -1); !errors.Is(err, ErrReadOnly) || !strings.Contains(err.Error(), "packed_refs") {
		t.Errorf("lock: %v", err)
	}
	if _, err := r.CollectGarbage(t.Context(), GCOptions{}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("collect: %v", err)
	}
	check(r.CollectGarbage(t.Context(), GCOptions{DryRun: true}))(t)

	meta = bytes.Replace(meta, []byte(`"incompatible": []`), []byte(`"incompatible": ["packs"]`), 1)
	must(t, os.WriteFile(path+"/meta.json", meta, 0o644))
	if _, err := open(t.Context(), path, OpenOptions{LockTimeout: -1, ReadOnly: true}, noVerity()); !errors.Is(err, ErrMeta) || !strings.Contains(err.Error(), "packs") {
		t.Errorf("incompatible: %v", err)
	}
}

// In a repository that requires fs-verity what has lost it is unreadable.
func TestCollectGarbageSecure(t *testing.T) {
	r := secureRepo(t)
	putObject(t, r, "loose")
	id := putStream(t, r, "s", nil, putObject(t, r, "used"))
	must(t, r.SetStreamRef("s", "s"))
	if got := collect(t, r, GCOptions{}); got.Objects != 1 {
		t.Errorf("removed %+v", got)
	}
	b := check(os.ReadFile(objectPath(r, id)))(t)
	must(t, os.Remove(objectPath(r, id)))
	must(t, os.WriteFile(objectPath(r, id), b, 0o644))
	if _, err := collectOnce(t, r, GCOptions{DropDangling: true}); !errors.Is(err, ErrUndecided) || !errors.Is(err, ErrIntegrity) {
		t.Errorf("error %v", err)
	}
}

// Repositories as cfsctl leaves them: the counts are cfsctl's.
func TestVectorCollectGarbage(t *testing.T) {
	for _, kind := range []string{"sha512-1", "sha256-1", "sha512-2"} {
		t.Run(kind, func(t *testing.T) {
			r := openRepo(t, unpack(t, kind), kernelVerity(), OpenOptions{AllowMissingVerity: true})
			var doomed string
			for _, ref := range check(r.StreamRefs("oci"))(t) {
				if strings.HasPrefix(ref.Target, "oci-manifest-sha256:30b8b662") {
					doomed = ref.Name
				}
			}
			got := check(r.CollectGarbage(t.Context(), GCOptions{DryRun: true, Drop: []string{doomed}}))(t)
			if got.Objects != 40 || len(got.Streams) != 3 || len(got.Images) != 2 || len(got.Refs) != 1 {
				t.Errorf("without the tag: would remove %+v", got)
			}
			got = collect(t, r, GCOptions{})
			if got.Objects != 28 || len(got.Streams)+len(got.Images)+len(got.Refs)+len(got.Temporaries) != 0 || got.Missing != 0 {
				t.Errorf("removed %+v", got)
			}
			must(t, r.RemoveStreamRef(doomed))
			got = collect(t, r, GCOptions{})
			if got.Objects != 40-28 || len(got.Streams) != 3 || len(got.Images) != 2 {
				t.Errorf("without the tag: removed %+v", got)
			}
		})
	}
}

// eachDirent agrees with the standard library, whatever the directory's size.
func TestEachDirent(t *testing.T) {
	dir := t.TempDir()
	want := map[string]uint8{}
	for i := range 1200 {
		name := fmt.Sprintf("%d%s", i, strings.Repeat("x", i%200))
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
		want[name] = unix.DT_REG
	}
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	must(t, os.Symlink("d", filepath.Join(dir, "l")))
	must(t, unix.Mkfifo(filepath.Join(dir, "f"), 0o644))
	want["d"], want["l"], want["f"] = unix.DT_DIR, unix.DT_LNK, unix.DT_FIFO
	f := check(os.Open(dir))(t)
	defer f.Close()
	got := map[string]uint8{}
	must(t, eachDirent(int(f.Fd()), func(name []byte, kind uint8) error {
		got[string(name)] = kind
		if k := check(statKind(int(f.Fd()), string(name)))(t); k != kind {
			t.Errorf("%s: stat says %d, the directory %d", name, k, kind)
		}
		return nil
	}))
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if err := eachDirent(int(f.Fd()), func([]byte, uint8) error { return nil }); err != nil {
		t.Error(err)
	}
}

// A table costs no memory, whatever length a file gives it.
func TestCollectGarbageEnormousTable(t *testing.T) {
	r := insecureRepo(t)
	id := putStream(t, r, "s", nil, putObject(t, r, "used"))
	must(t, r.SetStreamRef("s", "s"))
	const length = 64 << 20
	f := check(os.OpenFile(objectPath(r, id), os.O_RDWR, 0))(t)
	defer f.Close()
	end := uint64(check(f.Seek(0, io.SeekEnd))(t))
	span := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, end), end+length)
	check(f.WriteAt(span, 32+16))(t) // the range of object_refs in the info block
	must(t, f.Truncate(int64(end+length)))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	got := check(r.CollectGarbage(t.Context(), GCOptions{DryRun: true}))(t)
	runtime.ReadMemStats(&after)
	if got.Missing != length/64 || got.Objects != 1 {
		t.Errorf("%d references are missing, %d objects are garbage", got.Missing, got.Objects)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > length/8 {
		t.Errorf("%d bytes were allocated for a table of %d", used, length)
	}
}

// A repository with many refs costs memory for their names, and time in
// proportion. CFS_PULL_REFS is another number of them, such as a million.
func TestCollectGarbageManyRefs(t *testing.T) {
	n := 20000
	if text := os.Getenv("CFS_PULL_REFS"); text != "" {
		n = check(strconv.Atoi(text))(t)
	}
	const mostBytes = 2 << 10 // for each ref
	r := insecureRepo(t)
	putObject(t, r, "loose")
	live := putStream(t, r, "live", nil, putObject(t, r, "used"))
	must(t, r.SetStreamRef("oci/live", "live"))
	dir := filepath.Join(r.Path(), "streams/refs/oci")
	for i := range n / 2 {
		must(t, os.Symlink("../../live", fmt.Sprintf("%s/example.com%%2Flive:%d", dir, i)))
		must(t, os.Symlink("../../absent", fmt.Sprintf("%s/example.com%%2Fabsent:%d", dir, i)))
	}
	collect := func(what string, o GCOptions) (*GCResult, error) {
		t.Helper()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		got, err := collectOnce(t, r, o)
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		used := (after.TotalAlloc - before.TotalAlloc) / uint64(n)
		t.Logf("%s: %d refs, %v, %d bytes for each", what, n, took, used)
		if used > mostBytes {
			t.Errorf("%s: %d bytes were allocated for each ref, want at most %d", what, used, mostBytes)
		}
		return got, err
	}
	_, err := collect("refused", GCOptions{})
	if e, ok := errors.AsType[*DanglingError](err); !ok || len(e.Refs) != n/2 || len(err.Error()) > 2000 {
		t.Fatalf("error %.2000v", err)
	}
	got, err := collect("dropped", GCOptions{DropDangling: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Refs) != n/2 || got.Objects != 1 || len(got.Streams) != 0 {
		t.Errorf("removed %d refs, %d objects, streams %v", len(got.Refs), got.Objects, got.Streams)
	}
	if refs := check(r.StreamRefs("oci"))(t); len(refs) != n/2+1 {
		t.Errorf("%d refs are left", len(refs))
	}
	has(t, r, true, live)
}
