// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"go.podman.io/storage"
	graphdriver "go.podman.io/storage/drivers"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/internal/filelock"
	"github.com/cfs-pull/cfs-pull/internal/freespace"
)

const (
	// maxCopyWorkers is how many layers are copied at once, at most. Each uses
	// a processor for its digest.
	maxCopyWorkers = 4
	// maxMoves is how often a name may move to another image while that is
	// being copied.
	maxMoves = 3
)

// CopyStats say how the contents of files came into a store.
type CopyStats struct {
	Files       int64 `json:"files"`       // regular files with a content of their own
	BytesCloned int64 `json:"bytesCloned"` // of files that share their blocks with the source
	BytesCopied int64 `json:"bytesCopied"` // of other files
}

// CopyNamed copies the image that has a name in another store, see CopyImage.
// It looks the name up again at the end, and starts over when it has moved to
// another image meanwhile.
func (s *Store) CopyNamed(ctx context.Context, from *Store, name string, o PullOptions) (*PullResult, error) {
	img, err := from.Lookup(name)
	if err != nil {
		return nil, err
	}
	for range maxMoves {
		r, err := s.CopyImage(ctx, from, img, o)
		if err != nil {
			return r, err
		}
		now, err := from.Lookup(name)
		if _, gone := errors.AsType[*NotFoundError](err); gone {
			return r, nil // what was copied is whole, whoever has removed the original
		}
		if err != nil {
			return r, err
		}
		if now.ID == img.ID && now.ManifestDigest == img.ManifestDigest {
			return r, nil
		}
		s.log().Warn("the name has moved to another image while that was being copied; copying the new one",
			"name", name, "from", img.ID, "to", now.ID)
		img = now
	}
	return nil, fmt.Errorf("copy image %s from containers-storage %s: the name moved to another image %d times meanwhile; try again later",
		name, from.GraphRoot(), maxMoves)
}

// CopyImage copies an image that Lookup or Load has loaded from another store:
// the layers that are missing, then the image's record. The manifest and the
// config stay the same byte for byte, and so do their digests; a generic copy
// would write a new manifest. Signatures are dropped, all other
// documents of the image are kept. Without o.Names the image keeps its names.
//
// Files share their blocks with those of the other store where both are on one
// file system that can do so; else they are copied. Each layer's archive is put
// together from the files that were stored and compared with the diff_id before
// the layer becomes visible. The other store is only read.
//
// Errors are those of Pull. A file that is not what it was when its layer was
// unpacked is an [oci.ErrIntegrity] that names it.
func (s *Store) CopyImage(ctx context.Context, from *Store, img *Image, o PullOptions) (*PullResult, error) {
	p := s.newPuller(Source{
		Reference: "containers-storage:" + imageName(img), Manifest: img.Manifest,
		Config: func(context.Context) ([]byte, error) { return img.Config, nil },
	}, o)
	if len(o.Names) == 0 {
		p.options.Names = img.Names
	}
	c := &copier{puller: p, from: from, img: img}
	err := c.copy(ctx)
	p.result.Copy = CopyStats{Files: c.files.Load(), BytesCloned: c.cloned.Load(), BytesCopied: c.copied.Load()}
	return p.result, err
}

// imageName is how messages name an image.
func imageName(img *Image) string {
	if len(img.Names) > 0 {
		return img.Names[0]
	}
	return img.ID
}

// copier is a copy under way.
type copier struct {
	*puller
	from *Store
	img  *Image

	files, cloned, copied atomic.Int64
	cannotClone           atomic.Bool // it was tried
}

func (c *copier) copy(ctx context.Context) error {
	if c.from.graphRoot == c.graphRoot {
		return fmt.Errorf("copy image %s: source and target are the same containers-storage %s", c.src.Reference, c.graphRoot)
	}
	var err error
	if c.documents, err = c.otherDocuments(); err != nil {
		return err
	}
	sources, err := c.from.Layers(c.img)
	if err != nil {
		return err
	}
	return c.run(ctx, func(w *writer, layers []*stored) error { return c.copyLayers(ctx, w, layers, sources) },
		func(layers []*stored) error { return c.checkCopySpace(layers, sources) })
}

