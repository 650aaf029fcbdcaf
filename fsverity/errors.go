// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fsverity

import "errors"

// What Enable, Measure and Probe report; test with [errors.Is]. The package
// comment says which errno becomes which.
var (
	// ErrNotSupported: the file system or the kernel has no fs-verity with
	// this algorithm and blocks of 4096 bytes.
	ErrNotSupported = errors.New("fs-verity is not supported here")

	// ErrNotEnabled: the file has no fs-verity.
	ErrNotEnabled = errors.New("fs-verity is not enabled")

	// ErrAlreadyEnabled: the file has fs-verity already, with whatever
	// parameters. Measure it before taking this for success.
	ErrAlreadyEnabled = errors.New("fs-verity is enabled already")

	// ErrBusy: the file stayed open for writing, or another process was
	// enabling fs-verity on it all the time.
	ErrBusy = errors.New("file is open for writing elsewhere")

	// ErrOtherAlgorithm: the file has fs-verity with another algorithm than
	// the one asked for.
	ErrOtherAlgorithm = errors.New("fs-verity is enabled with another algorithm")
)
