// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Image is what Commit makes visible. All objects it names are stored, none
// needs to be linked.
type Image struct {
	Manifest []byte
	Config   []byte
	DiffIDs  []Digest                   // lowest layer first
	Layers   map[Digest]fsverity.Digest // layer streams by diff_id
	Images   map[string]fsverity.Digest // EROFS images by the key of ImageKey
	Tags     []string
}

// Committed is what Commit wrote.
type Committed struct {
	ManifestDigest, ConfigDigest Digest
	ManifestStream, ConfigStream fsverity.Digest
	Changed                      bool // something was written or tagged
}

// maxRaces is how often Commit starts again because another process linked the
// same layer first.
const maxRaces = 8

// Commit writes the config and the manifest and makes an image visible. The
// order is: all objects on disk, then the links of layers, EROFS images,
// config and manifest, then the tags; each step is on disk before the next. An
// image that is there already is only tagged.
func Commit(ctx context.Context, repo *composefs.Repo, im *Image) (*Committed, error) {
	c := &Committed{ManifestDigest: DigestOf(im.Manifest), ConfigDigest: DigestOf(im.Config)}
	tags := map[string]string{} // ref -> stream name
	for _, tag := range im.Tags {
		name, err := EncodeTag(tag)
		if err != nil {
			return nil, err
		}
		tags[name] = ManifestStream(c.ManifestDigest)
	}
	for range maxRaces {
		raced, err := c.commit(ctx, repo, im)
		if err != nil {
			return nil, err
		}
		if !raced {
			return c, c.tag(repo, tags)
		}
	}
	return nil, errors.New("commit image: other processes kept linking the same layers; try again")
}

// commit is one attempt; raced says that a layer was linked by another process
// under another id, so that config and manifest must name that one.
func (c *Committed) commit(ctx context.Context, repo *composefs.Repo, im *Image) (raced bool, err error) {
	old, err := existing(OpenConfig(repo, c.ConfigDigest))
	if err != nil {
		return false, err
	}
	images := im.Images
	if old != nil {
		// Images of other versions and modes stay.
		images = old.Images()
		maps.Copy(images, im.Images)
	}
	layers := layerRefs(im.DiffIDs, im.Layers)
	c.ConfigStream, err = replaceDocument(repo, splitstream.Config, old, im.Config, append(layers, imageRefs(images)...))
	if err != nil {
		return false, fmt.Errorf("write config: %w", err)
	}
	oldManifest, err := existing(OpenManifest(repo, c.ManifestDigest))
	if err != nil {
		return false, err
	}
	c.ManifestStream, err = replaceDocument(repo, splitstream.Manifest, oldManifest, im.Manifest,
		append([]ref{{configRef + c.ConfigDigest.String(), c.ConfigStream}}, layers...))
	if err != nil {
		return false, fmt.Errorf("write manifest: %w", err)
	}
	others, err := rewriteManifests(repo, c, old)
	if err != nil {
		return false, err
	}
	if err := ctx.Err(); err != nil {
		return false, context.Cause(ctx)
	}
	if c.linked(repo, im, images) {
		return false, nil
	}
	c.Changed = true
	if err := repo.SyncFS(); err != nil {
		return false, fmt.Errorf("flush objects: %w", err)
	}
	if raced, err := linkLayers(repo, im.Layers); raced || err != nil {
		return raced, err
	}
	for _, id := range images {
		if err := repo.LinkImage(id); err != nil {
			return false, err
		}
	}
	if err := repo.LinkStream(ConfigStream(c.ConfigDigest), c.ConfigStream); err != nil {
		return false, err
	}
	others[ManifestStream(c.ManifestDigest)] = c.ManifestStream
	for _, name := range slices.Sorted(maps.Keys(others)) {
		if err := repo.LinkStream(name, others[name]); err != nil {
			return false, err
		}
	}
	return false, repo.SyncLinks()
}

// existing passes on a document, or nil when the repository does not have it or
// has a broken one, which is to be written anew.
func existing(doc *Document, err error) (*Document, error) {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrIntegrity) || errors.Is(err, composefs.ErrIntegrity) ||
		errors.Is(err, splitstream.ErrFormat) || errors.Is(err, ErrMalformed) {
		return nil, nil
	}
	return doc, err
}

