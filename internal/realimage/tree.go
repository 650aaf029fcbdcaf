// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package realimage

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Entry is everything a file system shows of one name. Equal entries are
// indistinguishable for a user of the tree.
type Entry struct {
	Type   string // dir, file, link, char, block, fifo, socket
	Mode   uint32 // permission bits with setuid, setgid and sticky
	UID    uint32
	GID    uint32
	Size   int64  // of files and links; 0 for directories, whose size is the file system's business
	Sec    int64  // mtime
	Nsec   int64  // mtime
	Rdev   string // major:minor of device nodes
	Target string // of links
	SHA256 string // of a file's content
	Xattrs string // name="value", sorted, in Go's quoting
	First  string // of several names for one file: the one that sorts first
}

// Tree has an Entry for each path relative to the root, which itself is ".".
type Tree map[string]Entry

// Scan reads the whole tree below root. keep says which extended attributes
// to look at.
func Scan(root string, keep func(xattr string) bool) (Tree, error) {
	tree := make(Tree)
	type inode struct{ dev, ino uint64 }
	names := make(map[inode][]string)
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", path, err)
		}
		e := Entry{
			Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
			Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec,
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			e.Type = "dir"
		case unix.S_IFREG:
			e.Type, e.Size = "file", st.Size
			if e.SHA256, err = hash(path); err != nil {
				return err
			}
		case unix.S_IFLNK:
			e.Type, e.Size = "link", st.Size
			if e.Target, err = os.Readlink(path); err != nil {
				return err
			}
		case unix.S_IFCHR, unix.S_IFBLK:
			e.Type = map[uint32]string{unix.S_IFCHR: "char", unix.S_IFBLK: "block"}[st.Mode&unix.S_IFMT]
			e.Rdev = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		case unix.S_IFIFO:
			e.Type = "fifo"
		default:
			e.Type = "socket"
		}
		if e.Xattrs, err = xattrs(path, keep); err != nil {
			return err
		}
		if e.Type != "dir" && st.Nlink > 1 {
			id := inode{st.Dev, st.Ino}
			names[id] = append(names[id], name)
		}
		tree[name] = e
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("scan %s: %w", root, err)
	}
	// The link count alone is not compared: an overlay shows that of the
	// layer below, with names that other layers hide.
	for _, group := range names {
		if len(group) == 1 {
			continue
		}
		first := slices.Min(group)
		for _, name := range group {
			e := tree[name]
			e.First = first
			tree[name] = e
		}
	}
	return tree, nil
}

// hash reads a whole file; the kernel checks the read where the file system
// has checksums or fs-verity.
func hash(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// xattrs reads the attributes that keep wants, in the form of Entry.Xattrs.
func xattrs(path string, keep func(string) bool) (string, error) {
	list, err := readXattr(func(b []byte) (int, error) { return unix.Llistxattr(path, b) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("list xattrs of %s: %w", path, err)
	}
	var out []string
	for name := range bytes.SplitSeq(list, []byte{0}) {
		if len(name) == 0 || !keep(string(name)) {
			continue
		}
		value, err := readXattr(func(b []byte) (int, error) { return unix.Lgetxattr(path, string(name), b) })
		if err != nil {
			return "", fmt.Errorf("read xattr %s of %s: %w", name, path, err)
		}
		out = append(out, fmt.Sprintf("%s=%q", name, value))
	}
	slices.Sort(out)
	return strings.Join(out, " "), nil
}

// readXattr calls get with a buffer that is large enough for any attribute.
func readXattr(get func([]byte) (int, error)) ([]byte, error) {
	buffer := make([]byte, 1<<16)
	n, err := get(buffer)
	if err != nil {
		return nil, err
	}
	return buffer[:n], nil
}

// Diff lists how got differs from want, one line a path and field, at most
// limit lines.
func Diff(want, got Tree, limit int) []string {
	var out []string
	paths := slices.Sorted(maps.Keys(want))
	for path := range got {
		if _, ok := want[path]; !ok {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	for _, path := range paths {
		w, inWant := want[path]
		g, inGot := got[path]
		switch {
		case !inGot:
			out = append(out, fmt.Sprintf("%q: missing, want %+v", path, w))
		case !inWant:
			out = append(out, fmt.Sprintf("%q: not expected, got %+v", path, g))
		case w != g:
			out = append(out, fmt.Sprintf("%q:%s", path, differences(w, g)))
		}
		if len(out) == limit {
			return append(out, "...")
		}
	}
	return out
}

// differences lists the fields of two entries that are not the same.
func differences(want, got Entry) string {
	var out strings.Builder
	w, g := reflect.ValueOf(want), reflect.ValueOf(got)
	for i := range w.NumField() {
		if !w.Field(i).Equal(g.Field(i)) {
			fmt.Fprintf(&out, " %s %v, want %v;", w.Type().Field(i).Name, g.Field(i), w.Field(i))
		}
	}
	return strings.TrimSuffix(out.String(), ";")
}

// Without returns the tree less everything below the directory, which itself
// stays.
func (t Tree) Without(directory string) Tree {
	out := make(Tree, len(t))
	for path, e := range t {
		if !strings.HasPrefix(path, directory+"/") {
			out[path] = e
		}
	}
	return out
}
