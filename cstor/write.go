// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/storage"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/internal/filelock"
)

func (s *Store) log() *slog.Logger { return s.options.Log }

// writer changes a store through the library.
type writer struct {
	*Store
	lib storage.Store
}

// writer opens the library's handle.
func (s *Store) writer(ctx context.Context) (*writer, error) {
	w := &writer{Store: s}
	err := s.guard(ctx, always, func() (err error) {
		w.lib, err = s.lib.open(s.graphRoot, s.options)
		return err
	})
	if err != nil {
		return nil, err
	}
	return w, nil
}

// recover opens the library anew, which removes layers that it could neither
// finish nor remove, as on a full file system.
func (w *writer) recover(ctx context.Context) error {
	w.Store.lib.close()
	_, err := w.Store.writer(ctx)
	return err
}

func always() bool { return true }

// guardInterval is how often guard looks whether the library waits for a lock.
const guardInterval = 100 * time.Millisecond

// guard runs f, which calls the library. The library waits for locks without a
// limit; when it does so while waiting() holds, and another process has one of
// the locks for longer than the time limit, or the context ends, guard gives up.
// Then f is left behind: it ends when it gets the lock, and so it must be
// harmless then.
func (s *Store) guard(ctx context.Context, waiting func() bool, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- s.lib.call(s.graphRoot, f) }()
	ticker := time.NewTicker(guardInterval)
	defer ticker.Stop()
	var since time.Time
	for {
		select {
		case err := <-done:
			return err
		case <-ticker.C:
		}
		path := ""
		if waiting() {
			path = s.lockedByOthers()
		}
		switch {
		case path == "":
			since = time.Time{}
			continue
		case since.IsZero():
			since = time.Now()
		}
		if cause := context.Cause(ctx); cause != nil {
			return lockError(path, true, time.Since(since), cause)
		}
		if waited := time.Since(since); waited > max(s.options.LockTimeout, 0) {
			return lockError(path, true, waited, filelock.ErrLocked)
		}
	}
}

// lockedByOthers is the path of a lock of the library that another process
// holds.
func (s *Store) lockedByOthers() string {
	for _, name := range []string{"storage.lock", layersLock, imagesLock, "overlay-containers/containers.lock"} {
		path := filepath.Join(s.graphRoot, name)
		for _, h := range filelock.PosixHolders(path, false) {
			if h != filelock.Self() {
				return path
			}
		}
	}
	return ""
}

// putBlob stores a layer from its blob.
// stop makes the blob's reader return.
func (w *writer) putBlob(ctx context.Context, stop func(), p *puller, l *stored, blob io.Reader) error {
	size := l.blob.Size
	err := w.put(ctx, stop, l, blob, p.options.Limits, storage.LayerOptions{
		OriginalDigest: digest.Digest(l.blob.Digest), OriginalSize: &size,
	}, func(got oci.Digest) error {
		return &IntegrityError{
			Reference: p.src.Reference, Layer: l.index, Layers: p.result.Layers, Digest: l.blob.Digest,
			Want: l.diffID.String(), Got: got.String(),
		}
	})
	if err == nil || ctx.Err() != nil || errors.Is(err, filelock.ErrLocked) || isSystem(err) {
		return err
	}
	// A blob that is not what its digest says does not decompress or unpack,
	// either. Its end tells which it is.
	if _, blobErr := io.Copy(io.Discard, blob); blobErr != nil && !errors.Is(err, blobErr) {
		err = fmt.Errorf("%w (before that: %w)", blobErr, err)
	}
	return err
}

