// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/internal/loopfs"
)

// The store is a file system that cannot be written to, and nothing changes on
// one that can.
func TestReadOnly(t *testing.T) {
	dir := loopfs.MountSize(t, loopfs.Ext4, 32<<20)
	o := storeOptions(t, dir)
	pullElsewhere(t, o, vector(t, "sizes"), "example.com/os:latest")
	before := tree(t, dir)
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	run := storeOptions(t, t.TempDir()).RunRoot
	o.RunRoot = run
	s := check(OpenExisting(t.Context(), o))(t)
	defer s.Close()
	img := check(s.Lookup("example.com/os"))(t)
	if len(check(s.Layers(img))(t)) != 1 || len(check(s.Images())(t)) != 1 {
		t.Errorf("image %+v", img)
	}
	if _, err := os.Lstat(run); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the runroot: %v", err)
	}
	if _, err := s.Pull(t.Context(), openSource(t, vector(t, "sizes-tar"), fetchOptions(t)), PullOptions{}); !errors.Is(err, unix.EROFS) {
		t.Errorf("pull: %v", err)
	}
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT, ""))
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Errorf("changed (-before +after):\n%s", diff)
	}
}

func TestAdditionalImageStores(t *testing.T) {
	shared := storeOptions(t, t.TempDir())
	a, b := layerFiles{"a": noise(1, 200<<10)}, layerFiles{"b": noise(2, 200<<10)}
	lower, upper := makeImage(t, 0, a), makeImage(t, 0, a, b)
	pullElsewhere(t, shared, lower, "example.com/lower:1")
	o := storeOptions(t, t.TempDir())
	o.AdditionalImageStores = []string{shared.GraphRoot}
	s := openStore(t, o)
	img := check(s.Lookup("example.com/lower:1"))(t)
	if !img.ReadOnly || img.GraphRoot != shared.GraphRoot {
		t.Errorf("image %+v", img)
	}
	for _, l := range check(s.Layers(img))(t) {
		if !l.ReadOnly || !strings.HasPrefix(l.DiffDir, shared.GraphRoot) || !isDirectory(l.DiffDir) || !isRegular(l.TarSplitPath) {
			t.Errorf("layer %+v", l)
		}
	}
	before := tree(t, shared.GraphRoot)
	if r := pull(t, s, lower, "example.com/lower:1"); r.Fetched || r.Changed {
		t.Errorf("an image that is there: %+v", r)
	}
	src := openSource(t, upper, fetchOptions(t))
	counts := countLayers(&src)
	r := check(s.Pull(t.Context(), src, PullOptions{MinFree: -1}))(t)
	if diff := cmp.Diff([]int{1}, opened(counts)); diff != "" {
		t.Errorf("layers fetched (-want +got):\n%s", diff)
	}
	layers := check(s.Layers(check(s.Lookup(r.ImageID))(t)))(t)
	if len(layers) != 2 || !layers[0].ReadOnly || layers[1].ReadOnly {
		t.Errorf("layers %+v", layers)
	}
	// A name is given to a copy of the record.
	if r := pull(t, s, lower, "example.com/other:1"); r.Fetched || !r.Changed {
		t.Errorf("another name: %+v", r)
	}
	img = check(s.Lookup("example.com/other:1"))(t)
	if img.ReadOnly || len(check(s.Layers(img))(t)) != 1 {
		t.Errorf("image %+v", img)
	}
	if diff := cmp.Diff(before, tree(t, shared.GraphRoot)); diff != "" {
		t.Errorf("the additional store has changed (-before +after):\n%s", diff)
	}
}

// fakeStore is a store of records without the library: no root is needed.
type fakeStore struct {
	*Store
	dir string
}

func newFakeStore(tb testing.TB) *fakeStore {
	tb.Helper()
	dir := check(filepath.EvalSymlinks(tb.TempDir()))(tb)
	for _, d := range []string{driverDir, layersDir, imagesDir} {
		must(tb, os.Mkdir(filepath.Join(dir, d), 0o700))
	}
	s := check(OpenExisting(tb.Context(), Options{GraphRoot: dir, RunRoot: filepath.Join(dir, "run")}))(tb)
	return &fakeStore{s, dir}
}

