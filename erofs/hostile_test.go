// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package erofs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/erofs/internal/erofstest"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// read does everything that the reader can do.
func read(image []byte, l erofs.Limits) error {
	im, err := erofs.OpenLimits(bytes.NewReader(image), int64(len(image)), l)
	if err != nil {
		return err
	}
	if _, err := im.Objects(); err != nil {
		return err
	}
	if _, err := im.Tree(); err != nil {
		return err
	}
	return im.CheckCanonical()
}

// Places in the image of hostileTree, which is V2: its inodes follow each
// other without gaps that depend on the content of others.
const (
	superblock = 1024
	rootInode  = 1152
)

func hostileTree() *tree.Node {
	root := tree.NewDirectory()
	sub := tree.NewDirectory()
	root.SetEntry("d", sub)
	file := &tree.Node{Kind: tree.Regular, Size: 100, Object: erofstest.Digest(fsverity.SHA256, 1)}
	sub.SetEntry("f", file)
	sub.SetEntry("g", file)
	root.SetEntry("l", &tree.Node{Kind: tree.Symlink, Target: "d/f"})
	return root
}

// TestCorrupt changes one thing at a time.
func TestCorrupt(t *testing.T) {
	good := marshal(t, hostileTree(), erofs.V2)
	if err := read(good, erofs.Limits{}); err != nil {
		t.Fatal(err)
	}
	// The root: 64 bytes of inode, then four records of 12 bytes, and "...dl".
	rootDirents := rootInode + 64
	record := func(i int) int { return rootDirents + 12*i }
	subNid := binary.LittleEndian.Uint64(good[record(2):])
	sub := int(subNid * 32)
	linkNid := binary.LittleEndian.Uint64(good[record(3):])
	link := int(linkNid * 32)
	file := int(32 * binary.LittleEndian.Uint64(good[sub+64+24:]))
	if string(good[record(4):record(4)+5]) != "...dl" || string(good[link+64:link+67]) != "d/f" || good[file] != 9 {
		t.Fatal("the image is not laid out as this test expects")
	}
	put16 := binary.LittleEndian.PutUint16
	put32 := binary.LittleEndian.PutUint32
	put64 := binary.LittleEndian.PutUint64
	for _, c := range []struct {
		name   string
		change func(b []byte)
		want   string
	}{
		{"composefs magic", func(b []byte) { b[0]++ }, "no composefs header"},
		{"header version", func(b []byte) { b[4] = 2 }, "header version"},
		{"flags", func(b []byte) { b[8] = 2 }, "flags"},
		{"composefs version", func(b []byte) { b[12] = 3 }, "composefs version"},
		{"EROFS magic", func(b []byte) { b[superblock]++ }, "no EROFS"},
		{"compatible features", func(b []byte) { b[superblock+8] |= 8 }, "compatible features"},
		{"block size", func(b []byte) { b[superblock+12] = 9 }, "blocks of"},
		{"extension slots", func(b []byte) { b[superblock+13] = 1 }, "does not use"},
		{"root outside", func(b []byte) { put16(b[superblock+14:], 0xffff) }, "outside"},
		{"root is a link", func(b []byte) { put16(b[superblock+14:], uint16(linkNid)) }, "no directory"},
		{"inodes", func(b []byte) { b[superblock+16]++ }, "superblock says"},
		{"fewer inodes", func(b []byte) { b[superblock+16]-- }, "superblock says"},
		{"most inodes", func(b []byte) { put64(b[superblock+16:], 1<<63) }, "inodes in"},
		{"blocks", func(b []byte) { b[superblock+36]++ }, "blocks"},
		{"meta block", func(b []byte) { b[superblock+40] = 1 }, "begin in block"},
		{"shared attributes", func(b []byte) { b[superblock+44] = 200 }, "shared attributes"},
		{"incompatible features", func(b []byte) { b[superblock+80] = 1 }, "incompatible features"},
		{"compression", func(b []byte) { b[superblock+84] = 1 }, "does not use"},
		{"packed inode", func(b []byte) { b[superblock+96] = 1 }, "does not use"},
		{"inode format", func(b []byte) { b[rootInode+1] = 1 }, "format"},
		{"layout", func(b []byte) { b[rootInode] = 3 }, "layout"},
		{"mode", func(b []byte) { put16(b[rootInode+4:], 0o170755) }, "mode"},
		{"attributes reach outside", func(b []byte) { put16(b[link+2:], 0xffff) }, "crosses blocks|outside"},
		{"size of a directory", func(b []byte) { put64(b[rootInode+8:], 1<<40) }, "bytes of data"},
		{"first name", func(b []byte) { put16(b[record(0)+8:], 13) }, "first name"},
		{"no entries", func(b []byte) { put16(b[record(0)+8:], 0) }, "first name"},
		{"name behind the data", func(b []byte) { put16(b[record(1)+8:], 5000) }, "has a name at"},
		{"name before the names", func(b []byte) { put16(b[record(1)+8:], 3) }, "has a name at"},
		{"self", func(b []byte) { put64(b[record(0):], subNid) }, `entry "."`},
		{"parent", func(b []byte) { put64(b[sub+64+12:], subNid) }, `entry ".."`},
		{"names not in order", func(b []byte) { b[record(4)+3] = 'm' }, "not in order"},
		{"same name twice", func(b []byte) { b[record(4)+3] = 'l' }, "not in order"},
		{"slash", func(b []byte) { b[record(4)+3] = '/' }, "the name"},
		{"zero byte", func(b []byte) { b[record(4)+4] = 0 }, "the name"},
		{"no parent entry", func(b []byte) { b[record(4)+2] = '/' - 2 }, "not in order|names|\"..\""},
		{"file type", func(b []byte) { b[record(3)+10] = 1 }, "has type"},
		{"cycle", func(b []byte) { put64(b[record(2):], rootInode/32) }, "two names"},
		{"directory with two names", func(b []byte) { put64(b[record(3):], subNid); b[record(3)+10] = 2 }, "two names"},
		{"inode inside another", func(b []byte) { put64(b[record(3):], rootInode/32+1) }, "inode"},
		{"entry outside", func(b []byte) { put64(b[record(3):], 1<<60) }, "outside"},
		{"inode in the header", func(b []byte) { put64(b[record(3):], 0) }, "outside"},
		{"long link", func(b []byte) { put64(b[link+8:], 4095) }, "crosses blocks"},
		{"empty link", func(b []byte) { put64(b[link+8:], 0) }, "link of 0 bytes"},
		{"links", func(b []byte) { put32(b[file+44:], 3) }, "names, and says"},
		{"one link", func(b []byte) { put32(b[file+44:], 1) }, "more than the 1 names"},
		{"subdirectories", func(b []byte) { put32(b[rootInode+44:], 4) }, "link count"},
		{"nanoseconds", func(b []byte) { put32(b[file+40:], 1e9) }, "nanoseconds"},
		{"chunk format", func(b []byte) { b[file+16] = 30 }, "chunk format"},
		{"empty file with chunks", func(b []byte) { put64(b[file+8:], 0) }, "chunks"},
		{"chunk", func(b []byte) { b[file+64+12+60] ^= 1 }, "attribute|chunks|path|filter"},
		{"name filter", func(b []byte) { b[file+64] ^= 1 }, "filter"},
		{"shared count", func(b []byte) { b[file+68] = 200 }, "shared attributes"},
		{"shared attribute outside", func(b []byte) { b[file+68] = 1; put32(b[file+76:], 1<<30) }, "outside"},
		{"attribute prefix", func(b []byte) { b[file+64+12+1] = 9 }, "prefix 9"},
		{"attribute length", func(b []byte) { put16(b[file+64+12+2:], 60000) }, "cut off"},
		{"metacopy version", func(b []byte) { b[file+64+12+4+16]++ }, "metacopy"},
		{"metacopy algorithm", func(b []byte) { b[file+64+12+4+16+3] = 7 }, "algorithm"},
		{"redirect", func(b []byte) { i := bytes.Index(b, []byte("overlay.redirect")); b[i+20] ^= 1 }, "path"},
		{"padding", func(b []byte) { b[len(b)-1] = 1 }, "differs"},
		{"inode number", func(b []byte) { b[file+20]++ }, "differs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bytes.Clone(good)
			c.change(b)
			err := read(b, erofs.Limits{})
			if err == nil {
				t.Fatal("accepted")
			}
			for want := range strings.SplitSeq(c.want, "|") {
				if strings.Contains(err.Error(), want) {
					return
				}
			}
			t.Errorf("error %v, want one with %q", err, c.want)
		})
	}
}