// replaceDocument stores a document unless old names the same already: then
// old is kept, because a stream's id depends on who compressed it.
func replaceDocument(repo *composefs.Repo, ct splitstream.ContentType, old *Document, raw []byte, refs []ref) (fsverity.Digest, error) {
	if old != nil {
		want := map[string]fsverity.Digest{}
		for _, r := range refs {
			want[r.name] = r.id
		}
		if maps.Equal(old.Refs, want) {
			return old.Stream, nil
		}
	}
	return writeDocument(repo, ct, raw, refs)
}

// rewriteManifests writes anew the other manifests that name the config's old
// stream. Garbage collection finds a config only by an id that is linked.
func rewriteManifests(repo *composefs.Repo, c *Committed, old *Document) (map[string]fsverity.Digest, error) {
	written := map[string]fsverity.Digest{}
	if old == nil || old.Stream == c.ConfigStream {
		return written, nil
	}
	names, err := repo.StreamNames()
	if err != nil {
		return nil, err
	}
	key := configRef + c.ConfigDigest.String()
	for _, name := range names {
		text, ok := strings.CutPrefix(name, manifestPrefix)
		if !ok || name == ManifestStream(c.ManifestDigest) {
			continue
		}
		d, err := ParseDigest(text)
		if err != nil {
			continue
		}
		m, err := OpenManifest(repo, d)
		if err != nil || m.Refs[key] != old.Stream {
			continue // broken, which is for fsck to say, or another image's
		}
		refs := []ref{{key, c.ConfigStream}}
		for _, other := range slices.Sorted(maps.Keys(m.Refs)) {
			if other != key {
				refs = append(refs, ref{other, m.Refs[other]})
			}
		}
		written[name], err = writeDocumentStream(repo, splitstream.Manifest, m.Object, uint64(len(m.Raw)), refs)
		if err != nil {
			return nil, fmt.Errorf("write manifest %s: %w", d, err)
		}
	}
	return written, nil
}

// linked reports whether everything but the tags is visible already.
func (c *Committed) linked(repo *composefs.Repo, im *Image, images map[string]fsverity.Digest) bool {
	want := map[string]fsverity.Digest{
		ConfigStream(c.ConfigDigest):     c.ConfigStream,
		ManifestStream(c.ManifestDigest): c.ManifestStream,
	}
	for d, id := range im.Layers {
		want[LayerStream(d)] = id
	}
	for name, id := range want {
		if got, err := repo.StreamID(name); err != nil || got != id {
			return false
		}
	}
	for _, id := range images {
		if ok, err := repo.HasImage(id); err != nil || !ok {
			return false
		}
	}
	return true
}

// linkLayers links layers unless they are linked; the ids of those that were
// linked by others meanwhile are put into layers.
func linkLayers(repo *composefs.Repo, layers map[Digest]fsverity.Digest) (raced bool, err error) {
	for d, id := range layers {
		winner, err := repo.LinkStreamOnce(LayerStream(d), id)
		if err != nil {
			return false, err
		}
		if winner != id {
			layers[d], raced = winner, true
		}
	}
	return raced, nil
}

// LinkLayers makes complete layers visible without an image, so that a pull
// that was interrupted need not fetch them again.
func LinkLayers(repo *composefs.Repo, layers map[Digest]fsverity.Digest) error {
	if len(layers) == 0 {
		return nil
	}
	if err := repo.SyncFS(); err != nil {
		return fmt.Errorf("flush objects: %w", err)
	}
	if _, err := linkLayers(repo, maps.Clone(layers)); err != nil {
		return err
	}
	return repo.SyncLinks()
}

// tag writes the tags that do not lead to the manifest yet.
func (c *Committed) tag(repo *composefs.Repo, tags map[string]string) error {
	wrote := false
	for _, name := range slices.Sorted(maps.Keys(tags)) {
		if target, err := repo.StreamRef(name); err == nil && target == tags[name] {
			continue
		}
		if err := repo.SetStreamRef(name, tags[name]); err != nil {
			return fmt.Errorf("tag image: %w", err)
		}
		wrote = true
	}
	if !wrote {
		return nil
	}
	c.Changed = true
	return repo.SyncLinks()
}

// Untag removes a tag; one that is not there is no error.
func Untag(repo *composefs.Repo, tag string) error {
	name, err := EncodeTag(tag)
	if err != nil {
		return err
	}
	if err := repo.RemoveStreamRef(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return repo.SyncLinks()
}
