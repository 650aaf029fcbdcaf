// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// unpack unpacks repos/<kind>.tar.zst of the conformance vectors.
func unpack(tb testing.TB, kind string) string {
	tb.Helper()
	return testutil.VectorRepository(tb, kind)
}

// expectation is what oci/expect/<image>.json says about a repository that
// holds one image.
type expectation struct {
	Links   map[string]string
	Streams map[string]expectedStream
	Images  map[string]struct {
		Size   int64
		SHA256 string
	}
}

type expectedStream struct {
	Type, SHA256 string
	Size         uint64
	Chunks       []string
	Named        map[string]string
	Objects      []string
}

// expected merges the expectations of all images for one kind of repository.
func expected(tb testing.TB, kind string) expectation {
	tb.Helper()
	all := expectation{Links: map[string]string{}, Streams: map[string]expectedStream{}}
	names := check(filepath.Glob(filepath.Join(testutil.Vectors(tb), "oci", "expect", "*.json")))(tb)
	for _, name := range names {
		var doc map[string]struct{ Repository expectation }
		must(tb, json.Unmarshal(check(os.ReadFile(name))(tb), &doc))
		one := doc[kind].Repository
		for k, v := range one.Streams {
			all.Streams[k] = v
		}
		for k, v := range one.Links {
			all.Links[k] = v
		}
		if all.Images == nil {
			all.Images = one.Images
		}
		for k, v := range one.Images {
			all.Images[k] = v
		}
	}
	if len(all.Streams) == 0 {
		tb.Fatalf("no expectations for %s", kind)
	}
	return all
}

// describe puts a stream in the words of the expectation.
func describe(tb testing.TB, r *Repo, id fsverity.Digest, owners map[fsverity.Digest]string) expectedStream {
	tb.Helper()
	s := check(r.OpenStream(id, splitstream.Any))(tb)
	defer s.Close()
	out := expectedStream{Type: s.ContentType().String(), Named: map[string]string{}}
	out.Size = s.Size()
	for _, o := range s.ObjectRefs() {
		out.Objects = append(out.Objects, o.String())
	}
	for _, n := range s.NamedRefs() {
		out.Named[n.Name] = owners[n.ID]
	}
	c := check(s.Chunks())(tb)
	defer c.Close()
	for {
		chunk, err := c.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(tb, err)
		h := sha256.New()
		if chunk.Inline {
			check(io.Copy(h, c))(tb)
			out.Chunks = append(out.Chunks, fmt.Sprintf("inline %d %x", chunk.Length, h.Sum(nil)))
			continue
		}
		f := check(r.OpenObject(chunk.Object))(tb)
		info := check(f.Stat())(tb)
		must(tb, f.Close())
		out.Chunks = append(out.Chunks, fmt.Sprintf("object %d %s", info.Size(), chunk.Object))
	}
	whole := sha256.New()
	must(tb, s.Reassemble(whole, func(id fsverity.Digest) (io.ReadCloser, error) { return r.OpenObject(id) }))
	out.SHA256 = hex.EncodeToString(whole.Sum(nil))
	return out
}

// owners maps objects to the names of the streams and images they are.
func owners(tb testing.TB, r *Repo) map[fsverity.Digest]string {
	tb.Helper()
	out := map[fsverity.Digest]string{}
	for _, n := range check(r.StreamNames())(tb) {
		out[check(r.StreamID(n))(tb)] = n
	}
	for _, n := range check(r.ImageNames())(tb) {
		out[check(r.ImageID(n))(tb)] = "image:" + n
	}
	return out
}

