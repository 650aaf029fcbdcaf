// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// hex512 and hex256 are digests in hex that are one digit repeated.
func hex512(digit string) string { return strings.Repeat(digit, 128) }
func hex256(digit string) string { return strings.Repeat(digit, 64) }

func digest(tb testing.TB, text string) fsverity.Digest {
	tb.Helper()
	d, err := fsverity.ParseDigest(text)
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

// objects is a Content of what makeTree put aside.
type objects map[fsverity.Digest][]byte

func (o objects) Open(n *tree.Node) (ReadAtCloser, error) {
	data, ok := o[n.Object]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return inlineFile{bytes.NewReader(data)}, nil
}

// image describes a tree: path to content. A name that ends in a slash is a
// directory, and content that begins with "-> " is a symbolic link.
type image map[string]string

// makeTree makes the tree. As in a repository, content above 64 bytes is an
// object.
func makeTree(tb testing.TB, files image) (*tree.Node, objects) {
	tb.Helper()
	root, store := tree.NewDirectory(), objects{}
	for name, content := range files {
		dir := root
		parts := strings.Split(strings.Trim(name, "/"), "/")
		if strings.HasSuffix(name, "/") {
			parts = append(parts, "")
		}
		for _, p := range parts[:len(parts)-1] {
			next := dir.Entry(p)
			if next == nil {
				next = tree.NewDirectory()
				dir.SetEntry(p, next)
			}
			dir = next
		}
		if last := parts[len(parts)-1]; last != "" {
			dir.SetEntry(last, makeNode(store, content))
		}
	}
	return root, store
}

func makeNode(store objects, content string) *tree.Node {
	if target, ok := strings.CutPrefix(content, "-> "); ok {
		return &tree.Node{Kind: tree.Symlink, Target: target, Mode: 0o777}
	}
	n := &tree.Node{Kind: tree.Regular, Mode: 0o644, Size: uint64(len(content))}
	if len(content) <= 64 {
		n.Content = []byte(content)
		return n
	}
	n.Object = fsverity.Sum(fsverity.SHA512, []byte(content))
	store[n.Object] = []byte(content)
	return n
}

// big is content of size bytes that is not the same for two seeds.
func big(seed string, size int) string {
	var b strings.Builder
	block := sha256.Sum256([]byte(seed))
	for b.Len() < size {
		b.Write(block[:])
		block = sha256.Sum256(block[:])
	}
	return b.String()[:size]
}

func sum256(parts ...string) string {
	h := sha256.Sum256([]byte(strings.Join(parts, "")))
	return hex.EncodeToString(h[:])
}

// peBuild is a PE binary with these sections: name and content in turn.
func peBuild(sections ...string) string {
	const dos, optional = 0x80, 240
	count := len(sections) / 2
	header := make([]byte, dos+peHeaderSize+optional+count*sectionHeaderSize)
	copy(header, "MZ")
	binary.LittleEndian.PutUint32(header[peOffsetAt:], dos)
	copy(header[dos:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(header[dos+4:], 0x8664)
	binary.LittleEndian.PutUint16(header[dos+6:], uint16(count))
	binary.LittleEndian.PutUint16(header[dos+20:], optional)
	binary.LittleEndian.PutUint16(header[dos+24:], 0x20b) // PE32+
	binary.LittleEndian.PutUint32(header[dos+24+108:], 16)
	out := header
	pad := func() {
		out = append(out, make([]byte, -len(out)&511)...)
	}
	pad()
	for i := range count {
		name, content := sections[2*i], sections[2*i+1]
		h := out[dos+peHeaderSize+optional+i*sectionHeaderSize:]
		copy(h[:8], name)
		binary.LittleEndian.PutUint32(h[8:], uint32(len(content)))
		binary.LittleEndian.PutUint32(h[16:], uint32((len(content)+511)&^511))
		binary.LittleEndian.PutUint32(h[20:], uint32(len(out)))
		out = append(out, content...)
		pad()
	}
	return string(out)
}

const testOSRelease = "NAME=\"Example OS\"\nID=example-os\nVERSION_ID=42\nPRETTY_NAME=\"Example OS 42\"\n"

// ukiBuild is a UKI that starts the image of that karg.
func ukiBuild(karg string) string {
	return peBuild(
		".osrel", testOSRelease,
		".cmdline", "rw "+karg+" quiet",
		".uname", "6.13\n",
		".linux", big("uki kernel", 5000),
		".initrd", big("uki initrd", 7000),
	)
}

func candidates(tb testing.TB, ids ...string) []Candidate {
	tb.Helper()
	var c []Candidate
	for i, id := range ids {
		mode := "allowlist-only"
		if i > 1 {
			mode = "keep-user-xattrs"
		}
		c = append(c, Candidate{Mode: mode, Version: erofs.Version(1 + i%2), ID: digest(tb, id)})
	}
	return c
}

// listing is every file below dir with its content, for comparison.
func listing(tb testing.TB, dir string) map[string]string {
	tb.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		files[name] = string(data)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return files
}

var errFault = errors.New("injected fault")
