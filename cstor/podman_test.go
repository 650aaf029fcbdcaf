// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/internal/ocilayout"
	"github.com/cfs-pull/cfs-pull/internal/testregistry"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// vectors are images that a containers-storage can hold: gzip, plain, zstd, no
// content, one layer twice, an index.
var vectors = []string{"sizes", "sizes-tar", "sizes-zstd", "empty-layer", "multi-arch", "selinux"}

// What podman pulls and what we pull leave the same records.
//
// Podman 4 names an image after its path and keeps a list of no signatures. The
// newer containers/image that we are built with does not; a copy with it leaves
// exactly our records.
func TestRecordsAreThoseOfPodman(t *testing.T) {
	ours, theirs := testStore(t), testStore(t)
	unmountStore(t, theirs.options)
	for _, name := range vectors {
		pull(t, ours, vector(t, name), "example.com/"+name+":latest")
		podman(t, theirs, "pull", "-q", vector(t, name))
	}
	signature := func(key string) bool { return strings.HasPrefix(key, "signature-") }
	for _, file := range []string{imagesFile, layersFile} {
		got := recordsByID(t, filepath.Join(ours.graphRoot, file))
		want := recordsByID(t, filepath.Join(theirs.graphRoot, file))
		for id, r := range want {
			if file == layersFile {
				continue
			}
			if got[id]["metadata"] != metadata {
				t.Errorf("image %s has metadata %q", id, got[id]["metadata"])
			}
			for _, records := range []map[string]any{r, got[id]} {
				for _, key := range []string{"names", "names-history", "metadata"} {
					delete(records, key)
				}
			}
			for _, key := range []string{"big-data-digests", "big-data-sizes"} {
				maps.DeleteFunc(r[key].(map[string]any), func(key string, _ any) bool { return signature(key) })
			}
			r["big-data-names"] = slices.DeleteFunc(r["big-data-names"].([]any), func(key any) bool { return signature(key.(string)) })
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-podman +cstor):\n%s", file, diff)
		}
	}
}

// recordsByID are the records of a file without what differs from pull to pull.
func recordsByID(t *testing.T, path string) map[string]map[string]any {
	t.Helper()
	out := map[string]map[string]any{}
	for _, r := range readJSON[[]map[string]any](t, path) {
		if filepath.Base(path) == filepath.Base(layersFile) {
			delete(r, "created") // when the layer was stored
		} else {
			delete(r, "digest") // of several, the library takes any
		}
		out[r["id"].(string)] = r
	}
	return out
}

// Podman lists, inspects, mounts, pushes and removes what we have stored.
func TestPodmanUsesOurImages(t *testing.T) {
	s := testStore(t)
	unmountStore(t, s.options)
	r := pull(t, s, vector(t, "sizes-tar"), "example.com/os:latest")
	pull(t, s, vector(t, "boot-modules"), NameForDigest(r.ManifestDigest))
	type listed struct {
		ID     string `json:"Id"`
		Names  []string
		Digest string
	}
	var list []listed
	must(t, json.Unmarshal([]byte(podman(t, s, "images", "--format", "json")), &list))
	i := slices.IndexFunc(list, func(i listed) bool { return i.ID == r.ImageID })
	if len(list) != 2 || i < 0 || list[i].Digest != r.ManifestDigest.String() || !slices.Equal(list[i].Names, []string{"example.com/os:latest"}) {
		t.Errorf("podman lists %+v", list)
	}
	inspect := podman(t, s, "image", "inspect", "example.com/os:latest")
	for _, want := range []string{r.ManifestDigest.String(), r.ImageID} {
		if !strings.Contains(inspect, want) {
			t.Errorf("podman inspect does not know %s:\n%s", want, inspect)
		}
	}
	mounted := strings.TrimSpace(podman(t, s, "image", "mount", "example.com/os:latest"))
	if len(tree(t, mounted)) < 5 {
		t.Errorf("mounted: %v", tree(t, mounted))
	}
	podman(t, s, "image", "unmount", "example.com/os:latest")

	// Layers that are not compressed leave podman as they came.
	pushed := filepath.Join(t.TempDir(), "pushed")
	podman(t, s, "push", "-q", "example.com/os:latest", "dir:"+pushed)
	img := check(s.Lookup(r.ImageID))(t)
	if got := check(os.ReadFile(filepath.Join(pushed, "manifest.json")))(t); string(got) != string(img.Manifest) {
		t.Errorf("pushed manifest %s, stored %s", got, img.Manifest)
	}
	podman(t, s, "push", "-q", NameForDigest(r.ManifestDigest), "oci:"+filepath.Join(t.TempDir(), "oci"))

	checkStore(t, s)
	podman(t, s, "rmi", r.ImageID)
	if _, err := s.Lookup(r.ImageID); err == nil {
		t.Error("the image is still there")
	}
	podman(t, s, "rmi", "--all")
	if layers := ids(t, s, layersFile); len(layers) != 0 {
		t.Errorf("layers %v are still there", layers)
	}
	// What podman has removed is fetched again.
	if r := pull(t, s, vector(t, "sizes-tar"), "example.com/os:latest"); !r.Fetched {
		t.Errorf("result %+v", r)
	}
	checkStore(t, s)
}