// Repositories as cfsctl leaves them.
func TestVectorRepositories(t *testing.T) {
	for kind, versions := range map[string]string{"sha512-1": "[V1]", "sha256-1": "[V1]", "sha512-2": "[V2]"} {
		t.Run(kind, func(t *testing.T) {
			r := openRepo(t, unpack(t, kind), kernelVerity(), OpenOptions{AllowMissingVerity: true})
			want := expected(t, kind)
			if got := fmt.Sprint(r.Versions()); got != versions || !strings.HasPrefix(kind, r.Algorithm().HashName()) {
				t.Errorf("%s, formats %s", r.Algorithm(), got)
			}
			meta := check(os.ReadFile(r.Path() + "/meta.json"))(t)
			if got := check(r.Meta().Encode())(t); string(got) != string(meta) {
				t.Errorf("meta.json:\n%s\nencoded again:\n%s", meta, got)
			}
			own := owners(t, r)
			names := check(r.StreamNames())(t)
			if len(names) < 20 {
				t.Errorf("only %d streams", len(names))
			}
			for _, name := range names {
				id := check(r.StreamID(name))(t)
				if diff := cmp.Diff(want.Streams[name], describe(t, r, id, own), cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("%s (-want +got):\n%s", name, diff)
				}
				if ok, err := r.CheckStream(id, splitstream.Any); !ok || err != nil {
					t.Errorf("%s: check %t, %v", name, ok, err)
				}
				if got, err := r.LinkStreamOnce(name, fsverity.Sum(r.Algorithm(), nil), splitstream.Any); got != id || err != nil {
					t.Errorf("%s: another stream won: %s, %v", name, got, err)
				}
			}
			images := check(r.ImageNames())(t)
			if len(images) != 14 { // seven images and their boot images
				t.Errorf("%d images", len(images))
			}
			for _, name := range images {
				id := check(fsverity.ParseDigest(name))(t)
				if ok, err := r.HasImage(id); !ok || err != nil {
					t.Errorf("image %s: %t, %v", name, ok, err)
				}
				f := check(r.OpenImage(id))(t)
				h := sha256.New()
				n := check(io.Copy(h, f))(t)
				must(t, f.Close())
				if w := want.Images[name]; w.Size != n || w.SHA256 != hex.EncodeToString(h.Sum(nil)) {
					t.Errorf("image %s: %d bytes, %x, want %+v", name, n, h.Sum(nil), w)
				}
			}
			refs := check(r.StreamRefs("oci"))(t)
			if len(refs) != 7 {
				t.Errorf("refs %v", refs)
			}
			for _, ref := range refs {
				digest, ok := strings.CutPrefix(ref.Target, "oci-manifest-")
				if !ok || ref.Name != "oci/localhost%2Fbootc-"+digest {
					t.Errorf("ref %v", ref)
				}
				before := readlink(t, r, "streams/refs/"+ref.Name)
				must(t, r.RemoveStreamRef(ref.Name))
				must(t, r.SetStreamRef(ref.Name, ref.Target))
				if got := readlink(t, r, "streams/refs/"+ref.Name); got != before {
					t.Errorf("ref %s: target %s, cfsctl's is %s", ref.Name, got, before)
				}
			}
			// The same links come out when we make them.
			for dir, link := range map[string]func(string, fsverity.Digest) error{
				"streams": r.LinkStream,
				"images":  func(_ string, id fsverity.Digest) error { return r.LinkImage(id) },
			} {
				for _, name := range check(r.listEntries(dir))(t) {
					before := readlink(t, r, dir+"/"+name)
					id := check(r.entryID(dir, name))(t)
					must(t, os.Remove(filepath.Join(r.Path(), dir, name)))
					must(t, link(name, id))
					if got := readlink(t, r, dir+"/"+name); got != before {
						t.Errorf("%s/%s: target %s, cfsctl's is %s", dir, name, got, before)
					}
				}
			}
		})
	}
}

// Repositories of cfsctl 0.6.0: no meta.json, the older splitstream header.
func TestVectorOldRepositories(t *testing.T) {
	for kind, alg := range map[string]fsverity.Algorithm{"old-sha256": fsverity.SHA256, "old-sha512": fsverity.SHA512} {
		t.Run(kind, func(t *testing.T) {
			path := unpack(t, kind)
			if r, err := Open(t.Context(), path, OpenOptions{}); !errors.Is(err, ErrOldFormat) {
				t.Fatalf("opened %v, %v; want %v", r, err, ErrOldFormat)
			}
			// What is in them reads as ever once there is a meta.json.
			meta := check(NewMeta(alg, FormatConfig{Default: 1}).Encode())(t)
			must(t, os.WriteFile(path+"/meta.json", meta, 0o644))
			r := openRepo(t, path, kernelVerity(), OpenOptions{})
			want := expected(t, map[string]string{"old-sha256": "sha256-1", "old-sha512": "sha512-1"}[kind])
			names := check(r.StreamNames())(t)
			if len(names) < 10 {
				t.Errorf("only %d streams", len(names))
			}
			own := owners(t, r)
			for _, name := range names {
				got := describe(t, r, check(r.StreamID(name))(t), own)
				w := want.Streams[name]
				for key := range w.Named { // came later
					if strings.HasPrefix(key, "composefs.image") {
						delete(w.Named, key)
					}
				}
				if strings.HasPrefix(name, "oci-layer-") && got.Size < w.Size {
					checkPaddingLost(t, r, name, w)
					continue
				}
				if digest := name[strings.LastIndexByte(name, ':')+1:]; got.SHA256 != digest {
					t.Errorf("%s: content has SHA-256 %s", name, got.SHA256)
				}
				if diff := cmp.Diff(w, got, cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("%s (-want +got):\n%s", name, diff)
				}
			}
			if refs := check(r.StreamRefs("oci"))(t); len(refs) != 4 {
				t.Errorf("refs %v", refs)
			}
		})
	}
}

