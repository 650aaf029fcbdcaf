// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package cstor is the containers-storage that bootc owns, and others of the
// same format: it makes one, lists and reads images, and brings images into it
// so that podman, bootc and this program can all use them.
//
// # Terms
//
// A store is a directory, the graph root, with layers and images. A layer is
// an unpacked archive, the directory diff, with the archive's headers beside it
// (tar-split), from which the archive can be made again. Its diff_id is the
// digest of that archive. Its id is the diff_id if it is the lowest layer of an
// image, else the hash of the parent's id and the diff_id. An image is a record
// with a top layer, names, and documents ("big data"): its config, its manifest
// and the index that the manifest was chosen from. The run root holds what a
// reboot may lose. An additional image store is another graph root that is read
// as if it belonged to the store.
//
// Only the overlay driver is supported.
//
// # Two ways in
//
// Reading goes through the records on disk and the library's locks
// (records.go, read.go, locks.go). It creates nothing, mounts nothing and needs
// no privilege beyond that of opening the files, so it works on a read-only
// file system and on a store that other programs are using. Every record is
// taken for something that anybody may have written: ids are checked before they
// become paths, documents before they are returned, chains of layers are bounded
// by the diff_ids of the config.
//
// Writing goes through the containers/storage library (library.go), so that the
// result is what podman would have left. [Store.Pull] does not use the copy code
// of containers/image above it, which stores each blob in a temporary file and
// decompresses it twice, and never compares a layer with its diff_id:
//
//	source ──► blob, verified ──► decompressed, hashed ──► framed again ──► library
//	   └─ layers above wait in temporary files                              (unpacks)
//
// The library gets a stream with the same kind of compression, in which the
// archive lies as it is (framing.go); its last part is held back until the blob
// and the archive have been found right (stream.go). The library unpacks into a
// temporary directory and makes the layer visible when the stream has ended. A
// layer with a wrong digest is therefore never in the store, not for a moment.
//
// # Invariants
//
//   - A store appears under its name complete and synced, or not at all.
//   - A layer or an image that is in the store is complete and on disk: the
//     library flushes the file system before it writes a layer's record.
//   - Layers that were complete when a pull failed stay; nothing else does.
//     What a killed process leaves is removed by the next one, podman or us.
//   - Records are those of containers/image in the version that go.mod names:
//     ids, digests, sizes, documents, metadata, names and times.
//   - A layer that the store has in any image is not transferred.
//   - The configuration of the host's containers (storage.conf, STORAGE_DRIVER,
//     STORAGE_OPTS) decides nothing, and no program of $PATH is run.
//   - The mount table never changes; podman's mounts in the store stay.
//   - Temporary files lie on the file system of the store, have no name, and
//     give way when there is little space.
//   - Waiting for a lock has a time limit, and the error says who holds it.
package cstor
