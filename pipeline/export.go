// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"slices"

	"github.com/cfs-pull/cfs-pull/composefs/boot"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
)

// exportBoot writes the boot files to a directory.
func (p *pull) exportBoot(ctx context.Context, entries []boot.Entry) error {
	chosen, skipped := boot.Choose(entries)
	for _, s := range skipped {
		p.warn("boot entry %s is not exported: %s", s.Entry.Name, s.Reason)
	}
	if len(chosen) == 0 {
		return ErrNoBootEntries
	}
	candidates := p.bootCandidates()
	// Loader entries for kernels start the image in the repository's own format.
	version := p.repo.Versions()[0]
	slices.SortStableFunc(candidates, func(a, b boot.Candidate) int {
		return boolOrder(b.Version == version) - boolOrder(a.Version == version)
	})
	exported, err := boot.Export(ctx, p.ExportBoot, chosen, boot.ExportOptions{
		Content: oci.Contents{Repo: p.repo}, Candidates: candidates,
		Style: p.KargStyle, Insecure: !p.repo.Secure(),
		LockTimeout: p.LockTimeout,
	})
	if errors.Is(err, boot.ErrNoInitrd) {
		return errors.Join(ErrNoBootEntries, err)
	}
	if err != nil {
		return err
	}
	for _, s := range exported.Skipped {
		p.warn("boot entry %s is not exported: %s", s.Entry.Name, s.Reason)
	}
	for _, e := range exported.Entries {
		p.result.Changed = p.result.Changed || e.Changed
		p.result.ExportedFiles = append(p.result.ExportedFiles, e.Files...)
		if e.LoaderEntry != "" {
			p.result.ExportedFiles = append(p.result.ExportedFiles, e.LoaderEntry)
		}
	}
	return nil
}

func boolOrder(b bool) int {
	if b {
		return 1
	}
	return 0
}
