// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// CopyOptions say what Copy copies.
type CopyOptions struct {
	// Reference is the image, as [Resolve] takes it in the repository that it
	// is copied from.
	Reference string
	// Tag is written beside localhost/bootc-<manifest digest>. If it is empty
	// and Reference is a tag, that tag is.
	Tag    string
	Limits Limits
	// Jobs is the number of goroutines that hash and store files; 0 means one
	// a CPU.
	Jobs int
}

// Copied is what Copy did.
type Copied struct {
	Committed
	Tags          []string
	Layers        int // distinct ones
	LayersPresent int // those that were there before
	Images        map[string]fsverity.Digest
	Stats         *Stats
	// Warnings are about the repository that was copied from.
	Warnings []string
}

// ErrSameRepository reports a copy from a repository to itself.
var ErrSameRepository = errors.New("both are the same repository")

// parallelCopies is how many layers are copied at once.
const parallelCopies = 4

// Copy copies an image from one repository to another, whose algorithm and
// EROFS formats may differ. Nothing is taken at its word: layers are imported
// as if they came from a registry, so that every byte is read, hashed and
// compared with the digests of the image's config, and objects get their names
// by what they hold; manifest and config are compared with their digests; the
// EROFS images are made from the layers. Files are cloned where the file
// systems can do that. The image becomes visible as by [Commit], and what it
// needed is kept when Copy fails, for the next one.
//
// An image that is there already is only tagged. Who copies a thing that is no
// container image gets [ErrNotContainer].
func Copy(ctx context.Context, to, from *composefs.Repo, o CopyOptions) (*Copied, error) {
	if to.Same(from) {
		return nil, fmt.Errorf("copy from %s to %s: %w", from.Path(), to.Path(), ErrSameRepository)
	}
	subject, err := Resolve(from, o.Reference)
	if err != nil {
		return nil, err
	}
	source, err := Load(from, subject)
	if err != nil {
		return nil, err
	}
	if source.ManifestDocument == nil {
		return nil, fmt.Errorf("%w: %s has no manifest, and only an image with a manifest can be copied", ErrReference, quote(o.Reference))
	}
	c := &imageCopy{to: to, from: from, CopyOptions: o, source: source, done: map[Digest]fsverity.Digest{}}
	if err := c.setTags(); err != nil {
		return nil, err
	}
	if err := c.copyLayers(ctx); err != nil {
		return nil, errors.Join(err, c.keepLayers())
	}
	images, err := c.images(ctx)
	if err != nil {
		return nil, errors.Join(err, c.keepLayers())
	}
	committed, err := Commit(ctx, to, &Image{
		Manifest: source.ManifestDocument.Raw, Config: source.ConfigDocument.Raw,
		DiffIDs: source.ConfigInfo.DiffIDs, Layers: c.done, Images: images, Tags: c.result.Tags,
	})
	if err != nil {
		return nil, errors.Join(err, c.keepLayers())
	}
	c.result.Committed, c.result.Images = *committed, images
	return &c.result, nil
}

// imageCopy is a copy under way.
type imageCopy struct {
	CopyOptions
	to, from *composefs.Repo
	source   *Stored
	result   Copied

	mu       sync.Mutex
	done     map[Digest]fsverity.Digest // layers that are in the repository
	imported map[Digest]fsverity.Digest // those that were not there before
}

// setTags finds out which tags to write, and refuses those that cannot be.
func (c *imageCopy) setTags() error {
	own := BootcTag(c.source.Manifest)
	c.result.Tags = []string{own}
	if tag := cmp.Or(c.Tag, c.source.Tag); tag != "" && tag != own {
		if IsBootcTag(tag) {
			return fmt.Errorf("tag %s: %w: it must lead to the manifest whose digest is its name", quote(tag), ErrBootcTag)
		}
		c.result.Tags = append(c.result.Tags, tag)
	}
	for _, tag := range c.result.Tags {
		if _, err := EncodeTag(tag); err != nil {
			return fmt.Errorf("%w: %w", ErrReference, err)
		}
	}
	return nil
}

// copyLayers imports the layers that are not there.
func (c *imageCopy) copyLayers(ctx context.Context) error {
	importer := NewImporter(c.to, ImporterOptions{
		Limits: c.Limits, Workers: c.Jobs, Methods: composefs.Methods{Reflink: true, Copy: true},
	})
	defer importer.Close()
	c.result.Stats, c.imported = &importer.Stats, map[Digest]fsverity.Digest{}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelCopies)
	seen := map[Digest]bool{}
	for i, d := range c.source.ConfigInfo.DiffIDs {
		if seen[d] {
			continue
		}
		seen[d] = true
		c.result.Layers++
		group.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := c.copyLayer(ctx, importer, d); err != nil {
				return fmt.Errorf("layer %d of %d (%s): %w", i+1, len(c.source.ConfigInfo.DiffIDs), d, err)
			}
			return nil
		})
	}
	return group.Wait()
}

