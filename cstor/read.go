// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/internal/rooted"
)

// view is the records of a store and of its additional image stores, read while
// the locks of all were held. The store itself is the first.
type view []*records

// withRecords calls f with the records, and holds the locks meanwhile.
func (s *Store) withRecords(ctx context.Context, f func(view) error) error {
	if broken := s.lib.broken.Load(); broken != nil {
		return *broken // its locks are never given back
	}
	var v view
	for i, root := range append([]string{s.graphRoot}, s.options.AdditionalImageStores...) {
		readOnly := i > 0
		unlock, err := lockForReading(ctx, root, readOnly, s.options.LockTimeout)
		if err != nil {
			return err
		}
		defer unlock()
		r, err := readRecords(root, readOnly)
		if err != nil {
			return fmt.Errorf("read containers-storage %s: %w", root, err)
		}
		v = append(v, r)
	}
	return f(v)
}

// images lists the images. One that several stores have is that of the first.
func (v view) images() []*Image {
	var out []*Image
	seen := map[string]bool{}
	for _, r := range v {
		for i := range r.images {
			if img := r.images[i].image(r); !seen[img.ID] {
				seen[img.ID] = true
				out = append(out, img)
			}
		}
	}
	return out
}

// image is the record in exported form.
func (i *imageRecord) image(r *records) *Image {
	img := &Image{
		ID: i.ID, Names: slices.Clone(i.Names), Created: i.Created, TopLayer: i.Layer,
		bigDataNames: slices.Clone(i.BigDataNames),
		ReadOnly:     r.readOnly, GraphRoot: r.root,
	}
	// What is not a SHA-256 digest names no manifest that we could use.
	img.ManifestDigest, _ = oci.ParseDigest(i.BigDataDigests[manifestKey])
	for _, key := range i.BigDataNames {
		if len(key) < len(manifestKey) || key[:len(manifestKey)] != manifestKey {
			continue
		}
		d, err := oci.ParseDigest(i.BigDataDigests[key])
		if err == nil && !slices.Contains(img.Digests, d) {
			img.Digests = append(img.Digests, d)
		}
	}
	return img
}

// layer finds the record of a layer.
func (v view) layer(id string) (*records, *layerRecord) {
	for _, r := range v {
		if l := r.layers[id]; l != nil {
			return r, l
		}
	}
	return nil, nil
}

// Images lists the images, those of additional image stores last, without
// their manifests and configs.
func (s *Store) Images() (images []*Image, err error) {
	err = s.withRecords(context.Background(), func(v view) error {
		images = v.images()
		return nil
	})
	return images, err
}

// Lookup finds an image by its id, or enough leading digits of it, by a name,
// or by a manifest digest, and loads its manifest and config. A
// [*NotFoundError] says that there is none.
func (s *Store) Lookup(nameOrIDOrDigest string) (img *Image, err error) {
	return s.lookup(context.Background(), nameOrIDOrDigest)
}

func (s *Store) lookup(ctx context.Context, nameOrIDOrDigest string) (img *Image, err error) {
	err = s.withRecords(ctx, func(v view) error {
		img = find(v.images(), nameOrIDOrDigest)
		if img == nil {
			return &NotFoundError{GraphRoot: s.graphRoot, Name: nameOrIDOrDigest}
		}
		return img.load()
	})
	if err != nil {
		return nil, err
	}
	return img, nil
}

// Load reads the manifest and the config of an image that Images has listed. A
// [*NotFoundError] says that it was removed since.
func (s *Store) Load(img *Image) error {
	return s.withRecords(context.Background(), func(v view) error {
		i := slices.IndexFunc(v.images(), func(i *Image) bool { return i.ID == img.ID && i.GraphRoot == img.GraphRoot })
		if i < 0 {
			return &NotFoundError{GraphRoot: img.GraphRoot, Name: img.ID}
		}
		return img.load()
	})
}

