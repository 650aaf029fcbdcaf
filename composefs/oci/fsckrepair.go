// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"errors"
	"fmt"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// errPull says what a repair could not find.
var errPull = errors.New("it cannot be derived from what is there; pull the image again")

// linkLayer links a layer that a config names, if it is that layer.
func (f *fsck) linkLayer(ctx context.Context, d Digest, id fsverity.Digest) error {
	t, err := f.c.ReadTables(id, 0)
	if err != nil {
		return err
	}
	if err := f.proveLayer(ctx, d, id); err != nil {
		return err
	}
	_, err = f.repo.LinkStreamOnce(LayerStream(d), id, t.Type)
	return err
}

// proveLayer reads a stream and makes sure that it is a layer's.
func (f *fsck) proveLayer(ctx context.Context, d Digest, id fsverity.Digest) error {
	sum, err := f.c.StreamDigest(ctx, id)
	if err == nil && sum != d.sum {
		err = fmt.Errorf("stream %s has digest sha256:%x", id, sum)
	}
	if err != nil {
		return fmt.Errorf("layer %s: %w: %w", d, err, errPull)
	}
	return nil
}

// recommit writes the config and the manifest of an image anew, as a pull that
// finds all layers does. Both documents are proved by their digests, whichever
// object they are found in, the layers by theirs.
func (f *fsck) recommit(ctx context.Context, d Digest) error {
	rawManifest, err := f.document(ctx, ManifestStream(d), splitstream.Manifest, d)
	if err != nil {
		return fmt.Errorf("manifest %s: %w", d, err)
	}
	manifest, err := ParseManifest(rawManifest)
	if err != nil {
		return err
	}
	configDigest, err := ParseDigest(manifest.Config.Digest)
	if err != nil {
		return err
	}
	rawConfig, err := f.document(ctx, ConfigStream(configDigest), splitstream.Config, configDigest)
	if err != nil {
		return fmt.Errorf("config %s: %w", configDigest, err)
	}
	config, err := ParseConfig(rawConfig, len(manifest.Layers))
	if err != nil {
		return err
	}
	im := &Image{
		Manifest: rawManifest, Config: rawConfig, DiffIDs: config.DiffIDs,
		Layers: map[Digest]fsverity.Digest{}, Images: map[string]fsverity.Digest{},
	}
	if err := f.findLayers(ctx, d, configDigest, im); err != nil {
		return err
	}
	if err := f.findImages(ctx, configDigest, im); err != nil {
		return err
	}
	// A damaged stream would be taken for the one that is written now.
	for _, name := range []string{ConfigStream(configDigest), ManifestStream(d)} {
		if id, ok := f.c.StreamLink(name); ok {
			if err := f.c.DropDamaged(ctx, id); err != nil {
				return err
			}
		}
	}
	_, err = Commit(ctx, f.repo, im)
	return err
}

// document finds the bytes of a manifest or config: where its link leads to, or
// in any object.
func (f *fsck) document(ctx context.Context, name string, ct splitstream.ContentType, d Digest) ([]byte, error) {
	if id, ok := f.c.StreamLink(name); ok {
		if doc, err := f.readChecked(id, ct); err == nil && DigestOf(doc.raw) == d {
			return doc.raw, nil
		}
	}
	raw, err := f.c.FindDocument(ctx, d.sum, MaxDocument)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errPull)
	}
	return raw, nil
}

// findLayers finds the streams of an image's layers: those that are linked, or
// else those that its old config and manifest name.
func (f *fsck) findLayers(ctx context.Context, manifest, config Digest, im *Image) error {
	var named []map[string]fsverity.Digest
	for _, name := range []string{ConfigStream(config), ManifestStream(manifest)} {
		if id, ok := f.c.StreamLink(name); ok {
			if t, err := f.c.ReadTables(id, 0); err == nil {
				refs := map[string]fsverity.Digest{}
				for _, ref := range t.Named {
					refs[ref.Name] = ref.ID
				}
				named = append(named, refs)
			}
		}
	}
	for _, d := range im.DiffIDs {
		id, linked, err := f.findLayer(ctx, d, named)
		if err != nil {
			return err
		}
		im.Layers[d] = id
		if !linked && f.c.HasStreamLink(LayerStream(d)) {
			// Its link leads to another layer, or to nothing.
			if err := f.repo.LinkStream(LayerStream(d), id); err != nil {
				return err
			}
		}
	}
	return nil
}

// findLayer finds the stream of a layer.
func (f *fsck) findLayer(ctx context.Context, d Digest, named []map[string]fsverity.Digest) (id fsverity.Digest, linked bool, err error) {
	if id, linked, err = LayerComplete(f.repo, d); err != nil {
		return id, false, err
	}
	if linked {
		if err = f.proveLayer(ctx, d, id); err == nil {
			return id, true, nil
		}
	}
	for _, refs := range named {
		id, ok := refs[d.String()]
		if !ok {
			continue
		}
		if err = f.proveLayer(ctx, d, id); err == nil {
			return id, false, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("layer %s is not there, or not complete: %w", d, errPull)
	}
	return fsverity.Digest{}, false, err
}

// findImages finds the EROFS images of an image: those that its config names.
// When there is no config that could be read, the plain image is made, which
// every config names; a boot image belongs to it if it is there under the name
// that comes out.
func (f *fsck) findImages(ctx context.Context, config Digest, im *Image) error {
	if old, err := OpenConfig(f.repo, config); err == nil {
		im.Images, err = StoredImages(f.repo, old)
		return err
	}
	var layers []fsverity.Digest
	for _, d := range im.DiffIDs {
		layers = append(layers, im.Layers[d])
	}
	rebuild := NewRebuild(f.repo, layers, f.o.Limits)
	for _, version := range f.repo.Versions() {
		v := Variant{Version: version}
		id, err := rebuild.Build(ctx, v)
		if err != nil {
			return fmt.Errorf("make the EROFS image: %w", err)
		}
		im.Images[v.Key()] = id
	}
	for _, mode := range []XattrMode{AllowlistOnly, KeepUser} {
		for _, version := range f.repo.Versions() {
			v := Variant{Boot: true, Version: version, Mode: mode}
			// An image without the directories of a bootable one has none.
			// With another mode it may be the same, which says nothing.
			same := v
			same.Mode = AllowlistOnly
			if id, err := rebuild.Compute(ctx, v); err == nil && f.c.Exists(id) && im.Images[same.Key()] != id {
				im.Images[v.Key()] = id
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
	}
	return nil
}
