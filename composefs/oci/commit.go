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

	moved []movedTag
}

// movedTag is a tag that Commit wrote.
type movedTag struct {
	ref      string
	from, to string // streams; from is empty when the tag is new
}

// maxRaces is how often Commit starts again because another process linked
// something of the same image first.
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
	return nil, errors.New("commit image: other processes kept linking the same image; try again")
}

// commit is one attempt; raced says that another process linked a layer under
// another id, which config and manifest must name, or changed the config or a
// manifest since they were read.
func (c *Committed) commit(ctx context.Context, repo *composefs.Repo, im *Image) (raced bool, err error) {
	config, manifest := ConfigStream(c.ConfigDigest), ManifestStream(c.ManifestDigest)
	before := map[string]fsverity.Digest{config: streamID(repo, config), manifest: streamID(repo, manifest)}
	old, err := existing(OpenConfig(repo, c.ConfigDigest))
	if err != nil {
		return false, err
	}
	images := map[string]fsverity.Digest{}
	if old != nil {
		// Images of other versions and modes stay.
		if images, err = StoredImages(repo, old); err != nil {
			return false, err
		}
	}
	maps.Copy(images, im.Images)
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
	after := map[string]fsverity.Digest{config: c.ConfigStream, manifest: c.ManifestStream}
	if err := c.rewriteManifests(repo, before, after); err != nil {
		return false, err
	}
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	// Objects that were stored although everything is linked have repaired
	// what was there; without a flush a crash would undo that.
	if !c.Changed && (repo.Unflushed() || !linked(repo, im.Layers, images, after)) {
		c.Changed = true
	}
	// What is linked already is linked again, which costs nothing and makes
	// SyncLinks flush it: who linked it may not have come that far.
	if c.Changed {
		if err := repo.SyncFS(); err != nil {
			return false, fmt.Errorf("flush objects: %w", err)
		}
	}
	if raced, err := linkLayers(repo, im.Layers); raced || err != nil {
		return raced, err
	}
	for _, id := range images {
		if err := repo.LinkImage(id); err != nil {
			return false, err
		}
	}
	for name, id := range before {
		if streamID(repo, name) != id {
			return true, nil // what it says now would be lost
		}
	}
	if err := repo.LinkStream(config, c.ConfigStream); err != nil {
		return false, err
	}
	delete(after, config)
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if err := repo.LinkStream(name, after[name]); err != nil {
			return false, err
		}
	}
	return false, repo.SyncLinks()
}

// streamID is what a stream's link leads to; zero when that cannot be told.
func streamID(repo *composefs.Repo, name string) fsverity.Digest {
	id, err := repo.StreamID(name)
	if err != nil {
		return fsverity.Digest{}
	}
	return id
}

// existing passes on a document, or nil when the repository does not have it or
// has a broken one, which is to be written anew.
func existing(doc *Document, err error) (*Document, error) {
	if isBroken(err) {
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

// rewriteManifests writes anew the other manifests that name the config by
// another stream. Garbage collection finds a config only by an id that is
// linked. What the manifests' links lead to is noted in before, and in after
// what they are to lead to.
func (c *Committed) rewriteManifests(repo *composefs.Repo, before, after map[string]fsverity.Digest) error {
	names, err := repo.StreamNames()
	if err != nil {
		return err
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
		if err != nil {
			continue // broken, which is for fsck to say
		}
		if config, ok := m.Refs[key]; !ok || config == c.ConfigStream {
			continue
		}
		refs := []ref{{key, c.ConfigStream}}
		for _, other := range slices.Sorted(maps.Keys(m.Refs)) {
			if other != key {
				refs = append(refs, ref{other, m.Refs[other]})
			}
		}
		before[name] = m.Stream
		after[name], err = writeDocumentStream(repo, splitstream.Manifest, m.Object, uint64(len(m.Raw)), refs)
		if err != nil {
			return fmt.Errorf("write manifest %s: %w", d, err)
		}
	}
	return nil
}

// linked reports whether everything but the tags is visible already.
func linked(repo *composefs.Repo, layers map[Digest]fsverity.Digest, images, documents map[string]fsverity.Digest) bool {
	for name, id := range documents {
		if streamID(repo, name) != id {
			return false
		}
	}
	for d, id := range layers {
		if streamID(repo, LayerStream(d)) != id {
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
		winner, err := repo.LinkStreamOnce(LayerStream(d), id, splitstream.Layer)
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
	for _, name := range slices.Sorted(maps.Keys(tags)) {
		to := tags[name]
		from, err := repo.StreamRef(name)
		if err != nil {
			from = "" // none, or none to go back to
		}
		if from != to && !c.Changed {
			// Nothing was written here, but others may have written the image
			// without waiting for the disk.
			if err := repo.SyncFS(); err != nil {
				return fmt.Errorf("flush image: %w", err)
			}
			c.Changed = true
		}
		if err := repo.SetStreamRef(name, to); err != nil {
			return fmt.Errorf("tag image: %w", err)
		}
		if from != to {
			c.moved = append(c.moved, movedTag{ref: name, from: from, to: to})
		}
	}
	return repo.SyncLinks()
}

// RevertTags makes the tags that Commit wrote lead to where they led before.
// Tags that it found in place stay: they may keep an image that is in use.
func (c *Committed) RevertTags(repo *composefs.Repo) error {
	for _, m := range c.moved {
		if now, err := repo.StreamRef(m.ref); err != nil || now != m.to {
			continue // somebody else's by now
		}
		err := error(fs.ErrNotExist)
		if m.from != "" {
			err = repo.SetStreamRef(m.ref, m.from)
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = repo.RemoveStreamRef(m.ref)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("revert tag: %w", err)
		}
	}
	c.moved = nil
	return repo.SyncLinks()
}