// load reads the manifest and the config and verifies them.
func (img *Image) load() error {
	fail := func(what string, err error) error {
		return fmt.Errorf("image %s in containers-storage %s: %s: %w", img.ID, img.GraphRoot, what, err)
	}
	switch {
	case img.ManifestDigest.IsZero() && slices.Contains(img.bigDataNames, manifestKey):
		return fail("manifest", fmt.Errorf("%w: it has no SHA-256 digest", ErrUnsupported))
	case img.ManifestDigest.IsZero():
		// The library writes an image's record before its documents, and its names
		// last.
		return fail("manifest", fmt.Errorf("%w: there is none", ErrIncomplete))
	}
	manifest, err := img.bigData(manifestKey+"-"+img.ManifestDigest.String(), maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		manifest, err = img.bigData(manifestKey, maxManifest) // as older writers store it
	}
	if err != nil {
		return fail("manifest", missing(err))
	}
	if got := oci.DigestOf(manifest); got != img.ManifestDigest {
		return fail("manifest", fmt.Errorf("%w: it has digest %s, the record says %s", ErrIncomplete, got, img.ManifestDigest))
	}
	m, err := oci.ParseManifest(manifest)
	if err != nil {
		return fail("manifest "+img.ManifestDigest.String(), err)
	}
	configDigest, err := oci.ParseDigest(m.Config.Digest)
	if err != nil {
		return fail("manifest", err)
	}
	config, err := img.bigData(configDigest.String(), maxConfig)
	if err != nil {
		return fail("config", missing(err))
	}
	if got := oci.DigestOf(config); got != configDigest {
		return fail("config", fmt.Errorf("%w: it has digest %s, the manifest says %s", ErrIncomplete, got, configDigest))
	}
	c, err := oci.ParseConfig(config, len(m.Layers))
	if err != nil {
		return fail("config "+configDigest.String(), err)
	}
	img.Manifest, img.Config, img.ConfigDigest, img.DiffIDs = manifest, config, configDigest, c.DiffIDs
	return nil
}

// missing marks the error for a file that is not there.
func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrIncomplete, err)
	}
	return err
}

func (img *Image) bigData(key string, limit int64) ([]byte, error) {
	return rooted.ReadFile(img.GraphRoot, bigDataPath(img.ID, key), limit)
}

// Layers lists the layers of an image that Lookup or Load has loaded, lowest
// first: as many as it has diff_ids, else the error is ErrIncomplete, as
// it is when a layer's recorded diff_id is not that of the config.
func (s *Store) Layers(img *Image) ([]Layer, error) { return s.layers(context.Background(), img) }

func (s *Store) layers(ctx context.Context, img *Image) (layers []Layer, err error) {
	err = s.withRecords(ctx, func(v view) error {
		layers, err = v.chain(img)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("image %s in containers-storage %s: %w", img.ID, img.GraphRoot, err)
	}
	return layers, nil
}

// chain follows the parents from an image's top layer.
func (v view) chain(img *Image) ([]Layer, error) {
	var layers []Layer
	for id := img.TopLayer; id != ""; {
		r, l := v.layer(id)
		switch {
		case l == nil:
			return nil, fmt.Errorf("%w: there is no layer %s", ErrIncomplete, id)
		case l.incomplete():
			return nil, fmt.Errorf("%w: layer %s is incomplete", ErrIncomplete, id)
		case len(layers) == len(img.DiffIDs):
			return nil, fmt.Errorf("%w: it has more layers than the %d diff_ids of its config", ErrIncomplete, len(img.DiffIDs))
		}
		layers = append(layers, l.layer(r))
		id = l.Parent
	}
	if len(layers) != len(img.DiffIDs) {
		return nil, fmt.Errorf("%w: it has %d layers, its config %d diff_ids", ErrIncomplete, len(layers), len(img.DiffIDs))
	}
	slices.Reverse(layers)
	for i, l := range layers {
		if !l.DiffID.IsZero() && l.DiffID != img.DiffIDs[i] {
			return nil, fmt.Errorf("%w: layer %d of %d (%s) has diff_id %s, the config says %s",
				ErrIncomplete, i+1, len(layers), l.ID, l.DiffID, img.DiffIDs[i])
		}
	}
	return layers, nil
}

// layer is the record in exported form.
func (l *layerRecord) layer(r *records) Layer {
	out := Layer{
		ID: l.ID, Parent: l.Parent, CompressedSize: l.CompressedSize, UncompressedSize: max(l.DiffSize, 0),
		DiffDir: diffDir(r.root, l.ID), ReadOnly: r.readOnly, GraphRoot: r.root,
	}
	out.DiffID, _ = oci.ParseDigest(l.DiffDigest)
	out.CompressedDigest, _ = oci.ParseDigest(l.CompressedDigest)
	if path := tarSplitPath(r.root, l.ID); isRegular(path) {
		out.TarSplitPath = path
	}
	if isRegular(filepath.Join(r.root, driverDir, l.ID, flatMarker)) {
		out.Partial = "its files are named by their content (composefs format of containers-storage)"
	} else if out.DiffID.IsZero() {
		out.Partial = fmt.Sprintf("the digest of its uncompressed archive is not known (found by table of contents %s)",
			cmp.Or(l.TOCDigest, "that was not recorded either"))
	}
	return out
}

func isRegular(path string) bool   { return fileType(path) == unix.S_IFREG }
func isDirectory(path string) bool { return fileType(path) == unix.S_IFDIR }

// fileType is the type of what is at path, links not followed, or 0.
func fileType(path string) uint32 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0
	}
	return st.Mode & unix.S_IFMT
}
