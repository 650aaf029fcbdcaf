// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package realimage_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cfs-pull/cfs-pull/internal/loopfs"
	"github.com/cfs-pull/cfs-pull/internal/realimage"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// TestPull pulls the real image from a registry and from its layout, in both
// compressions, onto file systems with and without reflinks, and compares
// every file of the mounted results with podman's tree of the image.
func TestPull(t *testing.T) {
	testutil.RequireRoot(t)
	layout := realimage.Layout(t)
	binary := realimage.Binary(t)
	podmanRoot := realimage.PodmanMount(t, "oci:"+layout+":"+realimage.TagGzip)
	original := scan(t, podmanRoot, realimage.KeepCapabilities)
	plain := original.Plain()
	labels := realimage.Labels(t, podmanRoot, plain)
	if len(labels) < len(plain)/2 {
		t.Errorf("libselinux labels %d of %d paths: the image should have a policy", len(labels), len(plain))
	}
	boot := plain.Boot(labels)

	var ids []realimage.ImageID
	compare := func(t *testing.T, repository string, r realimage.Result) {
		t.Helper()
		ids = append(ids, r.Image, r.BootImage)
		for _, id := range []string{r.Image.ID, r.BootImage.ID} {
			realimage.FsckErofs(t, filepath.Join(repository, "objects", id[:2], id[2:]))
		}
		diff(t, plain, scan(t, realimage.MountComposefs(t, repository, r.Image.ID), realimage.KeepAll))
		got := scan(t, realimage.MountComposefs(t, repository, r.BootImage.ID), realimage.KeepAll)
		split := realimage.SplitLinks(labels, boot, got)
		diff(t, split[0], split[1])
	}

	t.Run("registry gzip xfs", func(t *testing.T) {
		repository := filepath.Join(loopfs.Mount(t, loopfs.XFS), "composefs")
		exported := t.TempDir()
		registry := realimage.StartRegistry(t)
		ref := registry.Push(t, layout, realimage.TagGzip)
		registry.Requests(t)
		pull := func() realimage.Result {
			return realimage.Pull(t, binary, repository, "--authfile", registry.AuthFile, "--cert-dir", registry.CertDir,
				"--export-boot", exported, ref)
		}

		first := pull()
		if !first.Changed || first.Stats.Layers == 0 {
			t.Errorf("first pull: %+v", first)
		}
		requests := registry.Requests(t)
		if !slices.ContainsFunc(requests, realimage.Request.Unauthorised) {
			t.Error("the registry never asked for the password")
		}
		// One for each layer and one for the config.
		if got, want := count(requests, "/blobs/"), first.Stats.Layers+1; got != want {
			t.Errorf("first pull made %d requests for blobs, want %d: %+v", got, want, requests)
		}
		compare(t, repository, first)
		for _, id := range []string{first.Image.ID, first.BootImage.ID} {
			target := realimage.MountByCommand(t, binary, repository, id)
			got := scan(t, target, realimage.KeepAll)
			if id == first.Image.ID {
				diff(t, plain, got)
			} else {
				split := realimage.SplitLinks(labels, boot, got)
				diff(t, split[0], split[1])
			}
			// A mounted image is a directory like any other.
			args := []string{"compute-id", target}
			if id == first.BootImage.ID {
				args = append(args, "--boot")
			}
			out, err := exec.Command(binary, args...).CombinedOutput()
			if err != nil || strings.TrimSpace(string(out)) != id {
				t.Errorf("%q of image %s: %v\n%s", args, id, err, out)
			}
		}
		checkObjects(t, repository)
		checkBootEntry(t, podmanRoot, exported, first)

		before := objects(t, repository)
		second := pull()
		if second.Changed || second.BootImage != first.BootImage || second.ManifestDigest != first.ManifestDigest {
			t.Errorf("second pull: %+v\nafter the first: %+v", second, first)
		}
		requests = registry.Requests(t)
		if got := count(requests, "/manifests/"); got != 1 {
			t.Errorf("second pull made %d requests for manifests, want 1: %+v", got, requests)
		}
		if got := count(requests, "/blobs/"); got != 0 {
			t.Errorf("second pull made %d requests for blobs, want none: %+v", got, requests)
		}
		if after := objects(t, repository); !slices.Equal(before, after) {
			t.Errorf("second pull left %d objects of %d", len(after), len(before))
		}
	})

	for _, kind := range []loopfs.Kind{loopfs.Ext4, loopfs.Btrfs} {
		t.Run("layout zstd "+string(kind), func(t *testing.T) {
			repository := filepath.Join(loopfs.Mount(t, kind), "composefs")
			compare(t, repository, realimage.Pull(t, binary, repository, "oci:"+layout+":"+realimage.TagZstd))
		})
	}

	// Compression and file system are no part of an image's identity.
	for i, id := range ids {
		if want := ids[i%2]; id != want {
			t.Errorf("image id %d is %v, want %v as at first", i, id, want)
		}
	}
}

