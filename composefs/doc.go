// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package composefs keeps a composefs repository: a directory that holds file
// contents by their fs-verity digest and a few names for them. The layout is
// that of composefs-rs (cfsctl) and bootc, which may use the same repository
// at the same time.
//
// # Layout
//
//	meta.json                 algorithm, feature flags, EROFS formats
//	objects/<hh>/<rest>       objects; <hh><rest> is the fs-verity digest in hex
//	streams/<id>              -> ../objects/…   splitstreams by content id
//	streams/refs/<name…>      -> ../…/<id>      roots of garbage collection
//	images/<hex>              -> ../objects/…   EROFS images
//	images/refs/<name…>       -> ../…/<hex>     roots of garbage collection
//	objects/.tmp-object-*     unfinished objects where O_TMPFILE is missing
//	.symlink-*                unfinished replacement of a link
//	bootc/.cfs-pull.lock      held by a whole pull, collection or reset, see [LockOperation]
//
// Other names in the root belong to others and are left alone.
//
// # Glossary
//
//	object    immutable file content, named by its digest
//	stream    a splitstream: an object that lists other objects, see
//	          [github.com/cfs-pull/cfs-pull/composefs/splitstream]
//	image     an object that is an EROFS file system
//	ref       a name that keeps a stream or an image from being collected
//	secure    a repository whose meta.json has fs-verity: every object must
//	          have fs-verity with the digest that is its name
//
// # Invariants
//
//   - An object appears under its name only when it is complete. With
//     fs-verity the kernel has confirmed its digest before that. Nothing is
//     written to it afterwards.
//   - A link appears or changes in one step.
//   - A process holds a shared flock on the root directory from [Open] to
//     [Repo.Close]; garbage collection holds it exclusively. The lock belongs
//     to an open file description, so all handles of one process for one
//     repository share one: otherwise a process could wait for itself.
//   - Everything is opened beneath the root's descriptor; no link leads out.
//
// # Garbage collection
//
// What no ref leads to is garbage, also where it has a name in streams/ or
// images/. [Repo.CollectGarbage] marks first and removes then: refs, links,
// objects, each durably before the next. Under the exclusive lock no object
// is needed that no ref leads to, since a writer holds the shared lock from
// the moment it relies on an object until there is a ref.
//
// # Reset
//
// The settings in meta.json are fixed, since links and objects depend on them.
// [Reset] removes all links and replaces meta.json, under the exclusive lock
// and in the same order; the objects become garbage that a pull may use again.
//
// # Durability
//
// Writing an object syncs nothing. A writer calls [Repo.SyncFS] when all
// objects are stored and before it creates links, and [Repo.SyncLinks] when
// all links are there.
package composefs