// otherDocuments reads what the image has beside its manifest and config: the
// indexes that it was chosen from, other manifests, whatever else was added.
func (c *copier) otherDocuments() ([]storage.ImageBigDataOption, error) {
	var documents []storage.ImageBigDataOption
	for _, key := range c.img.bigDataNames {
		switch {
		case key == manifestKey, key == c.img.ConfigDigest.String(), key == manifestKey+"-"+c.img.ManifestDigest.String():
			continue
		case strings.HasPrefix(key, "signature"): // "signatures" and "signature-" with a digest
			continue
		}
		data, err := c.img.bigData(key, maxConfig)
		if err != nil {
			return nil, fmt.Errorf("copy image %s: document %s: %w", c.src.Reference, key, err)
		}
		sum := digest.FromBytes(data)
		if want, ok := strings.CutPrefix(key, manifestKey+"-"); ok && want != sum.String() {
			return nil, fmt.Errorf("copy image %s: document %s: %w: it has digest %s", c.src.Reference, key, ErrCorrupt, sum)
		}
		documents = append(documents, storage.ImageBigDataOption{Key: key, Data: data, Digest: sum})
	}
	return documents, nil
}

// checkCopySpace compares the space that the missing layers will take with what
// is free. Clones take none.
func (c *copier) checkCopySpace(layers []*stored, sources []Layer) error {
	if c.options.SkipSpaceCheck {
		return nil
	}
	copies := c.options.ExpectedCopies
	if reason := c.probeClone(sources); reason == nil {
		copies--
	} else {
		c.log().Info("files of the other containers-storage have to be copied", "from", c.from.graphRoot, "to", c.graphRoot, "reason", reason)
	}
	expected := 0.0
	for i, l := range layers {
		if !l.present {
			expected += float64(sources[i].UncompressedSize) * float64(copies)
		}
	}
	if expected == 0 {
		return nil
	}
	return freespace.Check(c.graphRoot, c.graphRoot, expected, c.options.MinFree)
}

// probeClone says why the target cannot share blocks with the source; nil if it
// can. It tries with a file that each layer has.
func (c *copier) probeClone(sources []Layer) error {
	err := func() error {
		i := slices.IndexFunc(sources, func(l Layer) bool { return l.TarSplitPath != "" })
		if i < 0 {
			return nil // there is nothing to clone
		}
		src, err := os.Open(sources[i].TarSplitPath)
		if err != nil {
			return err
		}
		defer src.Close()
		fd, err := unix.Open(filepath.Join(c.graphRoot, driverDir), unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return &os.PathError{Op: "create temporary file", Path: c.graphRoot, Err: err}
		}
		defer unix.Close(fd)
		if err := ignoringEINTR(func() error { return unix.IoctlFileClone(fd, int(src.Fd())) }); err != nil {
			return &os.PathError{Op: "clone", Path: src.Name(), Err: err}
		}
		return nil
	}()
	c.cannotClone.Store(err != nil)
	return err
}

// staged is a layer that is complete in a temporary directory.
type staged struct {
	layer  *stored
	output *graphdriver.DriverWithDifferOutput // nil if the archive has to be unpacked by the library
	source Layer
	err    error
}

// copyLayers copies the missing layers, several at once, and makes them layers
// of the store in their order.
func (c *copier) copyLayers(ctx context.Context, w *writer, layers []*stored, sources []Layer) (err error) {
	var missing []*stored
	for _, l := range layers {
		if !l.present {
			missing = append(missing, l)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	temporary, err := newTempDir(c.graphRoot)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, temporary.remove()) }()

	ctx, cancel := context.WithCancel(ctx)
	var workers sync.WaitGroup
	defer workers.Wait()
	defer cancel()
	results := make([]chan *staged, len(missing))
	for i := range results {
		results[i] = make(chan *staged, 1)
	}
	slots := make(chan struct{}, min(maxCopyWorkers, runtime.GOMAXPROCS(0)))
	workers.Go(func() {
		for i, l := range missing {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				results[i] <- &staged{layer: l, err: context.Cause(ctx)}
				continue
			}
			workers.Go(func() {
				defer func() { <-slots }()
				if l.fetched() {
					c.event(EventStarted, l)
				}
				s := &staged{layer: l, source: sources[l.index]}
				s.output, s.err = c.stage(ctx, l, s.source, filepath.Join(temporary.path, fmt.Sprint(l.index)))
				results[i] <- s
			})
		}
	})
	defer func() { // before workers.Wait, after an error: what was staged is dropped
		cancel()
		workers.Wait()
		for _, r := range results {
			select {
			case s := <-r:
				s.drop()
			default:
			}
		}
	}()
	for i := range missing {
		s := <-results[i]
		if s.err != nil {
			return c.layerError(s.layer, s.err)
		}
		if err := c.commit(ctx, w, s); err != nil {
			return c.layerError(s.layer, err)
		}
		c.result.Fetched, c.result.Changed = true, true
		if s.layer.fetched() {
			c.event(EventStored, s.layer)
		}
	}
	return nil
}