// put stores a layer from a stream that OpenLayerBlob reads. stop makes the
// stream's reader return.
func (w *writer) put(ctx context.Context, stop func(), l *stored, blob io.Reader, limits oci.Limits, o storage.LayerOptions, mismatch func(oci.Digest) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	archive, err := oci.OpenLayerBlob(ctx, blob, limits)
	if err != nil {
		return err
	}
	o.UncompressedDigest = digest.Digest(l.diffID.String())
	stream := newLayerStream(ctx, archive, l.diffID, mismatch)
	var layer *storage.Layer
	err = w.guard(ctx, stream.waiting, func() (err error) {
		defer archive.Close()
		layer, _, err = w.lib.PutLayer(l.id, l.parent, nil, "", false, &o, stream)
		return err
	})
	if errors.Is(err, filelock.ErrLocked) || ctx.Err() != nil {
		// The library may be left behind. Whoever closes the blob next must not
		// meet a Read.
		stop()
		archive.Close()
		return errors.Join(err, context.Cause(ctx))
	}
	switch {
	case errors.Is(err, storage.ErrDuplicateID):
		return w.checkStored(ctx, l) // another process was faster
	case err != nil && stream.err != nil && stream.err != io.EOF:
		return stream.err
	case err != nil:
		return describePut(err)
	}
	if got := string(layer.UncompressedDigest); got != l.diffID.String() {
		return fmt.Errorf("store layer %s: %w: it was recorded with diff_id %s", l.id, ErrCorrupt, got)
	}
	return nil
}

// checkStored is nil if the store has a layer in full. The library also knows
// layers that it could neither finish nor remove, on a full file system for
// example.
func (w *writer) checkStored(ctx context.Context, l *stored) error {
	return w.withRecords(ctx, func(v view) error {
		r, record := v.layer(l.id)
		if record == nil || record.incomplete() {
			return fmt.Errorf("store layer %s: %w: an incomplete layer with this id could not be removed", l.id, ErrCorrupt)
		}
		return record.check(r, l)
	})
}

// describePut adds to an error of PutLayer what it means.
func describePut(err error) error {
	err = withErrno(err)
	switch {
	case isSystem(err), errors.Is(err, storage.ErrLayerUnknown), errors.Is(err, storage.ErrParentUnknown):
		return fmt.Errorf("store layer: %w", err)
	case strings.Contains(err.Error(), "duplicates of file paths not supported"):
		return fmt.Errorf("%w in a containers-storage: a path occurs twice in the layer's archive; a direct pull takes such layers: %w", ErrUnsupported, err)
	}
	return fmt.Errorf("%w in a containers-storage: it cannot unpack the layer's archive; a direct pull goes without it: %w", ErrUnsupported, err)
}

// isSystem reports whether an error is about this machine rather than the layer.
func isSystem(err error) bool {
	return slices.ContainsFunc(passedErrnos, func(e unix.Errno) bool { return errors.Is(err, e) })
}

// metadata is what containers/image records of an image without signatures.
const metadata = "{}"

// record makes the image's record, as containers/image makes it.
func (p *puller) record(ctx context.Context, w *writer, layers []*stored, config *oci.Config) error {
	top := ""
	if len(layers) > 0 {
		top = layers[len(layers)-1].id
	}
	fail := func(err error) error {
		return fmt.Errorf("image %s: store record: %w", p.src.Reference, withErrno(err))
	}
	o := &storage.ImageOptions{CreationDate: created(p.config), Metadata: metadata, BigData: p.bigData()}
	var img *storage.Image
	err := p.guard(ctx, always, func() (err error) {
		img, err = w.lib.CreateImage(p.result.ImageID, nil, top, "", o)
		return err
	})
	if errors.Is(err, storage.ErrDuplicateID) {
		err = p.guard(ctx, always, func() (err error) {
			if img, err = w.lib.Image(p.result.ImageID); err != nil {
				return err
			}
			if img.TopLayer != top {
				return fmt.Errorf("%w: an image with the id %s exists and has other layers; remove it first, with podman image rm", ErrCorrupt, img.ID)
			}
			return p.replaceBigData(w)
		})
	}
	if err != nil {
		return fail(err)
	}
	p.result.Changed = true
	return p.addNames(ctx, w, img.Names)
}

// created is when an image was built, or the zero Time.
func created(config []byte) time.Time {
	var c struct {
		Created time.Time `json:"created"`
	}
	if json.Unmarshal(config, &c) != nil {
		return time.Time{}
	}
	return c.Created
}