// TestManyNamesOfOneDirectory is a small image that means 2^n directories.
func TestManyNamesOfOneDirectory(t *testing.T) {
	root := tree.NewDirectory()
	for i, dir := 0, root; i < 50; i++ {
		next := tree.NewDirectory()
		dir.SetEntry("a", next)
		dir.SetEntry("b", tree.NewDirectory())
		dir = next
	}
	image := marshal(t, root, erofs.V2)
	// Every "b" becomes another name of "a". A directory is 64 bytes of
	// inode, four records, and the names.
	for at := rootInode; at+64+4*12+5 <= len(image); at += 32 {
		if names := at + 64 + 4*12; string(image[names:names+5]) == "...ab" {
			copy(image[names-12:names-4], image[names-24:names-16])
		}
	}
	if err := read(image, erofs.Limits{}); !errors.Is(err, erofs.ErrCorrupt) || !strings.Contains(err.Error(), "two names") {
		t.Errorf("error %v, want one about two names", err)
	}
}

func TestLimits(t *testing.T) {
	image := marshal(t, erofstest.OS(500), erofs.V1)
	for _, c := range []struct {
		limits erofs.Limits
		ok     bool
	}{
		{erofs.Limits{}, true},
		{erofs.Limits{Size: int64(len(image))}, true},
		{erofs.Limits{Size: int64(len(image)) - 1}, false},
		{erofs.Limits{Inodes: 600}, false},
		{erofs.Limits{Inodes: 800}, true},
		{erofs.Limits{Memory: 10_000}, false},
	} {
		err := read(image, c.limits)
		if (err == nil) != c.ok {
			t.Errorf("limits %+v: %v", c.limits, err)
		}
		if errors.Is(err, erofs.ErrCorrupt) {
			t.Errorf("limits %+v: a limit is no corruption: %v", c.limits, err)
		}
	}
}

