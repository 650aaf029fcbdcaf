// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package oci keeps OCI images in a composefs repository.
//
// An image in a repository is a set of splitstreams that name each other:
//
//	streams/refs/oci/<tag>            -> oci-manifest-<digest>
//	streams/oci-manifest-<digest>     the manifest's bytes; names its config and layers
//	streams/oci-config-<digest>       the config's bytes; names the layers and the EROFS images
//	streams/oci-layer-<diff_id>       one layer's tar: headers inline, files above 64 bytes as objects
//	images/<id>                       the EROFS images, plain and boot
//
// # The way of the data
//
// An [Importer] reads a layer once, from a [LayerReader]: a compressed blob, or
// metadata and files in a containers-storage. Per layer these run side by side,
// in the order of the archive:
//
//	framer      cuts the archive into inline bytes and contents of files
//	workers     read small files, hash them and make objects of them; shared by
//	            all layers. Large files pass piece by piece
//	hasher      adds the same bytes to the digest of the layer, for the diff_id
//	writer      writes the layer's splitstream, as the objects become known
//
// Memory is bounded by the buffers in flight. Nothing is visible by name then.
// [Merger] reads the entries of the splitstreams, lowest layer first, into one
// tree; [Transform] and [TransformBoot] make of it what the plain and the boot
// image hold.
// [Commit] writes config and manifest once, when all ids are known, and makes
// everything visible in an order that leaves, after a crash at any point,
// either no tag or a complete image.
//
// Manifest and config are kept byte for byte, so that their digests stay those
// of the registry.
package oci
