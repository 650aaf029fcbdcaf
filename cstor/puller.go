// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"go.podman.io/storage"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/internal/filelock"
)

// puller is a pull under way.
type puller struct {
	*Store
	src      Source
	options  PullOptions
	manifest *oci.Manifest
	config   []byte
	// documents are big data of the image beside the manifest, its index and
	// the config.
	documents []storage.ImageBigDataOption
	result    *PullResult
	fetched   atomic.Int64
}

// Pull brings the image of src into the store: the layers that are missing, the
// lowest first, then the image's record, which is what podman would have
// written. Each layer that is complete stays, also when the pull fails later.
// Nothing of a layer is visible before its blob and its archive were verified.
// The result is never nil.
func (s *Store) Pull(ctx context.Context, src Source, o PullOptions) (*PullResult, error) {
	p := s.newPuller(src, o)
	for _, name := range o.Names {
		if normal, err := NormalizeName(name); err != nil || normal != name {
			return p.result, fmt.Errorf("image %s: name %q is not in its normal form: %w", src.Reference, name, cmp.Or(err, errNotNormal))
		}
	}
	err := p.run(ctx, func(w *writer, layers []*stored) error { return p.storeLayers(ctx, w, layers) }, p.checkSpace)
	p.result.BytesFetched = p.fetched.Load()
	return p.result, err
}

func (s *Store) newPuller(src Source, o PullOptions) *puller {
	if o.ParallelLayers <= 0 {
		o.ParallelLayers = DefaultParallelLayers
	}
	o.ExpectedCopies = max(o.ExpectedCopies, 1)
	if o.Events == nil {
		o.Events = func(Event) {}
	}
	return &puller{Store: s, src: src, options: o, result: &PullResult{ManifestDigest: oci.DigestOf(src.Manifest)}}
}

// run makes the image. store stores its missing layers, after checkSpace was
// told about them.
func (p *puller) run(ctx context.Context, store func(*writer, []*stored) error, checkSpace func([]*stored) error) (err error) {
	if p.manifest, err = oci.ParseManifest(p.src.Manifest); err != nil {
		return fmt.Errorf("image %s: %w", p.src.Reference, err)
	}
	if p.result.ConfigDigest, err = oci.ParseDigest(p.manifest.Config.Digest); err != nil {
		return fmt.Errorf("image %s: %w", p.src.Reference, err)
	}
	p.result.ImageID = layerID("", p.result.ConfigDigest)
	p.result.Layers = len(p.manifest.Layers)
	existing, err := p.complete(ctx)
	if err != nil {
		return err
	}
	if existing != nil {
		p.config = existing.Config
	} else if p.config, err = p.src.Config(ctx); err != nil {
		return err // it names the image
	}
	config, err := oci.ParseConfig(p.config, len(p.manifest.Layers))
	if err != nil {
		return fmt.Errorf("image %s: %w", p.src.Reference, err)
	}
	if existing != nil {
		return p.keep(ctx, existing)
	}
	var layers []*stored
	err = p.withRecords(ctx, func(v view) error {
		layers, err = v.plan(p.manifest, config.DiffIDs)
		return err
	})
	if err != nil {
		return fmt.Errorf("image %s: %w", p.src.Reference, err)
	}
	for _, l := range layers {
		if l.present {
			p.result.LayersPresent++
		}
	}
	p.announce(layers)
	if err := checkSpace(layers); err != nil {
		return err
	}
	w, err := p.writer(ctx)
	if err != nil {
		return err
	}
	if err := store(w, layers); err != nil {
		if isSystem(err) {
			err = errors.Join(err, w.recover(ctx))
		}
		return err
	}
	return p.record(ctx, w, layers, config)
}

// announce tells the totals before the first byte.
func (p *puller) announce(layers []*stored) {
	total, cached := totals(layers)
	p.options.Events(Event{Kind: EventTotals, Total: total, Cached: cached})
	seen := map[string]bool{}
	for _, l := range layers {
		if !l.fetched() && !seen[l.blob.Digest] {
			p.event(EventSkipped, l)
		}
		seen[l.blob.Digest] = true
	}
}

func (p *puller) event(kind EventKind, l *stored) {
	p.options.Events(Event{Kind: kind, Layer: l.blob.Digest, Size: l.blob.Size})
}

// layerError says which layer of which image an error is about.
func (p *puller) layerError(l *stored, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*IntegrityError](err); ok {
		return err // it says all that
	}
	return fmt.Errorf("image %s: layer %d of %d (%s): %w", p.src.Reference, l.index+1, p.result.Layers, l.blob.Digest, err)
}

// layerRetries is how often a layer whose transfer broke is fetched again; each
// request has been retried by then.
const layerRetries = 2

// storeLayers stores the missing layers, the lowest first, while the blobs of
// those above arrive.
func (p *puller) storeLayers(ctx context.Context, w *writer, layers []*stored) (err error) {
	t := p.startTransfers(ctx, layers)
	defer func() { err = errors.Join(err, t.close()) }()
	for _, l := range layers {
		if l.present {
			continue
		}
		if err := p.storeLayer(ctx, w, t, l); err != nil {
			return p.layerError(l, err)
		}
		p.result.Fetched, p.result.Changed = p.fetched.Load() > 0, true
	}
	return nil
}

// storeLayer brings one layer into the store: from another layer of it, or from
// the source, from its beginning again when the transfer broke.
func (p *puller) storeLayer(ctx context.Context, w *writer, t *transfers, l *stored) error {
	if l.copyOf != nil || l.repeated {
		err := p.reuseLayer(ctx, w, l)
		if err == nil || ctx.Err() != nil || errors.Is(err, filelock.ErrLocked) || isSystem(err) {
			return err
		}
		p.log().Warn("fetching a layer that cannot be taken from the store", "layer", l.blob.Digest, "error", err)
	}
	for try := 0; ; try++ {
		err := p.storeBlob(ctx, w, t, l)
		if err == nil {
			p.event(EventStored, l)
			return nil
		}
		if errors.Is(err, errSpoolFull) && ctx.Err() == nil {
			try-- // there will be no temporary file
			p.log().Info("fetching a layer without a temporary file, for want of space", "layer", l.blob.Digest)
			continue
		}
		// An archive that ends too early is no broken transfer.
		if try >= layerRetries || ctx.Err() != nil || p.src.Retry == nil || !p.src.Retry(err) || errors.Is(err, oci.ErrMalformed) {
			return err
		}
		p.log().Warn("fetching a layer again", "layer", l.blob.Digest, "error", err)
	}
}

// storeBlob is one try to store a layer from its blob.
func (p *puller) storeBlob(ctx context.Context, w *writer, t *transfers, l *stored) (err error) {
	blobCtx, stop := context.WithCancel(ctx)
	defer stop()
	blob, err := t.blob(blobCtx, l)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	return w.putBlob(ctx, stop, p, l, blob)
}

// fetch opens a layer's blob and counts what is read of it.
func (p *puller) fetch(ctx context.Context, l *stored) (io.ReadCloser, error) {
	p.event(EventStarted, l)
	blob, err := p.src.Layer(ctx, l.index)
	if err != nil {
		return nil, err
	}
	return &countedBlob{ReadCloser: blob, count: func(n int) {
		p.fetched.Add(int64(n))
		p.options.Events(Event{Kind: EventFetched, Layer: l.blob.Digest, Size: l.blob.Size, Bytes: int64(n)})
	}}, nil
}

// countedBlob tells how many bytes were read.
type countedBlob struct {
	io.ReadCloser
	count func(n int)
}

func (b *countedBlob) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.count(n)
	}
	return n, err
}