func (f *fakeStore) write(tb testing.TB, name string, v any) {
	tb.Helper()
	data, ok := v.([]byte)
	if !ok {
		data = check(json.Marshal(v))(tb)
	}
	path := filepath.Join(f.dir, name)
	must(tb, os.MkdirAll(filepath.Dir(path), 0o755))
	must(tb, os.WriteFile(path, data, 0o600))
}

type object = map[string]any

// fakeImage is an image with layers whose diff_ids are the digests of the names.
func (f *fakeStore) fakeImage(tb testing.TB, id string, layers ...string) (image object, records []object) {
	tb.Helper()
	descriptors, diffIDs := []object{}, []string{}
	parent := ""
	for _, l := range layers {
		d := oci.DigestOf([]byte(l))
		diffIDs = append(diffIDs, d.String())
		descriptors = append(descriptors, object{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": d.String(), "size": 1})
		record := object{"id": layerID(parent, d), "diff-digest": d.String(), "diff-size": 1}
		if parent != "" {
			record["parent"] = parent
		}
		records, parent = append(records, record), layerID(parent, d)
	}
	config := check(json.Marshal(object{"rootfs": object{"type": "layers", "diff_ids": diffIDs}}))(tb)
	manifest := check(json.Marshal(object{
		"schemaVersion": 2,
		"config":        object{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": oci.DigestOf(config).String(), "size": len(config)},
		"layers":        descriptors,
	}))(tb)
	f.write(tb, bigDataPath(id, oci.DigestOf(config).String()), config)
	f.write(tb, bigDataPath(id, manifestKey), manifest)
	image = object{
		"id": id, "layer": parent, "names": []string{"localhost/fake:latest"}, "big-data-names": []string{manifestKey},
		"big-data-digests": object{manifestKey: oci.DigestOf(manifest).String()},
	}
	return image, records
}

var fakeID = strings.Repeat("ab", 32)

// A store's records can say anything.
func TestHostileRecords(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(f *fakeStore, image object, layers []object) (any, any)
		want   error // of Lookup or Layers; nil when all is well
	}{
		{"good", func(_ *fakeStore, image object, layers []object) (any, any) { return []object{image}, layers }, nil},
		{"no records", func(*fakeStore, object, []object) (any, any) { return nil, nil }, errAbsent},
		{"empty files", func(*fakeStore, object, []object) (any, any) { return []byte{}, []byte{} }, errAbsent},
		{"id is a path", func(_ *fakeStore, image object, layers []object) (any, any) {
			image["id"] = "../../../../../../../../etc"
			return []object{image}, layers
		}, errAbsent},
		{"not JSON", func(_ *fakeStore, _ object, layers []object) (any, any) { return []byte("[{"), layers }, ErrCorrupt},
		{"null", func(_ *fakeStore, _ object, layers []object) (any, any) { return []byte("null"), layers }, errAbsent},
		{"other type", func(_ *fakeStore, image object, layers []object) (any, any) {
			image["names"] = 7
			return []object{image}, layers
		}, ErrCorrupt},
		{"manifest without digest", func(_ *fakeStore, image object, layers []object) (any, any) {
			delete(image, "big-data-digests")
			return []object{image}, layers
		}, ErrUnsupported},
		{"no manifest", func(_ *fakeStore, image object, layers []object) (any, any) {
			delete(image, "big-data-digests")
			delete(image, "big-data-names")
			return []object{image}, layers
		}, ErrIncomplete},
		{"other manifest", func(f *fakeStore, image object, layers []object) (any, any) {
			f.write(t, bigDataPath(fakeID, manifestKey), []byte("{}"))
			return []object{image}, layers
		}, ErrIncomplete},
		{"no config", func(f *fakeStore, image object, layers []object) (any, any) {
			dir := filepath.Join(f.dir, imagesDir, fakeID)
			for _, e := range check(os.ReadDir(dir))(t) {
				if strings.HasPrefix(e.Name(), "=") {
					must(t, os.Remove(filepath.Join(dir, e.Name())))
				}
			}
			return []object{image}, layers
		}, ErrIncomplete},
		{"manifest is a link out", func(f *fakeStore, image object, layers []object) (any, any) {
			path := filepath.Join(f.dir, bigDataPath(fakeID, manifestKey))
			outside := filepath.Join(t.TempDir(), "manifest")
			must(t, os.Rename(path, outside))
			must(t, os.Symlink(outside, path))
			return []object{image}, layers
		}, ErrIncomplete},
		{"missing layer", func(_ *fakeStore, image object, layers []object) (any, any) { return []object{image}, layers[1:] }, ErrIncomplete},
		{"layer too many", func(_ *fakeStore, image object, layers []object) (any, any) {
			layers[0]["parent"] = strings.Repeat("cd", 32)
			return []object{image}, append(layers, object{"id": strings.Repeat("cd", 32)})
		}, ErrIncomplete},
		{"loop", func(_ *fakeStore, image object, layers []object) (any, any) {
			layers[0]["parent"] = layers[1]["id"]
			return []object{image}, layers
		}, ErrIncomplete},
		{"incomplete layer", func(_ *fakeStore, image object, layers []object) (any, any) {
			layers[0]["flags"] = object{"incomplete": true}
			return []object{image}, layers
		}, ErrIncomplete},
		{"other diff_id", func(_ *fakeStore, image object, layers []object) (any, any) {
			layers[0]["diff-digest"] = oci.DigestOf([]byte("other")).String()
			return []object{image}, layers
		}, ErrIncomplete},
		{"layer twice", func(_ *fakeStore, image object, layers []object) (any, any) {
			return []object{image}, append(layers, layers[0])
		}, nil},
		{"volatile layers", func(f *fakeStore, image object, layers []object) (any, any) {
			f.write(t, volatileFile, layers[1:])
			return []object{image}, layers[:1]
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFakeStore(t)
			image, layers := f.fakeImage(t, fakeID, "lower", "upper")
			images, records := test.change(f, image, layers)
			for name, v := range map[string]any{imagesFile: images, layersFile: records} {
				if v != nil {
					f.write(t, name, v)
				}
			}
			img, err := f.Lookup("fake")
			if err == nil {
				var found []Layer
				found, err = f.Layers(img)
				if err == nil && (len(found) != 2 || found[0].ID != layers[0]["id"] || found[1].Parent != found[0].ID) {
					t.Errorf("layers %+v", found)
				}
			}
			if _, absent := errors.AsType[*NotFoundError](err); absent {
				err = errAbsent
			}
			if !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			if err != nil && err != errAbsent && !strings.Contains(err.Error(), f.dir) {
				t.Errorf("error %q does not name the store", err)
			}
		})
	}
}

var errAbsent = errors.New("absent")

// What is there in part only is said to be so.
func TestPartialLayers(t *testing.T) {
	f := newFakeStore(t)
	image, layers := f.fakeImage(t, fakeID, "a", "b", "c")
	f.write(t, imagesFile, []object{image})
	delete(layers[0], "diff-digest")
	layers[0]["toc-digest"] = "sha256:toc"
	f.write(t, layersFile, layers)
	f.write(t, filepath.Join(driverDir, layers[1]["id"].(string), flatMarker), []byte("blob"))
	f.write(t, filepath.Join(layersDir, layers[2]["id"].(string)+tarSplitEnd), []byte("gz"))
	got := check(f.Layers(check(f.Lookup("fake"))(t)))(t)
	if !strings.Contains(got[0].Partial, "sha256:toc") || !got[0].DiffID.IsZero() || got[0].TarSplitPath != "" {
		t.Errorf("layer found by table of contents: %+v", got[0])
	}
	if !strings.Contains(got[1].Partial, "composefs") {
		t.Errorf("flat layer: %+v", got[1])
	}
	if got[2].Partial != "" || got[2].TarSplitPath == "" {
		t.Errorf("ordinary layer: %+v", got[2])
	}
}

func TestOpenExistingRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, "absent"), "/dev/null"} {
		if _, err := OpenExisting(t.Context(), Options{GraphRoot: path}); !errors.Is(err, ErrNoStore) {
			t.Errorf("%s: %v", path, err)
		}
	}
	must(t, os.WriteFile(filepath.Join(dir, driverDir), nil, 0o600))
	if _, err := OpenExisting(t.Context(), Options{GraphRoot: dir}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("file in place of a directory: %v", err)
	}
	if entries := check(os.ReadDir(dir))(t); len(entries) != 1 {
		t.Errorf("entries %v", entries)
	}
}

