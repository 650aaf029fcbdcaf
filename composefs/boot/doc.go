// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package boot finds the boot entries of an operating system image, checks
// them against the image's id, and exports their files to a directory that a
// boot loader reads.
//
// # Glossary
//
//   - A boot entry is what a boot loader can start. There are Type 1 entries
//     of the Boot Loader Specification (a .conf file that names a kernel and
//     initrds), Type 2 entries (unified kernel images, UKIs, and their addons:
//     PE binaries) and kernels below /usr/lib/modules.
//   - The image id is the fs-verity digest of the EROFS boot image. The kernel
//     learns it from the composefs argument on its command line.
//   - The boot digest is the SHA-256 of the kernel's bytes followed by the
//     initrd's. Equal digests may share one copy on the boot partition.
//
// # Invariants
//
//   - Entries are searched in the merged tree of the layers, before /boot is
//     emptied. Paths never leave the tree and symbolic links are not followed:
//     a name counts only where it is a regular file. (os-release alone is
//     looked up through links, inside the tree, as it often is one.)
//   - Everything read from an image is bounded in size before it is read.
//   - [Export] never leaves a loader entry that names a file which is not
//     completely on disk, and never changes a file that an older loader entry
//     may name, except to put one whole PE binary in the place of another.
//
// # Layout that Export writes
//
// The names are those of bootc, so that bootc recognises, shares and removes
// the files:
//
//	bootc_composefs-<id>/vmlinuz
//	bootc_composefs-<id>/initrd
//	EFI/Linux/bootc/bootc_composefs-<id>.efi
//	EFI/Linux/bootc/bootc_composefs-<id>.efi.extra.d/<name>.addon.efi
//	loader/addons/<name>.addon.efi
//	loader/entries/bootc_<os id, - as _>-<version>-1.conf
//
// GRUB reads the name of a loader entry as name-version-release of a package
// and sorts in descending order; systemd-boot sorts by the sort-key in
// ascending order. So the default entry has release 1 and sort-key
// bootc-<os id>-0, all others release 0 and sort-key bootc-<os id>-1.
package boot
