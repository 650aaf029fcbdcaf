// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
)

// Tag is a name of an image in a repository.
type Tag struct {
	Name     string
	Manifest Digest // zero when Err says why
	Err      error
}

// IsBootcTag reports whether a tag belongs to bootc, which keeps by it what a
// deployment needs and removes it itself.
func IsBootcTag(tag string) bool { return strings.HasPrefix(tag, BootcTagPrefix) }

// Tags lists the tags of a repository, sorted by the names of their refs.
func Tags(repo *composefs.Repo) ([]Tag, error) {
	refs, err := repo.StreamRefs(strings.TrimSuffix(tagPrefix, "/"))
	if err != nil {
		return nil, fmt.Errorf("list tags: %w", err)
	}
	tags := make([]Tag, 0, len(refs))
	for _, r := range refs {
		t := Tag{Name: DecodeTag(strings.TrimPrefix(r.Name, tagPrefix))}
		// A name that is written in another way cannot be looked up.
		if ref, err := EncodeTag(t.Name); err != nil || ref != r.Name {
			t.Err = fmt.Errorf("%w: streams/refs/%s is not how a tag is written", ErrMalformed, r.Name)
		} else {
			t.Manifest, t.Err = manifestOfStream(t.Name, r.Target)
		}
		tags = append(tags, t)
	}
	return tags, nil
}

// ErrBootcTag reports a change to a tag that bootc relies on.
var ErrBootcTag = errors.New("the tag belongs to bootc")

// SetTag makes a tag lead to a manifest that the repository has complete: a
// tag promises that. A tag that is there is moved. It reports what the tag led
// to, if that was another manifest. bootc's tags contain the digest of their
// manifest, others are [ErrBootcTag].
func SetTag(repo *composefs.Repo, tag string, manifest Digest) (previous Digest, err error) {
	ref, err := EncodeTag(tag)
	if err != nil {
		return Digest{}, fmt.Errorf("%w: %w", ErrReference, err)
	}
	if IsBootcTag(tag) && tag != BootcTag(manifest) {
		return Digest{}, fmt.Errorf("tag %s: %w: it must lead to the manifest whose digest is its name", quote(tag), ErrBootcTag)
	}
	if err := checkComplete(repo, manifest); err != nil {
		return Digest{}, fmt.Errorf("tag %s: %w", quote(tag), err)
	}
	switch was, err := TagTarget(repo, tag); {
	case err == nil && was != manifest:
		previous = was
	case err == nil, is[*NotFoundError](err), errors.Is(err, ErrMalformed):
	default:
		return Digest{}, err
	}
	// Whoever wrote the image may not have waited for the disk.
	if err := repo.SyncFS(); err != nil {
		return Digest{}, fmt.Errorf("flush image: %w", err)
	}
	if err := repo.SetStreamRef(ref, ManifestStream(manifest)); err != nil {
		return Digest{}, fmt.Errorf("tag %s: %w", quote(tag), err)
	}
	return previous, repo.SyncLinks()
}

// checkComplete makes sure that a manifest and every stream that it names are
// in the repository, with their objects.
func checkComplete(repo *composefs.Repo, manifest Digest) error {
	m, err := OpenManifest(repo, manifest)
	if err != nil {
		return fmt.Errorf("open manifest %s: %w", manifest, err)
	}
	for name, id := range m.Refs {
		ok, err := repo.CheckStream(id, splitstream.Any)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("manifest %s: %w: %s is missing, or objects of it; pull the image again", manifest, ErrIntegrity, name)
		}
	}
	return nil
}

// RemoveTag removes a tag and returns what it led to, if that can be told.
// Without such a tag the error is a [*NotFoundError].
func RemoveTag(repo *composefs.Repo, tag string) (was Digest, err error) {
	ref, err := EncodeTag(tag)
	if err != nil {
		return Digest{}, fmt.Errorf("%w: %w", ErrReference, err)
	}
	was, err = TagTarget(repo, tag)
	if err != nil && !errors.Is(err, ErrMalformed) && !errors.Is(err, composefs.ErrIntegrity) {
		return Digest{}, err
	}
	if err := repo.RemoveStreamRef(ref); err != nil {
		return Digest{}, fmt.Errorf("remove tag %s: %w", quote(tag), err)
	}
	return was, repo.SyncLinks()
}

// referrerPrefix begins the refs of artifacts.
const referrerPrefix = "oci-referrers/"

// Referrers lists the manifests of artifacts, such as signatures, that are kept
// because they refer to a manifest.
func Referrers(repo *composefs.Repo, subject Digest) ([]Digest, error) {
	refs, err := repo.StreamRefs(referrerPrefix + subject.String())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list referrers of %s: %w", subject, err)
	}
	var out []Digest
	for _, r := range refs {
		d, err := manifestOfStream(r.Name, r.Target)
		if err != nil || DecodeTag(path.Base(r.Name)) != d.String() {
			continue // name and target disagree; that is for fsck to say
		}
		out = append(out, d)
	}
	return out, nil
}
