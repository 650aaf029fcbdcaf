// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package realimage tests with a real operating system image, the one that
// scripts/build-os-image makes from Debian packages: it finds the image,
// serves it from a real registry, mounts what was pulled with the kernel, and
// compares the result with the tree that podman makes of the same image.
//
// Nothing here shares code with the importer or the EROFS writer. The expected
// tree comes from podman's layer code and its overlay mount, the observed tree
// from the kernel's EROFS and overlayfs, and both are read with plain system
// calls.
package realimage
