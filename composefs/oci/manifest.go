// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
)

// Media types this package knows.
const (
	mediaTypeOCIConfig    = "application/vnd.oci.image.config.v1+json"
	mediaTypeDockerConfig = "application/vnd.docker.container.image.v1+json"
)

// layerMediaTypes are the media types of layers that hold a tar archive.
// Whether it is compressed, and how, is read from its first bytes.
var layerMediaTypes = map[string]bool{
	"application/vnd.oci.image.layer.v1.tar":                       true,
	"application/vnd.oci.image.layer.v1.tar+gzip":                  true,
	"application/vnd.oci.image.layer.v1.tar+zstd":                  true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar":      true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": true,
	"application/vnd.docker.image.rootfs.diff.tar":                 true,
	"application/vnd.docker.image.rootfs.diff.tar.gzip":            true,
	"application/vnd.docker.image.rootfs.diff.tar.zstd":            true,
	"application/vnd.docker.image.rootfs.foreign.diff.tar":         true,
	"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":    true,
}

// Limits on the JSON documents of an image.
const (
	MaxLayers = 4096 // more than any registry or store accepts
)

// ErrNotContainer reports a manifest that is valid but not a container image,
// for instance an artifact.
var ErrNotContainer = errors.New("not a container image")

// ErrMalformed reports a manifest, config or layer that breaks the rules of
// its format.
var ErrMalformed = errors.New("malformed image")

// ErrIntegrity reports content that does not have the digest that names it.
var ErrIntegrity = errors.New("integrity check failed")

// Descriptor points at a blob.
type Descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

// Manifest is what this package needs of an OCI or Docker schema 2 image
// manifest.
type Manifest struct {
	MediaType string       `json:"mediaType"`
	Config    Descriptor   `json:"config"`
	Layers    []Descriptor `json:"layers"`
}

// ParseManifest reads a container image's manifest.
func ParseManifest(raw []byte) (*Manifest, error) {
	var m Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("parse manifest: %w: %w", ErrMalformed, err)
	}
	switch m.Config.MediaType {
	case mediaTypeOCIConfig, mediaTypeDockerConfig:
	default:
		return nil, fmt.Errorf("%w: the config's media type is %q", ErrNotContainer, m.Config.MediaType)
	}
	if _, err := ParseDigest(m.Config.Digest); err != nil {
		return nil, fmt.Errorf("parse manifest: config: %w: %w", ErrMalformed, err)
	}
	if len(m.Layers) > MaxLayers {
		return nil, fmt.Errorf("parse manifest: %w: %d layers, at most %d are accepted", ErrMalformed, len(m.Layers), MaxLayers)
	}
	var total int64
	for i, l := range m.Layers {
		if !layerMediaTypes[l.MediaType] {
			return nil, fmt.Errorf("parse manifest: layer %d: %w: media type %q is not a tar layer", i+1, ErrMalformed, l.MediaType)
		}
		if _, err := ParseDigest(l.Digest); err != nil {
			return nil, fmt.Errorf("parse manifest: layer %d: %w: %w", i+1, ErrMalformed, err)
		}
		if l.Size < 0 || l.Size > math.MaxInt64-total {
			return nil, fmt.Errorf("parse manifest: layer %d: %w: size %d", i+1, ErrMalformed, l.Size)
		}
		total += l.Size
	}
	return &m, nil
}

// Config is what this package needs of an image's config.
type Config struct {
	Architecture string
	OS           string
	Variant      string
	Created      string
	Labels       map[string]string
	DiffIDs      []Digest // lowest layer first
}

// ParseConfig reads a config and checks that it has one diff_id for each of
// the manifest's layers.
func ParseConfig(raw []byte, layers int) (*Config, error) {
	c, err := ParseLoneConfig(raw)
	if err == nil && len(c.DiffIDs) != layers {
		err = fmt.Errorf("parse config: %w: it lists %d diff_ids, the manifest %d layers", ErrMalformed, len(c.DiffIDs), layers)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// ParseLoneConfig reads a config whose manifest is not known.
func ParseLoneConfig(raw []byte) (*Config, error) {
	var doc struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
		Variant      string `json:"variant"`
		Created      string `json:"created"`
		Config       struct {
			Labels map[string]string
		} `json:"config"`
		RootFS struct {
			Type    string   `json:"type"`
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("parse config: %w: %w", ErrMalformed, err)
	}
	if len(doc.RootFS.DiffIDs) > MaxLayers {
		return nil, fmt.Errorf("parse config: %w: %d diff_ids, at most %d are accepted", ErrMalformed, len(doc.RootFS.DiffIDs), MaxLayers)
	}
	c := &Config{
		Architecture: doc.Architecture, OS: doc.OS, Variant: doc.Variant,
		Created: doc.Created, Labels: doc.Config.Labels,
	}
	for i, s := range doc.RootFS.DiffIDs {
		d, err := ParseDigest(s)
		if err != nil {
			return nil, fmt.Errorf("parse config: diff_id %d: %w: %w", i+1, ErrMalformed, err)
		}
		c.DiffIDs = append(c.DiffIDs, d)
	}
	return c, nil
}
