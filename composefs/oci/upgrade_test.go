// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/repodump"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// openOld upgrades and opens a repository of the vectors.
func openOld(t *testing.T, kind string) *composefs.Repo {
	t.Helper()
	repo, err := composefs.Open(t.Context(), testutil.VectorRepository(t, kind), composefs.OpenOptions{Upgrade: true, AllowMissingVerity: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := repo.Close(); err != nil {
			t.Error(err)
		}
	})
	return repo
}

// plainIDs are the ids of plain images that the reference tool makes, by
// manifest digest.
func plainIDs(t *testing.T, kind string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(testutil.Vectors(t), "oci", "expect", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no expectations: %v", err)
	}
	ids := map[string]string{}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var kinds map[string]struct {
			ImageID        string `json:"image_id"`
			ManifestDigest string `json:"manifest_digest"`
		}
		if err := json.Unmarshal(raw, &kinds); err != nil {
			t.Fatal(err)
		}
		ids[kinds[kind].ManifestDigest] = kinds[kind].ImageID
	}
	return ids
}

func gc(t *testing.T, repo *composefs.Repo) *composefs.GCResult {
	t.Helper()
	unlock, err := repo.LockExclusive(t.Context(), -1)
	if err != nil {
		t.Fatal(err)
	}
	result, err := oci.CollectGarbage(t.Context(), repo, composefs.GCOptions{})
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// Repositories of cfsctl 0.6.0: no meta.json, splitstreams with the first
// header, no EROFS images.
func TestUpgrade(t *testing.T) {
	for kind, like := range map[string]string{"old-sha512": "sha512-1", "old-sha256": "sha256-1"} {
		t.Run(kind, func(t *testing.T) {
			repo := openOld(t, kind)
			if !repo.Upgraded() {
				t.Error("there was a meta.json")
			}
			before, err := repodump.Dump(repo.Path())
			if err != nil {
				t.Fatal(err)
			}
			if n, err := oci.Outdated(t.Context(), repo); n != 4 || err != nil || repo.Unflushed() {
				t.Errorf("%d images are outdated, %v", n, err)
			}
			up, err := oci.Upgrade(t.Context(), repo, oci.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if up.Images != 4 || up.Current != 0 || up.Skipped != 0 || len(up.Broken) != 0 {
				t.Errorf("upgraded %+v", up)
			}
			want := plainIDs(t, like)
			refs, err := repo.StreamRefs("oci")
			if err != nil || len(refs) != 4 {
				t.Fatalf("refs %v, %v", refs, err)
			}
			for _, ref := range refs {
				digest, err := oci.ParseDigest(strings.TrimPrefix(ref.Target, "oci-manifest-"))
				if err != nil {
					t.Fatal(err)
				}
				checkPlain(t, repo, digest, want[digest.String()])
			}
			after, err := repodump.Dump(repo.Path())
			if err != nil {
				t.Fatal(err)
			}
			for name, s := range before.Streams {
				if got := after.Streams[name]; got.SHA256 != s.SHA256 || got.Size != s.Size {
					t.Errorf("stream %s has other content now", name)
				}
			}

			// Garbage collection finds the streams that were replaced, and
			// nothing else.
			if got := gc(t, repo); got.Objects != 8 || len(got.Streams)+len(got.Images)+len(got.Refs) != 0 {
				t.Errorf("removed %+v", got)
			}
			collected, err := repodump.Dump(repo.Path())
			if err != nil {
				t.Fatal(err)
			}
			if len(collected.Links) != len(after.Links) || len(collected.FileObjects) != len(after.FileObjects) {
				t.Errorf("%d links and %d objects are left of %d and %d", len(collected.Links), len(collected.FileObjects), len(after.Links), len(after.FileObjects))
			}

			again, err := oci.Upgrade(t.Context(), repo, oci.Limits{})
			if n, err := oci.Outdated(t.Context(), repo); n != 0 || err != nil {
				t.Errorf("%d images are outdated still, %v", n, err)
			}
			if err != nil || again.Images != 0 || again.Current != 4 {
				t.Errorf("second upgrade: %+v, %v", again, err)
			}
			if got := gc(t, repo); !got.Empty() {
				t.Errorf("after a second upgrade: removed %+v", got)
			}
		})
	}
}

// checkPlain checks that an image has the plain image of that id, mountable.
func checkPlain(t *testing.T, repo *composefs.Repo, manifest oci.Digest, want string) {
	t.Helper()
	m, err := oci.OpenManifest(repo, manifest)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := oci.ParseManifest(m.Raw)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := oci.ParseDigest(parsed.Config.Digest)
	if err != nil {
		t.Fatal(err)
	}
	config, err := oci.OpenConfig(repo, digest)
	if err != nil {
		t.Fatal(err)
	}
	id := config.Refs[oci.ImageKey(false, 1, oci.AllowlistOnly)]
	if id.String() != want {
		t.Errorf("manifest %s: image %s, want %s", manifest, id, want)
	}
	if ok, err := repo.HasImage(id); !ok || err != nil {
		t.Errorf("manifest %s: image is linked: %t, %v", manifest, ok, err)
	}
	if m.Refs["config:"+digest.String()] != config.Stream {
		t.Errorf("manifest %s names another config", manifest)
	}
}

// A broken image neither is upgraded nor keeps others from it.
func TestUpgradeBrokenImage(t *testing.T) {
	repo := openOld(t, "old-sha512")
	refs, err := repo.StreamRefs("oci")
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := oci.ParseDigest(strings.TrimPrefix(refs[1].Target, "oci-manifest-"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := oci.OpenManifest(repo, manifest)
	if err != nil {
		t.Fatal(err)
	}
	var layer fsverity.Digest
	for name, id := range m.Refs {
		if strings.HasPrefix(name, "sha256:") {
			layer = id
		}
	}
	if err := os.Remove(filepath.Join(repo.Path(), "objects", layer.ObjectPath())); err != nil {
		t.Fatal(err)
	}
	if err := repo.SetStreamRef("oci/artifact", strings.Replace(refs[0].Target, "oci-manifest-", "oci-layer-", 1)); err == nil {
		t.Error("a ref to nothing was made")
	}
	if err := os.Symlink("../../notes", filepath.Join(repo.Path(), "streams/refs/oci/notes")); err != nil {
		t.Fatal(err)
	}
	up, err := oci.Upgrade(t.Context(), repo, oci.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if up.Images != 3 || up.Skipped != 1 || len(up.Broken) != 1 || up.Broken[0].Tag != oci.BootcTag(manifest) || up.Broken[0].Err == nil {
		t.Errorf("upgraded %+v", up)
	}
}

// A tag whose config lost its link, as a crash of other tools leaves it.
func TestUpgradeOrphanedConfig(t *testing.T) {
	repo := openOld(t, "old-sha512")
	configs, err := filepath.Glob(filepath.Join(repo.Path(), "streams", "oci-config-*"))
	if err != nil || len(configs) != 4 {
		t.Fatalf("configs %v, %v", configs, err)
	}
	for _, link := range configs {
		if err := os.Remove(link); err != nil {
			t.Fatal(err)
		}
	}
	up, err := oci.Upgrade(t.Context(), repo, oci.Limits{})
	if err != nil || up.Images != 4 {
		t.Fatalf("upgraded %+v, %v", up, err)
	}
	if got := gc(t, repo); got.Objects != 8 {
		t.Errorf("removed %+v", got)
	}
}

// Repositories of today need nothing, whatever their format.
func TestUpgradeNothing(t *testing.T) {
	for _, kind := range []string{"sha512-1", "sha512-2", "sha256-1"} {
		repo := openOld(t, kind)
		up, err := oci.Upgrade(t.Context(), repo, oci.Limits{})
		if err != nil || repo.Upgraded() || up.Images != 0 || up.Current != 7 || repo.Unflushed() {
			t.Errorf("%s: upgraded %+v, %v", kind, up, err)
		}
	}
}

// An image that lost only its link in images/ gets it back.
func TestUpgradeLinksImages(t *testing.T) {
	repo := openOld(t, "sha512-1")
	before, err := repo.ImageNames()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(repo.Path(), "images")); err != nil {
		t.Fatal(err)
	}
	up, err := oci.Upgrade(t.Context(), repo, oci.Limits{})
	if err != nil || up.Images != 7 {
		t.Errorf("upgraded %+v, %v", up, err)
	}
	after, err := repo.ImageNames()
	if err != nil || len(after) != len(before) {
		t.Errorf("%d images of %d, %v", len(after), len(before), err)
	}
}

// An upgrade that was killed between the links of a config and of the manifest
// that names it is finished by the next one.
func TestUpgradeInterrupted(t *testing.T) {
	repo := openOld(t, "old-sha512")
	manifests, err := filepath.Glob(filepath.Join(repo.Path(), "streams", "oci-manifest-*"))
	if err != nil || len(manifests) == 0 {
		t.Fatalf("manifests %v, %v", manifests, err)
	}
	old := map[string]string{}
	for _, link := range manifests {
		if old[link], err = os.Readlink(link); err != nil {
			t.Fatal(err)
		}
	}
	first, err := oci.Upgrade(t.Context(), repo, oci.Limits{})
	if err != nil || first.Images != 4 {
		t.Fatalf("upgraded %+v, %v", first, err)
	}
	want, err := repodump.Dump(repo.Path())
	if err != nil {
		t.Fatal(err)
	}
	for link, target := range old {
		if err := errors.Join(os.Remove(link), os.Symlink(target, link)); err != nil {
			t.Fatal(err)
		}
	}
	again, err := oci.Upgrade(t.Context(), repo, oci.Limits{})
	if err != nil || again.Images != first.Images {
		t.Errorf("upgraded %+v, %v", again, err)
	}
	got, err := repodump.Dump(repo.Path())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the upgrade was not finished (-want +got):\n%s", diff)
	}
	if third, err := oci.Upgrade(t.Context(), repo, oci.Limits{}); err != nil || third.Images != 0 {
		t.Errorf("upgraded again: %+v, %v", third, err)
	}
}
