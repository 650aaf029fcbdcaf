// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/docker"
	dockerarchive "go.podman.io/image/v5/docker/archive"
	ociarchive "go.podman.io/image/v5/oci/archive"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/types"
)

// Image is one platform image. Its methods may be called concurrently. The
// exported fields must not be changed.
type Image struct {
	// Reference is the reference, complete even if it was a short name.
	Reference Reference
	// IndexDigest is the SHA-256 of the index that the reference led to, or ""
	// when it led to the manifest at once.
	IndexDigest digest.Digest
	// Index is that index as the source has it, or nil.
	Index []byte
	// ManifestDigest is the SHA-256 of Manifest.
	ManifestDigest digest.Digest
	// Manifest is the manifest of the platform as the source has it. For a
	// docker archive, which has none, it is the one that podman makes.
	Manifest []byte
	// MediaType is the type of the manifest, MediaTypeOCIManifest or
	// MediaTypeDockerManifest.
	MediaType string
	// ConfigDescriptor names the config.
	ConfigDescriptor Descriptor
	// Layers are the layers from the bottom up. A layer may occur twice.
	Layers []Layer
	// CredentialSource is where the credentials were taken from, for messages;
	// "" when none were found.
	CredentialSource string

	src     types.ImageSource
	session *session
	retry   retryPolicy
	stall   time.Duration

	configLock chan struct{} // of capacity 1; a lock that a context can leave
	config     []byte        // nil until fetched
}

// opener is the state of one call of Open.
type opener struct {
	o       *Options
	ref     Reference
	libRef  types.ImageReference
	policy  *policy
	signed  bool // the policy looks at signatures
	session *session
}

// Open resolves ref to the image of one platform. It contacts the source,
// follows an index, verifies the manifest and enforces the signature policy;
// it fetches no config and no layer, except configs when an index does not
// tell platforms. The caller must close the image.
//
// See ParseReference for the form of ref, and the package comment for the
// types of errors.
func Open(ctx context.Context, ref string, o Options) (*Image, error) {
	parsed, err := ParseReference(ref, o.Transport)
	if err != nil {
		return nil, err
	}
	if parsed.Transport == TransportContainersStorage {
		return nil, &UsageError{
			Subject: ref,
			Err:     errors.New("an image in a containers-storage has no layer blobs to fetch"),
			Hint:    "it can be imported in unified mode",
		}
	}
	op := &opener{o: &o, ref: parsed}
	if op.policy, err = loadPolicy(&o); err != nil {
		return nil, err
	}
	if op.session, err = newSession(&o, parsed.Transport == TransportRegistry); err != nil {
		return nil, err
	}
	img, err := op.open(ctx)
	if err != nil {
		op.session.Close()
		return nil, err
	}
	return img, nil
}

func (op *opener) open(ctx context.Context) (*Image, error) {
	if op.ref.Short {
		ref, err := op.session.completeShortName(op.ref, op.o.TempDir)
		if err != nil {
			return nil, err
		}
		op.o.logger().Info("completed short name", "name", op.ref.Original, "reference", ref.String())
		op.ref = ref
	}
	var err error
	if op.libRef, err = libraryReference(op.ref); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &NotFoundError{Reference: op.ref.String(), Err: err}
		}
		return nil, &UsageError{Subject: op.ref.Original, Err: err}
	}
	if op.signed, err = op.policy.precheck(op.libRef, op.ref.String()); err != nil {
		return nil, err
	}
	var img *Image
	retry := op.o.retryPolicy()
	if op.ref.Transport != TransportRegistry {
		retry.retries = 0
	}
	err = retry.do(ctx, "resolve "+op.ref.String(), func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeout(ctx, manifestTimeout)
		defer cancel()
		img, err = op.attempt(ctx)
		return err
	})
	if err != nil {
		return nil, op.session.classify(err, op.ref)
	}
	op.session.opened.Store(true)
	img.retry = retry
	img.stall = op.o.stallTimeout()
	return img, nil
}

