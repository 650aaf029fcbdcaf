// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"archive/tar"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/internal/freespace"
	"github.com/cfs-pull/cfs-pull/internal/loopfs"
	"github.com/cfs-pull/cfs-pull/internal/ocilayout"
	"github.com/cfs-pull/cfs-pull/internal/testregistry"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
	"github.com/cfs-pull/cfs-pull/pipeline/fetch"
)

func TestPull(t *testing.T) {
	s := testStore(t)
	for _, name := range []string{"sizes", "sizes-tar", "sizes-zstd", "sizes-multi-gzip", "empty-layer", "dirs", "multi-arch", "boot-uki"} {
		t.Run(name, func(t *testing.T) {
			src := openSource(t, vector(t, name), fetchOptions(t))
			named := "example.com/" + name + ":latest"
			r := check(s.Pull(t.Context(), src, PullOptions{Names: []string{named}, MinFree: -1}))(t)
			img := check(s.Lookup(named))(t)
			if img.ID != r.ImageID || img.ManifestDigest != r.ManifestDigest || img.ConfigDigest != r.ConfigDigest {
				t.Errorf("result %+v, image %+v", r, img)
			}
			if string(img.Manifest) != string(src.Manifest) || string(img.Config) != string(check(src.Config(t.Context()))(t)) {
				t.Error("manifest or config is not that of the source")
			}
			m := check(oci.ParseManifest(src.Manifest))(t)
			layers := check(s.Layers(img))(t)
			for i, l := range layers {
				if l.DiffID != img.DiffIDs[i] || l.CompressedDigest.String() != m.Layers[i].Digest || l.CompressedSize != m.Layers[i].Size {
					t.Errorf("layer %d: %+v, blob %+v", i, l, m.Layers[i])
				}
				if l.Partial != "" || l.TarSplitPath == "" || l.ReadOnly {
					t.Errorf("layer %d: %+v", i, l)
				}
				archive := readArchive(t, s, l.ID)
				if oci.DigestOf(archive) != l.DiffID || int64(len(archive)) != l.UncompressedSize {
					t.Errorf("layer %d: its files make another archive", i)
				}
			}
			for _, by := range []string{img.ID, img.ID[:12], "sha256:" + img.ID, r.ManifestDigest.String(), "example.com/" + name} {
				if found := check(s.Lookup(by))(t); found.ID != img.ID {
					t.Errorf("look up %s: image %s", by, found.ID)
				}
			}
			if src.Index != nil {
				if found := check(s.Lookup(oci.DigestOf(src.Index).String()))(t); found.ID != img.ID {
					t.Errorf("by the index: image %s", found.ID)
				}
			}
		})
	}
	checkStore(t, s)
}

func TestPullDockerManifest(t *testing.T) {
	s := testStore(t)
	r := pull(t, s, "dir:"+filepath.Join(testutil.Vectors(t), "oci", "dir-docker-types"))
	img := check(s.Lookup(r.ImageID))(t)
	if !strings.Contains(string(img.Manifest), "application/vnd.docker.distribution.manifest.v2+json") {
		t.Errorf("manifest %s", img.Manifest)
	}
	check(s.Layers(img))(t)
	checkStore(t, s)
}

// checkStore lets the library compare all records and files.
func checkStore(t *testing.T, s *Store) {
	t.Helper()
	for _, problem := range checkEverything(t, s) {
		t.Errorf("the library finds: %v", problem)
	}
	for _, dir := range []string{s.graphRoot, filepath.Join(s.graphRoot, driverDir, "tempdirs"), filepath.Join(s.graphRoot, layersDir, "tmp")} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "temp-dir-") || strings.HasPrefix(e.Name(), ".cfs-pull-") {
				t.Errorf("%s is left in %s", e.Name(), dir)
			}
		}
	}
}

