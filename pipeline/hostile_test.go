// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/internal/ocilayout"
	"github.com/cfs-pull/cfs-pull/internal/repodump"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

// layoutOf writes an image of one layer with /usr and what fill adds.
func layoutOf(t *testing.T, c ocilayout.Compression, fill func(*tar.Writer) error) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	w, err := ocilayout.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	err = w.AddLayer(c, func(tw *tar.Writer) error {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "usr/", Mode: 0o755}); err != nil {
			return err
		}
		return fill(tw)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Finish("latest", v1.ImageConfig{}); err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir + ":latest"
}

// zeros adds a file of zero bytes.
func zeros(tw *tar.Writer, name string, size int64) error {
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}); err != nil {
		return err
	}
	_, err := io.CopyN(tw, zeroReader{}, size)
	return err
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestDecompressionBombs(t *testing.T) {
	const size = 300 << 20
	fill := func(tw *tar.Writer) error { return zeros(tw, "usr/zeros", size) }
	zstd, gzip := layoutOf(t, ocilayout.Zstd, fill), layoutOf(t, ocilayout.Gzip, fill)
	for _, test := range []struct {
		name   string
		bomb   string
		limits oci.Limits
		want   string // in the message; empty for success
	}{
		{"ratio", zstd, oci.Limits{}, "--max-compression-ratio"},
		{"size", zstd, oci.Limits{MaxRatio: 1 << 40, MaxLayerSize: size / 2}, "--max-layer-size"},
		{"allowed", zstd, oci.Limits{MaxRatio: 1 << 40}, ""},
		{"gzip ratio", gzip, oci.Limits{MaxRatio: 500}, "--max-compression-ratio"},
		{"gzip size", gzip, oci.Limits{MaxLayerSize: size / 2}, "--max-layer-size"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := pullOptions(newRepo(t, composefs.InitOptions{}), test.bomb)
			o.NoBoot, o.Limits = true, test.limits
			_, err := pipeline.Direct(t.Context(), o)
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, oci.ErrTooLarge) || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("pull: %v", err)
			}
			dump, err := repodump.Dump(o.Repo)
			if err != nil {
				t.Fatal(err)
			}
			if len(dump.Links) > 0 {
				t.Errorf("links were written: %v", dump.Links)
			}
		})
	}
}

func TestManyEntries(t *testing.T) {
	const entries = 1_000_000
	image := layoutOf(t, ocilayout.Zstd, func(tw *tar.Writer) error {
		for i := range entries {
			h := &tar.Header{Typeflag: tar.TypeSymlink, Name: fmt.Sprintf("usr/%d", i), Linkname: "x", Mode: 0o777}
			if err := tw.WriteHeader(h); err != nil {
				return err
			}
		}
		return nil
	})
	o := pullOptions(newRepo(t, composefs.InitOptions{}), image)
	o.NoBoot = true
	o.Limits.MaxEntries = entries / 2
	if _, err := pipeline.Direct(t.Context(), o); !errors.Is(err, oci.ErrTooLarge) {
		t.Fatalf("pull with a limit of %d entries: %v", entries/2, err)
	}
	o.Limits.MaxEntries = 0
	result := mustPull(t, o)
	if result.Image.ID.IsZero() {
		t.Error("there is no image")
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if limit := uint64(2 << 30); m.Sys > limit {
		t.Errorf("the process took %d bytes for %d entries, at most %d are reasonable", m.Sys, entries, limit)
	}
}

func TestHostileEntries(t *testing.T) {
	for name, test := range map[string]struct {
		header tar.Header
		want   string
	}{
		"parent":               {tar.Header{Typeflag: tar.TypeReg, Name: "usr/../../f"}, ".."},
		"link outside":         {tar.Header{Typeflag: tar.TypeLink, Name: "usr/l", Linkname: "../etc/passwd"}, ".."},
		"long name":            {tar.Header{Typeflag: tar.TypeReg, Name: "usr/" + strings.Repeat("n", 300)}, "longer than 255"},
		"name of nearly 1 MiB": {tar.Header{Typeflag: tar.TypeReg, Name: "usr/" + strings.Repeat("n", 1<<20-100)}, "longer than 255"},
		"huge device number":   {tar.Header{Typeflag: tar.TypeBlock, Name: "usr/d", Mode: 0o600, Devmajor: 1<<21 - 1, Devminor: 1}, `entry "usr/d": the device number`},
		"deep":                 {tar.Header{Typeflag: tar.TypeDir, Name: strings.Repeat("d/", 100_000)}, "components"},
	} {
		t.Run(name, func(t *testing.T) {
			image := layoutOf(t, ocilayout.Gzip, func(tw *tar.Writer) error { return tw.WriteHeader(&test.header) })
			o := pullOptions(newRepo(t, composefs.InitOptions{}), image)
			_, err := pipeline.Direct(t.Context(), o)
			if !errors.Is(err, oci.ErrMalformed) || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("pull: %.300v, want a complaint about %q", err, test.want)
			}
			if len(err.Error()) > 4096 {
				t.Errorf("the message has %d bytes", len(err.Error()))
			}
		})
	}
}

// TestDevices makes sure that device nodes are names in the image and nothing
// else: none is made, and none is opened.
func TestDevices(t *testing.T) {
	image := layoutOf(t, ocilayout.Gzip, func(tw *tar.Writer) error {
		for _, h := range []tar.Header{
			{Typeflag: tar.TypeBlock, Name: "usr/disk", Mode: 0o660, Devmajor: 8},
			{Typeflag: tar.TypeChar, Name: "usr/mem", Mode: 0o666, Devmajor: 1, Devminor: 1},
			{Typeflag: tar.TypeChar, Name: "usr/whiteout", Mode: 0o644},
			{Typeflag: tar.TypeChar, Name: "usr/largest", Mode: 0o644, Devmajor: 4095, Devminor: 1<<20 - 1},
			{Typeflag: tar.TypeFifo, Name: "usr/fifo", Mode: 0o644},
			{Typeflag: tar.TypeLink, Name: "usr/second", Linkname: "usr/disk"},
		} {
			if err := tw.WriteHeader(&h); err != nil {
				return err
			}
		}
		return nil
	})
	o := pullOptions(newRepo(t, composefs.InitOptions{}), image)
	o.NoBoot = true
	result := mustPull(t, o)
	err := filepath.WalkDir(o.Repo, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&(fs.ModeDevice|fs.ModeNamedPipe) != 0 {
			t.Errorf("%s is a %v", path, d.Type())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	repo, err := composefs.Open(t.Context(), o.Repo, composefs.OpenOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	root, err := oci.ReadImage(repo, result.Image.ID)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for name, n := range root.Entry("usr").Entries() {
		got = append(got, fmt.Sprintf("%s kind %v, mode %#o, %d:%d", name, n.Kind, n.Mode, unix.Major(n.Rdev), unix.Minor(n.Rdev)))
	}
	slices.Sort(got)
	want := []string{
		fmt.Sprintf("disk kind %v, mode 0660, 8:0", tree.BlockDevice),
		fmt.Sprintf("fifo kind %v, mode 0644, 0:0", tree.FIFO),
		fmt.Sprintf("largest kind %v, mode 0644, 4095:1048575", tree.CharDevice),
		fmt.Sprintf("mem kind %v, mode 0666, 1:1", tree.CharDevice),
		fmt.Sprintf("second kind %v, mode 0660, 8:0", tree.BlockDevice),
		fmt.Sprintf("whiteout kind %v, mode 0644, 0:0", tree.CharDevice),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("/usr (-want +got):\n%s", diff)
	}
}
