// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"cmp"
	"context"
	"errors"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/freespace"
)

// layer is one distinct layer of the image, lowest position first.
type layer struct {
	index  int // of the manifest's and the config's list
	diffID oci.Digest
	done   chan struct{} // closed when the layer is in the repository
	id     fsverity.Digest
	cached bool
}

// importLayers brings the layers into the repository and, unless all images
// are built already, merges them. The tree is nil when nothing is to be built.
func (p *pull) importLayers(ctx context.Context) (root *tree.Node, err error) {
	layers, err := p.findLayers(ctx)
	if err != nil {
		return nil, err
	}
	var missing []*layer
	for _, l := range layers {
		if !l.cached {
			missing = append(missing, l)
		}
	}
	p.imported = append(p.imported, missing...)
	p.result.Stats.Layers = len(layers)
	p.result.Stats.LayersPresent = len(layers) - len(missing)
	p.Log.Info("looked for layers", "of image", len(layers), "missing", len(missing))
	p.announce(layers)
	if err := p.checkSpace(missing); err != nil {
		return nil, err
	}
	if len(missing) == 0 && p.imagesKnown(layers) {
		p.events.task(p.source.task(), Done)
		return nil, nil
	}

	importer := oci.NewImporter(p.repo, oci.ImporterOptions{
		Limits: p.Limits, Workers: p.Jobs, Methods: p.methods, SkipDiffID: p.SkipDiffID,
	})
	root, err = p.importAndMerge(ctx, importer, layers, missing)
	importer.Close()
	p.addStats(importer)
	if err != nil {
		return nil, errors.Join(err, p.keepLayers())
	}
	for _, l := range layers {
		p.image.Layers[l.diffID] = l.id
	}
	p.events.task(p.source.task(), Done)
	return root, nil
}

// findLayers lists the distinct layers and looks which of them the repository
// has, with all their objects.
func (p *pull) findLayers(ctx context.Context) ([]*layer, error) {
	var layers []*layer
	seen := map[oci.Digest]bool{}
	for i, diffID := range p.config.DiffIDs {
		if !seen[diffID] {
			seen[diffID] = true
			layers = append(layers, &layer{index: i, diffID: diffID, done: make(chan struct{})})
		}
	}
	if p.repo == nil {
		return layers, nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(p.ParallelLayers)
	for _, l := range layers {
		group.Go(func() (err error) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			l.id, l.cached, err = oci.LayerComplete(p.repo, l.diffID)
			if l.cached {
				close(l.done)
			}
			return err
		})
	}
	return layers, group.Wait()
}

// announce tells the totals before the first byte.
func (p *pull) announce(layers []*layer) {
	var total, cached int64
	for _, l := range layers {
		_, size := p.source.layer(l.index)
		total += size
		if l.cached {
			cached += size
		}
	}
	task := p.source.task()
	p.events.start(task, total, cached)
	for _, l := range layers {
		if id, size := p.source.layer(l.index); l.cached {
			p.events.layer(Event{Task: task, State: Skipped, Layer: id, Bytes: size, Total: size, Cached: size})
		}
	}
}

// importAndMerge imports the missing layers, the largest first, and merges all
// layers from the lowest on, each as soon as it is there.
func (p *pull) importAndMerge(ctx context.Context, importer *oci.Importer, layers, missing []*layer) (*tree.Node, error) {
	group, ctx := errgroup.WithContext(ctx)
	merger := oci.NewMerger(p.repo, p.Limits)
	group.Go(func() error {
		byDiffID := map[oci.Digest]*layer{}
		for _, l := range layers {
			byDiffID[l.diffID] = l
		}
		for i, diffID := range p.config.DiffIDs {
			l := byDiffID[diffID]
			select {
			case <-l.done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if err := merger.Layer(ctx, l.id); err != nil {
				return p.layerError(i, err)
			}
		}
		return nil
	})
	order := slices.Clone(missing)
	slices.SortStableFunc(order, func(a, b *layer) int {
		_, sizeA := p.source.layer(a.index)
		_, sizeB := p.source.layer(b.index)
		return cmp.Compare(sizeB, sizeA)
	})
	queue := make(chan *layer, len(order))
	for _, l := range order {
		queue <- l
	}
	close(queue)
	for range min(p.ParallelLayers, len(order)) {
		group.Go(func() error {
			for l := range queue {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err := p.importLayer(ctx, importer, l); err != nil {
					return p.layerError(l.index, err)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return merger.Root(), nil
}

// importLayer imports one layer, again from its beginning as long as its source
// sees a reason to.
func (p *pull) importLayer(ctx context.Context, importer *oci.Importer, l *layer) error {
	task := p.source.task()
	id, size := p.source.layer(l.index)
	p.events.layer(Event{Task: task, State: Started, Layer: id, Total: size})
	read := func(n int) { p.events.advance(task, id, n, size) }
	var errs []error
	for open := p.source.open(l.index, nil, read); ; {
		var err error
		if l.id, err = importer.ImportLayer(ctx, open, l.diffID); err == nil {
			break
		}
		errs = append(errs, err)
		if open = p.source.open(l.index, errs, read); open == nil || ctx.Err() != nil {
			return err
		}
		p.Log.Warn("reading a layer again", "layer", id, "error", err)
	}
	close(l.done)
	p.events.layer(Event{Task: task, State: Done, Layer: id, Bytes: size, Total: size})
	return nil
}

// keepLayers links the layers that were complete when a pull failed, so that
// the next one need not fetch them again.
func (p *pull) keepLayers() error {
	complete := map[oci.Digest]fsverity.Digest{}
	for _, l := range p.imported {
		select {
		case <-l.done:
			complete[l.diffID] = l.id
		default:
		}
	}
	p.result.Changed = p.result.Changed || len(complete) > 0
	return oci.LinkLayers(p.repo, complete)
}

func (p *pull) addStats(importer *oci.Importer) {
	from, s := &importer.Stats, &p.result.Stats
	s.Objects.Reflinked += from.ObjectsReflinked.Load()
	s.Objects.Hardlinked += from.ObjectsHardlinked.Load()
	s.Objects.Copied += from.ObjectsStored.Load()
	s.Objects.Present += from.ObjectsPresent.Load()
	s.Bytes.Reflinked += from.BytesReflinked.Load()
	s.Bytes.Hardlinked += from.BytesHardlinked.Load()
	s.Bytes.Copied += from.BytesStored.Load()
	s.Bytes.Inlined += from.BytesInlined.Load()
	s.Bytes.Fetched = p.events.fetched()
}

// checkSpace compares the space that missing layers will take with what is
// free.
func (p *pull) checkSpace(missing []*layer) error {
	if len(missing) == 0 || p.SkipSpaceCheck {
		return nil
	}
	dir := p.Repo
	if p.repo == nil { // where it would be made
		dir = filepath.Dir(dir)
	}
	var expected float64
	for _, l := range missing {
		expected += p.source.expected(l.index)
	}
	if expected == 0 { // the space is taken already
		return nil
	}
	return freespace.Check(dir, p.Repo, expected, p.MinFree)
}
