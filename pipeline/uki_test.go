// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"archive/tar"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/ocilayout"
	"github.com/cfs-pull/cfs-pull/internal/repodump"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

// uki is a unified kernel image with the sections that matter here.
func uki(cmdline string) []byte {
	sections := []struct{ name, content string }{
		{".osrel", "ID=example\nVERSION_ID=1\nPRETTY_NAME=\"Example 1\"\n"},
		{".cmdline", cmdline}, {".uname", "6.12"}, {".linux", "kernel"}, {".initrd", "initrd"},
	}
	const pe, optional, sectionSize = 0x80, 240, 40
	out := make([]byte, 1024)
	copy(out, "MZ")
	binary.LittleEndian.PutUint32(out[0x3c:], pe)
	copy(out[pe:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(out[pe+4:], 0x8664)
	binary.LittleEndian.PutUint16(out[pe+6:], uint16(len(sections)))
	binary.LittleEndian.PutUint16(out[pe+20:], optional)
	binary.LittleEndian.PutUint16(out[pe+24:], 0x20b)
	binary.LittleEndian.PutUint32(out[pe+24+108:], 16)
	for i, s := range sections {
		h := out[pe+24+optional+i*sectionSize:]
		copy(h[:8], s.name)
		binary.LittleEndian.PutUint32(h[8:], uint32(len(s.content)))
		binary.LittleEndian.PutUint32(h[16:], 512)
		binary.LittleEndian.PutUint32(h[20:], uint32(len(out)))
		out = append(out, append([]byte(s.content), make([]byte, 512-len(s.content))...)...)
	}
	return out
}

// ukiImage writes an image whose boot image differs in all its variants, with
// these unified kernel images. They do not change the boot image, which has an
// empty /boot.
func ukiImage(t *testing.T, ukis map[string][]byte) string {
	t.Helper()
	return layoutOf(t, ocilayout.Gzip, func(tw *tar.Writer) error {
		for _, dir := range []string{"boot/", "boot/EFI/", "boot/EFI/Linux/", "sysroot/"} {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
				return err
			}
		}
		if err := tw.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: "usr/file", Mode: 0o644, Format: tar.FormatPAX,
			PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y"},
		}); err != nil {
			return err
		}
		for name, content := range ukis {
			h := &tar.Header{Typeflag: tar.TypeReg, Name: "boot/EFI/Linux/" + name, Mode: 0o644, Size: int64(len(content))}
			if err := tw.WriteHeader(h); err != nil {
				return err
			}
			if _, err := tw.Write(content); err != nil {
				return err
			}
		}
		return nil
	})
}

// bootID computes one variant of the boot image of a pulled image.
func bootID(t *testing.T, path string, pulled *pipeline.Result, mode oci.XattrMode, v erofs.Version) fsverity.Digest {
	t.Helper()
	repo, err := composefs.Open(t.Context(), path, composefs.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	root := mergedTree(t, repo, pulled.ConfigDigest)
	if err := oci.Transform(root, mode); err != nil {
		t.Fatal(err)
	}
	if err := oci.TransformBoot(root, oci.Contents{Repo: repo}); err != nil {
		t.Fatal(err)
	}
	id, err := oci.ComputeImage(root, v, repo.Algorithm())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// mergedTree merges the layers of an image of one layer.
func mergedTree(t *testing.T, repo *composefs.Repo, config oci.Digest) *tree.Node {
	t.Helper()
	doc, err := oci.OpenConfig(repo, config)
	if err != nil {
		t.Fatal(err)
	}
	c, err := oci.ParseConfig(doc.Raw, 1)
	if err != nil {
		t.Fatal(err)
	}
	m := oci.NewMerger(repo, oci.Limits{})
	if err := m.Layer(t.Context(), doc.Refs[c.DiffIDs[0].String()]); err != nil {
		t.Fatal(err)
	}
	return m.Root()
}

// TestSealedVariants pulls an image with unified kernel images that are sealed
// for variants of the boot image other than the repository's own: each must
// find its image after the pull, also when the image was lost meanwhile.
func TestSealedVariants(t *testing.T) {
	repo := newRepo(t, composefs.InitOptions{})
	plain := mustPull(t, pullOptions(repo, ukiImage(t, nil)))
	sealed := map[string]fsverity.Digest{
		"composefs.image.boot":                            bootID(t, repo, plain, oci.AllowlistOnly, erofs.V2),
		"composefs.image.boot.v1.xattrs=keep-user-xattrs": bootID(t, repo, plain, oci.KeepUser, erofs.V1),
		"composefs.image.boot.xattrs=keep-user-xattrs":    bootID(t, repo, plain, oci.KeepUser, erofs.V2),
	}
	ukis, names := map[string][]byte{}, []string{"a.efi", "b.efi", "c.efi"}
	for _, id := range sealed {
		ukis[names[len(ukis)]] = uki("composefs=" + id.String())
	}
	if len(ukis) != 3 {
		t.Fatal("variants have equal ids")
	}
	o := pullOptions(repo, ukiImage(t, ukis))
	result := mustPull(t, o)
	if result.BootImage.ID != plain.BootImage.ID {
		t.Fatalf("the content of /boot changed the boot image")
	}
	check := func() {
		t.Helper()
		dump, err := repodump.Dump(repo)
		if err != nil {
			t.Fatal(err)
		}
		config := dump.Streams[oci.ConfigStream(result.ConfigDigest)]
		for key, id := range sealed {
			if got, want := config.Named[key], "image:"+id.String(); got != want {
				t.Errorf("the config names %q as %s, want %q", got, key, want)
			}
			if _, err := os.Stat(filepath.Join(repo, "images", id.String())); err != nil {
				t.Error(err)
			}
		}
	}
	check()
	if again := mustPull(t, o); again.Changed {
		t.Error("the second pull changed something")
	}
	for _, id := range sealed {
		if err := os.Remove(filepath.Join(repo, "objects", id.ObjectPath())); err != nil {
			t.Fatal(err)
		}
	}
	mustPull(t, o)
	check()
	if again := mustPull(t, o); again.Changed {
		t.Error("the pull after the repair changed something")
	}
}
