// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package scan reads a directory on disk into a tree, by the rules of
// composefs-rs and mkcomposefs: files of up to 64 bytes are kept with their
// content, longer ones by their fs-verity digest, which is computed and not
// asked of the kernel. Every extended attribute that this process may read is
// taken.
//
// # Invariants
//
//   - Nothing outside the directory is read: every name is opened alone, below
//     its parent's descriptor, and symbolic links are not followed. What is
//     mounted below the directory belongs to it.
//   - Nothing is opened for reading before it is known to be a regular file or
//     a directory, so that no device and no FIFO notices.
//   - A file that changes its size while it is read is an error; other changes
//     cannot be noticed.
package scan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/rooted"
)

const (
	// inlineMax is the size in bytes up to which a file's content is part of
	// the tree. It is part of the format.
	inlineMax = 64

	// maxEntries bounds the names that are read; the reader of EROFS images
	// has the same limit.
	maxEntries = 1 << 22

	maxXattrList = 65536 // bytes, as in Linux
)

// Options say how a directory is read. Algorithm must be set.
type Options struct {
	Algorithm fsverity.Algorithm
	// SplitHardLinks makes a file of its own of each name of a file, as
	// mkcomposefs does. Otherwise names of one inode stay names of one node,
	// as with cfsctl.
	SplitHardLinks bool
}

// Tree is a directory that was read. It is a [tree.Content] as long as the
// directory is open and not changed.
type Tree struct {
	Root *tree.Node

	dir   *os.File
	paths map[*tree.Node]string // of files that are kept by digest
}

// Read reads a directory. It must stay open for as long as the result is used.
func Read(ctx context.Context, dir *os.File, o Options) (*Tree, error) {
	t := &Tree{dir: dir, paths: map[*tree.Node]string{}}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0) + 1)
	s := &scanner{Options: o, tree: t, group: group, inodes: map[inode]*tree.Node{}}
	s.hashers.New = func() any { return fsverity.NewHasher(o.Algorithm) }
	group.Go(func() error {
		var err error
		t.Root, err = s.root(ctx)
		return err
	})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return t, nil
}

// Open implements tree.Content.
func (t *Tree) Open(n *tree.Node) (tree.File, error) {
	if n.Object.IsZero() {
		return memoryFile{bytes.NewReader(n.Content)}, nil
	}
	path, ok := t.paths[n]
	if !ok {
		return nil, fmt.Errorf("open file of %s: it is not a node of this tree", t.dir.Name())
	}
	at := filepath.Join(t.dir.Name(), path)
	fd, err := rooted.OpenLong(int(t.dir.Fd()), path, unix.O_RDONLY|unix.O_NONBLOCK, 0, rooted.NoLinks)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: at, Err: err}
	}
	return os.NewFile(uintptr(fd), at), nil
}

type memoryFile struct{ *bytes.Reader }

func (memoryFile) Close() error { return nil }

type inode struct{ dev, ino uint64 }

type scanner struct {
	Options
	tree    *Tree
	group   *errgroup.Group // hashes
	hashers sync.Pool
	inodes  map[inode]*tree.Node
	entries int
}

func (s *scanner) root(ctx context.Context) (*tree.Node, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(int(s.tree.dir.Fd()), &st) }); err != nil {
		return nil, &os.PathError{Op: "stat", Path: s.tree.dir.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, &os.PathError{Op: "scan", Path: s.tree.dir.Name(), Err: unix.ENOTDIR}
	}
	return s.directory(ctx, s.tree.dir, "", &st, 1)
}

// directory reads the directory that f, an O_PATH descriptor, is open on. path
// is relative to the root.
func (s *scanner) directory(ctx context.Context, f *os.File, path string, st *unix.Stat_t, depth int) (*tree.Node, error) {
	if depth > tree.MaxDepth {
		return nil, fmt.Errorf("scan %s: more than %d directories below each other", f.Name(), tree.MaxDepth)
	}
	node := tree.NewDirectory()
	if err := s.metadata(node, f, st); err != nil {
		return nil, err
	}
	list, err := openBelow(f, ".", f.Name(), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	names, err := list.Readdirnames(-1)
	list.Close() // a directory
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", f.Name(), err)
	}
	slices.Sort(names)
	for _, name := range names {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if s.entries++; s.entries > maxEntries {
			return nil, fmt.Errorf("scan %s: more than %d names", s.tree.dir.Name(), maxEntries)
		}
		child, err := s.entry(ctx, f, name, strings.TrimPrefix(path+"/"+name, "/"), depth)
		if err != nil {
			return nil, err
		}
		node.SetEntry(name, child)
	}
	return node, nil
}

