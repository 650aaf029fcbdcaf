// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/boot"
)

// Listed is a tag with the image that it names, or a manifest without a tag.
type Listed struct {
	Tag      string  // empty for a manifest without one
	Manifest Digest  // zero when Err says why
	Image    *Stored // nil when it cannot be read
	Artifact bool    // it is no container image
	// Bootable is whether the image has a boot image and boot entries.
	Bootable  bool
	Referrers int
	// Err says why the image, or a part of it, cannot be shown. Others can.
	Err error
}

// List lists the tags of a repository and what they lead to, and with untagged
// also the manifests without a tag, which the next garbage collection may
// remove.
func List(ctx context.Context, repo *composefs.Repo, untagged bool) ([]Listed, error) {
	tags, err := Tags(repo)
	if err != nil {
		return nil, err
	}
	seen := map[Digest]*Listed{}
	out := []Listed{}
	for _, t := range tags {
		l := Listed{Tag: t.Name, Manifest: t.Manifest, Err: t.Err}
		if t.Err == nil {
			if err := l.load(ctx, repo, seen); err != nil {
				return nil, err
			}
		}
		out = append(out, l)
	}
	if !untagged {
		return out, nil
	}
	names, err := repo.StreamNames()
	if err != nil {
		return nil, fmt.Errorf("list manifests: %w", err)
	}
	for _, name := range names {
		text, ok := strings.CutPrefix(name, manifestPrefix)
		if !ok {
			continue
		}
		d, err := ParseDigest(text)
		if err != nil || seen[d] != nil {
			continue // not ours, or listed
		}
		l := Listed{Manifest: d}
		if err := l.load(ctx, repo, seen); err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// load reads what the manifest is. The error is one of ctx only.
func (l *Listed) load(ctx context.Context, repo *composefs.Repo, seen map[Digest]*Listed) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if known := seen[l.Manifest]; known != nil {
		tag := l.Tag
		*l = *known
		l.Tag = tag
		return nil
	}
	reference := l.Tag
	if reference == "" {
		reference = l.Manifest.String()
	}
	l.Image, l.Err = Load(repo, &Subject{Reference: reference, Tag: l.Tag, Manifest: l.Manifest})
	if errors.Is(l.Err, ErrNotContainer) {
		l.Artifact, l.Err = true, nil
	}
	referrers, err := Referrers(repo, l.Manifest)
	l.Referrers = len(referrers)
	l.Err = errors.Join(l.Err, err)
	if l.Err == nil && !l.Artifact {
		l.Bootable, l.Err = l.Image.Bootable(ctx, repo)
	}
	seen[l.Manifest] = l
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// Bootable reports whether an image has a boot image in the repository, and
// boot entries.
func (im *Stored) Bootable(ctx context.Context, repo *composefs.Repo) (bool, error) {
	_, err := im.Erofs(repo, true)
	if errors.Is(err, ErrNoImage) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	entries, err := im.BootEntries(ctx, repo)
	return len(entries) > 0, err
}

// BootEntries finds the boot entries of an image.
func (im *Stored) BootEntries(ctx context.Context, repo *composefs.Repo) ([]boot.Entry, error) {
	root, err := im.Tree(ctx, repo, false)
	if err != nil {
		return nil, err
	}
	return boot.Find(root, Contents{Repo: repo})
}

// CompressedSize is the size of a manifest's blobs in bytes, config and layers,
// as a registry has them.
func (m *Manifest) CompressedSize() int64 {
	size := max(m.Config.Size, 0)
	for _, l := range m.Layers {
		if l.Size > math.MaxInt64-size {
			return math.MaxInt64
		}
		size += l.Size
	}
	return size
}
