// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
)

// ReadAtCloser is an open file of an image.
type ReadAtCloser = tree.File

// Content opens regular files of a tree. Only files whose content is an
// object are asked for; what a node carries itself is read from the node.
type Content = tree.Content

// errNotRegular reports a name that must be a regular file and is not.
var errNotRegular = errors.New("not a regular file")

type inlineFile struct{ *bytes.Reader }

func (inlineFile) Close() error { return nil }

// openNode opens regular file n. The size is n.Size, checked to fit an int64
// and, for a file that is kept in the node, to be true.
func openNode(c Content, n *tree.Node) (r ReadAtCloser, size int64, err error) {
	if n.Kind != tree.Regular {
		return nil, 0, errNotRegular
	}
	if n.Size > math.MaxInt64 {
		return nil, 0, fmt.Errorf("size %d is too large", n.Size)
	}
	if n.Object.IsZero() {
		if uint64(len(n.Content)) != n.Size {
			return nil, 0, fmt.Errorf("content has %d bytes, want %d", len(n.Content), n.Size)
		}
		return inlineFile{bytes.NewReader(n.Content)}, int64(n.Size), nil
	}
	if c == nil {
		return nil, 0, fmt.Errorf("no source for object %s", n.Object)
	}
	r, err = c.Open(n)
	if err != nil {
		return nil, 0, err
	}
	return r, int64(n.Size), nil
}

// readNode reads all of regular file n, which must not be larger than limit
// bytes.
func readNode(c Content, n *tree.Node, limit int64) (data []byte, err error) {
	r, size, err := openNode(c, n)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if size > limit {
		return nil, fmt.Errorf("%d bytes are more than the limit of %d", size, limit)
	}
	data = make([]byte, size)
	if err := readFullAt(r, data, 0); err != nil {
		return nil, err
	}
	return data, nil
}

// readFullAt fills p from offset off; a short file is io.ErrUnexpectedEOF.
func readFullAt(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// sameFile reports whether two nodes hold the same bytes as far as the tree
// can tell: the same inode, object or inline content.
func sameFile(a, b *tree.Node) bool {
	if a == b {
		return true
	}
	if a.Size != b.Size || a.Object != b.Object {
		return false
	}
	return !a.Object.IsZero() || bytes.Equal(a.Content, b.Content)
}