// entry reads one entry of the directory dir.
func (s *scanner) entry(ctx context.Context, dir *os.File, name, path string, depth int) (*tree.Node, error) {
	f, err := openBelow(dir, name, filepath.Join(dir.Name(), name), unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only a path
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(int(f.Fd()), &st) }); err != nil {
		return nil, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return s.directory(ctx, f, path, &st, depth+1)
	}
	// Not only where the link count says so: some file systems do not tell.
	id := inode{st.Dev, st.Ino}
	if node, ok := s.inodes[id]; ok && !s.SplitHardLinks {
		return node, nil
	}
	node := &tree.Node{}
	if err := s.metadata(node, f, &st); err != nil {
		return nil, err
	}
	switch node.Kind {
	case tree.Regular:
		err = s.regular(ctx, node, f, path, &st)
	case tree.Symlink:
		node.Target, err = readTarget(f)
	case tree.CharDevice, tree.BlockDevice:
		node.Rdev = st.Rdev
	}
	if err != nil {
		return nil, err
	}
	s.inodes[id] = node
	return node, nil
}

// metadata fills in what inodes of all types have.
func (s *scanner) metadata(n *tree.Node, f *os.File, st *unix.Stat_t) error {
	kind, ok := tree.KindOfMode(st.Mode)
	if !ok {
		return fmt.Errorf("scan %s: unknown file type in mode %o", f.Name(), st.Mode)
	}
	n.Kind, n.Mode, n.UID, n.GID = kind, st.Mode&0o7777, st.Uid, st.Gid
	n.Mtime = tree.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}
	var err error
	n.Xattrs, err = readXattrs(f)
	return err
}

// regular takes the content of a regular file. Long files are hashed beside
// the walk.
func (s *scanner) regular(ctx context.Context, n *tree.Node, f *os.File, path string, st *unix.Stat_t) error {
	n.Size = uint64(st.Size)
	if st.Size == 0 {
		return nil
	}
	content, err := os.OpenFile(procPath(f), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: f.Name(), Err: errors.Unwrap(err)}
	}
	changed := fmt.Errorf("read %s: its size changed while it was read", f.Name())
	if st.Size <= inlineMax {
		defer content.Close() // read-only
		n.Content, err = io.ReadAll(io.LimitReader(content, inlineMax+1))
		if err == nil && int64(len(n.Content)) != st.Size {
			err = changed
		}
		return err
	}
	s.tree.paths[n] = path
	hash := func() error {
		defer content.Close() // read-only
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		hasher := s.hashers.Get().(*fsverity.Hasher)
		defer s.hashers.Put(hasher)
		hasher.Reset()
		size, err := hasher.ReadFrom(io.LimitReader(content, min(st.Size, math.MaxInt64-1)+1))
		if err != nil {
			return fmt.Errorf("read %s: %w", f.Name(), err)
		}
		if size != st.Size {
			return changed
		}
		n.Object = hasher.Sum()
		return nil
	}
	// The walk is one of the group, so it must not wait for a place in it.
	if !s.group.TryGo(hash) {
		return hash()
	}
	return nil
}

func readTarget(f *os.File) (string, error) {
	buf := make([]byte, tree.MaxTarget+1)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: f.Name(), Err: err}
	}
	if n > tree.MaxTarget {
		return "", &os.PathError{Op: "readlink", Path: f.Name(), Err: unix.ENAMETOOLONG}
	}
	return string(buf[:n]), nil
}

// procPath is a path to what f is open on, also where that is a link.
func procPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// readXattrs reads the extended attributes of what f, an O_PATH descriptor, is
// open on.
func readXattrs(f *os.File) ([]tree.Xattr, error) {
	path := procPath(f)
	list, err := readSized(func(buf []byte) (int, error) { return unix.Listxattr(path, buf) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: f.Name(), Err: err}
	}
	var out []tree.Xattr
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value, err := readSized(func(buf []byte) (int, error) { return unix.Getxattr(path, name, buf) })
		if errors.Is(err, unix.ENODATA) {
			continue // removed since
		}
		if err != nil {
			return nil, &os.PathError{Op: "getxattr " + name, Path: f.Name(), Err: err}
		}
		out = append(out, tree.Xattr{Name: name, Value: value})
	}
	slices.SortFunc(out, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// readSized calls read with a buffer that is large enough: mostly a small one.
func readSized(read func([]byte) (int, error)) ([]byte, error) {
	for _, size := range []int{256, maxXattrList} {
		buf := make([]byte, size)
		var n int
		err := retry(func() (err error) {
			n, err = read(buf)
			return err
		})
		if err == nil {
			return buf[:n:n], nil
		}
		if !errors.Is(err, unix.ERANGE) {
			return nil, err
		}
	}
	return nil, unix.E2BIG
}

// openBelow opens one name of a directory; a link itself, not what it leads to.
func openBelow(dir *os.File, name, path string, flags int) (*os.File, error) {
	fd := -1
	err := retry(func() (err error) {
		fd, err = unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// retry calls f until no signal interrupts it.
func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
