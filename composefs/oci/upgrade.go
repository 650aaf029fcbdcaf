// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Upgraded counts what Upgrade found.
type Upgraded struct {
	Current int // images that have everything
	Images  int // images that were upgraded
	Skipped int // tags that lead to artifacts, or to nothing this package knows
	// Broken are images that cannot be upgraded because something of them is
	// missing or malformed. They are as they were.
	Broken []BrokenImage
}

// BrokenImage is a tag that leads to an image which cannot be used.
type BrokenImage struct {
	Tag string
	Err error
}

// Upgrade brings the tagged images of a repository into today's form: older
// releases kept no EROFS image, or did not name it in the config, so that it
// cannot be mounted or is not found (specification oci-and-boot.md section
// 2.9). What is there already is not built again; layers stay as they are,
// also those with the first form of the splitstream header. A second run
// changes nothing.
//
// The handle must be writable. Each image is complete before the next begins.
func Upgrade(ctx context.Context, repo *composefs.Repo, limits Limits) (*Upgraded, error) {
	result := &Upgraded{}
	tags, err := repo.StreamRefs(strings.TrimSuffix(tagPrefix, "/"))
	if err != nil {
		return result, fmt.Errorf("upgrade images: %w", err)
	}
	return result, result.each(ctx, tags, func(stream string) error { return result.upgrade(ctx, repo, stream, limits) })
}

// Outdated counts the images that Upgrade would upgrade, and changes nothing.
func Outdated(ctx context.Context, repo *composefs.Repo) (int, error) {
	tags, err := repo.StreamRefs(strings.TrimSuffix(tagPrefix, "/"))
	if err != nil {
		return 0, fmt.Errorf("look for images to upgrade: %w", err)
	}
	var u Upgraded
	n := 0
	err = u.each(ctx, tags, func(stream string) error {
		old, err := u.outdated(repo, stream)
		if old != nil {
			n++
		}
		return err
	})
	return n, err
}

// each calls f once for each stream that tags lead to and collects what is
// broken.
func (u *Upgraded) each(ctx context.Context, tags []composefs.Ref, f func(stream string) error) error {
	seen := map[string]bool{}
	for _, tag := range tags {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if seen[tag.Target] {
			continue
		}
		seen[tag.Target] = true
		err := f(tag.Target)
		switch name := DecodeTag(strings.TrimPrefix(tag.Name, tagPrefix)); {
		case isBroken(err):
			u.Broken = append(u.Broken, BrokenImage{Tag: name, Err: err})
		case err != nil:
			return fmt.Errorf("upgrade image %s: %w", name, err)
		}
	}
	return nil
}

// isBroken tells what is wrong in the repository from what went wrong.
func isBroken(err error) bool {
	for _, cause := range []error{
		fs.ErrNotExist, ErrIntegrity, composefs.ErrIntegrity, splitstream.ErrFormat, splitstream.ErrContentType,
		ErrMalformed, ErrTooLarge,
	} {
		if errors.Is(err, cause) {
			return true
		}
	}
	return false
}

// outdatedImage is an image that lacks plain EROFS images, or whose manifest
// names another config than the one that is linked.
type outdatedImage struct {
	manifest, config *Document
	layers           int
	missing          []erofs.Version
}

