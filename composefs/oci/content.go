// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"bytes"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
)

// Contents opens files of trees whose objects are in Repo.
type Contents struct{ Repo *composefs.Repo }

type memoryFile struct{ *bytes.Reader }

func (memoryFile) Close() error { return nil }

// Open implements tree.Content.
func (c Contents) Open(n *tree.Node) (tree.File, error) {
	if n.Object.IsZero() {
		return memoryFile{bytes.NewReader(n.Content)}, nil
	}
	return c.Repo.OpenObject(n.Object)
}