// checkPaddingLost checks a layer of which an old release dropped the zeros
// behind the end of the archive, and nothing else.
func checkPaddingLost(tb testing.TB, r *Repo, name string, want expectedStream) {
	tb.Helper()
	s := check(r.OpenStream(check(r.StreamID(name))(tb), splitstream.Layer))(tb)
	defer s.Close()
	h := sha256.New()
	must(tb, s.Reassemble(h, func(id fsverity.Digest) (io.ReadCloser, error) { return r.OpenObject(id) }))
	h.Write(make([]byte, want.Size-s.Size()))
	if got := hex.EncodeToString(h.Sum(nil)); "oci-layer-sha256:"+got != name {
		tb.Errorf("%s: with its padding the SHA-256 is %s", name, got)
	}
}

// What we write, an independent program reads.
func TestReadBackIndependently(t *testing.T) {
	tool := filepath.Join(filepath.Dir(testutil.Vectors(t)), "tools", "repo.py")
	if _, err := os.Stat(tool); err != nil {
		t.Skipf("the independent reader is not beside the vectors: %v", err)
	}
	python := testutil.RequireTool(t, "python3", "python3")
	if err := exec.Command(python, "-c", "import zstandard").Run(); err != nil {
		t.Skip("python3 has no module zstandard: apt-get install python3-zstandard")
	}
	for kind, alg := range map[string]fsverity.Algorithm{"sha256-1": fsverity.SHA256, "sha512-1": fsverity.SHA512} {
		t.Run(kind, func(t *testing.T) {
			// Every stream of a reference repository, written again by us.
			from := openRepo(t, unpack(t, kind), kernelVerity(), OpenOptions{})
			path := filepath.Join(t.TempDir(), "repo")
			check(Init(t.Context(), path, InitOptions{Algorithm: alg, AllowMissingVerity: true}))(t)
			to := check(Open(t.Context(), path, OpenOptions{}))(t)
			ids := map[fsverity.Digest]fsverity.Digest{}
			for _, prefix := range []string{"oci-layer-", "oci-config-", "oci-manifest-"} {
				for _, name := range check(from.StreamNames())(t) {
					if strings.HasPrefix(name, prefix) {
						copyStream(t, from, to, name, ids)
					}
				}
			}
			for _, name := range check(from.ImageNames())(t) {
				id := copyObject(t, from, to, check(from.ImageID(name))(t))
				must(t, to.LinkImage(id))
			}
			must(t, to.SyncFS())
			for _, ref := range check(from.StreamRefs(""))(t) {
				must(t, to.SetStreamRef(ref.Name, ref.Target))
			}
			must(t, to.SyncLinks())
			must(t, to.Close())
			out, err := exec.Command(python, tool, "diff", from.Path(), path).CombinedOutput()
			if err != nil || !strings.HasPrefix(string(out), "0 differences") {
				t.Errorf("repo.py: %v\n%s", err, out)
			}
			dump := check(exec.Command(python, tool, "dump", path).Output())(t)
			var doc struct {
				Problems []string
				Streams  map[string]any
			}
			must(t, json.Unmarshal(dump, &doc))
			if len(doc.Problems) > 0 || len(doc.Streams) < 20 {
				t.Errorf("%d streams, problems %v", len(doc.Streams), doc.Problems)
			}
		})
	}
}

func copyObject(tb testing.TB, from, to *Repo, id fsverity.Digest) fsverity.Digest {
	tb.Helper()
	content := readObject(tb, from, id)
	got, _, err := to.Put([]byte(content))
	must(tb, err)
	if got != id {
		tb.Errorf("object %s hashes to %s", id, got)
	}
	return got
}

func copyStream(tb testing.TB, from, to *Repo, name string, ids map[fsverity.Digest]fsverity.Digest) {
	tb.Helper()
	old := check(from.StreamID(name))(tb)
	s := check(from.OpenStream(old, splitstream.Any))(tb)
	defer s.Close()
	id := check(to.WriteStream(s.ContentType(), func(w *splitstream.Writer) error {
		for _, n := range s.NamedRefs() {
			ref := n.ID
			if new, ok := ids[ref]; ok {
				ref = new
			}
			if err := w.AddStreamRef(n.Name, ref); err != nil {
				return err
			}
		}
		c, err := s.Chunks()
		if err != nil {
			return err
		}
		defer c.Close()
		for {
			chunk, err := c.Next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if chunk.Inline {
				_, err = io.Copy(w, c)
			} else {
				copyObject(tb, from, to, chunk.Object)
				info, serr := os.Stat(objectPath(from, chunk.Object))
				must(tb, serr)
				err = w.External(chunk.Object, uint64(info.Size()))
			}
			if err != nil {
				return err
			}
		}
	}))(tb)
	ids[old] = id
	if got := check(to.LinkStreamOnce(name, id, splitstream.Any))(tb); got != id {
		tb.Errorf("%s: %s won", name, got)
	}
}