// scan reads a tree or fails the test.
func scan(t *testing.T, root string, keep func(string) bool) realimage.Tree {
	t.Helper()
	tree, err := realimage.Scan(root, keep)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// diff fails the test when the trees differ.
func diff(t *testing.T, want, got realimage.Tree) {
	t.Helper()
	if len(want) < 1000 {
		t.Errorf("only %d paths to compare: not an operating system", len(want))
	}
	if d := realimage.Diff(want, got, 25); len(d) > 0 {
		t.Errorf("the mounted tree differs from podman's:\n%s", strings.Join(d, "\n"))
	}
}

// count counts requests for a kind of thing that the registry answered, not
// those it refused for lack of a password.
func count(requests []realimage.Request, part string) int {
	n := 0
	for _, r := range requests {
		if strings.Contains(r.URI, part) && !r.Unauthorised() {
			n++
		}
	}
	return n
}

// objects lists the files of a repository's object store.
func objects(t *testing.T, repository string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(filepath.Join(repository, "objects"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// checkObjects compares every object's name with the fs-verity digest that
// fsverity-utils computes of its content.
func checkObjects(t *testing.T, repository string) {
	t.Helper()
	program := testutil.RequireTool(t, "fsverity", "fsverity")
	for batch := range slices.Chunk(objects(t, repository), 500) {
		out, err := exec.Command(program, append([]string{"digest", "--hash-alg=sha512", "--compact"}, batch...)...).Output()
		if err != nil {
			t.Fatalf("fsverity digest: %v", err)
		}
		digests := strings.Fields(string(out))
		if len(digests) != len(batch) {
			t.Fatalf("fsverity gave %d digests for %d objects", len(digests), len(batch))
		}
		for i, path := range batch {
			if name := filepath.Base(filepath.Dir(path)) + filepath.Base(path); name != digests[i] {
				t.Errorf("object %s has the digest %s", name, digests[i])
			}
		}
	}
}

// checkBootEntry compares the boot entry, and what was exported of it, with
// the kernel and initramfs in podman's tree.
func checkBootEntry(t *testing.T, root, exported string, r realimage.Result) {
	t.Helper()
	if len(r.BootEntries) != 1 {
		t.Fatalf("boot entries: %+v, want one", r.BootEntries)
	}
	entry := r.BootEntries[0]
	modules := filepath.Join(root, "usr/lib/modules", entry.Kver)
	both := sha256.New()
	found := make(map[string]bool)
	for name, sum := range hashes(t, exported) {
		found[sum] = true
		if strings.HasSuffix(name, ".conf") {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(text), "composefs=") || !strings.Contains(string(text), r.BootImage.ID) {
				t.Errorf("loader entry without composefs argument for %s:\n%s", r.BootImage.ID, text)
			}
			found["conf"] = true
		}
	}
	for _, name := range []string{"vmlinuz", "initramfs.img"} {
		content, err := os.ReadFile(filepath.Join(modules, name))
		if err != nil {
			t.Fatal(err)
		}
		both.Write(content)
		sum := sha256.Sum256(content)
		if !found[hex.EncodeToString(sum[:])] {
			t.Errorf("%s was not exported", name)
		}
	}
	if !found["conf"] {
		t.Error("no loader entry was exported")
	}
	if want := hex.EncodeToString(both.Sum(nil)); strings.TrimPrefix(entry.BootDigest, "sha256:") != want {
		t.Errorf("boot digest %s, want %s", entry.BootDigest, want)
	}
}

// hashes maps each file below a directory to the SHA-256 of its content.
func hashes(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		out[path] = hex.EncodeToString(h.Sum(nil))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
