// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package erofs writes and reads composefs images: EROFS file systems that
// hold the metadata of a tree, and name the content of its files by fs-verity
// digest in overlayfs attributes.
//
// # Format
//
// An image is a 32-byte composefs header padded to 1024 bytes, a 128-byte
// EROFS superblock, inodes on 32-byte boundaries (each followed by its
// attributes and its inline data), the table of attributes that several inodes
// share, and 4096-byte data blocks. There are three versions of it:
//
//   - V0 and V1 are those of the C implementation: breadth-first order,
//     compact inodes where possible, 256 whiteouts 00 to ff in the root (they
//     hide the object directories when the image is stacked on them), and
//     whiteouts of the tree itself in an escaped form.
//   - V2 is composefs-rs's own: depth-first order, extended inodes, nothing
//     added to the tree.
//
// A regular file has its content in the image, or it is a hole of the right
// size with two attributes: trusted.overlay.metacopy (the digest) and
// trusted.overlay.redirect (the object's path).
//
// # Invariants
//
// The fs-verity digest of an image is its name everywhere, in repositories and
// on kernel command lines. Hence the same tree always gives the same bytes,
// and they are the bytes that composefs-rs writes for it ([Write]), or that
// mkcomposefs writes for a dumpfile ([WriteInodes]). Where the two differ, the
// rules type says how.
//
// The writer makes one pass over the tree to lay the image out, and then
// streams it. Its memory is proportional to the metadata.
//
// The reader takes any bytes. It is total: it does not panic, visits each
// inode once, and its time and memory are bounded by [Limits]. It is stricter
// than the kernel; [Image.CheckCanonical] is the strictest form, for which an
// image must be exactly what the writer makes of its tree.
package erofs
