// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Plan is what a pull would fetch.
type Plan struct {
	// Layers are the distinct layers, the lowest first.
	Layers []PlannedLayer `json:"layers"`
	// BytesToFetch and BytesPresent are sizes of compressed layers.
	BytesToFetch int64 `json:"bytesToFetch"`
	BytesPresent int64 `json:"bytesPresent"`
}

// PlannedLayer is a layer of a Plan.
type PlannedLayer struct {
	Digest  string     `json:"digest"` // of the blob
	DiffID  oci.Digest `json:"diffID"`
	Size    int64      `json:"size"`    // of the blob, in bytes
	Present bool       `json:"present"` // complete in the repository
}

// Check resolves the reference and notes in Result.UpdateAvailable whether the
// repository lacks the tag of the image that it leads to now. It fetches
// manifests only and writes nothing. Options.Init lets the repository be
// absent. The Result is never nil.
func Check(ctx context.Context, o Options) (*Result, error) {
	p := newPull(o)
	return p.result, p.look(ctx, nil)
}

// MakePlan is [Check], and notes in Result.Plan what a pull would fetch. It
// fetches the config too. A file system without the space that a pull would
// need is a [*SpaceError].
func MakePlan(ctx context.Context, o Options) (*Result, error) {
	p := newPull(o)
	return p.result, p.look(ctx, p.plan)
}

// look resolves the reference, compares what it leads to with the repository,
// and goes on with further, if that is not nil.
func (p *pull) look(ctx context.Context, further func(context.Context) error) (err error) {
	if err := p.checkNames(); err != nil {
		return err
	}
	if err := p.openForReading(ctx); err != nil {
		return atStage(StageOpen, err)
	}
	if p.repo != nil {
		defer func() { err = errors.Join(err, p.repo.Close()) }()
	}
	if err := p.resolve(ctx); err != nil {
		return atStage(StageFetch, err)
	}
	defer func() { err = errors.Join(err, p.closeSource()) }()
	tagged, err := p.hasTag(p.image.Tags[0])
	if err != nil {
		return atStage(StageOpen, err)
	}
	available := !tagged
	p.result.Tag, p.result.Tagged, p.result.UpdateAvailable = p.image.Tags[0], tagged, &available
	if further == nil {
		if known := p.knownConfig(); known != nil {
			if config, err := oci.ParseConfig(known.Raw, len(p.manifest.Layers)); err == nil {
				p.result.describe(config)
			}
		}
		return nil
	}
	return atStage(StageFetch, further(ctx))
}

// openForReading opens the repository. It stays nil when there is none and a
// pull would make it.
func (p *pull) openForReading(ctx context.Context) error {
	repo, err := composefs.Open(ctx, p.Repo, composefs.OpenOptions{
		AllowMissingVerity: p.AllowMissingVerity, Force: p.Force, LockTimeout: p.LockTimeout, ReadOnly: true,
	})
	if p.Init && errors.Is(err, composefs.ErrNotRepository) {
		p.result.Repository = Repository{
			Path: p.Repo, Algorithm: fsverity.SHA512.String(), VerityRequired: !p.AllowMissingVerity,
		}
		return nil
	}
	if err != nil {
		return err
	}
	p.opened(repo, false)
	return nil
}

// hasTag reports whether the repository has a tag, wherever it leads.
func (p *pull) hasTag(tag string) (bool, error) {
	if p.repo == nil {
		return false, nil
	}
	name, err := oci.EncodeTag(tag)
	if err != nil {
		return false, err
	}
	if _, err := p.repo.StreamRef(name); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("read tag %s: %w", tag, err)
	}
	return true, nil
}

// plan looks which layers a pull would fetch.
func (p *pull) plan(ctx context.Context) error {
	if err := p.readConfig(ctx); err != nil {
		return err
	}
	layers, err := p.findLayers(ctx)
	if err != nil {
		return err
	}
	plan := &Plan{Layers: []PlannedLayer{}}
	var missing []*layer
	for _, l := range layers {
		blob := p.manifest.Layers[l.index]
		plan.Layers = append(plan.Layers, PlannedLayer{
			Digest: blob.Digest, DiffID: l.diffID, Size: blob.Size, Present: l.cached,
		})
		if l.cached {
			plan.BytesPresent += blob.Size
		} else {
			plan.BytesToFetch += blob.Size
			missing = append(missing, l)
		}
	}
	p.result.Plan = plan
	p.result.Stats.Layers, p.result.Stats.LayersPresent = len(layers), len(layers)-len(missing)
	return p.checkSpace(missing)
}
