// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

func fillNothing(*splitstream.Writer) error { return nil }

func fillWith(s string) func(*splitstream.Writer) error {
	return func(w *splitstream.Writer) error {
		_, err := io.WriteString(w, s)
		return err
	}
}

func readlink(tb testing.TB, r *Repo, name string) string {
	tb.Helper()
	return check(os.Readlink(filepath.Join(r.Path(), name)))(tb)
}

func TestWriteStream(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *Repo) {
		body := strings.Repeat("body", 100)
		object, _, err := r.Put([]byte(body))
		must(t, err)
		id, err := r.WriteStream(splitstream.Layer, func(w *splitstream.Writer) error {
			if _, err := io.WriteString(w, "head"); err != nil {
				return err
			}
			return w.External(object, uint64(len(body)))
		})
		must(t, err)
		s := check(r.OpenStream(id, splitstream.Layer))(t)
		defer s.Close()
		var out strings.Builder
		must(t, s.Reassemble(&out, func(id fsverity.Digest) (io.ReadCloser, error) { return r.OpenObject(id) }))
		if out.String() != "head"+body || s.Size() != uint64(out.Len()) {
			t.Errorf("reassembled %d bytes, size %d", out.Len(), s.Size())
		}
		if _, err := r.OpenStream(id, splitstream.Config); !errors.Is(err, splitstream.ErrContentType) {
			t.Errorf("open as another type: %v", err)
		}
		if _, err := r.OpenStream(object, splitstream.Any); !errors.Is(err, splitstream.ErrFormat) {
			t.Errorf("open what is no stream: %v", err)
		}
		if ok, err := r.CheckStream(id, splitstream.Layer); !ok || err != nil {
			t.Errorf("check: %t, %v", ok, err)
		}
		must(t, os.Remove(objectPath(r, object)))
		if ok, err := r.CheckStream(id, splitstream.Layer); ok || err != nil {
			t.Errorf("check without its object: %t, %v", ok, err)
		}

		before := files(t, r.Path())
		boom := errors.New("boom")
		if _, err := r.WriteStream(splitstream.Layer, func(*splitstream.Writer) error { return boom }); !errors.Is(err, boom) {
			t.Errorf("error %v, want %v", err, boom)
		}
		if diff := cmp.Diff(before, files(t, r.Path())); diff != "" {
			t.Errorf("left behind (-before +after):\n%s", diff)
		}
	})
}

func TestLinkStream(t *testing.T) {
	r := insecureRepo(t)
	if _, err := r.StreamID("x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no stream: %v", err)
	}
	if names, err := r.StreamNames(); names != nil || err != nil {
		t.Errorf("names %v, %v", names, err)
	}
	a := check(r.WriteStream(0, fillWith("a")))(t)
	b := check(r.WriteStream(0, fillWith("b")))(t)
	const name = "oci-layer-sha256:0123 %2F@"
	for _, id := range []fsverity.Digest{a, a, b, a} {
		must(t, r.LinkStream(name, id))
		if got, want := readlink(t, r, "streams/"+name), "../objects/"+id.ObjectPath(); got != want {
			t.Errorf("target %s, want %s", got, want)
		}
		if got := check(r.StreamID(name))(t); got != id {
			t.Errorf("stream %s, want %s", got, id)
		}
	}
	must(t, r.LinkStream("b", b))
	if names := check(r.StreamNames())(t); !cmp.Equal(names, []string{"b", name}) {
		t.Errorf("names %v", names)
	}
	if got := files(t, r.Path()); len(got) != 5 {
		t.Errorf("files %v", got)
	}
	if info := check(os.Stat(r.Path() + "/streams"))(t); info.Mode().Perm() != 0o755 {
		t.Errorf("mode %s", info.Mode())
	}
	must(t, os.WriteFile(r.Path()+"/streams/file", nil, 0o644))
	if err := r.LinkStream("file", a); !errors.Is(err, ErrIntegrity) {
		t.Errorf("over a file: %v", err)
	}
	for _, target := range []string{"x", "/objects/" + a.ObjectPath(), "objects/" + a.ObjectPath(), "../objects/" + a.String(), "../objects/zz" + a.ObjectPath()[2:]} {
		must(t, os.Remove(r.Path()+"/streams/b"))
		must(t, os.Symlink(target, r.Path()+"/streams/b"))
		if id, err := r.StreamID("b"); !errors.Is(err, ErrIntegrity) {
			t.Errorf("target %s: %s, %v", target, id, err)
		}
	}
}