func TestTruncated(t *testing.T) {
	image := marshal(t, hostileTree(), erofs.V1)
	for n := 0; n < len(image); n += 97 {
		if err := read(image[:n], erofs.Limits{}); err == nil {
			t.Fatalf("accepted after %d bytes", n)
		}
	}
	// A file that is shorter than it was said.
	if _, err := erofs.Open(bytes.NewReader(image[:5000]), int64(len(image))); err == nil {
		t.Error("a short read was not noticed")
	}
}

// TestMutations changes random bytes: whatever is accepted is canonical, and
// so the same bytes.
func TestMutations(t *testing.T) {
	for _, v := range versions {
		good := marshal(t, erofstest.Random(rand.New(rand.NewPCG(5, 5)).IntN), v)
		r := rand.New(rand.NewPCG(9, uint64(v)))
		for range 400 {
			b := bytes.Clone(good)
			for range 1 + r.IntN(3) {
				b[r.IntN(len(b))] = byte(r.IntN(256))
			}
			if err := read(b, erofs.Limits{}); err == nil && !bytes.Equal(b, good) {
				// A change of plain content gives another good image, which
				// CheckCanonical just said.
				im := open(t, b)
				root, err := im.Tree()
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(marshal(t, root, v), b) {
					t.Fatal("an image was accepted that its tree does not give")
				}
			}
		}
	}
}