func (c *imageCopy) copyLayer(ctx context.Context, importer *Importer, d Digest) error {
	id, present, err := LayerComplete(c.to, d)
	if err != nil {
		return err
	}
	if !present {
		stored, err := c.source.layer(c.from, d)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: it is not in %s: %w", ErrIntegrity, c.from.Path(), err)
		}
		if err != nil {
			return err
		}
		if id, err = importer.ImportLayer(ctx, OpenStoredLayer(c.from, stored, c.Limits), d); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done[d] = id
	if present {
		c.result.LayersPresent++
	} else {
		c.imported[d] = id
	}
	return nil
}

// keepLayers links what was copied by a copy that failed.
func (c *imageCopy) keepLayers() error { return LinkLayers(c.to, c.imported) }

// variants are the EROFS images to have, in the order that Rebuild likes: those
// that the repository's formats ask for, and those of the source, which kernel
// arguments may name. With another algorithm they would have other ids, so that
// nothing can name them. Formats 0 and 1 have one key; that of the repository
// counts, then that of the source.
func (c *imageCopy) variants() ([]Variant, error) {
	byKey := map[string]Variant{}
	boot := false
	for key, id := range c.source.ConfigDocument.Images() {
		v, ok := ParseImageKey(key)
		if !ok {
			c.warn("%s names an EROFS image %s, which this program does not know; it is left out", c.from.Path(), quote(key))
			continue
		}
		boot = boot || v.Boot
		if c.from.Algorithm() != c.to.Algorithm() {
			continue
		}
		version, err := c.versionOf(id)
		if err != nil {
			return nil, err
		}
		if v.Version != erofs.V2 && version == erofs.V0 {
			v.Version = erofs.V0
		}
		byKey[key] = v
	}
	for _, version := range c.to.Versions() {
		for _, b := range []bool{false, true} {
			if b && !boot {
				continue
			}
			v := Variant{Boot: b, Version: version}
			byKey[v.Key()] = v
		}
	}
	return slices.SortedFunc(maps.Values(byKey), func(a, b Variant) int {
		return cmp.Or(cmp.Compare(a.Mode, b.Mode), compareBool(a.Boot, b.Boot), cmp.Compare(a.Version, b.Version))
	}), nil
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// versionOf is the format of an EROFS image of the source; V1 when the image
// cannot be read.
func (c *imageCopy) versionOf(id fsverity.Digest) (erofs.Version, error) {
	image, err := OpenErofs(c.from, id)
	switch {
	case err == nil:
		return image.Version(), nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, composefs.ErrIntegrity), errors.Is(err, ErrIntegrity), errors.Is(err, erofs.ErrCorrupt):
		return erofs.V1, nil
	}
	return 0, err
}

// images makes the EROFS images, unless all of them are there.
func (c *imageCopy) images(ctx context.Context) (map[string]fsverity.Digest, error) {
	variants, err := c.variants()
	if err != nil {
		return nil, err
	}
	if known, err := c.known(variants); known != nil || err != nil {
		return known, err
	}
	var layers []fsverity.Digest
	for _, d := range c.source.ConfigInfo.DiffIDs {
		layers = append(layers, c.done[d])
	}
	rebuild := NewRebuild(c.to, layers, c.Limits)
	images := map[string]fsverity.Digest{}
	for _, v := range variants {
		id, err := rebuild.Build(ctx, v)
		if err != nil {
			return nil, fmt.Errorf("make EROFS image %s: %w", v.Key(), err)
		}
		images[v.Key()] = id
		had, ok := c.source.ConfigDocument.Images()[v.Key()]
		if ok && had != id && had.Algorithm() == id.Algorithm() {
			if version, err := c.versionOf(had); err == nil && version == v.Version {
				c.warn("%s has %s as EROFS image %s, which is not what the layers make; the copy has %s", c.from.Path(), had, v.Key(), id)
			}
		}
	}
	return images, nil
}

// known are the EROFS images of an image that was there before as a whole, or
// nil.
func (c *imageCopy) known(variants []Variant) (map[string]fsverity.Digest, error) {
	if len(c.imported) > 0 {
		return nil, nil
	}
	config, err := existing(OpenConfig(c.to, c.source.Config))
	if config == nil || err != nil {
		return nil, err
	}
	for d, id := range c.done {
		if config.Refs[d.String()] != id {
			return nil, nil
		}
	}
	images, err := StoredImages(c.to, config)
	if err != nil {
		return nil, err
	}
	for _, v := range variants {
		if id, ok := images[v.Key()]; !ok {
			return nil, nil
		} else if ok, err := c.to.HasImage(id); !ok || err != nil {
			return nil, err
		}
	}
	return images, nil
}

func (c *imageCopy) warn(format string, args ...any) {
	c.result.Warnings = append(c.result.Warnings, fmt.Sprintf(format, args...))
}