func TestFind(t *testing.T) {
	d := oci.DigestOf([]byte("manifest"))
	images := []*Image{
		{ID: "aaaaaaaa" + strings.Repeat("0", 56), Names: []string{"docker.io/library/fedora:latest", "localhost/mine:1"}, Digests: []oci.Digest{d}},
		{ID: "aaaaaaaa" + strings.Repeat("1", 56), Names: []string{"quay.io/example/os:41"}},
		{ID: "bbbbbbbb" + strings.Repeat("2", 56)},
		{ID: "cccccccc" + strings.Repeat("3", 56), Names: []string{"docker.io/library/bbbbbbb:latest"}},
	}
	for _, test := range []struct {
		wanted string
		want   int // index, or -1
	}{
		{"fedora", 0}, {"fedora:latest", 0}, {"docker.io/library/fedora", 0}, {"fedora:40", -1}, {"mine:1", 0}, {"localhost/mine:1", 0}, {"mine", -1},
		{"quay.io/example/os:41", 1}, {"example/os:41", -1}, {"os:41", -1},
		{images[1].ID, 1}, {"sha256:" + images[1].ID, 1}, {"aaaaaaaa", -1}, {"aaaaaaaa0", 0}, {"aaaaaaaa1", 1},
		{"bbbbbbbb2", 2}, {"bbbbbbb", 3}, {"sha256:bbbbbbbb", 2}, {"cccccc", -1},
		{d.String(), 0}, {"fedora@" + d.String(), 0}, {"quay.io/example/os@" + d.String(), -1},
		{"", -1}, {"UPPER", -1}, {"../../etc", -1}, {"sha256:", -1}, {strings.Repeat("x", 5000), -1},
	} {
		got := -1
		for i, img := range images {
			if img == find(images, test.wanted) {
				got = i
			}
		}
		if got != test.want {
			t.Errorf("%q finds image %d, want %d", test.wanted, got, test.want)
		}
	}
	if got := NameForDigest(d); got != "localhost/cfs-pull/"+d.String()[7:19]+":latest" {
		t.Errorf("name %s", got)
	}
	if normal := check(NormalizeName(NameForDigest(d)))(t); normal != NameForDigest(d) {
		t.Errorf("name %s is not normal", normal)
	}
	if !bytes.HasPrefix([]byte(check(NormalizeName("fedora"))(t)), []byte("docker.io/library/fedora:latest")) {
		t.Error("fedora is not completed")
	}
	if _, err := NormalizeName("UPPER"); err == nil {
		t.Error("no error for a bad name")
	}
}

// Two layers of different images may share an id only if they are the same.
func TestPlanRefusesOtherLayers(t *testing.T) {
	f := newFakeStore(t)
	_, layers := f.fakeImage(t, fakeID, "a", "b")
	layers[1]["parent"] = strings.Repeat("cd", 32)
	f.write(t, layersFile, layers)
	a, b := oci.DigestOf([]byte("a")), oci.DigestOf([]byte("b"))
	m := &oci.Manifest{Layers: make([]oci.Descriptor, 2)}
	err := f.withRecords(t.Context(), func(v view) error {
		_, err := v.plan(m, []oci.Digest{a, b})
		return err
	})
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("error %v", err)
	}
}
