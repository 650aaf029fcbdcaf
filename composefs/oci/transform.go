// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
)

// Transform turns a merged tree into what an image's plain EROFS image holds:
// the root takes the stat of /usr, /run is emptied, and of the extended
// attributes only those that mode allows are kept.
func Transform(root *tree.Node, mode XattrMode) error {
	usr, err := directory(root, "usr")
	if err != nil {
		return err
	}
	root.Mode, root.UID, root.GID, root.Mtime = usr.Mode, usr.UID, usr.GID, usr.Mtime
	root.Xattrs = slices.Clone(usr.Xattrs)
	if root.Entry("run") != nil {
		run, err := directory(root, "run")
		if err != nil {
			return err
		}
		run.Mtime = usr.Mtime
		run.Clear()
	}
	eachNode(root, func(n *tree.Node) {
		if !slices.ContainsFunc(n.Xattrs, func(x tree.Xattr) bool { return !mode.keeps(x.Name) }) {
			return
		}
		n.Xattrs = slices.DeleteFunc(slices.Clone(n.Xattrs), func(x tree.Xattr) bool { return !mode.keeps(x.Name) })
	})
	return nil
}

// keeps reports whether an extended attribute stays in an image.
func (m XattrMode) keeps(name string) bool {
	return name == "security.capability" || m == KeepUser && strings.HasPrefix(name, "user.")
}

// TransformBoot turns a transformed tree into what an image's boot EROFS image
// holds: /boot and /sysroot are emptied and everything is labelled after the
// image's own SELinux policy, if it has one.
func TransformBoot(root *tree.Node, content tree.Content) error {
	usr, err := directory(root, "usr")
	if err != nil {
		return err
	}
	for _, name := range []string{"boot", "sysroot"} {
		dir, err := directory(root, name)
		if err != nil {
			return fmt.Errorf("make boot image: %w", err)
		}
		// The nanoseconds stay; the format is fixed that way.
		dir.Mtime.Sec = usr.Mtime.Sec
		dir.Clear()
	}
	return label(root, content)
}

// directory returns the directory of that name in root.
func directory(root *tree.Node, name string) (*tree.Node, error) {
	n := root.Entry(name)
	if n == nil {
		return nil, fmt.Errorf("%w: it has no directory /%s, as an operating system image must", ErrMalformed, name)
	}
	if n.Kind != tree.Directory {
		return nil, fmt.Errorf("%w: /%s is not a directory", ErrMalformed, name)
	}
	return n, nil
}

// eachNode calls f once for each name of each node, the root first.
func eachNode(n *tree.Node, f func(*tree.Node)) {
	f(n)
	if n.Kind == tree.Directory {
		n.Each(func(_ string, child *tree.Node) { eachNode(child, f) })
	}
}
