// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.podman.io/image/v5/docker/reference"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
)

const (
	// minIDPrefix is how many digits of an id are enough to name an image.
	minIDPrefix = 7
	// shortDigest is how many digits of a digest people are shown.
	shortDigest = 12
)

// errNotNormal is a name that NormalizeName would change.
var errNotNormal = errors.New("it has no registry or no tag")

// NormalizeName completes a name as podman does: "fedora" becomes
// "docker.io/library/fedora:latest".
func NormalizeName(name string) (string, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", fmt.Errorf("image name %q: %w", name, err)
	}
	return reference.TagNameOnly(named).String(), nil
}

// NameForDigest is the name for an image that comes from a path rather than
// from a registry, so that it has one:
// "localhost/cfs-pull/<first 12 digits>:latest".
func NameForDigest(manifest oci.Digest) string {
	_, hex, _ := strings.Cut(manifest.String(), ":")
	return "localhost/cfs-pull/" + hex[:min(len(hex), shortDigest)] + ":latest"
}

// find finds an image by what a user wrote: a whole id, a name, a manifest
// digest, or the first digits of an id, in this order. It returns nil when
// there is none, or when digits fit several.
func find(images []*Image, wanted string) *Image {
	match := func(fits func(*Image) bool) *Image {
		if i := slices.IndexFunc(images, fits); i >= 0 {
			return images[i]
		}
		return nil
	}
	hex := strings.TrimPrefix(wanted, "sha256:")
	if img := match(func(i *Image) bool { return i.ID == wanted }); img != nil {
		return img
	}
	for _, name := range candidates(wanted) {
		if img := match(func(i *Image) bool { return slices.Contains(i.Names, name) }); img != nil {
			return img
		}
	}
	if d, err := oci.ParseDigest(wanted); err == nil {
		if img := match(func(i *Image) bool { return slices.Contains(i.Digests, d) }); img != nil {
			return img
		}
		return match(func(i *Image) bool { return i.ID == hex })
	}
	if img := findDigested(images, wanted); img != nil {
		return img
	}
	if len(hex) < minIDPrefix || !isHex(hex) {
		return nil
	}
	starts := func(i *Image) bool { return strings.HasPrefix(i.ID, hex) }
	first := match(starts)
	if first != nil && slices.ContainsFunc(images, func(i *Image) bool { return starts(i) && i.ID != first.ID }) {
		return nil
	}
	return first
}

// candidates are the names that a name may stand for.
func candidates(wanted string) []string {
	names := []string{wanted}
	for _, prefix := range []string{"", "localhost/"} {
		if name, err := NormalizeName(prefix + wanted); err == nil {
			names = append(names, name)
		}
	}
	return names
}

// findDigested finds an image by a name with a digest that it was not stored
// under: one with the digest and another name in the same repository.
func findDigested(images []*Image, wanted string) *Image {
	named, err := reference.ParseNormalizedNamed(wanted)
	if err != nil {
		return nil
	}
	digested, ok := named.(reference.Digested)
	if !ok {
		return nil
	}
	d, err := oci.ParseDigest(digested.Digest().String())
	if err != nil {
		return nil
	}
	for _, img := range images {
		if slices.Contains(img.Digests, d) && slices.ContainsFunc(img.Names, func(name string) bool {
			other, err := reference.ParseNormalizedNamed(name)
			return err == nil && other.Name() == named.Name()
		}) {
			return img
		}
	}
	return nil
}