// drop closes what a layer that is not committed has open. Its files go with
// the temporary directory.
func (s *staged) drop() {
	if s.output != nil && s.output.TarSplit != nil {
		s.output.TarSplit.Close() // a temporary file
		s.output.TarSplit = nil
	}
}

// stage makes a layer in dir. The result is nil when the layer has a form that
// only the library unpacks.
func (c *copier) stage(ctx context.Context, l *stored, source Layer, dir string) (*graphdriver.DriverWithDifferOutput, error) {
	s := &stager{copier: c, layer: l, source: source}
	output, err := s.stage(ctx, dir)
	if err == nil {
		return output, nil
	}
	if ctx.Err() == nil && errors.Is(err, oci.ErrMalformed) {
		// The other store has it all the same: its library's rules are not ours.
		c.log().Info("a layer cannot be cloned and is unpacked again", "layer", l.id, "reason", err)
		return nil, os.RemoveAll(dir)
	}
	return nil, err
}

// commit makes a staged layer a layer of the store.
func (c *copier) commit(ctx context.Context, w *writer, s *staged) error {
	defer s.drop()
	if s.output == nil {
		return c.putExact(ctx, w, s)
	}
	l := s.layer
	var layer *storage.Layer
	err := c.guard(ctx, always, func() (err error) {
		// The library would replace the files of a layer that is there.
		if layer, err = w.lib.Layer(l.id); !errors.Is(err, storage.ErrLayerUnknown) {
			return err
		}
		layer, err = w.lib.ApplyStagedLayer(storage.ApplyStagedLayerOptions{
			ID: l.id, ParentLayer: l.parent, DiffOutput: s.output,
			LayerOptions: &storage.LayerOptions{}, DiffOptions: &graphdriver.ApplyDiffWithDifferOpts{},
		})
		return err
	})
	if errors.Is(err, filelock.ErrLocked) || ctx.Err() != nil {
		// The library may still be waiting. When it gets the lock it must not
		// find half of what it was promised.
		_ = os.Rename(s.output.Target, s.output.Target+".void")
		s.output = nil
		return err
	}
	if err != nil {
		return withErrno(fmt.Errorf("store layer: %w", err))
	}
	if got := string(layer.UncompressedDigest); got != l.diffID.String() {
		return fmt.Errorf("store layer %s: %w: it was recorded with diff_id %s", l.id, ErrCorrupt, got)
	}
	return nil
}

// putExact lets the library unpack a layer's archive, as it did for the other
// store.
func (c *copier) putExact(ctx context.Context, w *writer, s *staged) error {
	archive, err := openLayer(&s.source)
	if err != nil {
		return err
	}
	defer archive.Close() // read-only
	o := storage.LayerOptions{OriginalDigest: digest.Digest(s.layer.diffID.String())}
	if compressed, size := blobOf(&s.source, s.layer); size > 0 {
		o.OriginalDigest, o.OriginalSize = compressed, &size
	}
	limits := oci.Limits{MaxLayerSize: max(s.source.UncompressedSize, 1)}
	err = w.put(ctx, func() {}, s.layer, archive, limits, o, func(got oci.Digest) error { return c.mismatch(s.layer, s.source, got) })
	if err != nil && ctx.Err() == nil && errors.Is(err, oci.ErrIntegrity) {
		return archive.Explain(ctx, err)
	}
	if err == nil {
		c.copied.Add(s.source.UncompressedSize)
	}
	return err
}

// blobOf is the digest and the size of the blob that a layer was made from, if
// its store knows that and means the one of the manifest.
func blobOf(source *Layer, l *stored) (digest.Digest, int64) {
	if source.CompressedDigest.String() == l.blob.Digest && source.CompressedSize > 0 {
		return digest.Digest(l.blob.Digest), source.CompressedSize
	}
	return "", 0
}

func (c *copier) mismatch(l *stored, source Layer, got oci.Digest) error {
	return fmt.Errorf("%w: the files of layer %s in containers-storage %s make an archive with digest %s, the config says %s",
		oci.ErrIntegrity, source.ID, source.GraphRoot, got, l.diffID)
}
