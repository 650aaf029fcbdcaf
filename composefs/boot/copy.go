// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// copyBufferSize is the size in bytes of the pieces in which files are copied.
const copyBufferSize = 1 << 20

// copyExactly copies size bytes of r. A short r is io.ErrUnexpectedEOF.
func copyExactly(ctx context.Context, w io.Writer, r io.Reader, size int64) error {
	buf := make([]byte, min(size, copyBufferSize))
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(size, int64(len(buf)))]
		if _, err := io.ReadFull(r, p); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
		size -= int64(len(p))
	}
	return nil
}

// copyNode copies the content of regular file n. An object is hashed on the
// way and must have the digest that the tree names: what the machine boots
// from is not taken on trust where the repository does without fs-verity.
func copyNode(ctx context.Context, w io.Writer, c Content, n *tree.Node) (err error) {
	r, size, err := openNode(c, n)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	src := io.NewSectionReader(r, 0, size)
	if n.Object.IsZero() {
		return copyExactly(ctx, w, src, size)
	}
	h := fsverity.NewHasher(n.Object.Algorithm())
	if err := copyExactly(ctx, io.MultiWriter(h, w), src, size); err != nil {
		return err
	}
	if got := h.Sum(); got != n.Object {
		return fmt.Errorf("object %s: content has digest %s", n.Object, got)
	}
	return nil
}