// bigData are the documents of the image, in the order of containers/image.
func (p *puller) bigData() []storage.ImageBigDataOption {
	item := func(key string, data []byte) storage.ImageBigDataOption {
		return storage.ImageBigDataOption{Key: key, Data: data, Digest: digest.FromBytes(data)}
	}
	items := []storage.ImageBigDataOption{item(p.result.ConfigDigest.String(), p.config)}
	if p.src.Index != nil && oci.DigestOf(p.src.Index) != p.result.ManifestDigest {
		items = append(items, item(manifestKey+"-"+oci.DigestOf(p.src.Index).String(), p.src.Index))
	}
	items = append(items, p.documents...)
	return append(items,
		item(manifestKey+"-"+p.result.ManifestDigest.String(), p.src.Manifest),
		item(manifestKey, p.src.Manifest))
}

// replaceBigData sets the documents of an image that exists.
func (p *puller) replaceBigData(w *writer) error {
	for _, item := range p.bigData() {
		sum := func(data []byte) (digest.Digest, error) { return digest.FromBytes(data), nil }
		if err := w.lib.SetImageBigData(p.result.ImageID, item.Key, item.Data, sum); err != nil {
			return err
		}
	}
	return nil
}

// addNames gives the image the names that it lacks; others that have them lose
// them.
func (p *puller) addNames(ctx context.Context, w *writer, have []string) error {
	missing := slices.DeleteFunc(slices.Clone(p.options.Names), func(name string) bool { return slices.Contains(have, name) })
	p.result.Names = append(slices.Clone(have), missing...)
	if len(missing) == 0 {
		return nil
	}
	if w == nil {
		var err error
		if w, err = p.writer(ctx); err != nil {
			return err
		}
	}
	err := p.guard(ctx, always, func() error { return w.lib.AddNames(p.result.ImageID, missing) })
	if err != nil {
		return fmt.Errorf("image %s: add names %v: %w", p.src.Reference, missing, withErrno(err))
	}
	p.result.Changed = true
	return nil
}

// complete is the image in the store with the config's digest for its id, if
// all its layers are there in full; else nil.
func (p *puller) complete(ctx context.Context) (*Image, error) {
	img, err := p.lookup(ctx, p.result.ImageID)
	if _, absent := errors.AsType[*NotFoundError](err); absent {
		return nil, nil
	}
	var layers []Layer
	if err == nil {
		layers, err = p.layers(ctx, img)
	}
	if errors.Is(err, ErrIncomplete) || errors.Is(err, ErrUnsupported) {
		p.log().Warn("an image in the store is not complete", "image", p.result.ImageID, "error", err)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		if l.Partial != "" || l.TarSplitPath == "" {
			return nil, nil
		}
	}
	if img.ID != p.result.ImageID || img.ConfigDigest != p.result.ConfigDigest {
		return nil, nil
	}
	return img, nil
}

// keep leaves an image that is there as it is, except for its documents and
// names.
func (p *puller) keep(ctx context.Context, img *Image) error {
	p.result.LayersPresent = p.result.Layers
	var present []*stored
	for i := range p.manifest.Layers {
		present = append(present, &stored{index: i, blob: p.manifest.Layers[i], present: true})
	}
	p.announce(present)
	var w *writer
	wanted := []oci.Digest{p.result.ManifestDigest}
	if p.src.Index != nil {
		wanted = append(wanted, oci.DigestOf(p.src.Index))
	}
	for _, item := range p.documents {
		if text, ok := strings.CutPrefix(item.Key, manifestKey+"-"); ok {
			if d, err := oci.ParseDigest(text); err == nil {
				wanted = append(wanted, d)
			}
		}
	}
	known := !slices.ContainsFunc(wanted, func(d oci.Digest) bool { return !slices.Contains(img.Digests, d) })
	if !known || img.ManifestDigest != p.result.ManifestDigest {
		var err error
		if w, err = p.writer(ctx); err != nil {
			return err
		}
		if err := p.guard(ctx, always, func() error { return p.replaceBigData(w) }); err != nil {
			return fmt.Errorf("image %s: store record: %w", p.src.Reference, withErrno(err))
		}
		p.result.Changed = true
	}
	return p.addNames(ctx, w, img.Names)
}
