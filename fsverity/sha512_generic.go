// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

//go:build !amd64 || purego

package fsverity

// bestEngine is the only one: no machine of this kind has another.
func bestEngine() engine { return engineOne }

func (e engine) least() int { return 1 }

func (e engine) hashLanes(dst, src []byte) { hashEach(SHA512, dst, src) }