// seeds are small images of every version: the fuzzer is slow with large ones.
func seeds(tb testing.TB) [][]byte {
	var all [][]byte
	for _, v := range versions {
		all = append(all, marshal(tb, hostileTree(), v))
	}
	whiteouts := hostileTree()
	whiteouts.SetEntry("w", &tree.Node{Kind: tree.CharDevice})
	whiteouts.SetXattr("user.overlay.opaque", []byte("y"))
	return append(all, marshal(tb, whiteouts, erofs.V1), marshal(tb, tree.NewDirectory(), erofs.V2))
}

// FuzzReader: no panic, bounded work, and what is canonical is written again
// to the same bytes.
func FuzzReader(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		im, err := erofs.OpenLimits(bytes.NewReader(image), int64(len(image)), erofs.Limits{Memory: 64 << 20})
		if err != nil {
			return
		}
		_, objectsErr := im.Objects()
		root, err := im.Tree()
		if err != nil {
			return
		}
		if objectsErr != nil {
			t.Fatalf("the tree can be read, its objects cannot: %v", objectsErr)
		}
		again, err := erofs.Marshal(root, im.Version())
		if canonical := im.CheckCanonical(); (canonical == nil) != (err == nil && bytes.Equal(again, image)) {
			t.Fatalf("canonical: %v; written again: %v, same bytes: %t", canonical, err, bytes.Equal(again, image))
		}
	})
}

// FuzzTree: tree to image to tree to image gives the same image.
func FuzzTree(f *testing.F) {
	f.Add([]byte("some choices"), uint8(0))
	f.Add(bytes.Repeat([]byte{0, 3, 7, 11, 2, 9}, 100), uint8(1))
	f.Add(bytes.Repeat([]byte{11, 10, 4, 1, 8, 200, 31}, 60), uint8(2))
	f.Fuzz(func(t *testing.T, choices []byte, version uint8) {
		v := versions[int(version)%len(versions)]
		choose := func(n int) int {
			if len(choices) == 0 {
				return 0
			}
			c := int(choices[0])
			choices = choices[1:]
			if n > 256 && len(choices) > 0 {
				c = c<<8 | int(choices[0])
				choices = choices[1:]
			}
			return c % n
		}
		image, err := erofs.Marshal(erofstest.Random(choose), v)
		if err != nil {
			return
		}
		if err := read(image, erofs.Limits{}); err != nil {
			t.Fatal(fmt.Errorf("what was written cannot be read: %w", err))
		}
	})
}

// TestCheck has images whose structure is right and that composefs refuses all
// the same.
func TestCheck(t *testing.T) {
	device := tree.NewDirectory()
	device.SetEntry("d", tree.NewDirectory())
	device.Entry("d").SetEntry("null", &tree.Node{Kind: tree.CharDevice, Rdev: 0x7777})
	escaped := tree.NewDirectory()
	escaped.SetEntry("f", &tree.Node{
		Kind: tree.Regular, Xattrs: []tree.Xattr{{Name: "trusted.overlay.whiteout"}},
	})
	for _, c := range []struct {
		name    string
		root    *tree.Node
		version erofs.Version
		change  func(b []byte)
		want    string // none for a good image
	}{
		{"whiteouts of the root", device, erofs.V1, func([]byte) {}, ""},
		{"format 0", device, erofs.V0, func([]byte) {}, ""},
		{"format 2", device, erofs.V2, func([]byte) {}, ""},
		{"a whiteout is missing", device, erofs.V1, func(b []byte) { b[bytes.LastIndex(b, []byte("fdfeff"))+5] = 'g' }, "255 of the 256 names"},
		{"whiteout below the root", device, erofs.V1, func(b []byte) {
			binary.LittleEndian.PutUint32(b[bytes.Index(b, []byte{0x77, 0x77, 0, 0}):], 0)
		}, "whiteout that is not escaped"},
		{"escaped whiteout", escaped, erofs.V2, func([]byte) {}, "escaped whiteout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := marshal(t, c.root, c.version)
			c.change(b)
			im, err := erofs.Open(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := im.Objects(); err != nil {
				t.Fatalf("the structure is not right: %v", err)
			}
			err = im.Check(func(fsverity.Digest) {})
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (!errors.Is(err, erofs.ErrCorrupt) || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}
