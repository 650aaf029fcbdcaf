// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"bufio"
	"fmt"
	"io"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// BuildImage writes a tree as an EROFS image and stores it, unlinked. The
// image is hashed while it is written; it is not held in memory.
func BuildImage(repo *composefs.Repo, root *tree.Node, v erofs.Version) (fsverity.Digest, error) {
	temp, id, err := writeImage(repo, root, v)
	if err != nil {
		return fsverity.Digest{}, err
	}
	if _, err := repo.Commit(temp, id); err != nil {
		return fsverity.Digest{}, fmt.Errorf("store EROFS image: %w", err)
	}
	return id, nil
}

// writeImage writes a tree as an EROFS image to a temporary file, which the
// caller ends, and hashes it.
func writeImage(repo *composefs.Repo, root *tree.Node, v erofs.Version) (*composefs.Temp, fsverity.Digest, error) {
	temp, err := repo.CreateTemp()
	if err != nil {
		return nil, fsverity.Digest{}, err
	}
	hasher := fsverity.NewHasher(repo.Algorithm())
	w := bufio.NewWriterSize(io.MultiWriter(temp.File(), hasher), 256<<10)
	err = erofs.Write(w, root, erofs.WriteOptions{Version: v})
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		temp.Discard()
		return nil, fsverity.Digest{}, fmt.Errorf("write EROFS image: %w", err)
	}
	return temp, hasher.Sum(), nil
}

// ComputeImage is the id that BuildImage would return; nothing is stored.
func ComputeImage(root *tree.Node, v erofs.Version, alg fsverity.Algorithm) (fsverity.Digest, error) {
	hasher := fsverity.NewHasher(alg)
	w := bufio.NewWriterSize(hasher, 256<<10)
	if err := erofs.Write(w, root, erofs.WriteOptions{Version: v}); err != nil {
		return fsverity.Digest{}, err
	}
	if err := w.Flush(); err != nil {
		return fsverity.Digest{}, err
	}
	return hasher.Sum(), nil
}

// ReadImage reads the tree of a stored EROFS image.
func ReadImage(repo *composefs.Repo, id fsverity.Digest) (*tree.Node, error) {
	f, err := repo.OpenImage(id)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	image, err := readErofs(f, id)
	if err != nil {
		return nil, err
	}
	root, err := image.Tree()
	if err != nil {
		return nil, fmt.Errorf("read image %s: %w", id, err)
	}
	return root, nil
}
