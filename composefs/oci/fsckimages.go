// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// computedKey is an EROFS image as a config names it.
type computedKey struct {
	config fsverity.Digest // stream
	key    string
}

// startRebuild compares the EROFS images that a config names with what their
// layers give, and lets those be made again that are damaged. It waits while as
// many rebuilds are under way as there may be.
func (f *fsck) startRebuild(ctx context.Context, c *checkedConfig) {
	if len(c.images()) > 0 && (!f.o.Quick || f.o.Repair && f.wantsRebuild(c)) {
		f.rebuilds.Go(func() error { return f.compareImages(ctx, c) })
	}
}

// wantsRebuild reports whether an image of a config is missing or damaged.
func (f *fsck) wantsRebuild(c *checkedConfig) bool {
	for _, id := range c.images() {
		if f.damagedImage(id) {
			return true
		}
	}
	return false
}

func (f *fsck) damagedImage(id fsverity.Digest) bool {
	return f.c.Damaged(id) || !f.c.Exists(id) || f.c.HasImageLink(id) && !f.c.ImageLink(id)
}

// layersOf are the streams of a config's layers. ok is false when some are not
// there or damaged, which has been reported; tainted says that contents of
// files are.
func (f *fsck) layersOf(c *checkedConfig) (layers []fsverity.Digest, ok, tainted bool) {
	for _, d := range c.config.DiffIDs {
		id, named := c.refs[d.String()]
		if !named || f.c.Damaged(id) || !f.c.Exists(id) {
			return nil, false, false
		}
		layers = append(layers, id)
		tainted = tainted || f.c.Tainted(id)
	}
	return layers, true, tainted
}

// compareImages rebuilds the images of one config.
func (f *fsck) compareImages(ctx context.Context, c *checkedConfig) error {
	layers, ok, tainted := f.layersOf(c)
	if !ok {
		return nil
	}
	rebuild := NewRebuild(f.repo, layers, f.o.Limits)
	for _, ref := range imageRefs(c.images()) {
		v, known := ParseImageKey(ref.name)
		if !known {
			continue
		}
		got, err := f.compute(ctx, rebuild, c, v, ref)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		report := func(kind composefs.Kind, format string, args ...any) {
			if tainted {
				return // no wonder, and it has been reported why
			}
			f.c.Report(composefs.Finding{
				Kind: kind, Path: "streams/" + ConfigStream(c.digest), Stream: ConfigStream(c.digest), Image: ref.id,
				Message: fmt.Sprintf(format, args...),
			})
			if !c.manifest.IsZero() {
				f.setBad(c.manifest)
			}
		}
		switch {
		case err != nil:
			report(ImageRebuildFailed, "make %s from the layers: %v", ref.name, err)
		case got != ref.id:
			report(ImageRebuildMismatch, "the layers give %s for %s, it names %s", got, ref.name, ref.id)
		default:
			atomic.AddInt64(&f.counts.ImagesRebuilt, 1)
			f.repairImage(layers, v, ref.id)
		}
	}
	return nil
}

// compute is the id of an image as the layers give it.
func (f *fsck) compute(ctx context.Context, rebuild *Rebuild, c *checkedConfig, v Variant, ref ref) (fsverity.Digest, error) {
	key := computedKey{c.stream, ref.name}
	f.mu.Lock()
	got, ok := f.computed[key]
	f.mu.Unlock()
	if ok {
		return got, nil
	}
	got, err := rebuild.Compute(ctx, v)
	if err == nil && got != ref.id && v.Version == erofs.V1 {
		// Formats 0 and 1 have one key.
		var old fsverity.Digest
		v.Version = erofs.V0
		if old, err = rebuild.Compute(ctx, v); old == ref.id {
			got = old
		}
	}
	if err != nil {
		return fsverity.Digest{}, err
	}
	f.mu.Lock()
	f.computed[key] = got
	f.mu.Unlock()
	return got, nil
}

// repairImage lets an image that comes out of the layers under its name be
// stored again, if it is damaged, and be linked.
func (f *fsck) repairImage(layers []fsverity.Digest, v Variant, id fsverity.Digest) {
	if !f.damagedImage(id) {
		return
	}
	f.c.SetRepairable(id)
	path := "images/" + id.String()
	f.c.AddRepair(composefs.StageBuild, path, "made the EROFS image again from its layers", func(ctx context.Context) error {
		rebuild := NewRebuild(f.repo, layers, f.o.Limits)
		err := rebuild.Restore(ctx, v, id)
		if v.Version == erofs.V1 && err != nil && ctx.Err() == nil {
			v.Version = erofs.V0
			err = rebuild.Restore(ctx, v, id)
		}
		return err
	})
	if !f.c.ImageLink(id) {
		f.c.AddRepair(composefs.StageLink, path, "linked the EROFS image", func(context.Context) error { return f.repo.LinkImage(id) })
	}
}
