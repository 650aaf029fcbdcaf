// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/compression"
	"go.podman.io/image/v5/types"
)

const (
	dockerArchiveManifest = "manifest.json"
	// maxDockerArchiveManifest bounds manifest.json in bytes.
	maxDockerArchiveManifest = 1 << 20
)

// dockerArchiveItem is an image in manifest.json of a docker-save file.
type dockerArchiveItem struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// dockerArchiveSource reads a file as docker save writes it. Such a file has
// no manifest, so one is made, the same as podman and skopeo make: layers are
// named by their diff_ids and served uncompressed.
type dockerArchiveSource struct {
	noSignatures
	ref      types.ImageReference
	store    fileStore
	config   []byte
	layers   map[digest.Digest]dockerArchiveLayer
	manifest []byte
}

type dockerArchiveLayer struct {
	name string
	size int64 // uncompressed
}

func newDockerArchiveSource(ctx context.Context, ref types.ImageReference, store fileStore, which, name string) (*dockerArchiveSource, error) {
	data, err := readStoreFile(store, dockerArchiveManifest, maxDockerArchiveManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read docker archive: no %s in it; is it an oci-archive?", dockerArchiveManifest)
	}
	if err != nil {
		return nil, fmt.Errorf("read docker archive: %w", err)
	}
	var items []dockerArchiveItem
	if err := json.Unmarshal(data, &items); err != nil {
		return nil, fmt.Errorf("read docker archive: %s: %w", dockerArchiveManifest, err)
	}
	item, err := chooseDockerArchiveItem(items, ref.DockerReference(), which, name)
	if err != nil {
		return nil, err
	}
	s := &dockerArchiveSource{ref: ref, store: store, layers: map[digest.Digest]dockerArchiveLayer{}}
	if err := s.load(ctx, item); err != nil {
		return nil, fmt.Errorf("read docker archive: %w", err)
	}
	return s, nil
}

func chooseDockerArchiveItem(items []dockerArchiveItem, tag reference.Named, which, name string) (*dockerArchiveItem, error) {
	var tags []string
	for i := range items {
		tags = append(tags, items[i].RepoTags...)
	}
	if position, ok := strings.CutPrefix(which, "@"); ok {
		n, err := strconv.Atoi(position)
		if err != nil || n < 0 || n >= len(items) {
			return nil, &NotFoundError{Reference: name, Err: fmt.Errorf("no image at position %s, the archive holds %d", position, len(items))}
		}
		return &items[n], nil
	}
	if tag != nil {
		for i := range items {
			if slices.ContainsFunc(items[i].RepoTags, func(t string) bool {
				named, err := reference.ParseNormalizedNamed(t)
				return err == nil && named.String() == tag.String()
			}) {
				return &items[i], nil
			}
		}
		return nil, &NotFoundError{Reference: name, Err: fmt.Errorf("the archive holds: %s", listSome(tags))}
	}
	switch len(items) {
	case 0:
		return nil, &NotFoundError{Reference: name, Err: errors.New("the archive is empty")}
	case 1:
		return &items[0], nil
	}
	return nil, &UsageError{
		Subject: name,
		Err:     fmt.Errorf("the archive holds several images: %s", listSome(tags)),
		Hint:    "append :NAME:TAG",
	}
}

// load reads the config, measures the layers and makes the manifest.
func (s *dockerArchiveSource) load(ctx context.Context, item *dockerArchiveItem) error {
	var err error
	if s.config, err = readStoreFile(s.store, item.Config, maxConfigSize); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	var config struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(s.config, &config); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	diffIDs := config.RootFS.DiffIDs
	if len(diffIDs) != len(item.Layers) {
		return fmt.Errorf("the config has %d layers, %s has %d", len(diffIDs), dockerArchiveManifest, len(item.Layers))
	}
	if len(diffIDs) > maxLayers {
		return fmt.Errorf("%d layers, the limit is %d", len(diffIDs), maxLayers)
	}
	m := manifest.Schema2{
		SchemaVersion: 2,
		MediaType:     manifest.DockerV2Schema2MediaType,
		ConfigDescriptor: manifest.Schema2Descriptor{
			MediaType: manifest.DockerV2Schema2ConfigMediaType,
			Size:      int64(len(s.config)),
			Digest:    digest.FromBytes(s.config),
		},
		LayersDescriptors: []manifest.Schema2Descriptor{},
	}
	for i, id := range diffIDs {
		if err := id.Validate(); err != nil {
			return fmt.Errorf("config: diff_id %.100q: %w", string(id), err)
		}
		layer, ok := s.layers[id]
		if !ok {
			layer.name = item.Layers[i]
			if layer.size, err = s.measure(ctx, layer.name); err != nil {
				return fmt.Errorf("layer %d: %w", i, err)
			}
			s.layers[id] = layer
		}
		m.LayersDescriptors = append(m.LayersDescriptors, manifest.Schema2Descriptor{
			MediaType: manifest.DockerV2Schema2LayerMediaType,
			Size:      layer.size,
			Digest:    id,
		})
	}
	s.manifest, err = json.Marshal(&m)
	return err
}

// measure is the uncompressed size of a layer.
func (s *dockerArchiveSource) measure(ctx context.Context, name string) (int64, error) {
	f, size, err := s.store.open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	stream, compressed, err := compression.AutoDecompress(ctxReader{ctx, f})
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	if !compressed {
		return size, nil
	}
	return io.Copy(io.Discard, stream)
}

func (s *dockerArchiveSource) Reference() types.ImageReference { return s.ref }

func (s *dockerArchiveSource) Close() error { return s.store.Close() }

func (s *dockerArchiveSource) GetManifest(_ context.Context, instance *digest.Digest) ([]byte, string, error) {
	if instance != nil {
		return nil, "", errors.New("a docker archive has no index")
	}
	return s.manifest, manifest.DockerV2Schema2MediaType, nil
}

func (s *dockerArchiveSource) GetBlob(_ context.Context, info types.BlobInfo, _ types.BlobInfoCache) (io.ReadCloser, int64, error) {
	if info.Digest == digest.FromBytes(s.config) {
		return io.NopCloser(bytes.NewReader(s.config)), int64(len(s.config)), nil
	}
	layer, ok := s.layers[info.Digest]
	if !ok {
		return nil, 0, &fs.PathError{Op: "open", Path: info.Digest.String(), Err: fs.ErrNotExist}
	}
	f, _, err := s.store.open(layer.name)
	if err != nil {
		return nil, 0, err
	}
	stream, _, err := compression.AutoDecompress(f)
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return &closeBoth{ReadCloser: stream, under: f}, layer.size, nil
}

// closeBoth closes a stream and what it reads from.
type closeBoth struct {
	io.ReadCloser
	under io.Closer
}

func (c *closeBoth) Close() error {
	return errors.Join(c.ReadCloser.Close(), c.under.Close())
}
