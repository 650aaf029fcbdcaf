// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs/boot"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// imagesKnown reports whether the repository has every EROFS image of this
// image already, built from these layers. It notes their ids.
func (p *pull) imagesKnown(layers []*layer) bool {
	config, err := oci.OpenConfig(p.repo, p.result.ConfigDigest)
	if err != nil {
		return false
	}
	for _, l := range layers {
		if config.Refs[l.diffID.String()] != l.id {
			return false
		}
	}
	known, err := oci.StoredImages(p.repo, config)
	if err != nil {
		return false
	}
	for _, v := range p.repo.Versions() {
		keys := []string{oci.ImageKey(false, v, oci.AllowlistOnly)}
		if !p.NoBoot {
			keys = append(keys, oci.ImageKey(true, v, oci.AllowlistOnly))
		}
		for _, key := range keys {
			id, ok := known[key]
			if !ok {
				return false
			}
			if ok, err := p.repo.HasImage(id); err != nil || !ok {
				return false
			}
		}
	}
	for _, l := range layers {
		p.image.Layers[l.diffID] = l.id
	}
	p.image.Images = known
	return true
}

// buildImages builds the plain and the boot images and collects the boot
// entries. root is the merged tree, or nil when all images are there.
func (p *pull) buildImages(ctx context.Context, root *tree.Node) (entries []boot.Entry, err error) {
	built := root == nil
	if built {
		p.events.task(TaskBootImage, Skipped)
		p.Log.Info("images are built already")
	} else {
		p.events.task(TaskBootImage, Started)
		if err := p.buildPlain(ctx, root); err != nil {
			return nil, atStage(StageImport, err)
		}
	}
	p.result.Image = p.built(false)
	if p.NoBoot {
		p.events.task(TaskBootImage, Done)
		return nil, nil
	}
	if built {
		id := p.image.Images[oci.ImageKey(false, p.repo.Versions()[0], oci.AllowlistOnly)]
		if root, err = oci.ReadImage(p.repo, id); err != nil {
			return nil, atStage(StageBootEntries, err)
		}
	}
	entries, err = p.findEntries(ctx, root)
	if err != nil {
		return nil, atStage(StageBootEntries, err)
	}
	if !built {
		if err := p.buildBoot(ctx, root); err != nil {
			return nil, err
		}
	}
	p.result.BootImage = p.built(true)
	if err := p.checkUKIs(ctx, entries); err != nil {
		return nil, atStage(StageBootEntries, err)
	}
	p.result.Bootable = len(entries) > 0
	p.events.task(TaskBootImage, Done)
	return entries, nil
}

func (p *pull) buildPlain(ctx context.Context, root *tree.Node) error {
	if err := oci.Transform(root, oci.AllowlistOnly); err != nil {
		return fmt.Errorf("image %s: %w", p.Reference, err)
	}
	return p.build(ctx, root, false)
}

func (p *pull) buildBoot(ctx context.Context, root *tree.Node) error {
	if err := oci.TransformBoot(root, oci.Contents{Repo: p.repo}); err != nil {
		return atStage(StageBootEntries, fmt.Errorf("image %s: %w", p.Reference, err))
	}
	return atStage(StageBootImage, p.build(ctx, root, true))
}

// build stores a tree as an EROFS image in each of the repository's formats.
func (p *pull) build(ctx context.Context, root *tree.Node, isBoot bool) error {
	for _, v := range p.repo.Versions() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		id, err := oci.BuildImage(p.repo, root, v)
		if err != nil {
			return err
		}
		p.image.Images[oci.ImageKey(isBoot, v, oci.AllowlistOnly)] = id
	}
	return nil
}

// built lists the ids of an image in the repository's formats.
func (p *pull) built(isBoot bool) *BuiltImage {
	var b BuiltImage
	for i, v := range p.repo.Versions() {
		id := p.image.Images[oci.ImageKey(isBoot, v, oci.AllowlistOnly)]
		if i == 0 {
			b.ID, b.Erofs = id, strings.ToLower(v.String())
		} else {
			b.Others = append(b.Others, OtherImage{Erofs: strings.ToLower(v.String()), ID: id})
		}
	}
	return &b
}

// findEntries collects the boot entries and describes them in the result.
func (p *pull) findEntries(ctx context.Context, root *tree.Node) ([]boot.Entry, error) {
	content := oci.Contents{Repo: p.repo}
	entries, err := boot.Find(root, content)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", p.Reference, err)
	}
	if len(entries) == 0 {
		if !p.AllowNoBoot {
			return nil, fmt.Errorf("image %s: %w", p.Reference, ErrNoBootEntries)
		}
		p.warn("%v", ErrNoBootEntries)
	}
	p.result.BootEntries, err = DescribeEntries(ctx, entries, content)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", p.Reference, err)
	}
	return entries, nil
}