// libraryReference is ref in the terms of the library. It looks at the file
// system to find the scope that a signature policy may have for a path.
func libraryReference(ref Reference) (types.ImageReference, error) {
	switch ref.Transport {
	case TransportRegistry:
		return docker.ParseReference("//" + ref.Name)
	case TransportOCI:
		return layout.ParseReference(ref.Name)
	case TransportOCIArchive:
		return ociarchive.ParseReference(ref.Name)
	case TransportDir:
		return directory.NewReference(ref.Name)
	case TransportDockerArchive:
		return dockerarchive.ParseReference(ref.Name)
	}
	return nil, fmt.Errorf("transport %s cannot be fetched from", ref.Transport)
}

// attempt is one try to resolve the reference.
func (op *opener) attempt(ctx context.Context) (_ *Image, err error) {
	src, err := op.source(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			src.Close()
		}
	}()
	if s, ok := src.(*layoutSource); ok {
		d, err := op.choose(ctx, src, s.candidates)
		if err != nil {
			return nil, err
		}
		s.top = d
	}
	return op.resolve(ctx, src)
}

// source opens the source of the image.
func (op *opener) source(ctx context.Context) (types.ImageSource, error) {
	path, which, _ := strings.Cut(op.ref.Name, ":")
	switch op.ref.Transport {
	case TransportOCI:
		return wrapSource(newLayoutSource(op.libRef, dirStore(path), which, op.ref.String()))
	case TransportDir:
		return wrapSource(newDirSource(ctx, op.libRef, op.session.sys, op.ref.Name))
	case TransportOCIArchive, TransportDockerArchive:
		store, err := openArchive(ctx, path, op.o)
		if err != nil {
			return nil, err
		}
		var src types.ImageSource
		if op.ref.Transport == TransportOCIArchive {
			src, err = wrapSource(newLayoutSource(op.libRef, store, which, op.ref.String()))
		} else {
			src, err = wrapSource(newDockerArchiveSource(ctx, op.libRef, store, which, op.ref.String()))
		}
		if err != nil {
			store.Close()
		}
		return src, err
	}
	return op.libRef.NewImageSource(ctx, op.session.sys)
}

