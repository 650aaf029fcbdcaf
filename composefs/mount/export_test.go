// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Kernel is what an older kernel lacks.
type Kernel struct{ NoFileBacked, NoLayerFiles bool }

// Image mounts as on such a kernel.
func (k Kernel) Image(repo *composefs.Repo, id fsverity.Digest, target string, o Options) error {
	return (&mounter{noFileBacked: k.NoFileBacked, noLayerFiles: k.NoLayerFiles}).image(repo, id, target, o)
}