// DescribeEntries describes boot entries for a result.
func DescribeEntries(ctx context.Context, entries []boot.Entry, content boot.Content) ([]BootEntry, error) {
	out := []BootEntry{}
	for i := range entries {
		e := &entries[i]
		described := BootEntry{
			Type: e.Type, Name: e.Name, Kver: e.Kver, MissingInitrd: e.MissingInitrd(), Files: []BootFile{},
		}
		for _, f := range e.Files {
			described.Files = append(described.Files, BootFile{
				Role: string(f.Role), Path: f.Path, Object: f.Node.Object, Size: f.Node.Size,
			})
		}
		var err error
		described.BootDigest, err = e.BootDigest(ctx, content)
		if err != nil && !errors.Is(err, boot.ErrNoInitrd) && !errors.Is(err, boot.ErrNoKernel) {
			return nil, fmt.Errorf("boot entry %s: %w", e.Name, err)
		}
		out = append(out, described)
	}
	return out, nil
}

// bootVariants are the ways a unified kernel image may have been sealed, the
// usual first.
var bootVariants = []oci.Variant{
	{Boot: true, Mode: oci.AllowlistOnly, Version: erofs.V1}, {Boot: true, Mode: oci.AllowlistOnly, Version: erofs.V2},
	{Boot: true, Mode: oci.KeepUser, Version: erofs.V1}, {Boot: true, Mode: oci.KeepUser, Version: erofs.V2},
}

// checkUKIs makes sure that each unified kernel image boots this image. One
// that was sealed for another variant of the boot image gets that variant.
func (p *pull) checkUKIs(ctx context.Context, entries []boot.Entry) error {
	var all []boot.Candidate
	for i := range entries {
		e := &entries[i]
		if e.Type != boot.UKI {
			continue
		}
		sections, err := e.Sections(oci.Contents{Repo: p.repo})
		if err != nil {
			return fmt.Errorf("image %s: %s: %w", p.Reference, e.Path, err)
		}
		if boot.CheckUKI(sections, p.bootCandidates()) == nil {
			continue
		}
		if all == nil {
			if all, err = p.allCandidates(ctx); err != nil {
				return err
			}
		}
		match, _, err := boot.MatchUKI(sections, all)
		if err != nil {
			if mismatch, ok := errors.AsType[*boot.MismatchError](err); ok {
				mismatch.UKI = e.Path
			}
			return fmt.Errorf("image %s: %w", p.Reference, err)
		}
		if err := p.storeVariant(ctx, match); err != nil {
			return err
		}
	}
	return nil
}

// bootCandidates are the boot images that are built.
func (p *pull) bootCandidates() []boot.Candidate {
	var candidates []boot.Candidate
	for _, v := range bootVariants {
		if id, ok := p.image.Images[v.Key()]; ok {
			candidates = append(candidates, candidate(v, id))
		}
	}
	return candidates
}

func candidate(v oci.Variant, id fsverity.Digest) boot.Candidate {
	return boot.Candidate{Mode: v.Mode.String(), Version: v.Version, ID: id}
}

// rebuild merges the layers anew: the transforms work in place.
func (p *pull) rebuild() *oci.Rebuild {
	var layers []fsverity.Digest
	for _, diffID := range p.config.DiffIDs {
		layers = append(layers, p.image.Layers[diffID])
	}
	return oci.NewRebuild(p.repo, layers, p.Limits)
}

// rebuildError names the image's layer that an error of a rebuild is about.
func (p *pull) rebuildError(err error) error {
	if layer, ok := errors.AsType[*oci.LayerError](err); ok {
		return p.layerError(layer.Index, layer.Err)
	}
	return err
}

// allCandidates computes the ids of all variants of the boot image.
func (p *pull) allCandidates(ctx context.Context) ([]boot.Candidate, error) {
	var candidates []boot.Candidate
	rebuild := p.rebuild()
	for _, v := range bootVariants {
		id, err := rebuild.Compute(ctx, v)
		if err != nil {
			return nil, p.rebuildError(err)
		}
		candidates = append(candidates, candidate(v, id))
	}
	return candidates, nil
}

// storeVariant stores the variant of the boot image that a unified kernel
// image was sealed for.
func (p *pull) storeVariant(ctx context.Context, match boot.Candidate) error {
	for _, v := range bootVariants {
		if candidate(v, match.ID) != match {
			continue
		}
		id, err := p.rebuild().Build(ctx, v)
		if err != nil {
			return p.rebuildError(err)
		}
		p.image.Images[v.Key()] = id
	}
	return nil
}
