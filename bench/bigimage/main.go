// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Command bigimage writes the image of the benchmarks of size as an OCI layout:
// one very large file and very many small ones, all in one layer or the small
// ones in several. No two files are the same, so that nothing is saved by
// deduplication; yet the blobs compress to a small part.
package main

import (
	"archive/tar"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfs-pull/cfs-pull/internal/ocilayout"
)

// options are the sizes of the image.
type options struct {
	largeFile  int64 // bytes
	smallFiles int
	smallSize  int64 // bytes of each small file
	layers     int   // that the small files are distributed over
}

func main() {
	compression := flag.String("compression", "zstd", "`how` the layer is compressed: gzip, zstd, none")
	var o options
	flag.Int64Var(&o.largeFile, "large", 6<<30, "`bytes` of the large file")
	flag.IntVar(&o.smallFiles, "files", 52_429, "`number` of small files")
	flag.Int64Var(&o.smallSize, "size", 40<<10, "`bytes` of each small file")
	flag.IntVar(&o.layers, "layers", 1, "`number` of layers")
	flag.Parse()
	how, ok := map[string]ocilayout.Compression{
		"gzip": ocilayout.Gzip, "zstd": ocilayout.Zstd, "none": ocilayout.None,
	}[*compression]
	if flag.NArg() != 1 || !ok || o.layers < 1 {
		fmt.Fprintln(os.Stderr, "usage: bigimage [options] LAYOUT")
		flag.PrintDefaults()
		os.Exit(125)
	}
	if err := write(flag.Arg(0), how, o); err != nil {
		fmt.Fprintln(os.Stderr, "bigimage:", err)
		os.Exit(1)
	}
}

// write makes the whole image, tagged "big".
func write(layout string, how ocilayout.Compression, o options) error {
	w, err := ocilayout.Create(layout)
	if err != nil {
		return err
	}
	content := newContent()
	for layer := range o.layers {
		err := w.AddLayer(how, func(tw *tar.Writer) error {
			if layer == 0 {
				if err := content.writeBase(tw, o.largeFile); err != nil {
					return err
				}
			}
			first := o.smallFiles * layer / o.layers
			return content.writeSmall(tw, first, o.smallFiles*(layer+1)/o.layers, o.smallSize)
		})
		if err != nil {
			return err
		}
	}
	return w.Finish("big", v1.ImageConfig{})
}

// writeBase writes a tree that can be a boot image: /usr, /boot and /sysroot, a
// kernel where bootc has it, and the large file.
func (c *contentWriter) writeBase(tw *tar.Writer, largeFile int64) error {
	const modules = "usr/lib/modules/6.12.0-big"
	for _, name := range []string{"boot", "run", "sysroot", "usr", "usr/lib", "usr/lib/modules", modules, "usr/share"} {
		if err := writeDir(tw, name); err != nil {
			return err
		}
	}
	for name, size := range map[string]int64{modules + "/vmlinuz": 12 << 20, modules + "/initramfs.img": 40 << 20} {
		if err := c.writeFile(tw, name, size); err != nil {
			return err
		}
	}
	return c.writeFile(tw, "usr/lib/large", largeFile)
}

// writeSmall writes the small files from first up to end.
func (c *contentWriter) writeSmall(tw *tar.Writer, first, end int, size int64) error {
	const perDir = 500
	for i := first; i < end; i++ {
		dir := fmt.Sprintf("usr/share/%03d", i/perDir)
		if i == first || i%perDir == 0 {
			if err := writeDir(tw, dir); err != nil {
				return err
			}
		}
		if err := c.writeFile(tw, fmt.Sprintf("%s/%05d", dir, i), size); err != nil {
			return err
		}
	}
	return nil
}

func writeDir(tw *tar.Writer, name string) error {
	return tw.WriteHeader(&tar.Header{
		Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: time.Unix(1767225600, 0),
	})
}

// freshBytes of each 4 KiB block are new noise, the others are always the same:
// the blob is about a twentieth of the layer, as compressible as an ordinary
// image's best file and far from a decompression bomb.
const freshBytes = 200

// contentWriter makes file contents.
type contentWriter struct {
	noise *rand.ChaCha8
	block []byte
}

func newContent() *contentWriter {
	c := &contentWriter{noise: rand.NewChaCha8([32]byte{1}), block: make([]byte, 4096)}
	_, _ = c.noise.Read(c.block) // never fails
	return c
}

func (c *contentWriter) writeFile(tw *tar.Writer, name string, size int64) error {
	err := tw.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: time.Unix(1767225600, 0),
	})
	for size > 0 && err == nil {
		_, _ = c.noise.Read(c.block[:freshBytes]) // never fails
		n := min(size, int64(len(c.block)))
		_, err = tw.Write(c.block[:n])
		size -= n
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
