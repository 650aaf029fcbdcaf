// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
)

// The attributes that overlayfs gives a meaning. An image is a lower layer of
// an overlay whose other lower layer is the object directory. Attributes and
// whiteouts of the tree itself must not act in that overlay, but in one that
// is mounted on top of it: they are escaped.
const (
	overlayPrefix = "trusted.overlay."
	escapedPrefix = "trusted.overlay.overlay."

	attrMetacopy = "trusted.overlay.metacopy"
	attrRedirect = "trusted.overlay.redirect"
	attrOpaque   = "trusted.overlay.opaque"
	attrSELinux  = "security.selinux"

	attrWhiteout       = "trusted.overlay.overlay.whiteout"
	attrWhiteouts      = "trusted.overlay.overlay.whiteouts"
	attrEscapedOpaque  = "trusted.overlay.overlay.opaque"
	attrUserWhiteout   = "user.overlay.whiteout"
	attrUserWhiteouts  = "user.overlay.whiteouts"
	attrUserOpaque     = "user.overlay.opaque"
	opaqueRoot         = "y" // nothing of the object directory is seen
	opaqueHasWhiteouts = "x" // look for escaped whiteouts

	stubMode = 0o644
)

// isWhiteout reports whether n is overlayfs's mark for an absent name.
func (n *node) isWhiteout() bool { return n.kind == tree.CharDevice && n.rdev == 0 }

const hexDigits = "0123456789abcdef"

// stubName is the name of whiteout i of the root: the directories that the
// object store has.
func stubName(i int) string { return string([]byte{hexDigits[i>>4], hexDigits[i&15]}) }

// isStubName reports whether name is one of "00" to "ff".
func isStubName(name string) bool {
	hex := func(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' }
	return len(name) == 2 && hex(name[0]) && hex(name[1])
}

// addStubs gives the root a whiteout for each of the names "00" to "ff" that
// it does not have.
func (p *plan) addStubs() {
	root := &p.nodes[0]
	src := &tree.Node{
		Kind: tree.CharDevice, Mode: stubMode, UID: root.uid, GID: root.gid, Mtime: root.mtime,
	}
	for i, x := range root.src.Xattrs {
		if x.Name == attrSELinux {
			src.Xattrs = root.src.Xattrs[i : i+1 : i+1]
		}
	}
	stub := newNode(src)
	stub.stub = true
	first := len(p.ents)
	old := p.entries(root)
	for i := range 256 {
		name := stubName(i)
		for len(old) > 0 && old[0].name < name {
			p.ents = append(p.ents, old[0])
			old = old[1:]
		}
		if len(old) > 0 && old[0].name == name {
			if e := old[0]; !p.rules.literal && !e.link && sameStub(p.nodes[e.node].src, src) {
				// composefs-rs adds the whiteouts first and recognises them
				// afterwards, so it takes this one for its own.
				p.nodes[e.node].stub = true
			}
			continue
		}
		p.ents = append(p.ents, dirent{name: name, node: int32(len(p.nodes))})
		p.nodes = append(p.nodes, stub)
	}
	p.ents = append(p.ents, old...)
	root = &p.nodes[0]
	root.firstEnt, root.ents = int32(first), int32(len(p.ents)-first)
}

// sameStub reports whether a node of the tree looks as the stub would.
func sameStub(n, stub *tree.Node) bool {
	return n.Kind == tree.CharDevice && n.Rdev == 0 && n.Mode&0o7777 == stub.Mode &&
		n.UID == stub.UID && n.GID == stub.GID && n.Mtime == stub.Mtime &&
		slices.EqualFunc(n.Xattrs, stub.Xattrs, func(a, b tree.Xattr) bool {
			return a.Name == b.Name && bytes.Equal(a.Value, b.Value)
		})
}

// escapeWhiteouts turns the whiteouts of the tree into marked regular files,
// and marks their directories.
func (p *plan) escapeWhiteouts() error {
	for i := range p.nodes {
		n := &p.nodes[i]
		if !n.isWhiteout() || n.stub {
			continue
		}
		if !p.rules.literal && n.nlink > 1 {
			return fmt.Errorf("escape whiteouts: %q is a hard link", p.path(int32(i)))
		}
		n.kind = tree.Regular
		n.size = 0
		n.whiteout = true
		p.nodes[n.up].hasWhiteouts = true
	}
	return nil
}
