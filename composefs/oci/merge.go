// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/tarraw"
)

// EntryError reports an entry of a layer that cannot be part of an image.
type EntryError struct {
	Entry string // the entry's name as the layer has it
	Rule  string // what it breaks
}

func (e *EntryError) Error() string { return fmt.Sprintf("entry %s: %s", quote(e.Entry), e.Rule) }

// Unwrap makes an EntryError an ErrMalformed.
func (e *EntryError) Unwrap() error { return ErrMalformed }

// quote quotes a name for a message. Names are foreign and may be very long.
func quote(name string) string {
	const most = 256
	if len(name) <= most {
		return fmt.Sprintf("%q", name)
	}
	return fmt.Sprintf("%q... (%d bytes)", name[:most], len(name))
}

// Limits on paths.
const (
	maxTarget = 4095 // bytes in a symbolic link's target, as in Linux
	maxDepth  = 2048 // components; more do not fit a path that Linux can open
)

// Merger merges layers, lowest first, into one tree.
type Merger struct {
	repo    *composefs.Repo
	root    *tree.Node
	entries int
	limit   int
}

// NewMerger returns a Merger with an empty tree.
func NewMerger(repo *composefs.Repo, limits Limits) *Merger {
	return &Merger{repo: repo, root: tree.NewDirectory(), limit: limits.withDefaults().MaxEntries}
}

// Root is the tree merged so far.
func (m *Merger) Root() *tree.Node { return m.root }

// Layer merges the layer whose splitstream is id.
func (m *Merger) Layer(ctx context.Context, id fsverity.Digest) error {
	stream, err := m.repo.OpenStream(id, splitstream.Layer)
	if err != nil {
		return err
	}
	defer stream.Close()
	chunks, err := stream.Chunks()
	if err != nil {
		return err
	}
	defer chunks.Close()
	entries := tarraw.NewStreamReader(chunks, tarraw.Limits{})
	for {
		e, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return malformed(err)
		}
		m.entries++
		if m.entries > m.limit {
			return fmt.Errorf("%w: the image has more than %d entries", ErrTooLarge, m.limit)
		}
		if m.entries%1024 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if rule := mergeEntry(m.root, e); rule != "" {
			return &EntryError{Entry: e.Name, Rule: rule}
		}
	}
}

// The names that hide what lower layers have.
const (
	WhiteoutPrefix = ".wh."
	OpaqueWhiteout = ".wh..wh..opq"
)

// mergeEntry applies one entry to the tree; it returns the rule that the entry
// breaks, or nothing.
func mergeEntry(root *tree.Node, e *tarraw.Entry) (rule string) {
	parts, rule := SplitPath(e.Name)
	if rule != "" {
		return rule
	}
	if len(parts) == 0 {
		if e.Type != tarraw.TypeDirectory {
			return "the root of the file system must be a directory"
		}
		return setStat(root, e)
	}
	// A hard link's target may be in any layer merged so far.
	var link *tree.Node
	if e.Type == tarraw.TypeHardlink {
		if link, rule = linkTarget(root, e.Linkname); rule != "" {
			return rule
		}
	}
	parent, rule := parentOf(root, parts)
	if rule != "" {
		return rule
	}
	name := parts[len(parts)-1]
	if name == OpaqueWhiteout {
		parent.Clear()
		return ""
	}
	if hidden, ok := strings.CutPrefix(name, WhiteoutPrefix); ok {
		parent.RemoveEntry(hidden)
		return ""
	}
	if len(name) > maxName {
		return fmt.Sprintf("a name is longer than %d bytes", maxName)
	}
	if link != nil {
		parent.SetEntry(name, link)
		return ""
	}
	if old := parent.Entry(name); old != nil && old.Kind == tree.Directory && e.Type == tarraw.TypeDirectory {
		return setStat(old, e)
	}
	node, rule := NewNode(e)
	if rule == "" {
		parent.SetEntry(name, node)
	}
	return rule
}

// SplitPath splits a path of a layer into its components. Repeated slashes and
// "." vanish. ".." is refused: it could only lead elsewhere than it says. rule
// is the rule that a path breaks, for an [EntryError], or empty.
func SplitPath(path string) (parts []string, rule string) {
	for path != "" {
		var part string
		part, path, _ = strings.Cut(path, "/")
		switch {
		case part == "" || part == ".":
		case part == "..":
			return nil, "a path must not contain \"..\""
		case strings.IndexByte(part, 0) >= 0:
			return nil, "a path must not contain NUL"
		default:
			parts = append(parts, part)
		}
	}
	if len(parts) > maxDepth {
		return nil, fmt.Sprintf("a path must not have more than %d components", maxDepth)
	}
	return parts, ""
}

