// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package securemode

import (
	"archive/tar"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfs-pull/cfs-pull/internal/ocilayout"
)

// The content of one file is on the disk in a block that begins with
// damagedMarker; that of another is in an EROFS image.
const (
	damagedMarker = "THIS BLOCK WILL BE DAMAGED. "
	damagedInline = "this line will be damaged\n"
	damagedFile   = "usr/lib/damaged"
	inlineFile    = "etc/damaged"
)

// Files to tamper with.
const (
	unsealedFile = "usr/share/edge/4097"
	replacedFile = "usr/share/edge/262145"
	removedFile  = "usr/share/many/7"
	otherSumFile = "usr/share/many/8"
)

// image is made the same on the host, which writes it, and in the machine,
// which compares with it.
type image struct {
	name   string
	layers [][]entry
}

// entry is a file, a hard link to one, a whiteout, or a directory.
type entry struct {
	path    string
	content []byte
	link    string // path of another file
	dir     bool
}

// overlapping is how many images share files, but not layers.
const overlapping = 3

// allImages are the image of an operating system and the overlapping ones.
func allImages() []image {
	images := []image{osImage()}
	for i := range overlapping {
		images = append(images, overlappingImage(i))
	}
	return images
}

// skeleton is the lowest layer of all images, and the parts that make them
// bootable as far as a pull can tell.
func skeleton() []entry {
	const modules = "usr/lib/modules/6.12.0-test"
	entries := []entry{
		dir("boot"), dir("etc"), dir("sysroot"), dir("usr"), dir("usr/lib"), dir("usr/lib/modules"), dir(modules), dir("usr/share"),
		file(modules+"/vmlinuz", 70000), file(modules+"/initramfs.img", 270000),
		{path: "usr/lib/os-release", content: []byte("ID=test\nNAME=\"An operating system\"\nVERSION_ID=1\n")},
		file("boot/leftover", 5000),
	}
	return entries
}

// osImage has files of all sizes at which something changes: those of up to 64
// bytes are in the image, a block has 4096, SHA-512 takes a second level of
// hashes above 64 blocks, and files above 1 MiB are stored in another way.
func osImage() image {
	first := append(skeleton(), dir("usr/share/edge"), dir("usr/share/many"), dir("usr/share/copies"))
	for _, size := range []int{
		0, 1, 63, 64, 65, 4095, 4096, 4097, 8191, 8192, 8193, 262143, 262144, 262145, 266241, 524289,
		1 << 20, 1<<20 + 1, 2<<20 + 17,
	} {
		first = append(first, file(fmt.Sprintf("usr/share/edge/%d", size), size))
	}
	for i := range 150 {
		first = append(first, file(fmt.Sprintf("usr/share/many/%d", i), 66+i*i%20011))
	}
	block := damagedBlock()
	second := []entry{
		{path: damagedFile, content: slices.Concat(content("before", 3*blockSize), block, content("after", 2*blockSize))},
		{path: "usr/share/many/.wh.9"},
		{path: "usr/share/many/10", content: content("changed", 10000)},
		{path: "usr/share/hard-link", link: "usr/share/edge/8193"},
	}
	for i := range 30 { // copies of other files, in both layers
		second = append(second, entry{path: fmt.Sprintf("usr/share/copies/%d", i), content: content(fmt.Sprintf("usr/share/many/%d", 100+i%20), 66+(100+i%20)*(100+i%20)%20011)})
	}
	return image{"os", [][]entry{first, second}}
}

// overlappingImage has a layer of its own that holds the same files as those of
// the other overlapping images, and some that are its own.
func overlappingImage(i int) image {
	own := fmt.Sprintf("own-%d", i)
	entries := []entry{
		{path: "etc/" + own, content: content(own, 3000)}, dir("usr/share/common"), dir("usr/share/own"),
		{path: inlineFile, content: fmt.Appendf(nil, "image %d: %s", i, damagedInline)},
	}
	const common = 80
	for j := range common {
		// Each image begins elsewhere, so that one stores what another
		// is about to look for.
		n := (j + i*common/overlapping) % common
		entries = append(entries, file(fmt.Sprintf("usr/share/common/%d", n), 66+n*n%9001))
	}
	entries = append(entries, file("usr/share/common/large", 300000), file("usr/share/common/larger", 1<<20+1))
	for j := range 15 {
		entries = append(entries, entry{path: fmt.Sprintf("usr/share/own/%d", j), content: content(fmt.Sprintf("%s/%d", own, j), 70+j*400)})
	}
	return image{fmt.Sprintf("overlapping-%d", i), [][]entry{skeleton(), entries}}
}

func dir(name string) entry { return entry{path: name, dir: true} }

func file(name string, size int) entry { return entry{path: name, content: content(name, size)} }

// content is size bytes that nobody can guess without the seed.
func content(seed string, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8(sha256.Sum256([]byte(seed))).Read(b)
	return b
}

const blockSize = 4096

// damagedBlock is the block of damagedFile that will be damaged.
func damagedBlock() []byte {
	return append([]byte(damagedMarker), content("damaged", blockSize-len(damagedMarker))...)
}

// files are the contents of the merged layers by path.
func (im image) files() map[string][]byte {
	files := map[string][]byte{}
	for _, layer := range im.layers {
		for _, e := range layer {
			base := path.Base(e.path)
			switch removed, whiteout := strings.CutPrefix(base, ".wh."); {
			case whiteout:
				delete(files, path.Join(path.Dir(e.path), removed))
			case e.link != "":
				files[e.path] = files[e.link]
			case !e.dir:
				files[e.path] = e.content
			}
		}
	}
	return files
}

// bootFiles are the files of the boot image, where /boot and /sysroot are
// empty.
func (im image) bootFiles() map[string][]byte {
	files := im.files()
	for name := range files {
		if strings.HasPrefix(name, "boot/") || strings.HasPrefix(name, "sysroot/") {
			delete(files, name)
		}
	}
	return files
}

// write makes a layout with the image. The layers are compressed in turn by
// gzip and zstd.
func (im image) write(layout string) error {
	w, err := ocilayout.Create(layout)
	if err != nil {
		return err
	}
	for i, layer := range im.layers {
		err := w.AddLayer([]ocilayout.Compression{ocilayout.Gzip, ocilayout.Zstd}[i%2], func(tw *tar.Writer) error {
			for _, e := range layer {
				if err := e.write(tw); err != nil {
					return fmt.Errorf("write %s: %w", e.path, err)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return w.Finish("latest", v1.ImageConfig{Labels: map[string]string{"containers.bootc": "1"}})
}

func (e entry) write(tw *tar.Writer) error {
	h := &tar.Header{
		Typeflag: tar.TypeReg, Name: e.path, Mode: 0o644, Size: int64(len(e.content)),
		ModTime: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	switch {
	case e.dir:
		h.Typeflag, h.Name, h.Mode = tar.TypeDir, e.path+"/", 0o755
	case e.link != "":
		h.Typeflag, h.Linkname = tar.TypeLink, e.link
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := tw.Write(e.content)
	return err
}
