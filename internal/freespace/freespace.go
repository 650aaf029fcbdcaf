// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package freespace compares the space that layers will take with what a file
// system has, before they are downloaded.
package freespace

import (
	"fmt"
	"math"
	"strings"

	"golang.org/x/sys/unix"
)

// expansion is the assumed ratio of what a layer takes, unpacked, to its
// compressed size.
const expansion = 2.5

// Error reports a file system with too little free space for an image.
type Error struct {
	Path                string
	Available, Required uint64 // bytes
	Reserve             uint64 // bytes of Required that are to stay free
}

func (e *Error) Error() string {
	return fmt.Sprintf("not enough space at %s: %d bytes are available, about %d are needed (%d of them to stay free; see --min-free and --no-space-check)",
		e.Path, e.Available, e.Required, e.Reserve)
}

// Unpacked is what a layer blob is assumed to take, in bytes.
func Unpacked(mediaType string, size int64) float64 {
	if strings.HasSuffix(mediaType, ".tar") {
		return float64(size)
	}
	return float64(size) * expansion
}

// Check returns an [*Error] about path unless the file system of the directory
// dir has room for expected bytes and keeps minFree bytes free; when that is
// negative, the larger of 1 % and 512 MiB, but at most 5 % of the file system.
func Check(dir, path string, expected float64, minFree int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("read free space of %s: %w", dir, err)
	}
	free, size := st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)
	reserve := uint64(max(minFree, 0))
	if minFree < 0 {
		reserve = min(max(size/100, 512<<20), size/20)
	}
	need := uint64(min(expected, math.MaxInt64)) + reserve
	if need > free {
		return &Error{Path: path, Available: free, Required: need, Reserve: reserve}
	}
	return nil
}