func parentOf(root *tree.Node, parts []string) (*tree.Node, string) {
	dir := root
	for i, part := range parts[:len(parts)-1] {
		next := dir.Entry(part)
		if next == nil {
			return nil, fmt.Sprintf("its parent directory %s is in no layer", quote(strings.Join(parts[:i+1], "/")))
		}
		if next.Kind != tree.Directory {
			return nil, fmt.Sprintf("its parent %s is not a directory", quote(strings.Join(parts[:i+1], "/")))
		}
		dir = next
	}
	return dir, ""
}

func linkTarget(root *tree.Node, target string) (*tree.Node, string) {
	parts, rule := SplitPath(target)
	if rule != "" {
		return nil, fmt.Sprintf("the hard link's target %s: %s", quote(target), rule)
	}
	if len(parts) == 0 {
		return nil, "a hard link to a directory"
	}
	dir, rule := parentOf(root, parts)
	if rule != "" {
		return nil, fmt.Sprintf("the hard link's target %s: %s", quote(target), rule)
	}
	node := dir.Entry(parts[len(parts)-1])
	switch {
	case node == nil:
		return nil, fmt.Sprintf("the hard link's target %s does not exist", quote(target))
	case node.Kind == tree.Directory:
		return nil, fmt.Sprintf("a hard link to the directory %s", quote(target))
	}
	return node, ""
}

// setStat replaces the whole stat of a directory.
func setStat(n *tree.Node, e *tarraw.Entry) (rule string) {
	if rule := checkMode(e, unix.S_IFDIR); rule != "" {
		return rule
	}
	n.Mode, n.UID, n.GID = e.Mode&0o7777, e.UID, e.GID
	n.Mtime = tree.Time{Sec: e.MtimeSec, Nsec: e.MtimeNsec}
	n.Xattrs = e.Xattrs
	return ""
}

// checkMode refuses a mode field that names another file type than the entry
// has: it would turn the inode into something else.
func checkMode(e *tarraw.Entry, kind uint32) string {
	if bits := e.Mode & unix.S_IFMT; bits != 0 && bits != kind {
		return fmt.Sprintf("its mode %o names another file type than its header", e.Mode)
	}
	return ""
}

// NewNode makes a node of an entry that is not a hard link. rule is the rule
// that the entry breaks, for an [EntryError], or empty.
func NewNode(e *tarraw.Entry) (n *tree.Node, rule string) {
	n = &tree.Node{
		Mode: e.Mode & 0o7777, UID: e.UID, GID: e.GID,
		Mtime:  tree.Time{Sec: e.MtimeSec, Nsec: e.MtimeNsec},
		Xattrs: e.Xattrs,
	}
	var kind uint32
	switch e.Type {
	case tarraw.TypeDirectory:
		n.Kind, kind = tree.Directory, unix.S_IFDIR
	case tarraw.TypeRegular, tarraw.TypeContiguous:
		n.Kind, kind = tree.Regular, unix.S_IFREG
		n.Size, n.Content, n.Object = e.Size, e.Content, e.Object
	case tarraw.TypeSymlink:
		n.Kind, kind = tree.Symlink, unix.S_IFLNK
		n.Target = e.Linkname
		if n.Target == "" || len(n.Target) > maxTarget || strings.IndexByte(n.Target, 0) >= 0 {
			return nil, fmt.Sprintf("the symbolic link's target must have 1 to %d bytes", maxTarget)
		}
	case tarraw.TypeCharDevice, tarraw.TypeBlock:
		n.Kind, kind = tree.CharDevice, unix.S_IFCHR
		if e.Type == tarraw.TypeBlock {
			n.Kind, kind = tree.BlockDevice, unix.S_IFBLK
		}
		if !e.HasDev {
			return nil, "a device without device numbers"
		}
		// EROFS has 32 bits for both.
		if n.Rdev = unix.Mkdev(e.Devmajor, e.Devminor); n.Rdev > math.MaxUint32 {
			return nil, fmt.Sprintf("the device number %d:%d is too large", e.Devmajor, e.Devminor)
		}
	case tarraw.TypeFIFO:
		n.Kind, kind = tree.FIFO, unix.S_IFIFO
	default:
		return nil, fmt.Sprintf("entry type %q is not supported", e.Type)
	}
	return n, checkMode(e, kind)
}