func TestLinkStreamOnce(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *Repo) {
		object, _, err := r.Put([]byte("object"))
		must(t, err)
		a := check(r.WriteStream(splitstream.Layer, func(w *splitstream.Writer) error { return w.External(object, 6) }))(t)
		b := check(r.WriteStream(splitstream.Layer, fillWith("b")))(t)
		config := check(r.WriteStream(splitstream.Config, fillWith("config")))(t)
		for _, tt := range []struct{ id, winner fsverity.Digest }{{a, a}, {b, a}, {a, a}} {
			if got, err := r.LinkStreamOnce("layer", tt.id, splitstream.Any); got != tt.winner || err != nil {
				t.Errorf("winner %s, %v; want %s", got, err, tt.winner)
			}
		}
		// Neither a stream of another type, nor one that misses an object, nor
		// a missing or empty stream, nor a strange target stays.
		spoil := map[string]func(){
			"another type":   func() { must(t, r.LinkStream("layer", config)) },
			"object missing": func() { must(t, os.Remove(objectPath(r, object))) },
			"stream empty": func() {
				must(t, os.Remove(objectPath(r, a)))
				must(t, os.WriteFile(objectPath(r, a), nil, 0o644))
			},
			"stream missing": func() { must(t, os.Remove(objectPath(r, a))) },
			"strange target": func() {
				must(t, os.Remove(r.Path()+"/streams/layer"))
				must(t, os.Symlink("nowhere", r.Path()+"/streams/layer"))
			},
		}
		for _, name := range []string{"another type", "object missing", "stream empty", "stream missing", "strange target"} {
			must(t, r.LinkStream("layer", a))
			spoil[name]()
			if got, err := r.LinkStreamOnce("layer", b, splitstream.Layer); got != b || err != nil {
				t.Errorf("%s: winner %s, %v; want %s", name, got, err, b)
			}
			if got := check(r.StreamID("layer"))(t); got != b {
				t.Errorf("%s: link to %s, want %s", name, got, b)
			}
		}
	})
}

func TestLinkStreamOnceRace(t *testing.T) {
	path := newRepoPath(t, noVerity(), InitOptions{AllowMissingVerity: true})
	var winners sync.Map
	var wg sync.WaitGroup
	for g := range 8 {
		r := openRepo(t, path, noVerity(), OpenOptions{})
		wg.Go(func() {
			for i := range 20 {
				id, err := r.WriteStream(0, fillWith(fmt.Sprint(g, i)))
				if err == nil {
					id, err = r.LinkStreamOnce(fmt.Sprint(i), id, splitstream.Any)
				}
				if err != nil {
					t.Error(err)
					return
				}
				if first, _ := winners.LoadOrStore(i, id); first != id {
					t.Errorf("two winners of %d", i)
				}
			}
		})
	}
	wg.Wait()
}

