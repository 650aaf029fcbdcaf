// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package erofstest makes trees for the tests and benchmarks of package erofs.
package erofstest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// OS is a tree that looks as that of an operating system: about n inodes,
// mostly external files in directories of very different sizes, one SELinux
// label for many, few hard links.
func OS(n int) *tree.Node {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	root := directory(r)
	dirs := []*tree.Node{root}
	var files []*tree.Node
	for i := range n {
		dir := dirs[int(float64(len(dirs))*r.Float64()*r.Float64())]
		name := fmt.Sprintf("%s-%x", words[r.IntN(len(words))], i)
		var child *tree.Node
		switch k := r.IntN(100); {
		case k < 10:
			child = directory(r)
			dirs = append(dirs, child)
		case k < 22:
			child = &tree.Node{Kind: tree.Symlink, Mode: 0o777, Target: "../" + strings.Repeat("x/", r.IntN(20)) + name}
		case k < 30:
			content := make([]byte, r.IntN(65))
			child = &tree.Node{Kind: tree.Regular, Mode: 0o644, Size: uint64(len(content)), Content: content}
		case k < 31 && len(files) > 0:
			dir.SetEntry(name, files[r.IntN(len(files))])
			continue
		default:
			child = &tree.Node{Kind: tree.Regular, Mode: 0o755, Size: 65 + uint64(r.Int64N(1<<20)), Object: Digest(fsverity.SHA512, uint64(r.IntN(n*9/10+1)))}
			files = append(files, child)
		}
		label(child, r)
		dir.SetEntry(name, child)
	}
	return root
}

var words = []string{"lib", "bin", "python", "share", "license", "locale", "zoneinfo", "modules", "firmware", "systemd-unit"}

func directory(r *rand.Rand) *tree.Node {
	d := tree.NewDirectory()
	d.Mode = 0o755
	label(d, r)
	return d
}

func label(n *tree.Node, r *rand.Rand) {
	n.Mtime = tree.Time{Sec: 1_700_000_000 + r.Int64N(3)}
	n.SetXattr("security.selinux", []byte("system_u:object_r:"+words[r.IntN(len(words))]+"_t:s0"))
}

// Digest is a digest that depends on seed and means nothing.
func Digest(alg fsverity.Algorithm, seed uint64) fsverity.Digest {
	var b [fsverity.MaxDigestSize]byte
	r := rand.New(rand.NewPCG(seed, 7))
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	d, _ := fsverity.DigestFromBytes(alg, b[:alg.Size()])
	return d
}

// Random is a small tree with everything in it that a tree can have, drawn
// from few names and values, so that much of it is shared. choose yields the
// choices: a number below its argument.
func Random(choose func(n int) int) *tree.Node {
	g := &generator{choose: choose}
	root := g.node(tree.Directory)
	g.fill(root, 0)
	return root
}

type generator struct {
	choose func(int) int
	files  []*tree.Node
	nodes  int
}

const randomNodes = 400

func (g *generator) fill(dir *tree.Node, depth int) {
	for range g.choose(12) {
		if g.nodes++; g.nodes > randomNodes {
			return
		}
		name := g.name()
		if g.choose(12) == 0 && len(g.files) > 0 {
			dir.SetEntry(name, g.files[g.choose(len(g.files))])
			continue
		}
		kind := [...]tree.Kind{
			tree.Regular, tree.Regular, tree.Regular, tree.Regular, tree.Symlink, tree.Symlink,
			tree.CharDevice, tree.BlockDevice, tree.FIFO, tree.Socket, tree.Directory, tree.Directory,
		}[g.choose(12)]
		child := g.node(kind)
		dir.SetEntry(name, child)
		switch {
		case kind == tree.Directory && depth < 6:
			g.fill(child, depth+1)
		case kind != tree.Directory && (kind != tree.CharDevice || child.Rdev != 0):
			g.files = append(g.files, child)
		}
	}
}

func (g *generator) name() string {
	name := [...]string{"a", "b", "!", "-", ".a", "..b", ".-", "00", "ff", "0a", "usr", "\x01\xff", "z"}[g.choose(13)]
	switch g.choose(6) {
	case 0:
		name += strings.Repeat("n", g.choose(250))
	case 1:
		name += string(rune('0' + g.choose(70)))
	}
	return name
}

func (g *generator) node(kind tree.Kind) *tree.Node {
	n := &tree.Node{Kind: kind}
	if kind == tree.Directory {
		n = tree.NewDirectory()
	}
	n.Mode = uint32([...]int{0o644, 0o755, 0o4755, 0, 0o7777, 0o1777}[g.choose(6)])
	n.UID = uint32([...]int{0, 0, 0, 1000, 65535, 65536, 1<<32 - 2}[g.choose(7)])
	n.GID = uint32([...]int{0, 0, 0, 5, 65536}[g.choose(5)])
	n.Mtime = tree.Time{Sec: [...]int64{0, 0, 0, 5, 1_700_000_000, 1 << 40}[g.choose(6)], Nsec: [...]uint32{0, 0, 1, 999_999_999}[g.choose(4)]}
	switch kind {
	case tree.Regular:
		switch g.choose(4) {
		case 0:
		case 1:
			n.Content = []byte(strings.Repeat("c", 1+g.choose(64)))
			n.Size = uint64(len(n.Content))
		default:
			n.Size = [...]uint64{1, 65, 4096, 4097, 1 << 32, 1 << 43, 1<<43 + 1}[g.choose(7)]
			n.Object = Digest(fsverity.SHA512, uint64(g.choose(5)))
		}
	case tree.Symlink:
		n.Target = strings.Repeat("t", 1+[...]int{0, 7, g.choose(200), g.choose(3000)}[g.choose(4)])
	case tree.CharDevice, tree.BlockDevice:
		n.Rdev = [...]uint64{0, 1, 259, 1<<32 - 1}[g.choose(4)]
	}
	for range g.choose(5) {
		name := [...]string{
			"user.a", "user.b", "security.selinux", "security.capability", "trusted.foo", "trusted.overlay.opaque",
			"trusted.overlay.overlay.x", "user.overlay.redirect", "system.posix_acl_access", "com.example",
			"system.nfs4_acl", "trusted.overlay.metacopy", "trusted.overlay.redirect", "user.overlay.whiteout",
		}[g.choose(14)]
		n.SetXattr(name, []byte(strings.Repeat("v", [...]int{0, 1, 2, 3, g.choose(100), g.choose(2500)}[g.choose(6)])))
	}
	return n
}
