// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package tree

import "io"

// File is the open content of a regular file.
type File interface {
	io.ReaderAt
	io.Closer
}

// Content opens the content of a tree's regular files, wherever it is kept.
type Content interface {
	Open(n *Node) (File, error)
}

// Each calls f for each entry of directory n, in no particular order. f must
// not change the directory.
func (n *Node) Each(f func(name string, child *Node)) {
	for name, child := range n.entries {
		f(name, child)
	}
}
