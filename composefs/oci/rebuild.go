// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"fmt"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Variant is one of the EROFS images of an image.
type Variant struct {
	Boot    bool
	Version erofs.Version
	Mode    XattrMode // of a boot image; a plain one is always AllowlistOnly
}

// Key is the name under which a config stream refers to the variant.
func (v Variant) Key() string { return ImageKey(v.Boot, v.Version, v.Mode) }

// ParseImageKey is the inverse of [Variant.Key]. Formats 0 and 1 have the same
// key; Version is 1 then.
func ParseImageKey(key string) (v Variant, ok bool) {
	rest, ok := strings.CutPrefix(key, imageRefPrefix)
	if !ok {
		return v, false
	}
	v.Version = erofs.V2
	rest, v.Boot = strings.CutPrefix(rest, strings.TrimPrefix(bootRefPrefix, imageRefPrefix))
	if after, ok := strings.CutPrefix(rest, ".v1"); ok {
		rest, v.Version = after, erofs.V1
	}
	if after, ok := strings.CutPrefix(rest, ".xattrs="+KeepUser.String()); ok && v.Boot {
		rest, v.Mode = after, KeepUser
	}
	return v, rest == ""
}

// LayerError says which layer of an image an error is about.
type LayerError struct {
	Index int // in the order of the config, from 0
	Err   error
}

func (e *LayerError) Error() string { return fmt.Sprintf("layer %d: %v", e.Index+1, e.Err) }

// Unwrap is the layer's error.
func (e *LayerError) Unwrap() error { return e.Err }

// Rebuild makes the EROFS images of an image from its layers. The layers are
// merged once for as many variants as possible: ask for plain images first,
// and for all of one mode before those of the other. It is not safe for
// concurrent use.
type Rebuild struct {
	repo   *composefs.Repo
	layers []fsverity.Digest
	limits Limits

	root *tree.Node // nil: not merged
	boot bool       // what root was transformed for
	mode XattrMode
}

// NewRebuild prepares to make the images of an image whose layers, lowest
// first, have these streams.
func NewRebuild(repo *composefs.Repo, layers []fsverity.Digest, limits Limits) *Rebuild {
	return &Rebuild{repo: repo, layers: layers, limits: limits}
}

// Tree is the tree that an image holds. It belongs to b and is good until the
// next call.
func (b *Rebuild) Tree(ctx context.Context, boot bool, mode XattrMode) (*tree.Node, error) {
	if b.root == nil || b.mode != mode || b.boot && !boot {
		b.root = nil // so that only one tree is in memory
		root, err := b.merge(ctx)
		if err != nil {
			return nil, err
		}
		if err := Transform(root, mode); err != nil {
			return nil, err
		}
		b.root, b.mode, b.boot = root, mode, false
	}
	if boot && !b.boot {
		if err := TransformBoot(b.root, Contents{Repo: b.repo}); err != nil {
			b.root = nil // half transformed
			return nil, err
		}
		b.boot = true
	}
	return b.root, nil
}

func (b *Rebuild) merge(ctx context.Context) (*tree.Node, error) {
	m := NewMerger(b.repo, b.limits)
	for i, id := range b.layers {
		if err := m.Layer(ctx, id); err != nil {
			return nil, &LayerError{Index: i, Err: err}
		}
	}
	return m.Root(), nil
}

// Compute is the id of a variant; nothing is stored.
func (b *Rebuild) Compute(ctx context.Context, v Variant) (fsverity.Digest, error) {
	root, err := b.Tree(ctx, v.Boot, v.Mode)
	if err != nil {
		return fsverity.Digest{}, err
	}
	return ComputeImage(root, v.Version, b.repo.Algorithm())
}

// Build stores a variant, unlinked, and returns its id.
func (b *Rebuild) Build(ctx context.Context, v Variant) (fsverity.Digest, error) {
	root, err := b.Tree(ctx, v.Boot, v.Mode)
	if err != nil {
		return fsverity.Digest{}, err
	}
	return BuildImage(b.repo, root, v.Version)
}

// Restore stores a variant that must have the given id, in the place of a
// damaged object if there is one. Nothing is stored under another id.
func (b *Rebuild) Restore(ctx context.Context, v Variant, want fsverity.Digest) error {
	root, err := b.Tree(ctx, v.Boot, v.Mode)
	if err != nil {
		return err
	}
	temp, id, err := writeImage(b.repo, root, v.Version)
	if err != nil {
		return err
	}
	if id != want {
		temp.Discard()
		return fmt.Errorf("rebuild image %s: %w: it comes out as %s", want, ErrIntegrity, id)
	}
	return b.repo.Replace(temp, want)
}
