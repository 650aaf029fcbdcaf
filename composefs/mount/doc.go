// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package mount mounts the images of a repository.
//
// # What is mounted
//
// An overlayfs, named "composefs:<id>", whose lower layer is the EROFS image
// and whose data-only layer is the directory objects/. The EROFS is mounted
// from its file, or through a loop device where the kernel cannot do that; the
// device goes away with the mount. Nothing but the overlayfs is attached to
// the file system: the EROFS mount belongs to it alone. With an upper directory
// the tree can be written to, and otherwise it is read-only.
//
// Set-user-ID programs and device nodes work, as on a root file system, unless
// the options say otherwise: the tree is meant to be a root file system, and
// whoever mounts it decides by the image that is named.
//
// # Invariants
//
//   - The image has the digest that it is named by: the kernel enforces it, or
//     the whole file was hashed just before; see
//     [composefs.Repo.OpenVerifiedImage].
//   - The kernel gets no image that our own reader, which is stricter, refuses.
//   - Where the repository requires fs-verity, overlayfs requires it of every
//     file that it opens.
//   - A mount appears at its place in the last step. When a step fails, nothing
//     stays mounted.
//   - Only mounts of composefs images are unmounted.
package mount