// outdated looks at the image of one manifest stream. It is nil when there is
// nothing to do.
func (u *Upgraded) outdated(repo *composefs.Repo, stream string) (*outdatedImage, error) {
	text, ok := strings.CutPrefix(stream, manifestPrefix)
	digest, err := ParseDigest(text)
	if !ok || err != nil {
		u.Skipped++
		return nil, nil
	}
	manifest, err := OpenManifest(repo, digest)
	if err != nil {
		return nil, err
	}
	parsed, err := ParseManifest(manifest.Raw)
	if errors.Is(err, ErrNotContainer) {
		u.Skipped++
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	config, err := configOf(repo, manifest, parsed)
	if err != nil {
		return nil, err
	}
	missing, err := missingImages(repo, config)
	if err != nil {
		return nil, err
	}
	// An upgrade that was interrupted may have linked the new config and not the
	// manifest that names it.
	name := configRef + parsed.Config.Digest
	if len(missing) == 0 && manifest.Refs[name] == streamID(repo, configPrefix+parsed.Config.Digest) {
		u.Current++
		return nil, nil
	}
	return &outdatedImage{manifest, config, len(parsed.Layers), missing}, nil
}

// upgrade handles the image of one manifest stream.
func (u *Upgraded) upgrade(ctx context.Context, repo *composefs.Repo, stream string, limits Limits) error {
	old, err := u.outdated(repo, stream)
	if old == nil || err != nil {
		return err
	}
	image, err := imageOf(repo, old.manifest, old.config, old.layers)
	if err != nil {
		return err
	}
	if len(old.missing) > 0 {
		if err := image.buildPlain(ctx, repo, old.missing, limits); err != nil {
			return err
		}
	}
	if _, err := Commit(ctx, repo, image); err != nil {
		return err
	}
	u.Images++
	return nil
}

// configOf opens the config of a manifest: the one that its link leads to, or
// else the one that the manifest names.
func configOf(repo *composefs.Repo, manifest *Document, parsed *Manifest) (*Document, error) {
	digest, err := ParseDigest(parsed.Config.Digest)
	if err != nil {
		return nil, err
	}
	config, err := OpenConfig(repo, digest)
	id, named := manifest.Refs[configRef+digest.String()]
	if !errors.Is(err, fs.ErrNotExist) || !named {
		return config, err
	}
	if config, err = readDocument(repo, id, splitstream.Config); err != nil {
		return nil, err
	}
	if got := DigestOf(config.Raw); got != digest {
		return nil, fmt.Errorf("read config %s: %w: its content has digest %s", digest, ErrIntegrity, got)
	}
	return config, nil
}

// missingImages lists the formats of the repository that a config has no
// mountable plain image in.
func missingImages(repo *composefs.Repo, config *Document) ([]erofs.Version, error) {
	var missing []erofs.Version
	for _, v := range repo.Versions() {
		id, ok := config.Refs[ImageKey(false, v, AllowlistOnly)]
		if ok {
			var err error
			if ok, err = repo.HasImage(id); err != nil {
				return nil, err
			}
		}
		if !ok {
			missing = append(missing, v)
		}
	}
	return missing, nil
}

// imageOf collects what Commit has to know of an image that is stored.
func imageOf(repo *composefs.Repo, manifest, config *Document, layers int) (*Image, error) {
	parsed, err := ParseConfig(config.Raw, layers)
	if err != nil {
		return nil, err
	}
	image := &Image{
		Manifest: manifest.Raw, Config: config.Raw, DiffIDs: parsed.DiffIDs,
		Layers: map[Digest]fsverity.Digest{}, Images: map[string]fsverity.Digest{},
	}
	for _, d := range parsed.DiffIDs {
		id, ok := config.Refs[d.String()]
		if !ok {
			if id, err = repo.StreamID(LayerStream(d)); err != nil {
				return nil, err
			}
		}
		image.Layers[d] = id
	}
	return image, nil
}

// buildPlain stores the plain EROFS image in some formats.
func (im *Image) buildPlain(ctx context.Context, repo *composefs.Repo, versions []erofs.Version, limits Limits) error {
	m := NewMerger(repo, limits)
	for _, d := range im.DiffIDs {
		if err := m.Layer(ctx, im.Layers[d]); err != nil {
			return fmt.Errorf("layer %s: %w", d, err)
		}
	}
	if err := Transform(m.Root(), AllowlistOnly); err != nil {
		return err
	}
	for _, v := range versions {
		id, err := BuildImage(repo, m.Root(), v)
		if err != nil {
			return err
		}
		im.Images[ImageKey(false, v, AllowlistOnly)] = id
	}
	return nil
}
