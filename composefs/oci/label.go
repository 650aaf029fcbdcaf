// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/internal/rooted"
	"github.com/cfs-pull/cfs-pull/internal/selinux"
)

const selinuxXattr = "security.selinux"

// label sets security.selinux on every node from the policy in the tree. An
// image without a policy is left without labels.
func label(root *tree.Node, content tree.Content) error {
	policy, err := selinux.Load(treeFiles{root, content})
	if err != nil {
		return fmt.Errorf("load the image's SELinux policy: %w", err)
	}
	if policy == nil {
		eachNode(root, func(n *tree.Node) { n.RemoveXattr(selinuxXattr) })
		return nil
	}
	l := labeller{policy: policy, seen: map[*tree.Node]string{}}
	l.set(root, l.context("/", root))
	l.directory("", root)
	if err := policy.Err(); err != nil {
		return fmt.Errorf("label the tree after the image's SELinux policy: %w", err)
	}
	return nil
}

// treeFiles are the files of a tree, for [selinux.Load].
type treeFiles struct {
	root    *tree.Node
	content tree.Content
}

// ReadFile implements [selinux.Files].
func (f treeFiles) ReadFile(path string) ([]byte, error) {
	n, err := f.root.Lookup(path)
	if errors.Is(err, tree.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	if err != nil {
		return nil, err
	}
	if n.Kind != tree.Regular {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if n.Size > selinux.MaxPolicyFile {
		return nil, rooted.TooLarge(path, selinux.MaxPolicyFile)
	}
	r, err := f.content.Open(n)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data := make([]byte, n.Size)
	if m, err := r.ReadAt(data, 0); m < len(data) {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}

// IsDir implements [selinux.Files].
func (f treeFiles) IsDir(path string) (bool, error) {
	n, err := f.root.Lookup(path)
	return err == nil && n.Kind == tree.Directory, nil
}

// labeller labels a tree in pre-order, entries in byte order. The first name
// of a node decides its label; a name that asks for another label gets a copy
// of its own, and copies are never joined again.
type labeller struct {
	policy *selinux.Policy
	seen   map[*tree.Node]string // labels of nodes that were visited
}

// kindByte is how a policy names file types.
var kindByte = map[tree.Kind]byte{
	tree.Directory: 'd', tree.Regular: '-', tree.Symlink: 'l', tree.CharDevice: 'c',
	tree.BlockDevice: 'b', tree.FIFO: 'p', tree.Socket: 's',
}

// context is the label for a path; empty for none.
func (l *labeller) context(path string, n *tree.Node) string {
	context, ok := l.policy.Lookup(path, kindByte[n.Kind])
	if !ok {
		return ""
	}
	return context
}

func (l *labeller) set(n *tree.Node, context string) {
	if context == "" {
		n.RemoveXattr(selinuxXattr)
		return
	}
	n.SetXattr(selinuxXattr, []byte(context))
}

// directory labels the entries of dir, whose path, after substitutions, is
// base.
func (l *labeller) directory(base string, dir *tree.Node) {
	for _, name := range dir.Names() {
		path := base + "/" + name
		if alias, ok := l.policy.Alias(path); ok {
			path = alias
		}
		n := dir.Entry(name)
		context := l.context(path, n)
		if n.Kind == tree.Directory {
			l.set(n, context)
			l.directory(path, n)
			continue
		}
		first, ok := l.seen[n]
		switch {
		case !ok:
			l.seen[n] = context
			l.set(n, context)
		case first != context:
			n = n.Clone()
			l.set(n, context)
			dir.SetEntry(name, n)
		}
	}
}
