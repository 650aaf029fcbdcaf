// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package crashtest stops cfs-pull at the worst moments and looks at what it
// leaves.
//
// # Three ways to fail
//
//   - A kill. [Trace] runs a program under ptrace with a seccomp filter that
//     stops it before each system call of a set, and kills it before the n-th.
//     Every system call of a short command can be hit, one run each.
//   - A fault. The same stop makes the call fail with an error of choice, once
//     or from then on, or lets another program run first, for instance one
//     that remounts the file system.
//   - A power cut. A [Disk] serves the block device below a file system through
//     FUSE and a loop device, and records every write and every flush. A crash
//     image is all writes up to a flush and any part of those after it. It
//     costs no copy: images share the base and keep what differs in memory.
//
// # What must hold
//
// A [Scenario] is a command on a state of a repository. Whatever happened to
// the command: [Inspect] finds that every tag leads to a complete image, all of
// whose bytes have the digests that name them; the same command succeeds when
// it runs again; then the repository says the same as after an undisturbed run;
// and garbage collection leaves the same files.
//
// The judge shares no code with the product beyond the readers of the formats.
//
// # How much
//
// The tests run a short form of everything. scripts/crash-test runs the long
// one: it sets CFS_PULL_KILLS and CFS_PULL_CUTS to the numbers wanted.
package crashtest
