// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// MaxDocument is the largest manifest or config in bytes.
const MaxDocument = 16 << 20

// Document is a manifest or a config as a repository keeps it: the bytes in an
// object, and a splitstream that names the object and what belongs to it.
type Document struct {
	Stream fsverity.Digest            // the splitstream
	Object fsverity.Digest            // the bytes
	Raw    []byte                     // checked against the digest in the name
	Refs   map[string]fsverity.Digest // named refs
}

// OpenConfig reads the config with that digest. The error is fs.ErrNotExist
// when the repository does not have it.
func OpenConfig(repo *composefs.Repo, d Digest) (*Document, error) {
	return openDocument(repo, ConfigStream(d), splitstream.Config, d)
}

// OpenManifest reads the manifest with that digest. The error is
// fs.ErrNotExist when the repository does not have it.
func OpenManifest(repo *composefs.Repo, d Digest) (*Document, error) {
	return openDocument(repo, ManifestStream(d), splitstream.Manifest, d)
}

func openDocument(repo *composefs.Repo, name string, ct splitstream.ContentType, d Digest) (*Document, error) {
	id, err := repo.StreamID(name)
	if err != nil {
		return nil, err
	}
	doc, err := readDocument(repo, id, ct)
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", name, err)
	}
	if got := DigestOf(doc.Raw); got != d {
		return nil, fmt.Errorf("read stream %s: %w: its content has digest %s", name, ErrIntegrity, got)
	}
	return doc, nil
}

func readDocument(repo *composefs.Repo, id fsverity.Digest, ct splitstream.ContentType) (*Document, error) {
	stream, err := repo.OpenStream(id, ct)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	objects := stream.ObjectRefs()
	if len(objects) != 1 {
		return nil, fmt.Errorf("%w: it refers to %d objects, want 1", ErrMalformed, len(objects))
	}
	doc := &Document{Stream: id, Object: objects[0], Refs: map[string]fsverity.Digest{}}
	for _, ref := range stream.NamedRefs() {
		doc.Refs[ref.Name] = ref.ID
	}
	f, err := repo.OpenObject(doc.Object)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	doc.Raw, err = io.ReadAll(io.LimitReader(f, MaxDocument+1))
	if err != nil {
		return nil, err
	}
	if len(doc.Raw) > MaxDocument {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, MaxDocument)
	}
	return doc, nil
}

// ref is a named ref on its way into a stream.
type ref struct {
	name string
	id   fsverity.Digest
}

// writeDocument stores a manifest or config and its splitstream, unlinked.
func writeDocument(repo *composefs.Repo, ct splitstream.ContentType, raw []byte, refs []ref) (fsverity.Digest, error) {
	object, _, err := repo.Put(raw)
	if err != nil {
		return fsverity.Digest{}, err
	}
	return writeDocumentStream(repo, ct, object, uint64(len(raw)), refs)
}

func writeDocumentStream(repo *composefs.Repo, ct splitstream.ContentType, object fsverity.Digest, size uint64, refs []ref) (fsverity.Digest, error) {
	return repo.WriteStream(ct, func(w *splitstream.Writer) error {
		for _, r := range refs {
			if err := w.AddStreamRef(r.name, r.id); err != nil {
				return err
			}
		}
		return w.External(object, size)
	})
}

// layerRefs are the named refs for layers, in the order of the diff_ids; a
// layer that occurs twice has one.
func layerRefs(diffIDs []Digest, layers map[Digest]fsverity.Digest) []ref {
	var refs []ref
	seen := map[Digest]bool{}
	for _, d := range diffIDs {
		if !seen[d] {
			seen[d] = true
			refs = append(refs, ref{d.String(), layers[d]})
		}
	}
	return refs
}

// imageRefs are the named refs for EROFS images in their fixed order: the
// plain ones, V2 before V1, then the boot ones by name.
func imageRefs(images map[string]fsverity.Digest) []ref {
	var refs []ref
	for _, key := range []string{imageRefPrefix, imageRefPrefix + ".v1"} {
		if id, ok := images[key]; ok {
			refs = append(refs, ref{key, id})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(images)) {
		if strings.HasPrefix(key, bootRefPrefix) {
			refs = append(refs, ref{key, images[key]})
		}
	}
	return refs
}

// Images are the refs of a config that lead to EROFS images.
func (d *Document) Images() map[string]fsverity.Digest {
	images := map[string]fsverity.Digest{}
	for name, id := range d.Refs {
		if strings.HasPrefix(name, imageRefPrefix) {
			images[name] = id
		}
	}
	return images
}

// StoredImages are the EROFS images that a config names and whose objects are
// in the repository.
func StoredImages(repo *composefs.Repo, config *Document) (map[string]fsverity.Digest, error) {
	images := config.Images()
	for key, id := range images {
		ok, err := repo.HasObject(id, -1)
		if err != nil {
			return nil, err
		}
		if !ok {
			delete(images, key)
		}
	}
	return images, nil
}

// LayerComplete reports whether the repository has the layer with that
// diff_id: the stream's link, the stream, and every object the stream refers
// to. It returns the stream's id when it does.
func LayerComplete(repo *composefs.Repo, diffID Digest) (fsverity.Digest, bool, error) {
	id, err := repo.StreamID(LayerStream(diffID))
	if errors.Is(err, fs.ErrNotExist) {
		return fsverity.Digest{}, false, nil
	}
	if err != nil {
		return fsverity.Digest{}, false, err
	}
	ok, err := repo.CheckStream(id, splitstream.Layer)
	return id, ok && err == nil, err
}

// EachImage calls f for every manifest of a container image in the repository,
// tagged or not, that can be read together with its config.
func EachImage(repo *composefs.Repo, f func(manifest Digest, config *Document)) error {
	names, err := repo.StreamNames()
	if err != nil {
		return err
	}
	for _, name := range names {
		text, ok := strings.CutPrefix(name, manifestPrefix)
		digest, err := ParseDigest(text)
		if !ok || err != nil {
			continue
		}
		config, err := configOfManifest(repo, digest)
		switch {
		case err == nil:
			f(digest, config)
		case isBroken(err), errors.Is(err, ErrNotContainer):
		default:
			return err
		}
	}
	return nil
}

func configOfManifest(repo *composefs.Repo, digest Digest) (*Document, error) {
	manifest, err := OpenManifest(repo, digest)
	if err != nil {
		return nil, err
	}
	parsed, err := ParseManifest(manifest.Raw)
	if err != nil {
		return nil, err
	}
	return configOf(repo, manifest, parsed)
}