func TestRefs(t *testing.T) {
	r := insecureRepo(t)
	id := check(r.WriteStream(0, fillNothing))(t)
	const manifest = "oci-manifest-sha256:0011"
	if err := r.SetStreamRef("oci/x", manifest); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ref to nothing: %v", err)
	}
	must(t, r.LinkStream(manifest, id))
	must(t, r.LinkStream("other", id))
	for ref, target := range map[string]string{
		"foo":                               "../" + manifest,
		"oci/localhost%2Fbootc-sha256:0011": "../../" + manifest,
		"oci-referrers/a/b":                 "../../../" + manifest,
	} {
		if _, err := r.StreamRef(ref); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s before: %v", ref, err)
		}
		must(t, r.SetStreamRef(ref, "other"))
		must(t, r.SetStreamRef(ref, manifest))
		must(t, r.SetStreamRef(ref, manifest))
		if got := readlink(t, r, "streams/refs/"+ref); got != target {
			t.Errorf("%s: target %s, want %s", ref, got, target)
		}
		if got := check(r.StreamRef(ref))(t); got != manifest {
			t.Errorf("%s leads to %s", ref, got)
		}
		// The kernel agrees that it leads to the object.
		if got, want := check(filepath.EvalSymlinks(r.Path()+"/streams/refs/"+ref))(t), objectPath(r, id); got != want {
			t.Errorf("%s leads to %s, want %s", ref, got, want)
		}
	}
	want := []Ref{{"foo", manifest}, {"oci-referrers/a/b", manifest}, {"oci/localhost%2Fbootc-sha256:0011", manifest}}
	if diff := cmp.Diff(want, check(r.StreamRefs(""))(t)); diff != "" {
		t.Errorf("refs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[2:], check(r.StreamRefs("oci"))(t)); diff != "" {
		t.Errorf("refs of oci (-want +got):\n%s", diff)
	}
	if refs, err := r.StreamRefs("ostree"); refs != nil || err != nil {
		t.Errorf("refs of ostree: %v, %v", refs, err)
	}
	must(t, r.RemoveStreamRef("foo"))
	if err := r.RemoveStreamRef("foo"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed twice: %v", err)
	}
	if err := r.RemoveStreamRef("oci"); err == nil {
		t.Error("removed a directory")
	}
	must(t, os.Symlink("../..", r.Path()+"/streams/refs/bad"))
	if _, err := r.StreamRef("bad"); !errors.Is(err, ErrIntegrity) {
		t.Errorf("strange ref: %v", err)
	}
	must(t, r.RemoveStreamRef("bad"))
	must(t, os.WriteFile(r.Path()+"/streams/refs/file", nil, 0o644))
	if err := r.RemoveStreamRef("file"); !errors.Is(err, ErrIntegrity) {
		t.Errorf("removed a file: %v", err)
	}
	if _, err := r.StreamRefs(""); !errors.Is(err, ErrIntegrity) {
		t.Errorf("list with a file: %v", err)
	}
	if names := check(r.StreamNames())(t); !cmp.Equal(names, []string{manifest, "other"}) {
		t.Errorf("names %v", names)
	}
}

func TestNames(t *testing.T) {
	r := insecureRepo(t)
	id := check(r.WriteStream(0, fillNothing))(t)
	must(t, r.LinkStream("ok", id))
	long := strings.Repeat("x", 255)
	must(t, r.LinkStream(long, id))
	must(t, r.SetStreamRef(long, long))
	for _, name := range []string{"", ".", "..", "refs", "a/b", "/", "../objects", "a\x00b", "\xff", long + "x"} {
		_, idErr := r.StreamID(name)
		_, onceErr := r.LinkStreamOnce(name, id, splitstream.Any)
		for i, err := range []error{idErr, onceErr, r.LinkStream(name, id), r.SetStreamRef("x", name)} {
			if !errors.Is(err, ErrBadName) {
				t.Errorf("%q as stream, %d: %v", name, i, err)
			}
		}
	}
	for _, ref := range []string{"", ".", "..", "/a", "a/", "a//b", "a/../b", "../../x", "a\x00b", "\xff", long + "x", strings.Repeat("a/", 40) + "a"} {
		_, refErr := r.StreamRef(ref)
		for i, err := range []error{refErr, r.SetStreamRef(ref, "ok"), r.RemoveStreamRef(ref)} {
			if !errors.Is(err, ErrBadName) {
				t.Errorf("%q as ref, %d: %v", ref, i, err)
			}
		}
	}
	if _, err := r.StreamRefs("../.."); !errors.Is(err, ErrBadName) {
		t.Errorf("prefix: %v", err)
	}
}

