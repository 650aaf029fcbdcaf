// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/internal/freespace"
)

// stored is a layer of an image that is being pulled.
type stored struct {
	index  int // in the manifest, counted from 0
	blob   oci.Descriptor
	diffID oci.Digest
	// id and parent are ids in the store, the same that podman gives.
	id, parent string
	present    bool
	// copyOf is a layer in the store with the same archive on other parents;
	// empty if there is none.
	copyOf *Layer
	// repeated is set when a lower layer of the image has the same archive.
	repeated bool
}

// layerID is the id of a layer: its diff_id when it is the lowest, else the hash
// of its parent's id and its diff_id.
func layerID(parent string, diffID oci.Digest) string {
	_, digits, _ := strings.Cut(diffID.String(), ":")
	if parent == "" {
		return digits
	}
	sum := sha256.Sum256([]byte(parent + "+" + digits))
	return hex.EncodeToString(sum[:])
}

// archives are layers whose archives can be made again, one for each diff_id.
func (v view) archives() map[oci.Digest]*Layer {
	out := map[oci.Digest]*Layer{}
	for _, r := range v {
		for _, l := range r.layers {
			layer := l.layer(r)
			if !l.incomplete() && !layer.DiffID.IsZero() && layer.Partial == "" && layer.TarSplitPath != "" && out[layer.DiffID] == nil {
				out[layer.DiffID] = &layer
			}
		}
	}
	return out
}

// plan finds out which layers of an image the store has.
func (v view) plan(m *oci.Manifest, diffIDs []oci.Digest) ([]*stored, error) {
	archives := v.archives()
	var layers []*stored
	seen := map[oci.Digest]bool{}
	parent := ""
	for i, diffID := range diffIDs {
		s := &stored{index: i, blob: m.Layers[i], diffID: diffID, id: layerID(parent, diffID), parent: parent}
		if r, l := v.layer(s.id); l != nil && !l.incomplete() {
			if err := l.check(r, s); err != nil {
				return nil, err
			}
			s.present = true
		}
		if !s.present {
			s.copyOf, s.repeated = archives[diffID], seen[diffID]
		}
		seen[diffID] = true
		layers = append(layers, s)
		parent = s.id
	}
	return layers, nil
}

// check compares a record, found by its id, with the layer that it should be of.
func (l *layerRecord) check(r *records, want *stored) error {
	if l.DiffDigest != want.diffID.String() || l.Parent != want.parent {
		return fmt.Errorf("%w: layer %s has diff_id %q and parent %q, which do not lead to its id", ErrCorrupt, l.ID, l.DiffDigest, l.Parent)
	}
	if !isDirectory(diffDir(r.root, l.ID)) {
		return fmt.Errorf("%w: layer %s has no directory %s; remove the images that use it", ErrCorrupt, l.ID, diffDir(r.root, l.ID))
	}
	return nil
}

// fetched reports whether the layer's blob has to be transferred.
func (l *stored) fetched() bool { return !l.present && l.copyOf == nil && !l.repeated }

// totals are the sizes of the distinct blobs, and of those that are there.
func totals(layers []*stored) (total, cached int64) {
	seen := map[string]bool{}
	for _, l := range layers {
		if seen[l.blob.Digest] {
			continue
		}
		seen[l.blob.Digest] = true
		total += l.blob.Size
		if !l.fetched() {
			cached += l.blob.Size
		}
	}
	return total, cached
}

// checkSpace compares the space that the missing layers will take with what is
// free. Temporary files give way, and clones take none.
func (p *puller) checkSpace(layers []*stored) error {
	if p.options.SkipSpaceCheck {
		return nil
	}
	var expected float64
	for _, l := range layers {
		switch {
		case l.present:
		case l.copyOf == nil:
			expected += freespace.Unpacked(l.blob.MediaType, l.blob.Size) * float64(p.options.ExpectedCopies)
		case (&copier{puller: p, from: p.Store}).probeClone([]Layer{*l.copyOf}) != nil:
			expected += float64(l.copyOf.UncompressedSize)
		}
	}
	if expected == 0 {
		return nil
	}
	return freespace.Check(p.graphRoot, p.graphRoot, expected, p.options.MinFree)
}
