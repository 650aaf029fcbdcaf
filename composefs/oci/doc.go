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
// [ImportLayer] reads a layer's tar once: it hashes it for the diff_id, frames
// it, stores the files' contents as objects and writes the layer's
// splitstream. Nothing is visible by name then. [Merge] reads the entries of
// the splitstreams, lowest layer first, into one tree; [Tree.Transform] and
// [Tree.TransformBoot] make of it what the plain and the boot image hold.
// [Commit] writes config and manifest once, when all ids are known, and makes
// everything visible in an order that leaves, after a crash at any point,
// either no tag or a complete image.
//
// Manifest and config are kept byte for byte, so that their digests stay those
// of the registry.
package oci