func TestImages(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *Repo) {
		id, _, err := r.Put([]byte("not really an image"))
		must(t, err)
		if ok, err := r.HasImage(id); ok || err != nil {
			t.Errorf("has %t, %v", ok, err)
		}
		if f, err := r.OpenImage(id); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("open without a link: %v, %v", f, err)
		}
		if err := r.SetImageRef("a/b", id); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("ref without an image: %v", err)
		}
		must(t, r.LinkImage(id))
		must(t, r.SetImageRef("a/b", id))
		if got, want := readlink(t, r, "images/"+id.String()), "../objects/"+id.ObjectPath(); got != want {
			t.Errorf("target %s, want %s", got, want)
		}
		if got, want := readlink(t, r, "images/refs/a/b"), "../../"+id.String(); got != want {
			t.Errorf("target %s, want %s", got, want)
		}
		if refs := check(r.ImageRefs(""))(t); !cmp.Equal(refs, []Ref{{"a/b", id.String()}}) {
			t.Errorf("refs %v", refs)
		}
		if names := check(r.ImageNames())(t); !cmp.Equal(names, []string{id.String()}) {
			t.Errorf("names %v", names)
		}
		if ok, err := r.HasImage(id); !ok || err != nil {
			t.Errorf("has %t, %v", ok, err)
		}
		must(t, check(r.OpenImage(id))(t).Close())
		must(t, r.RemoveImageRef("a/b"))

		other, _, err := r.Put([]byte("other"))
		must(t, err)
		must(t, os.Remove(r.Path()+"/images/"+id.String()))
		must(t, os.Symlink("../objects/"+other.ObjectPath(), r.Path()+"/images/"+id.String()))
		if ok, err := r.HasImage(id); ok || err != nil {
			t.Errorf("link to another object: has %t, %v", ok, err)
		}
		if f, err := r.OpenImage(id); !errors.Is(err, ErrIntegrity) {
			t.Errorf("link to another object: %v, %v", f, err)
		}
		must(t, r.LinkImage(id))
		must(t, os.Remove(objectPath(r, id)))
		if ok, err := r.HasImage(id); ok || err != nil {
			t.Errorf("link to nothing: has %t, %v", ok, err)
		}
	})
}

func TestSync(t *testing.T) {
	r := insecureRepo(t)
	id := check(r.WriteStream(0, fillNothing))(t)
	must(t, r.SyncFS())
	must(t, r.LinkStream("s", id))
	must(t, r.SetStreamRef("oci/x", "s"))
	must(t, r.LinkImage(id))
	for _, dir := range []string{".", "streams", "streams/refs", "streams/refs/oci", "images"} {
		if _, ok := r.touched[dir]; !ok {
			t.Errorf("%s is not to be synced: %v", dir, r.touched)
		}
	}
	must(t, r.SyncLinks())
	if len(r.touched) != 0 {
		t.Errorf("still to be synced: %v", r.touched)
	}
	must(t, r.SyncLinks())
	must(t, r.RemoveStreamRef("oci/x"))
	must(t, os.RemoveAll(r.Path()+"/streams/refs"))
	must(t, r.SyncLinks())
	// A link that was there may be another's, not synced yet.
	must(t, r.LinkStream("s", id))
	if _, ok := r.touched["streams"]; !ok {
		t.Error("an existing link is not synced")
	}
}

func TestStreamRefTime(t *testing.T) {
	r := insecureRepo(t)
	putStream(t, r, "s", nil)
	if _, err := r.StreamRefTime("a/b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without ref: %v", err)
	}
	must(t, r.SetStreamRef("a/b", "s"))
	if got := check(r.StreamRefTime("a/b"))(t); time.Since(got) > time.Minute || time.Until(got) > time.Minute {
		t.Errorf("time %s", got)
	}
	old := time.Unix(1e9, 5)
	times := []unix.Timespec{unix.NsecToTimespec(old.UnixNano()), unix.NsecToTimespec(old.UnixNano())}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, r.Path()+"/streams/refs/a/b", times, unix.AT_SYMLINK_NOFOLLOW))
	if got := check(r.StreamRefTime("a/b"))(t); !got.Equal(old) {
		t.Errorf("time %s, want %s", got, old)
	}
	must(t, r.SetStreamRef("a/b", "s")) // it is wanted anew
	if got := check(r.StreamRefTime("a/b"))(t); time.Since(got) > time.Minute {
		t.Errorf("time %s after it was set again", got)
	}
	if _, err := r.StreamRefTime("../../x"); !errors.Is(err, ErrBadName) {
		t.Errorf("bad name: %v", err)
	}
}
