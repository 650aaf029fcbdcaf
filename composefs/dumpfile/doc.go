// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package dumpfile reads and writes composefs dumpfiles, the text form of a
// file-system tree (composefs-dump(5)).
//
// # Format
//
// One line for each name, its fields separated by one space:
//
//	PATH SIZE MODE NLINK UID GID RDEV MTIME PAYLOAD CONTENT DIGEST [KEY=VALUE ...]
//
// The root is first, and a directory comes before its entries. MODE is octal,
// with "@" before it where the line is a further name of the inode that PAYLOAD
// names. MTIME is seconds, a dot, and nanoseconds as a number (1.5 is one
// second and five nanoseconds). PAYLOAD is the object's path or the link's
// target. "-" in PAYLOAD, CONTENT and DIGEST stands for nothing. Backslash
// escapes are \\, \n, \r, \t and \xHH.
//
// # Invariants
//
// [Write] gives the same text for the same tree, the text that composefs-rs
// writes. [Parse] takes any bytes; its memory is proportional to the input,
// and [ParseOptions] bounds it. By default it accepts what both composefs-rs
// and mkcomposefs accept and understand in the same way. ParseOptions.Compatible
// makes it follow mkcomposefs into every corner, so that [Dump.WriteImage] gives
// the image that mkcomposefs gives.
package dumpfile
