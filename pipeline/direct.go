// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/pipeline/fetch"
)

// Direct pulls an image into a composefs repository without a detour. From a
// containers-storage it shares the files with the store where it can, and
// copies where it cannot. The Result is never nil; it holds what is known when
// an error is returned.
func Direct(ctx context.Context, o Options) (*Result, error) {
	p := newPull(o)
	// A reference that makes no sense is refused before anything is touched.
	if err := p.checkNames(); err != nil {
		return p.result, err
	}
	return p.result, p.run(ctx, p.resolve)
}

// resolve finds the image that the reference leads to, where it is.
func (p *pull) resolve(ctx context.Context) error {
	if p.reference.Transport == fetch.TransportContainersStorage {
		return p.openHostStore(ctx)
	}
	image, err := p.fetchManifest(ctx)
	if err != nil {
		return err
	}
	return p.found(&fetchSource{Image: image, limits: p.Limits})
}

// fetchManifest resolves the reference and reads the manifest.
func (p *pull) fetchManifest(ctx context.Context) (*fetch.Image, error) {
	o := p.Fetch
	if p.repo != nil && o.TempDir == "" && o.UnpackDir == "" {
		o.UnpackDir = p.Repo // where there has to be space for the image
	}
	o.KnownManifest = func(digest string) []byte {
		if p.repo == nil {
			return nil
		}
		d, err := oci.ParseDigest(digest)
		if err != nil {
			return nil
		}
		m, err := oci.OpenManifest(p.repo, d)
		if err != nil {
			return nil
		}
		return m.Raw
	}
	return fetch.Open(ctx, p.Reference, o)
}