// wrapSource keeps a nil pointer from becoming a non-nil interface.
func wrapSource[S types.ImageSource](s S, err error) (types.ImageSource, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// resolve follows indexes to the manifest and checks it.
func (op *opener) resolve(ctx context.Context, src types.ImageSource) (*Image, error) {
	name := op.ref.String()
	data, hint, err := src.GetManifest(ctx, nil)
	if err != nil {
		return nil, err
	}
	pinned := op.ref.Digest()
	if s, ok := src.(*layoutSource); ok {
		pinned = s.top.Digest
	}
	if pinned != "" {
		if err := op.verifyManifest(data, pinned); err != nil {
			return nil, err
		}
	}
	img := &Image{
		Reference:        op.ref,
		CredentialSource: op.session.auth.source,
		src:              src,
		session:          op.session,
		configLock:       make(chan struct{}, 1),
	}
	mediaType, err := detectMediaType(data, hint)
	if err != nil {
		return nil, err
	}
	manifests := heldManifests{ImageSource: src, top: data, topType: mediaType}
	var instance *digest.Digest
	for depth := 0; isIndex(mediaType); depth++ {
		if depth == maxIndexDepth {
			return nil, &UnsupportedError{Reference: name, Reason: fmt.Sprintf("more than %d indexes within each other", maxIndexDepth)}
		}
		if depth == 0 {
			img.Index, img.IndexDigest = data, digest.FromBytes(data)
		}
		var index imgspecv1.Index
		if err := json.Unmarshal(data, &index); err != nil {
			return nil, fmt.Errorf("parse index: %w", err)
		}
		d, err := op.choose(ctx, src, index.Manifests)
		if err != nil {
			return nil, err
		}
		if data, hint, err = op.manifest(ctx, src, d.Digest); err != nil {
			return nil, err
		}
		if hint == "" {
			hint = d.MediaType
		}
		if mediaType, err = detectMediaType(data, hint); err != nil {
			return nil, err
		}
		instance = &d.Digest
		manifests.instance, manifests.instanceType = data, mediaType
	}
	if err := unsupportedManifest(mediaType, name); err != nil {
		return nil, err
	}
	if err := op.checkPolicy(ctx, src, &manifests, instance, data); err != nil {
		return nil, err
	}
	img.Manifest = data
	img.ManifestDigest = digest.FromBytes(data)
	img.MediaType = mediaType
	if img.ConfigDescriptor, img.Layers, err = parseManifest(data, name); err != nil {
		return nil, err
	}
	if op.ref.Transport == TransportDockerArchive {
		// The media type says gzip, for the sake of those who copy the image to a
		// registry; what is served is plain.
		for i := range img.Layers {
			img.Layers[i].Compression = CompressionNone
		}
	}
	return img, nil
}

// checkPolicy evaluates the signature policy on data. A policy that looks at
// signatures needs the library's own source, which asks for the manifest of an
// index again; any other policy is content with what we have.
func (op *opener) checkPolicy(ctx context.Context, src types.ImageSource, held *heldManifests, instance *digest.Digest, data []byte) error {
	var from types.ImageSource = held
	if op.signed {
		from = src
		if dir, ok := src.(*dirSource); ok {
			from = dir.ImageSource
		}
	}
	return op.policy.check(ctx, from, instance, data, op.ref.String())
}

// heldManifests is a source that has its manifests already.
type heldManifests struct {
	types.ImageSource
	top, instance         []byte
	topType, instanceType string
}

func (h *heldManifests) GetManifest(_ context.Context, instance *digest.Digest) ([]byte, string, error) {
	if instance == nil {
		return h.top, h.topType, nil
	}
	return h.instance, h.instanceType, nil
}

// choose picks an entry of an index.
func (op *opener) choose(ctx context.Context, src types.ImageSource, entries []imgspecv1.Descriptor) (imgspecv1.Descriptor, error) {
	d, err := choosePlatform(ctx, entries, op.session.sys, func(ctx context.Context, d digest.Digest) (*imgspecv1.Platform, error) {
		return op.inspect(ctx, src, d)
	})
	if err != nil && !isTyped(err) && ctx.Err() == nil && !IsRetryable(err) && httpStatus(err) == 0 {
		err = &NotFoundError{Reference: op.ref.String(), Err: err}
	}
	return d, err
}

// inspect reads the platform of an image from its config.
func (op *opener) inspect(ctx context.Context, src types.ImageSource, d digest.Digest) (*imgspecv1.Platform, error) {
	data, hint, err := op.manifest(ctx, src, d)
	if err != nil {
		return nil, err
	}
	mediaType, err := detectMediaType(data, hint)
	if err != nil {
		return nil, err
	}
	if mediaType != MediaTypeOCIManifest && mediaType != MediaTypeDockerManifest {
		return &imgspecv1.Platform{}, nil
	}
	config, _, err := parseManifest(data, op.ref.String())
	if err != nil {
		return nil, err
	}
	r, err := newBlobReader(ctx, &blobReader{
		open:  blobOpener(src, config),
		retry: retryPolicy{log: op.o.logger()}, // all of Open is retried
		stall: op.o.stallTimeout(),
		desc:  config,
		fail:  integrity(op.ref, PartConfig, 0, config.Digest),
	})
	if err != nil {
		return nil, err
	}
	content, err := readBlob(r, maxConfigSize)
	if err != nil {
		return nil, err
	}
	return configPlatform(content)
}

// manifest is the verified manifest with digest d, from memory or the source.
func (op *opener) manifest(ctx context.Context, src types.ImageSource, d digest.Digest) ([]byte, string, error) {
	if op.o.KnownManifest != nil && !op.signed {
		if data := op.o.KnownManifest(d.String()); len(data) > 0 {
			if op.verifyManifest(data, d) == nil {
				return data, "", nil
			}
			op.o.logger().Warn("manifest kept from earlier does not have its digest", "digest", d.String())
		}
	}
	data, hint, err := src.GetManifest(ctx, &d)
	if err != nil {
		return nil, "", err
	}
	return data, hint, op.verifyManifest(data, d)
}

func (op *opener) verifyManifest(data []byte, d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("manifest digest %.100q: %w", string(d), err)
	}
	if got := d.Algorithm().FromBytes(data); got != d {
		return integrity(op.ref, PartManifest, 0, d)(fmt.Sprintf("content has digest %s", got))
	}
	return nil
}

