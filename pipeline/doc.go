// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package pipeline is what a pull does, from a reference to a bootable image in
// a composefs repository.
//
// # Direct
//
// [Direct] goes from a registry, or any other place that holds an image,
// straight into the repository:
//
//	open        the repository, made first if asked for; fs-verity probed
//	fetch       the manifest, its signature policy checked
//	import      the layers that the repository lacks, several at once
//	merge       the layers into one tree, while later ones still arrive
//	build       the plain EROFS image, then the boot entries, then the boot image
//	commit      config, manifest, links, at last the tags
//	export      boot files, if asked for
//
// # Unified
//
// [Unified] brings the image into a containers-storage of the system first, and
// imports it from there:
//
//	open        as above
//	store       opened, made first if there is none
//	fetch       the manifest, then the layers that the store lacks, into the store
//	import      the layers that the repository lacks, by the image's id: headers from
//	            the tar-split metadata, contents as clones of the store's files
//	            …       and from here on as above
//	label       the store's files
//
// Both go through the same steps; what differs is an imageSource. An image that
// was removed from the store meanwhile is fetched and imported once more.
//
// Nothing is visible by name before commit, so that a pull that fails or is
// interrupted leaves the repository as it was, except for complete layers,
// which are kept for the next try.
//
// The package prints nothing. What happens meanwhile is told through
// [Options.Events]; the outcome is a [Result].
package pipeline