// ids are the ids of a store's layers or images.
func ids(t *testing.T, s *Store, file string) []string {
	t.Helper()
	var out []string
	if _, err := os.Stat(filepath.Join(s.graphRoot, file)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, r := range readJSON[[]map[string]any](t, filepath.Join(s.graphRoot, file)) {
		out = append(out, r["id"].(string))
	}
	slices.Sort(out)
	return out
}

func TestPullAgain(t *testing.T) {
	reg := testregistry.New(t, testregistry.Options{TLS: true})
	o := fetchOptions(t)
	o.CertDir = reg.CertDir(t)
	_, dir, _ := strings.Cut(layeredImage(t), ":")
	reg.PutLayout(t, "test/layered", strings.TrimSuffix(dir, ":latest"), "latest")
	ref := "docker://" + reg.Host() + "/test/layered:latest"
	s := testStore(t)
	r := check(s.Pull(t.Context(), openSource(t, ref, o), PullOptions{Names: []string{"example.com/a:1"}, MinFree: -1}))(t)
	if !r.Fetched || !r.Changed || r.Layers != 3 || r.LayersPresent != 0 || r.BytesFetched < 3*512<<10 {
		t.Errorf("first result %+v", r)
	}
	for _, test := range []struct {
		names   []string
		changed bool
	}{{[]string{"example.com/a:1"}, false}, {[]string{"example.com/a:2"}, true}, {nil, false}} {
		reg.ResetLog()
		var log eventLog
		r = check(s.Pull(t.Context(), openSource(t, ref, o), PullOptions{Names: test.names, MinFree: -1, Events: log.add}))(t)
		if r.Fetched || r.Changed != test.changed || r.LayersPresent != 3 || r.BytesFetched != 0 {
			t.Errorf("names %v: result %+v", test.names, r)
		}
		if n := reg.Count(testregistry.Blob); n != 0 {
			t.Errorf("%d requests for blobs", n)
		}
		if len(log.events) != 4 || log.events[0].Total == 0 || log.events[0].Total != log.events[0].Cached {
			t.Errorf("events %+v", log.events)
		}
	}
	img := check(s.Lookup(r.ImageID))(t)
	if diff := cmp.Diff([]string{"example.com/a:1", "example.com/a:2"}, slices.Sorted(slices.Values(img.Names))); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

// A name moves from one image to another.
func TestPullMovesName(t *testing.T) {
	s := testStore(t)
	first := pull(t, s, vector(t, "sizes"), "example.com/os:latest")
	second := pull(t, s, vector(t, "sizes-tar"), "example.com/os:latest")
	if img := check(s.Lookup("example.com/os:latest"))(t); img.ID != second.ImageID {
		t.Errorf("the name leads to %s", img.ID)
	}
	img := check(s.Lookup(first.ImageID))(t)
	if len(img.Names) != 0 {
		t.Errorf("names %v", img.Names)
	}
	images := check(s.Images())(t)
	if len(images) != 2 {
		t.Errorf("%d images", len(images))
	}
}

func TestPullRefuses(t *testing.T) {
	s := testStore(t)
	for _, test := range []struct {
		name string
		want func(error) bool
	}{
		{"bad-diffid", func(err error) bool {
			e, ok := errors.AsType[*IntegrityError](err)
			return ok && e.Layers > 0 && e.Want != e.Got
		}},
		{"bad-blob", func(err error) bool {
			_, ok := errors.AsType[*fetch.IntegrityError](err)
			return ok
		}},
		{"bad-diffid-count", func(err error) bool { return errors.Is(err, oci.ErrMalformed) }},
		{"tar-forms", func(err error) bool { return errors.Is(err, ErrUnsupported) }},
	} {
		src := openSource(t, vector(t, test.name), fetchOptions(t))
		r, err := s.Pull(t.Context(), src, PullOptions{MinFree: -1})
		if err == nil || !test.want(err) || !strings.Contains(err.Error(), test.name) {
			t.Errorf("%s: error %T %v", test.name, err, err)
		}
		if r == nil {
			t.Errorf("%s: no result", test.name)
		}
		if left := ids(t, s, imagesFile); len(left) != 0 {
			t.Errorf("%s: images %v", test.name, left)
		}
		m := check(oci.ParseManifest(src.Manifest))(t)
		for _, id := range ids(t, s, layersFile) {
			if len(m.Layers) == 1 {
				t.Errorf("%s: layer %s", test.name, id)
			}
		}
		checkStore(t, s)
	}
	pull(t, s, vector(t, "sizes"))
}

func TestPullGoesOn(t *testing.T) {
	ref := layeredImage(t)
	for _, test := range []struct {
		name   string
		broken func(cancel context.CancelFunc, stored <-chan struct{}) func() error
	}{
		{"lost", func(context.CancelFunc, <-chan struct{}) func() error { return func() error { return errBroken } }},
		{"cancelled", func(cancel context.CancelFunc, stored <-chan struct{}) func() error {
			return func() error {
				<-stored // layer 2 arrives while layer 1 is being stored
				cancel()
				return context.Canceled
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := testStore(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			src := openSource(t, ref, fetchOptions(t))
			stored := make(chan struct{})
			breakLayer(&src, 1, 99, test.broken(cancel, stored))
			src.Retry = nil
			_, err := s.Pull(ctx, src, PullOptions{MinFree: -1, Events: func(e Event) {
				if e.Kind == EventStored {
					close(stored)
				}
			}})
			if !errors.Is(err, errBroken) && !errors.Is(err, context.Canceled) {
				t.Fatalf("error %v", err)
			}
			if layers := ids(t, s, layersFile); len(layers) != 1 {
				t.Errorf("layers after the failure: %v", layers)
			}
			checkStore(t, s)
			src = openSource(t, ref, fetchOptions(t))
			counts := countLayers(&src)
			r := check(s.Pull(t.Context(), src, PullOptions{MinFree: -1}))(t)
			if diff := cmp.Diff([]int{1, 2}, opened(counts)); diff != "" || r.LayersPresent != 1 {
				t.Errorf("result %+v, layers fetched (-want +got):\n%s", r, diff)
			}
			checkStore(t, s)
		})
	}
}

func TestPullRetriesLayers(t *testing.T) {
	ref := layeredImage(t)
	for i := range 3 {
		s := testStore(t)
		src := openSource(t, ref, fetchOptions(t))
		breakLayer(&src, i, layerRetries, func() error { return errBroken })
		src.Retry = func(err error) bool { return errors.Is(err, errBroken) }
		var log eventLog
		check(s.Pull(t.Context(), src, PullOptions{MinFree: -1, Events: log.add}))(t)
		checkStore(t, s)
		var stored int
		for _, e := range log.events {
			if e.Kind == EventStored {
				stored++
			}
		}
		if stored != 3 {
			t.Errorf("%d layers are said to be stored", stored)
		}

		src = openSource(t, ref, fetchOptions(t))
		breakLayer(&src, i, layerRetries+1, func() error { return errBroken })
		src.Retry = func(err error) bool { return errors.Is(err, errBroken) }
		if _, err := testStore(t).Pull(t.Context(), src, PullOptions{MinFree: -1}); !errors.Is(err, errBroken) {
			t.Errorf("layer %d after too many tries: %v", i, err)
		}
	}
}

// The library cannot hold an archive with a path twice.
func TestPullRefusesRepeatedPaths(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layout")
	w := check(ocilayout.Create(dir))(t)
	must(t, w.AddLayer(ocilayout.Gzip, func(t *tar.Writer) error {
		return errors.Join(writeFiles(t, layerFiles{"a": []byte("1")}), writeFiles(t, layerFiles{"a": []byte("2")}))
	}))
	must(t, w.Finish("latest", v1.ImageConfig{}))
	s := testStore(t)
	_, err := s.Pull(t.Context(), openSource(t, "oci:"+dir+":latest", fetchOptions(t)), PullOptions{MinFree: -1})
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "occurs twice") {
		t.Errorf("error %v", err)
	}
	if left := ids(t, s, layersFile); len(left) != 0 {
		t.Errorf("layers %v", left)
	}
	checkStore(t, s)
}

// Layers that the store has above others, and layers that an image has twice,
// are not fetched.
func TestPullReusesLayers(t *testing.T) {
	s := testStore(t)
	a, b, c := layerFiles{"a": noise(1, 300<<10)}, layerFiles{"b": noise(2, 300<<10)}, layerFiles{"c": noise(3, 300<<10)}
	pull(t, s, makeImage(t, ocilayout.Gzip, a, b))
	src := openSource(t, makeImage(t, ocilayout.Gzip, c, b, a, c), fetchOptions(t))
	counts := countLayers(&src)
	var log eventLog
	r := check(s.Pull(t.Context(), src, PullOptions{MinFree: -1, Events: log.add}))(t)
	if diff := cmp.Diff([]int{0}, opened(counts)); diff != "" {
		t.Errorf("layers fetched (-want +got):\n%s", diff)
	}
	if e := log.events[0]; e.Kind != EventTotals || e.Cached*3 < e.Total*2-3000 || e.Cached >= e.Total {
		t.Errorf("totals %+v", e)
	}
	layers := check(s.Layers(check(s.Lookup(r.ImageID))(t)))(t)
	for i, l := range layers {
		if got := oci.DigestOf(readArchive(t, s, l.ID)); got != l.DiffID {
			t.Errorf("layer %d makes an archive with digest %s, not %s", i, got, l.DiffID)
		}
	}
	checkStore(t, s)
}

// Where files can share their blocks, a layer that moves above others takes no
// space.
func TestPullReusesBlocks(t *testing.T) {
	dir := loopfs.Mount(t, loopfs.XFS)
	s := openStore(t, storeOptions(t, dir))
	lower, upper, other := layerFiles{"a": noise(1, 1<<20)}, layerFiles{"b": noise(2, 24<<20)}, layerFiles{"c": noise(3, 1<<20)}
	pull(t, s, makeImage(t, ocilayout.Gzip, lower, upper))
	root := check(os.Open(dir))(t)
	defer root.Close()
	used := func() int64 {
		must(t, unix.Syncfs(int(root.Fd())))
		var st unix.Statfs_t
		must(t, unix.Statfs(dir, &st))
		return int64(st.Blocks-st.Bfree) * st.Bsize
	}
	before := used()
	src := openSource(t, makeImage(t, ocilayout.Gzip, other, upper), fetchOptions(t))
	counts := countLayers(&src)
	r := check(s.Pull(t.Context(), src, PullOptions{MinFree: -1}))(t)
	if diff := cmp.Diff([]int{0}, opened(counts)); diff != "" {
		t.Errorf("layers fetched (-want +got):\n%s", diff)
	}
	if grown := used() - before; grown > 8<<20 {
		t.Errorf("the store has grown by %d bytes", grown)
	}
	layers := check(s.Layers(check(s.Lookup(r.ImageID))(t)))(t)
	if got := oci.DigestOf(readArchive(t, s, layers[1].ID)); got != layers[1].DiffID {
		t.Errorf("the layer makes an archive with digest %s, not %s", got, layers[1].DiffID)
	}
	checkStore(t, s)
}

// A layer of the store whose files were changed is fetched instead.
func TestPullDoesNotReuseDamagedLayers(t *testing.T) {
	s := testStore(t)
	a, b := layerFiles{"a": noise(1, 300<<10)}, layerFiles{"b": noise(2, 300<<10)}
	r := pull(t, s, makeImage(t, ocilayout.Gzip, a, b))
	layers := check(s.Layers(check(s.Lookup(r.ImageID))(t)))(t)
	must(t, os.WriteFile(filepath.Join(layers[1].DiffDir, "b"), noise(9, 300<<10), 0o755))
	src := openSource(t, makeImage(t, ocilayout.Gzip, b), fetchOptions(t))
	counts := countLayers(&src)
	r = check(s.Pull(t.Context(), src, PullOptions{MinFree: -1}))(t)
	if diff := cmp.Diff([]int{0}, opened(counts)); diff != "" {
		t.Errorf("layers fetched (-want +got):\n%s", diff)
	}
	l := check(s.Layers(check(s.Lookup(r.ImageID))(t)))(t)[0]
	if got := oci.DigestOf(readArchive(t, s, l.ID)); got != l.DiffID {
		t.Errorf("the layer makes an archive with digest %s, not %s", got, l.DiffID)
	}
}

func TestPullEvents(t *testing.T) {
	s := testStore(t)
	var log eventLog
	check(s.Pull(t.Context(), openSource(t, layeredImage(t), fetchOptions(t)), PullOptions{MinFree: -1, Events: log.add}))(t)
	fetched, sizes := map[string]int64{}, map[string]int64{}
	var kinds []EventKind
	for i, e := range log.events {
		if (i == 0) != (e.Kind == EventTotals) {
			t.Errorf("event %d is %+v", i, e)
		}
		switch e.Kind {
		case EventFetched:
			fetched[e.Layer] += e.Bytes
		case EventStored:
			sizes[e.Layer] = e.Size
			fallthrough
		default:
			kinds = append(kinds, e.Kind)
		}
	}
	if diff := cmp.Diff(sizes, fetched); diff != "" {
		t.Errorf("bytes (-size +fetched):\n%s", diff)
	}
	slices.Sort(kinds)
	want := []EventKind{EventTotals, EventStarted, EventStarted, EventStarted, EventStored, EventStored, EventStored}
	if diff := cmp.Diff(want, kinds); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestPullWithoutSpace(t *testing.T) {
	dir := loopfs.MountSize(t, loopfs.Ext4, 32<<20)
	s := openStore(t, storeOptions(t, dir))
	small := makeImage(t, ocilayout.Gzip, layerFiles{"a": noise(1, 1<<20)}, layerFiles{"b": noise(2, 40<<20)})

	src := openSource(t, small, fetchOptions(t))
	counts := countLayers(&src)
	_, err := s.Pull(t.Context(), src, PullOptions{MinFree: -1})
	e, ok := errors.AsType[*freespace.Error](err)
	if !ok || e.Required < 100<<20 || e.Available > 32<<20 || e.Path != s.graphRoot {
		t.Fatalf("error %v", err)
	}
	if len(opened(counts)) != 0 {
		t.Errorf("layers %v were fetched before", opened(counts))
	}
	for _, want := range []string{s.graphRoot, "bytes are available"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q has no %q", err, want)
		}
	}

	_, err = s.Pull(t.Context(), src, PullOptions{SkipSpaceCheck: true})
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("on a full file system: %v", err)
	}
	if len(ids(t, s, imagesFile)) != 0 || len(ids(t, s, layersFile)) != 1 {
		t.Errorf("left: images %v, layers %v", ids(t, s, imagesFile), ids(t, s, layersFile))
	}
	checkStore(t, s)
	pull(t, s, makeImage(t, ocilayout.Gzip, layerFiles{"a": noise(1, 1<<20)}))
	checkStore(t, s)
}

// A temporary file gives way where it would take the last free space.
func TestPullWithoutSpaceForTemporaryFiles(t *testing.T) {
	s := openStore(t, storeOptions(t, loopfs.MountSize(t, loopfs.Ext4, 32<<20)))
	src := openSource(t, makeImage(t, ocilayout.Gzip, layerFiles{"a": noise(1, 1<<20)}, layerFiles{"b": noise(2, 14<<20)}), fetchOptions(t))
	counts := countLayers(&src)
	check(s.Pull(t.Context(), src, PullOptions{SkipSpaceCheck: true}))(t)
	if n := counts[1].Load(); n != 2 {
		t.Errorf("the upper layer was fetched %d times", n)
	}
	checkStore(t, s)
}

func TestDecide(t *testing.T) {
	s := testStore(t)
	ref := vector(t, "sizes")
	r := pull(t, s, ref, "example.com/os:latest")
	for _, test := range []struct {
		policy  Policy
		present bool // with the image there
		absent  bool // without
	}{{PolicyAlways, true, true}, {PolicyNewer, true, true}, {PolicyMissing, false, true}, {PolicyNever, false, false}} {
		img, pull, err := s.Decide(test.policy, "example.com/os")
		if err != nil || img == nil || img.ID != r.ImageID || pull != test.present {
			t.Errorf("policy %d with the image there: %v, %v, %v", test.policy, img, pull, err)
		}
		img, pull, err = s.Decide(test.policy, "example.com/other")
		_, notFound := errors.AsType[*NotFoundError](err)
		if img != nil || pull != test.absent || notFound != (test.policy == PolicyNever) || (err != nil) != notFound {
			t.Errorf("policy %d without the image: %v, %v, %v", test.policy, img, pull, err)
		}
	}
	// An image that is not complete is pulled again.
	img := check(s.Lookup(r.ImageID))(t)
	manifest := filepath.Join(s.graphRoot, bigDataPath(img.ID, manifestKey+"-"+img.ManifestDigest.String()))
	must(t, os.WriteFile(manifest, []byte("{}"), 0o600))
	if img, pull, err := s.Decide(PolicyMissing, "example.com/os"); img != nil || !pull || err != nil {
		t.Errorf("a damaged image: %v, %v, %v", img, pull, err)
	}
	if r = pull(t, s, ref, "example.com/os:latest"); r.Fetched || !r.Changed {
		t.Errorf("repaired: %+v", r)
	}
	if img, pull, err := s.Decide(PolicyMissing, "example.com/os"); img == nil || pull || err != nil {
		t.Errorf("a repaired image: %v, %v, %v", img, pull, err)
	}
	// What cannot be read is no reason to pull.
	must(t, os.WriteFile(filepath.Join(s.graphRoot, imagesFile), []byte("[{"), 0o600))
	if _, _, err := s.Decide(PolicyMissing, "example.com/os"); err == nil {
		t.Error("no error for unreadable records")
	}
}

// A process that is killed leaves nothing but complete layers for the next one.
func TestPullIsKilled(t *testing.T) {
	o := storeOptions(t, t.TempDir())
	ref := layeredImage(t)
	killed := 0
	for delay := 40 * time.Millisecond; ; delay += 40 * time.Millisecond {
		cmd, errs := startHelper(t, "pull", "CSTOR_ROOT="+o.GraphRoot, "CSTOR_RUN="+o.RunRoot, "CSTOR_REF="+ref,
			"CSTOR_NAMES=example.com/killed:latest", "CSTOR_TMP="+t.TempDir())
		timer := time.AfterFunc(delay, func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		timer.Stop()
		if err == nil {
			break
		}
		if killed++; cmd.ProcessState.ExitCode() != -1 {
			t.Fatalf("after %d kills: %v\n%s", killed, err, errs)
		}
		if reader, err := OpenExisting(t.Context(), o); err == nil {
			// An image is given its name when it is complete.
			if img, err := reader.Lookup("example.com/killed"); err == nil {
				check(reader.Layers(img))(t)
			} else if _, absent := errors.AsType[*NotFoundError](err); !absent {
				t.Errorf("after %d kills: %v", killed, err)
			}
			must(t, reader.Close())
		}
	}
	if killed < 3 {
		t.Errorf("killed %d times only", killed)
	}
	// Killed while the library tried out an overlay, a process leaves that. It is
	// removed when it is old enough to be nobody's.
	for _, e := range check(os.ReadDir(filepath.Join(o.GraphRoot, driverDir)))(t) {
		if strings.HasPrefix(e.Name(), "compat") || strings.Contains(e.Name(), "-check") {
			path, old := filepath.Join(o.GraphRoot, driverDir, e.Name()), time.Now().Add(-2*probeAge)
			must(t, os.Chtimes(path, old, old))
		}
	}
	s := openStore(t, o)
	if len(ids(t, s, layersFile)) != 3 || len(check(s.Images())(t)) != 1 {
		t.Errorf("layers %v", ids(t, s, layersFile))
	}
	check(s.Layers(check(s.Lookup("example.com/killed"))(t)))(t)
	checkStore(t, s)
	if _, err := os.Lstat(o.GraphRoot + temporarySuffix); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary store: %v", err)
	}
	for _, line := range readMounts(t, o) {
		if strings.Contains(line, o.GraphRoot) {
			t.Errorf("still mounted: %s", line)
		}
	}
}
