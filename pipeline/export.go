// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"

	"github.com/cfs-pull/cfs-pull/composefs/boot"
)

// exportBoot writes the boot files to a directory.
func (p *pull) exportBoot(ctx context.Context, entries []boot.Entry) error {
	return nil
}
