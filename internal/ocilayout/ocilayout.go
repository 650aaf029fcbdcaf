// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package ocilayout writes images as OCI image layouts, for the demonstration
// and the benchmarks. Layers are streamed: an image of many gigabytes takes no
// more memory than its largest write.
//
// It is deliberately apart from what reads layouts in the product, and keeps to
// what the image specification says: blobs below blobs/sha256, one index.json,
// tags as org.opencontainers.image.ref.name annotations.
package ocilayout

import (
	"archive/tar"
	"compress/gzip"
	_ "crypto/sha256" // the canonical digest
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Compression is how layer blobs are stored.
type Compression uint8

// The compressions of the image specification.
const (
	Gzip Compression = iota
	Zstd
	None
)

// Writer makes one image in one layout.
type Writer struct {
	dir     string
	layers  []v1.Descriptor
	diffIDs []digest.Digest
}

// Create starts a layout in a directory, which is made and must not hold one.
func Create(dir string) (*Writer, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, fmt.Errorf("create layout: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "index.json")); err == nil {
		return nil, fmt.Errorf("create layout: %s has one already", dir)
	}
	return &Writer{dir: dir}, nil
}

// AddLayer appends a layer with the entries that fill writes.
func (w *Writer) AddLayer(c Compression, fill func(*tar.Writer) error) error {
	var diffID digest.Digest
	descriptor, err := w.addBlob(func(blob io.Writer) error {
		compressed, err := compressor(blob, c)
		if err != nil {
			return err
		}
		digester := digest.Canonical.Digester()
		archive := tar.NewWriter(io.MultiWriter(compressed, digester.Hash()))
		if err := errors.Join(fill(archive), archive.Close(), compressed.Close()); err != nil {
			return err
		}
		diffID = digester.Digest()
		return nil
	})
	if err != nil {
		return fmt.Errorf("write layer %d: %w", len(w.layers), err)
	}
	descriptor.MediaType = map[Compression]string{
		Gzip: v1.MediaTypeImageLayerGzip, Zstd: v1.MediaTypeImageLayerZstd, None: v1.MediaTypeImageLayer,
	}[c]
	w.layers = append(w.layers, descriptor)
	w.diffIDs = append(w.diffIDs, diffID)
	return nil
}

// Finish writes the config, the manifest and the index, which names the image
// by the tag.
func (w *Writer) Finish(tag string, config v1.ImageConfig) error {
	configuration, err := w.addJSON(v1.MediaTypeImageConfig, v1.Image{
		Platform: v1.Platform{Architecture: "amd64", OS: "linux"},
		Config:   config,
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: w.diffIDs},
	})
	if err != nil {
		return err
	}
	manifest, err := w.addJSON(v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    configuration,
		Layers:    w.layers,
	})
	if err != nil {
		return err
	}
	manifest.Annotations = map[string]string{v1.AnnotationRefName: tag}
	for name, value := range map[string]any{
		v1.ImageLayoutFile: v1.ImageLayout{Version: v1.ImageLayoutVersion},
		v1.ImageIndexFile: v1.Index{
			Versioned: specs.Versioned{SchemaVersion: 2},
			MediaType: v1.MediaTypeImageIndex,
			Manifests: []v1.Descriptor{manifest},
		},
	} {
		content, err := json.Marshal(value)
		if err != nil {
			return fmt.Errorf("encode %s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(w.dir, name), content, 0o644); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// addJSON stores a document as a blob.
func (w *Writer) addJSON(mediaType string, value any) (v1.Descriptor, error) {
	content, err := json.Marshal(value)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("encode %s: %w", mediaType, err)
	}
	d, err := w.addBlob(func(blob io.Writer) error {
		_, err := blob.Write(content)
		return err
	})
	d.MediaType = mediaType
	return d, err
}

// addBlob stores what fill writes under its own digest.
func (w *Writer) addBlob(fill func(io.Writer) error) (_ v1.Descriptor, err error) {
	blobs := filepath.Join(w.dir, "blobs", "sha256")
	f, err := os.CreateTemp(blobs, ".new-*")
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("create blob: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	digester := digest.Canonical.Digester()
	if err := errors.Join(fill(io.MultiWriter(f, digester.Hash())), f.Chmod(0o644)); err != nil {
		return v1.Descriptor{}, errors.Join(err, f.Close())
	}
	info, err := f.Stat()
	if err := errors.Join(err, f.Close()); err != nil {
		return v1.Descriptor{}, fmt.Errorf("write blob: %w", err)
	}
	d := v1.Descriptor{Digest: digester.Digest(), Size: info.Size()}
	if err := os.Rename(f.Name(), filepath.Join(blobs, d.Digest.Encoded())); err != nil {
		return v1.Descriptor{}, fmt.Errorf("name blob: %w", err)
	}
	return d, nil
}

// compressor wraps the blob. Closing it ends the compressed stream only.
func compressor(blob io.Writer, c Compression) (io.WriteCloser, error) {
	switch c {
	case Gzip:
		return gzip.NewWriter(blob), nil
	case Zstd:
		return zstd.NewWriter(blob, zstd.WithEncoderConcurrency(1))
	default:
		return nopCloser{blob}, nil
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
