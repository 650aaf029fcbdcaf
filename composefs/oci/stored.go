// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Stored is an image as a repository has it.
type Stored struct {
	Subject
	ManifestDocument *Document // nil when the subject is a config or an EROFS image
	ManifestInfo     *Manifest
	ConfigDocument   *Document // nil when the subject is an EROFS image
	ConfigInfo       *Config
}

// Load reads the manifest and the config of a subject. What an artifact is
// has neither ManifestInfo nor config; the error is [ErrNotContainer] then and
// the rest is returned all the same.
func Load(repo *composefs.Repo, s *Subject) (*Stored, error) {
	im := &Stored{Subject: *s}
	if !s.Image.IsZero() {
		return im, nil
	}
	var err error
	if !s.Manifest.IsZero() {
		if im.ManifestDocument, err = OpenManifest(repo, s.Manifest); err != nil {
			return nil, s.missing("manifest", s.Manifest, err)
		}
		if im.ManifestInfo, err = ParseManifest(im.ManifestDocument.Raw); err != nil {
			return im, fmt.Errorf("manifest %s: %w", s.Manifest, err)
		}
		if im.Config, err = ParseDigest(im.ManifestInfo.Config.Digest); err != nil {
			return nil, err
		}
	}
	if im.ConfigDocument, err = OpenConfig(repo, im.Config); err != nil {
		return nil, s.missing("config", im.Config, err)
	}
	if im.ManifestInfo != nil {
		im.ConfigInfo, err = ParseConfig(im.ConfigDocument.Raw, len(im.ManifestInfo.Layers))
	} else {
		im.ConfigInfo, err = ParseLoneConfig(im.ConfigDocument.Raw)
	}
	if err != nil {
		return nil, fmt.Errorf("config %s: %w", im.Config, err)
	}
	return im, nil
}

// missing says that something is not there that a link promises.
func (s *Subject) missing(what string, d Digest, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w: its %s %s is not in the repository: %w", quote(s.Reference), ErrIntegrity, what, d, err)
	}
	return err
}

// NamedImage is an EROFS image that a config names.
type NamedImage struct {
	Key   string
	ID    fsverity.Digest
	Boot  bool
	V2    bool   // the format; otherwise V0 or V1
	Xattr string // the mode in which it was built
}

// NamedImages are the EROFS images that the config names: plain before boot,
// and by key.
func (d *Document) NamedImages() []NamedImage {
	var out []NamedImage
	images := d.Images()
	for _, key := range slices.Sorted(maps.Keys(images)) {
		n := NamedImage{Key: key, ID: images[key], Xattr: AllowlistOnly.String()}
		rest := strings.TrimPrefix(key, imageRefPrefix)
		if boot, ok := strings.CutPrefix(key, bootRefPrefix); ok {
			n.Boot, rest = true, boot
		}
		format, mode, ok := strings.Cut(rest, ".xattrs=")
		if ok {
			n.Xattr = mode
		}
		n.V2 = format == ""
		out = append(out, n)
	}
	slices.SortStableFunc(out, func(a, b NamedImage) int {
		if a.Boot == b.Boot {
			return 0
		}
		if b.Boot {
			return -1
		}
		return 1
	})
	return out
}

// ErrNoImage reports an image without the EROFS image that was asked for.
var ErrNoImage = errors.New("the repository does not have this EROFS image")

