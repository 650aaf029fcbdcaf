// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"errors"
	"fmt"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/internal/selinux"
)

const selinuxXattr = "security.selinux"

// maxPolicyFile is the largest file of a policy's file contexts in bytes.
const maxPolicyFile = 64 << 20

// label sets security.selinux on every node from the policy in the tree. An
// image without a policy is left without labels.
func label(root *tree.Node, content tree.Content) error {
	policy, err := loadPolicy(root, content)
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

// loadPolicy reads the file contexts of the policy that /etc/selinux/config
// names. It returns nil when the image has none.
func loadPolicy(root *tree.Node, content tree.Content) (*selinux.Policy, error) {
	dir, err := root.Lookup("etc/selinux")
	if err != nil || dir.Kind != tree.Directory {
		return nil, nil //nolint:nilerr // no policy
	}
	config, err := readFile(dir, "config", content)
	if errors.Is(err, tree.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	name, ok := selinux.ParseConfig(config)
	if !ok {
		return nil, nil
	}
	files, err := dir.Lookup(name + "/contexts/files")
	if err != nil {
		return nil, fmt.Errorf("policy %q: contexts/files: %w", name, err)
	}
	var src selinux.Sources
	for _, f := range []struct {
		name string
		to   *[]byte
		must bool
	}{
		{"file_contexts", &src.FileContexts, true},
		{"file_contexts.local", &src.Local, false},
		{"file_contexts.homedirs", &src.Homedirs, false},
		{"file_contexts.subs", &src.Subs, false},
		{"file_contexts.subs_dist", &src.SubsDist, false},
	} {
		*f.to, err = readFile(files, f.name, content)
		if err != nil && (f.must || !errors.Is(err, tree.ErrNotExist)) {
			return nil, fmt.Errorf("policy %q: %s: %w", name, f.name, err)
		}
	}
	return selinux.Parse(src)
}

// readFile reads a regular file of dir.
func readFile(dir *tree.Node, name string, content tree.Content) ([]byte, error) {
	n, err := dir.Lookup(name)
	if err != nil {
		return nil, err
	}
	if n.Kind != tree.Regular {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	if n.Size > maxPolicyFile {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are read", name, n.Size, maxPolicyFile)
	}
	r, err := content.Open(n)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data := make([]byte, n.Size)
	if m, err := r.ReadAt(data, 0); m < len(data) {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
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