// integrity makes IntegrityErrors for one part of an image.
func integrity(ref Reference, part, layers int, d digest.Digest) func(string) error {
	return func(reason string) error {
		return &IntegrityError{Reference: ref.String(), Layer: part, Layers: layers, Digest: d, Reason: reason}
	}
}

// blobOpener asks src for a blob.
func blobOpener(src types.ImageSource, d Descriptor) openBlob {
	info := types.BlobInfo{Digest: d.Digest, Size: d.Size, MediaType: d.MediaType}
	return func(ctx context.Context) (io.ReadCloser, int64, error) {
		return src.GetBlob(ctx, info, none.NoCache)
	}
}

// classify gives an error its final type.
func (s *session) classify(err error, ref Reference) error {
	if isTyped(err) || errors.Is(err, context.Canceled) {
		return err
	}
	switch httpStatus(err) {
	case http.StatusUnauthorized, http.StatusForbidden:
		e := &AuthError{
			Reference:        ref.String(),
			Registry:         ref.Registry(),
			CredentialSource: s.auth.source,
			Searched:         s.auth.searched,
			Err:              err,
		}
		if realm := s.realm.Load(); realm != nil {
			e.Realm = *realm
		}
		return e
	case http.StatusNotFound:
		return &NotFoundError{Reference: ref.String(), Err: err}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return &NotFoundError{Reference: ref.String(), Err: err}
	}
	if ref.Transport != TransportRegistry {
		err = &localError{err}
	}
	return fmt.Errorf("image %s: %w", ref, err)
}

// reader opens a blob of the image. part is for errors.
func (img *Image) reader(ctx context.Context, d Descriptor, part int) (*blobReader, error) {
	r, err := newBlobReader(ctx, &blobReader{
		open:     blobOpener(img.src, d),
		retry:    img.retry,
		stall:    img.stall,
		desc:     d,
		fail:     integrity(img.Reference, part, len(img.Layers), d.Digest),
		classify: func(err error) error { return img.session.classify(err, img.Reference) },
	})
	if err != nil {
		return nil, img.session.classify(err, img.Reference)
	}
	return r, nil
}

// Config returns the config blob, verified. It is fetched once; do not change
// the bytes.
func (img *Image) Config(ctx context.Context) ([]byte, error) {
	select {
	case img.configLock <- struct{}{}:
		defer func() { <-img.configLock }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if img.config != nil {
		return img.config, nil
	}
	r, err := img.reader(ctx, img.ConfigDescriptor, PartConfig)
	if err != nil {
		return nil, err
	}
	config, err := readBlob(r, maxConfigSize)
	if err != nil {
		return nil, err
	}
	img.config = config
	return config, nil
}

// Layer opens the blob of layer i, counted from 0, as it is transferred, that
// is compressed as its first bytes tell. Reading reaches io.EOF only when size
// and digest were right; otherwise it ends with an IntegrityError, or with
// another error of the package comment. Cancelling ctx ends the transfer; it
// is the only way to interrupt a Read. The reader must be closed, and Close
// must not overlap with Read.
func (img *Image) Layer(ctx context.Context, i int) (io.ReadCloser, error) {
	if i < 0 || i >= len(img.Layers) {
		return nil, fmt.Errorf("open layer %d of image %s: it has %d layers", i, img.Reference, len(img.Layers))
	}
	r, err := img.reader(ctx, img.Layers[i].Descriptor, i)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Close gives connections and files back and erases the private copy of the
// credentials. Readers must have been closed before.
func (img *Image) Close() error {
	return errors.Join(img.src.Close(), img.session.Close())
}
