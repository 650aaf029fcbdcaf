// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package crashtest

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfs-pull/cfs-pull/internal/ocilayout"
)

// The images that scenarios pull; they share their lowest layer.
const (
	imageOne = "one"
	imageTwo = "two"
)

// file is a regular file with content of its own.
type file struct {
	name string
	size int64
}

// lowest is the layer that both images have: what a boot image needs, small
// files on both sides of the limit for inlining, and one that is written in
// pieces.
var lowest = []file{
	{"usr/lib/modules/6.12.0/vmlinuz", 1<<20 + 4097}, {"usr/lib/modules/6.12.0/initramfs.img", 70_000},
	{"etc/hostname", 9}, {"etc/64", 64}, {"etc/65", 65}, {"usr/bin/a", 4096}, {"usr/bin/b", 4097}, {"usr/bin/c", 20_000},
}

// upper are the layers above it. One has a file that is in the other, too.
var upper = map[string][][]file{
	imageOne: {{{"etc/one", 300}, {"usr/bin/shared", 5000}}, {{"etc/hostname", 900}}},
	imageTwo: {{{"etc/two", 3000}, {"usr/bin/large", 2<<20 + 1}, {"usr/bin/shared", 5000}}},
}

// makeImages writes the images as OCI layouts below dir. They are the same each
// time.
func makeImages(dir string) error {
	for _, image := range []string{imageOne, imageTwo} {
		w, err := ocilayout.Create(filepath.Join(dir, image))
		if err != nil {
			return err
		}
		for n, files := range append([][]file{lowest}, upper[image]...) {
			compression := []ocilayout.Compression{ocilayout.Gzip, ocilayout.Zstd, ocilayout.None}[n]
			err := w.AddLayer(compression, func(tw *tar.Writer) error { return writeLayer(tw, files) })
			if err != nil {
				return err
			}
		}
		err = w.Finish("latest", v1.ImageConfig{Labels: map[string]string{"containers.bootc": "1", "image": image}})
		if err != nil {
			return err
		}
	}
	return nil
}

func writeLayer(tw *tar.Writer, files []file) error {
	var errs []error
	for _, dir := range []string{"boot", "etc", "run", "sysroot", "usr", "usr/bin", "usr/lib", "usr/lib/modules", "usr/lib/modules/6.12.0"} {
		errs = append(errs, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}))
	}
	for _, f := range files {
		errs = append(errs, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: f.size}))
		// The content depends on name and size only; it does not compress.
		var seed [32]byte
		copy(seed[:], fmt.Sprintf("%d %s", f.size, f.name))
		_, err := io.CopyN(tw, rand.NewChaCha8(seed), f.size)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
