// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import "fmt"

// Version is the format version of an EROFS boot image, with the numbers that
// the composefs tools use.
type Version uint8

// The format versions. V0 and V1 share one form of the kernel argument.
const (
	V0 Version = iota
	V1
	V2
)

// String is "v0", "v1" or "v2".
func (v Version) String() string { return fmt.Sprintf("v%d", uint8(v)) }