// Erofs is the EROFS image of a subject to look into or to mount: the boot
// image or the plain one, in the repository's default format if there is that
// one. An EROFS image is itself, and is never asked for its boot image.
func (im *Stored) Erofs(repo *composefs.Repo, boot bool) (fsverity.Digest, error) {
	if !im.Image.IsZero() {
		if boot {
			return fsverity.Digest{}, fmt.Errorf("%w: %s is an EROFS image itself, and has no boot image", ErrReference, quote(im.Reference))
		}
		return im.Image, nil
	}
	versions := append(repo.Versions(), erofs.V1, erofs.V2)
	modes := []XattrMode{AllowlistOnly}
	if boot {
		modes = append(modes, KeepUser)
	}
	var named []string
	for _, mode := range modes {
		for _, v := range versions {
			id, ok := im.ConfigDocument.Refs[ImageKey(boot, v, mode)]
			if !ok {
				continue
			}
			if ok, err := repo.HasImage(id); ok || err != nil {
				return id, err
			}
			named = append(named, id.String())
		}
	}
	kind := "plain"
	if boot {
		kind = "boot"
	}
	if len(named) > 0 {
		return fsverity.Digest{}, fmt.Errorf("%s: %w: its %s image %s is missing or broken; pull the image again", quote(im.Reference), ErrNoImage, kind, named[0])
	}
	return fsverity.Digest{}, fmt.Errorf("%s: %w: it was pulled without a %s image; pull it again", quote(im.Reference), ErrNoImage, kind)
}

// OpenErofs opens an EROFS image whose content has the digest id.
func OpenErofs(repo *composefs.Repo, id fsverity.Digest) (*erofs.Image, error) {
	f, _, err := repo.OpenVerifiedImage(id)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read-only
	return readErofs(f, id)
}

// readErofs reads an EROFS image from its file.
func readErofs(f *os.File, id fsverity.Digest) (*erofs.Image, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	image, err := erofs.Open(f, info.Size())
	if err != nil {
		return nil, fmt.Errorf("read image %s: %w", id, err)
	}
	return image, nil
}

// Tree is the tree of a subject: that of the EROFS image, if the repository has
// it, which is then checked against its id, and otherwise that of the layers.
func (im *Stored) Tree(ctx context.Context, repo *composefs.Repo, boot bool) (*tree.Node, error) {
	id, err := im.Erofs(repo, boot)
	if errors.Is(err, ErrNoImage) {
		return im.LayersTree(ctx, repo, boot, AllowlistOnly)
	}
	if err != nil {
		return nil, err
	}
	image, err := OpenErofs(repo, id)
	if err != nil {
		return nil, err
	}
	root, err := image.Tree()
	if err != nil {
		return nil, fmt.Errorf("read image %s: %w", id, err)
	}
	return root, nil
}

// LayersTree merges the layers of an image and makes the tree of its plain or
// boot image.
func (im *Stored) LayersTree(ctx context.Context, repo *composefs.Repo, boot bool, mode XattrMode) (*tree.Node, error) {
	if im.ConfigDocument == nil {
		return nil, fmt.Errorf("%w: %s is an EROFS image and has no layers", ErrReference, quote(im.Reference))
	}
	m := NewMerger(repo, Limits{})
	for _, d := range im.ConfigInfo.DiffIDs {
		id, err := im.layer(repo, d)
		if err == nil {
			err = m.Layer(ctx, id)
		}
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", d, err)
		}
	}
	root := m.Root()
	if err := Transform(root, mode); err != nil {
		return nil, err
	}
	if boot {
		if err := TransformBoot(root, Contents{Repo: repo}); err != nil {
			return nil, err
		}
	}
	return root, nil
}

// layer is the stream of a layer: what the config names, else what is linked.
func (im *Stored) layer(repo *composefs.Repo, d Digest) (fsverity.Digest, error) {
	if id, ok := im.ConfigDocument.Refs[d.String()]; ok {
		return id, nil
	}
	return repo.StreamID(LayerStream(d))
}

// StoredLayer is a layer as a repository has it.
type StoredLayer struct {
	DiffID  Digest
	Stream  fsverity.Digest // or zero
	Present bool            // with all objects
}

// StoredLayers are the layers of an image, the lowest first.
func (im *Stored) StoredLayers(repo *composefs.Repo) ([]StoredLayer, error) {
	out := []StoredLayer{}
	for _, d := range im.ConfigInfo.DiffIDs {
		l := StoredLayer{DiffID: d}
		id, err := im.layer(repo, d)
		switch {
		case err == nil:
			l.Stream = id
			if l.Present, err = repo.CheckStream(id, splitstream.Layer); err != nil {
				return nil, err
			}
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, composefs.ErrIntegrity):
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}
