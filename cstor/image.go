// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"time"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
)

// Image is an image in a store.
type Image struct {
	// ID is the image's id: 64 hex digits, which are those of ConfigDigest
	// unless a layer was found by its table of contents when it was pulled
	// (zstd:chunked). Never take the config by it.
	ID string
	// Names are normalised references, "docker.io/library/fedora:latest". An
	// image need not have any.
	Names []string
	// ManifestDigest is the digest of the manifest of the platform. It is the
	// zero Digest for an image without a manifest.
	ManifestDigest oci.Digest
	// Digests are all manifest digests by which the image can be found: that of
	// the index it was chosen from, too.
	Digests []oci.Digest
	// Created is when the image was built, as its config says, or when it was
	// stored.
	Created time.Time
	// TopLayer is the id of the uppermost layer; empty for an image without any.
	TopLayer string
	// ReadOnly is set for an image in an additional image store.
	ReadOnly bool
	// GraphRoot is the store that the image is in.
	GraphRoot string

	bigDataNames []string

	// What Lookup and Load add to it:

	// Manifest is the manifest, byte for byte as it was pulled, with the digest
	// ManifestDigest.
	Manifest []byte
	// ConfigDigest is the digest of the config, taken from the manifest.
	ConfigDigest oci.Digest
	// Config is the config, with the digest ConfigDigest.
	Config []byte
	// DiffIDs are the config's diff_ids, lowest layer first.
	DiffIDs []oci.Digest
}

// Layer is a layer of an image in a store.
type Layer struct {
	// ID is the layer's id in the store, 64 hex digits.
	ID string
	// Parent is the id of the layer below; empty for the lowest.
	Parent string

	// DiffID is the recorded digest of the uncompressed tar archive. It is the
	// zero Digest when the store does not know it, as for a layer that was
	// pulled in part (zstd:chunked): see Partial. The record is a claim: who
	// uses the content has to compute the digest again.
	DiffID oci.Digest
	// CompressedDigest is the digest of the blob that the layer was made from;
	// the zero Digest when it is not known.
	CompressedDigest oci.Digest
	// CompressedSize and UncompressedSize are the sizes in bytes of the blob
	// and of the tar archive; 0 when they are not known.
	CompressedSize   int64
	UncompressedSize int64

	// DiffDir is the absolute path of the directory with the layer's files.
	DiffDir string
	// TarSplitPath is the absolute path of the gzip file with the layer's
	// tar-split metadata; empty when the layer has none.
	TarSplitPath string

	// Partial says why the names below DiffDir and the tar-split metadata do
	// not describe the original tar archive; empty for an ordinary layer.
	Partial string
	// ReadOnly is set for a layer in an additional image store.
	ReadOnly bool
	// GraphRoot is the store that the layer is in.
	GraphRoot string
}