// A container of an image that we have stored runs.
func TestBuildahRuns(t *testing.T) {
	testutil.RequireTool(t, "buildah", "buildah")
	busybox := testutil.RequireTool(t, "busybox", "busybox-static")
	s := testStore(t)
	unmountStore(t, s.options)
	files := layerFiles{"bin/busybox": check(os.ReadFile(busybox))(t)}
	pull(t, s, makeImage(t, ocilayout.Zstd, files, layerFiles{"etc/motd": []byte("hello from the image\n")}), "localhost/run:latest")
	global := []string{"--root", s.options.GraphRoot, "--runroot", s.options.RunRoot, "--storage-driver", "overlay"}
	buildah := func(args ...string) string {
		t.Helper()
		out, err := runTool(t, "buildah", append(slices.Clone(global), args...)...)
		must(t, err)
		return strings.TrimSpace(out)
	}
	container := buildah("from", "--pull-never", "localhost/run:latest")
	if out := buildah("run", "--isolation", "chroot", container, "/bin/busybox", "cat", "/etc/motd"); out != "hello from the image" {
		t.Errorf("the container says %q", out)
	}
	buildah("rm", container)
	checkStore(t, s)
}

// We list and read what podman has pulled, and neither side fetches what the
// other has.
func TestPodmanAndWeShare(t *testing.T) {
	reg := testregistry.New(t, testregistry.Options{TLS: true})
	_, dir, _ := strings.Cut(layeredImage(t), ":")
	reg.PutLayout(t, "test/layered", strings.TrimSuffix(dir, ":latest"), "latest")
	certs := reg.CertDir(t)
	o := fetchOptions(t)
	o.CertDir = certs
	name := reg.Host() + "/test/layered:latest"

	theirs := testStore(t)
	unmountStore(t, theirs.options)
	podman(t, theirs, "pull", "-q", "--cert-dir", certs, name)
	reg.ResetLog()
	before := tree(t, theirs.graphRoot)
	reader := check(OpenExisting(t.Context(), theirs.options))(t)
	img := check(reader.Lookup(name))(t)
	layers := check(reader.Layers(img))(t)
	must(t, reader.Close())
	if diff := cmp.Diff(before, tree(t, theirs.graphRoot)); diff != "" {
		t.Errorf("reading has changed (-before +after):\n%s", diff)
	}
	if len(layers) != 3 {
		t.Fatalf("layers %+v", layers)
	}
	for i, l := range layers {
		if l.TarSplitPath == "" || l.Partial != "" || oci.DigestOf(readArchive(t, theirs, l.ID)) != img.DiffIDs[i] {
			t.Errorf("layer %d: %+v", i, l)
		}
	}
	src := openSource(t, "docker://"+name, o)
	if string(src.Manifest) != string(img.Manifest) {
		t.Error("the manifest is another one")
	}
	r := check(theirs.Pull(t.Context(), src, PullOptions{Names: []string{name}, MinFree: -1}))(t)
	if r.Fetched || r.Changed || reg.Count(testregistry.Blob) != 0 {
		t.Errorf("result %+v, %d blobs", r, reg.Count(testregistry.Blob))
	}

	ours := testStore(t)
	unmountStore(t, ours.options)
	check(ours.Pull(t.Context(), openSource(t, "docker://"+name, o), PullOptions{Names: []string{name}, MinFree: -1}))(t)
	reg.ResetLog()
	podman(t, ours, "pull", "-q", "--cert-dir", certs, name)
	for _, request := range reg.Requests() {
		// Podman asks for the config each time.
		if request.Kind == testregistry.Blob && request.Target != img.ConfigDigest.String() {
			t.Errorf("podman has fetched %s", request.Target)
		}
	}
	checkStore(t, ours)
}

// Podman runs while it is used by us, and its mounts stay.
func TestPodmanMountsStay(t *testing.T) {
	s := testStore(t)
	unmountStore(t, s.options)
	pull(t, s, vector(t, "sizes"), "example.com/os:latest")
	mounted := strings.TrimSpace(podman(t, s, "image", "mount", "example.com/os:latest"))
	mounts := readMounts(t, s.options)
	other := check(Ensure(t.Context(), s.options))(t)
	check(other.Pull(t.Context(), openSource(t, vector(t, "sizes-zstd"), fetchOptions(t)), PullOptions{MinFree: -1}))(t)
	must(t, other.Close())
	if diff := cmp.Diff(mounts, readMounts(t, s.options)); diff != "" {
		t.Errorf("mounts (-before +after):\n%s", diff)
	}
	if len(tree(t, mounted)) < 5 {
		t.Error("the mount is gone")
	}
	podman(t, s, "image", "unmount", "example.com/os:latest")
}
