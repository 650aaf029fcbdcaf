// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package realimage

import (
	"maps"
	"strings"
)

// KeepCapabilities wants the one extended attribute that composefs takes over
// from an image.
func KeepCapabilities(name string) bool { return name == "security.capability" }

// KeepAll wants every extended attribute.
func KeepAll(string) bool { return true }

// Plain is what a container image's tree becomes as a composefs image, by the
// documented OCI transform: the root looks like /usr, and /run is empty and as
// old as /usr. The tree must have been read with KeepCapabilities.
func (t Tree) Plain() Tree {
	out := t.Without("run")
	usr := out["usr"]
	out["."] = usr
	if run, ok := out["run"]; ok {
		run.Sec, run.Nsec = usr.Sec, usr.Nsec
		out["run"] = run
	}
	return out
}

// Boot is what Plain's tree becomes as a boot image: /boot and /sysroot are
// empty and as old as /usr in whole seconds, and every path has the label that
// the image's policy gives it.
func (t Tree) Boot(labels map[string]string) Tree {
	out := t.Without("boot").Without("sysroot")
	for _, name := range []string{"boot", "sysroot"} {
		e := out[name]
		e.Sec = out["usr"].Sec
		out[name] = e
	}
	for path, e := range out {
		if label, ok := labels[path]; ok {
			e.Xattrs = strings.TrimSpace(e.Xattrs + " " + labelXattr(label))
			out[path] = e
		}
	}
	return out
}

// SplitLinks forgets that names belong to one file where their labels in
// either tree differ: an inode has one label, so such names become files of
// their own.
func SplitLinks(labels map[string]string, trees ...Tree) []Tree {
	differ := make(map[string]bool)
	for path, e := range trees[0] {
		if e.First != "" && labels[path] != labels[e.First] {
			differ[e.First] = true
		}
	}
	out := make([]Tree, len(trees))
	for i, tree := range trees {
		out[i] = maps.Clone(tree)
		for path, e := range trees[0] {
			if got, ok := tree[path]; ok && differ[e.First] {
				got.First = ""
				out[i][path] = got
			}
		}
	}
	return out
}
