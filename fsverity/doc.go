// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package fsverity computes fs-verity digests in user space and talks to the
// kernel's fs-verity interface.
//
// # Format
//
// The content is cut in blocks of 4096 bytes, the last one padded with zero
// bytes, and every block is hashed. The hashes, one after the other, are cut
// in blocks of 4096 bytes again (64 hashes of SHA-512 or 128 of SHA-256 each),
// padded and hashed, until one hash is left: the root. A file of one block has
// that block's hash as its root; the root of an empty file is all zero bytes,
// and nothing is hashed for it. There is no salt and no signature. The digest
// of the file is the hash of its descriptor, 256 bytes:
//
//	offset  size  value
//	     0     1  1, the version
//	     1     1  algorithm: 1 SHA-256, 2 SHA-512
//	     2     1  12, base-two logarithm of the block size
//	     3     1  0, size of the salt
//	     4     4  0, size of the signature
//	     8     8  size of the content in bytes, little endian
//	    16    64  root, zero padded at its end
//	    80    32  0, salt
//	   112   144  0
//
// # Digests
//
// [Hasher] takes content as it comes; [Sum], [SumReader] and [SumFile] are
// shorter for content that is at hand. A [Hasher] hashes whole blocks where
// they lie in the caller's slice and allocates nothing once it has seen its
// largest file, so a worker keeps one and calls Reset between files.
//
// # Speed
//
// Blocks do not depend on each other, so on amd64 SHA-512 hashes several of
// them side by side, one in each lane of a vector register: four with AVX2,
// twice as fast as the standard library, and eight with AVX-512. Large writes
// feed the lanes best. Other machines, and builds with the tag purego, use the
// standard library, which every engine is tested against. SHA-256 always does:
// processors have instructions for it.
//
// # Kernel
//
// [Enable], [Measure] and [Probe] wrap the two ioctls. Their errors wrap the
// errno and, where a caller branches, one of these:
//
//	errno                                    error
//	ENOTTY, EOPNOTSUPP, ENOPKG               ErrNotSupported
//	EINVAL from Enable on a regular file     ErrNotSupported (the file system's blocks
//	                                         are smaller than 4096 bytes, or the kernel
//	                                         does not know the algorithm)
//	EEXIST from Enable                       ErrAlreadyEnabled
//	ETXTBSY, EBUSY from Enable, persisting   ErrBusy
//	ENODATA from Measure                     ErrNotEnabled
//	EOVERFLOW from Measure, or success with
//	another algorithm                        ErrOtherAlgorithm
//
// The kernel refuses to enable fs-verity while anybody holds the file open for
// writing. In a program that starts other programs, a child between fork and
// exec is such a holder. [Enable] waits for it a short time. Take
// [syscall.ForkLock] for reading from the open of a writable descriptor to its
// close where that is short, and the race does not exist.
package fsverity
