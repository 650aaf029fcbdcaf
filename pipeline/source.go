// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"io"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/cstor"
	"github.com/cfs-pull/cfs-pull/internal/freespace"
	"github.com/cfs-pull/cfs-pull/pipeline/fetch"
)

// imageSource is where the layers of an image are imported from. What it says
// of layers is by their index in the manifest.
type imageSource interface {
	origin() origin
	// Config is the config, with the digest that the manifest names.
	Config(ctx context.Context) ([]byte, error)
	// task is the task that importing the layers belongs to.
	task() Task
	// layer is how a layer is called in events, and the size in bytes in which
	// its progress is counted.
	layer(i int) (id string, size int64)
	// open returns how to open a layer, for the try after those that ended
	// with errs; nil if there is no use in another try. read is told how many
	// bytes were read.
	open(i int, errs []error, read func(n int)) oci.OpenLayer
	// expected is how many bytes a layer is assumed to take in the repository.
	expected(i int) float64
	// check makes sure that the image is still there.
	check() error
	Close() error
}

// origin is what a reference has led to.
type origin struct {
	transport   string
	reference   string // complete
	indexDigest string
	manifest    []byte
	credentials string // where they are from
}

// fetchSource is an image in a registry, or in another place that keeps layers
// as blobs.
type fetchSource struct {
	*fetch.Image
	limits oci.Limits
}

func (s *fetchSource) origin() origin {
	return origin{
		transport: string(s.Reference.Transport), reference: s.Reference.String(), indexDigest: s.IndexDigest.String(),
		manifest: s.Manifest, credentials: s.CredentialSource,
	}
}

func (s *fetchSource) task() Task { return TaskPulling }

func (s *fetchSource) layer(i int) (string, int64) {
	return s.Layers[i].Digest.String(), s.Layers[i].Size
}

// layerRetries is how often a layer whose transfer broke is fetched again; each
// request has been retried by then.
const layerRetries = 2

func (s *fetchSource) open(i int, errs []error, read func(n int)) oci.OpenLayer {
	if n := len(errs); n > 0 {
		err := errs[n-1]
		// An archive that ends too early is no broken transfer.
		if n > layerRetries || errors.Is(err, oci.ErrMalformed) || !retryLayer(err) {
			return nil
		}
	}
	return oci.OpenBlob(s.blob(i, read), s.limits)
}

// blob opens the blob of a layer.
func (s *fetchSource) blob(i int, read func(n int)) func(context.Context) (io.ReadCloser, error) {
	return func(ctx context.Context) (io.ReadCloser, error) {
		blob, err := s.openLayer(ctx, i)
		if err != nil {
			return nil, &transferError{err}
		}
		return &progressReader{ReadCloser: blob, report: read}, nil
	}
}

// openLayer opens the blob of a layer as it is, with the retries that the user
// allows.
func (s *fetchSource) openLayer(ctx context.Context, i int) (io.ReadCloser, error) {
	blob, err := s.Layer(ctx, i)
	if err != nil {
		return nil, &unopenedError{err}
	}
	return blob, nil
}

// retryLayer reports whether a layer should be read again from its beginning.
func retryLayer(err error) bool { return !is[*unopenedError](err) && fetch.IsRetryable(err) }

func (s *fetchSource) expected(i int) float64 {
	return freespace.Unpacked(s.Layers[i].MediaType, s.Layers[i].Size)
}

func (s *fetchSource) check() error { return nil }

// progressReader reports the bytes read.
type progressReader struct {
	io.ReadCloser
	report func(n int)
}

func (r *progressReader) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	if n > 0 {
		r.report(n)
	}
	if err != nil && err != io.EOF {
		err = &transferError{err}
	}
	return n, err
}

// storeSource is an image in a containers-storage.
type storeSource struct {
	from   origin
	store  *cstor.Store
	image  *cstor.Image
	layers []cstor.Layer
	// copies is set when the repository cannot share files with the store.
	copies bool
	// blobs is where the image came from, or nil. They are imported where a
	// layer of the store cannot be, if mayCopy is set.
	blobs   *fetchSource
	mayCopy bool
	// closeStore closes the store, too.
	closeStore bool
}

func (s *storeSource) origin() origin { return s.from }

func (s *storeSource) Config(context.Context) ([]byte, error) { return s.image.Config, nil }

func (s *storeSource) task() Task { return TaskImporting }

func (s *storeSource) layer(i int) (string, int64) {
	return s.image.DiffIDs[i].String(), s.layers[i].UncompressedSize
}

func (s *storeSource) open(i int, errs []error, read func(n int)) oci.OpenLayer {
	switch {
	case len(errs) == 0:
		return func(context.Context) (oci.LayerReader, error) {
			layer, err := cstor.OpenLayer(&s.layers[i])
			if err != nil {
				return nil, err
			}
			return &progressLayer{LayerReader: layer, report: read}, nil
		}
	case s.blobs == nil || !s.mayCopy || !is[*cstor.UnusableLayerError](errs[0]):
		return nil
	}
	// What is fetched again is not counted: in bytes it is another layer.
	return s.blobs.open(i, errs[1:], func(int) {})
}

func (s *storeSource) expected(i int) float64 {
	if !s.copies {
		return 0
	}
	return float64(s.layers[i].UncompressedSize)
}

func (s *storeSource) check() error {
	image, err := s.store.Lookup(s.image.ID)
	if err == nil {
		_, err = s.store.Layers(image)
	}
	return err
}

func (s *storeSource) Close() error {
	var err error
	if s.blobs != nil {
		err = s.blobs.Close()
	}
	if s.closeStore {
		err = errors.Join(err, s.store.Close())
	}
	return err
}

// progressLayer reports the bytes of an archive that were read or given out.
type progressLayer struct {
	oci.LayerReader
	report func(n int)
}

func (l *progressLayer) Read(p []byte) (int, error) {
	n, err := l.LayerReader.Read(p)
	if n > 0 {
		l.report(n)
	}
	return n, err
}

func (l *progressLayer) NextFile(size uint64) *oci.LayerFile {
	f := l.LayerReader.NextFile(size)
	if f != nil {
		l.report(int(size))
	}
	return f
}
