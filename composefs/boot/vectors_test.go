// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/composefs/dumpfile"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// vectorImage is an image of the conformance vectors: the merged tree as the
// reference tool wrote it, and the content of the layers' files.
func vectorImage(t *testing.T, name string) (*tree.Node, objects, map[string]string) {
	t.Helper()
	vectors := filepath.Join(testutil.Vectors(t), "oci")
	dump, err := os.Open(filepath.Join(vectors, "expect", name+".dump"))
	if err != nil {
		t.Fatal(err)
	}
	defer dump.Close()
	root, err := dumpfile.ParseTree(dump, dumpfile.ParseOptions{Algorithm: fsverity.SHA512})
	if err != nil {
		t.Fatal(err)
	}

	readJSON := func(path string, v any) {
		data, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(data, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	blob := func(digest string) string {
		return filepath.Join(vectors, "layout/blobs", strings.Replace(digest, ":", "/", 1))
	}
	var index struct {
		Manifests []struct {
			Digest      string
			Annotations map[string]string
		}
	}
	readJSON(filepath.Join(vectors, "layout/index.json"), &index)
	var manifest struct{ Layers []struct{ Digest string } }
	for _, m := range index.Manifests {
		if m.Annotations["org.opencontainers.image.ref.name"] == name {
			readJSON(blob(m.Digest), &manifest)
		}
	}
	store, files := objects{}, map[string]string{}
	for _, layer := range manifest.Layers {
		f, err := os.Open(blob(layer.Digest))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		r := tar.NewReader(z)
		for {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeReg {
				files["/"+h.Name] = string(data)
				store[fsverity.Sum(fsverity.SHA512, data)] = data
			}
		}
	}
	if len(files) == 0 {
		t.Fatalf("no files in image %s", name)
	}
	return root, store, files
}

func TestVectorsFind(t *testing.T) {
	for name, want := range map[string][]string{
		"boot-bls": {
			"bls a.conf [] vmlinuz=/boot/vmlinuz-1 initrd=/boot/ucode initrd=/boot/initrd-1",
			"bls b.conf [] vmlinuz=/boot/vmlinuz-1",
		},
		"boot-uki": {
			"uki ex.efi [] uki=/boot/EFI/Linux/ex.efi",
			"uki-addon ex.efi.extra.d/con.addon.efi [] addon=/boot/EFI/Linux/ex.efi.extra.d/con.addon.efi",
			"global-addon glob.addon.efi [] addon=/boot/loader/addons/glob.addon.efi",
			"uki 6.13.efi [6.13] uki=/usr/lib/modules/6.13/6.13.efi",
			"usr-lib-modules 6.13 [6.13] vmlinuz=/usr/lib/modules/6.13/vmlinuz initrd=/usr/lib/modules/6.13/initramfs.img os-release=/usr/lib/os-release",
		},
		"boot-modules": {
			"usr-lib-modules 5.10.0-old [5.10.0-old] vmlinuz=/usr/lib/modules/5.10.0-old/vmlinuz os-release=/usr/lib/os-release",
			"usr-lib-modules 6.12.0-1.x86_64 [6.12.0-1.x86_64] vmlinuz=/usr/lib/modules/6.12.0-1.x86_64/vmlinuz initrd=/usr/lib/modules/6.12.0-1.x86_64/initramfs.img os-release=/usr/lib/os-release",
		},
	} {
		t.Run(name, func(t *testing.T) {
			root, store, files := vectorImage(t, name)
			entries, err := Find(root, store)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, showAll(entries)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			for i := range entries {
				e := &entries[i]
				if e.Type == BLS && e.Config.String() != files[e.Path] {
					t.Errorf("%s: text is not what the image has:\n%s", e.Name, e.Config)
				}
				var parts []string
				for _, f := range append(e.filesOf(RoleKernel), e.filesOf(RoleInitrd)...) {
					parts = append(parts, files[f.Path])
				}
				digest, err := e.BootDigest(t.Context(), store)
				if len(parts) >= 2 && (err != nil || digest != sum256(parts...)) {
					t.Errorf("%s: boot digest %s, %v", e.Name, digest, err)
				}
			}
		})
	}
}

// The UKIs were made by another tool than ours, for an image that does not
// exist: its id is all zeroes.
func TestVectorsUKI(t *testing.T) {
	root, store, files := vectorImage(t, "boot-uki")
	entries, err := Find(root, store)
	if err != nil {
		t.Fatal(err)
	}
	sections, err := entries[0].Sections(store)
	if err != nil {
		t.Fatal(err)
	}
	zero := hex512("0")
	want := &Sections{
		Cmdline:    "composefs=?" + zero + " quiet",
		OSRelease:  files["/usr/lib/os-release"],
		HasCmdline: true, HasOSRelease: true,
	}
	if diff := cmp.Diff(want, sections); diff != "" {
		t.Errorf("sections (-want +got):\n%s", diff)
	}
	// Kernel and initrd of the UKI are those beside it.
	digest1, err1 := entries[0].BootDigest(t.Context(), store)
	digest2, err2 := entries[4].BootDigest(t.Context(), store)
	if err := errors.Join(err1, err2); err != nil || digest1 != digest2 {
		t.Errorf("boot digests %s and %s, %v", digest1, digest2, err)
	}
	_, karg, err := MatchUKI(sections, candidates(t, hex512("a"), zero))
	if err != nil || !karg.Insecure {
		t.Errorf("match: %+v, %v", karg, err)
	}
	mismatch := (*MismatchError)(nil)
	if err := CheckUKI(sections, candidates(t, hex512("a"))); !errors.As(err, &mismatch) || mismatch.Found != digest(t, zero) {
		t.Errorf("mismatch: %v", err)
	}

	dir := t.TempDir()
	chosen, _ := Choose(entries)
	if _, err := Export(t.Context(), dir, chosen, ExportOptions{Content: store, Candidates: candidates(t, zero), Addons: []string{"*"}}); err != nil {
		t.Fatal(err)
	}
	name := "EFI/Linux/bootc/bootc_composefs-" + zero + ".efi"
	wantFiles := map[string]string{
		name:                            files["/boot/EFI/Linux/ex.efi"],
		name + ".extra.d/con.addon.efi": files["/boot/EFI/Linux/ex.efi.extra.d/con.addon.efi"],
		"loader/addons/glob.addon.efi":  files["/boot/loader/addons/glob.addon.efi"],
		"loader/entries/bootc_example-42-1.conf": "title Example OS 42 42\nversion 42\nefi /" + name +
			"\nsort-key bootc-example-0\n",
	}
	if diff := cmp.Diff(wantFiles, listing(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestVectorsExportKernel(t *testing.T) {
	root, store, files := vectorImage(t, "boot-modules")
	entries, err := Find(root, store)
	if err != nil {
		t.Fatal(err)
	}
	a := hex512("a")
	o := ExportOptions{Content: store, Candidates: candidates(t, a)}
	if _, err := Export(t.Context(), t.TempDir(), entries, o); !errors.Is(err, ErrNoInitrd) {
		t.Errorf("with the kernel that has no initramfs: %v", err)
	}
	chosen, skipped := Choose(entries)
	if len(skipped) != 1 {
		t.Errorf("skipped %+v", skipped)
	}
	dir := t.TempDir()
	if _, err := Export(t.Context(), dir, chosen, o); err != nil {
		t.Fatal(err)
	}
	at := "/usr/lib/modules/6.12.0-1.x86_64/"
	d := "bootc_composefs-" + a
	want := map[string]string{
		d + "/vmlinuz": files[at+"vmlinuz"],
		d + "/initrd":  files[at+"initramfs.img"],
		"loader/entries/bootc_example-42-1.conf": "title Example OS 42\nversion 42\nlinux /" + d + "/vmlinuz\ninitrd /" + d +
			"/initrd\noptions composefs=" + a + "\nsort-key bootc-example-0\n",
	}
	if diff := cmp.Diff(want, listing(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}
