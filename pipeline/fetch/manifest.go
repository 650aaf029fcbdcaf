// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Limits on what a source may make us hold.
const (
	// maxManifestSize is the limit of a manifest or an index in bytes, that of
	// registries and of containers/image.
	maxManifestSize = 4 << 20
	// maxConfigSize is the limit of a config in bytes. Real ones have kilobytes.
	maxConfigSize = 8 << 20
	// maxLayers is the limit of layers of one image. Container runtimes give up
	// at 127 or 500.
	maxLayers = 1000
	// maxIndexDepth is how many indexes may lead to the manifest.
	maxIndexDepth = 3
	// maxJSONDepth is the nesting that a manifest may have.
	maxJSONDepth = 32
)

// Media types of the manifests that Open accepts and of the indexes that it
// follows.
const (
	MediaTypeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	MediaTypeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"

	mediaTypeDockerConfig        = "application/vnd.docker.container.image.v1+json"
	mediaTypeDockerSchema1       = "application/vnd.docker.distribution.manifest.v1+json"
	mediaTypeDockerSchema1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// Compression is how a layer blob is compressed, as far as its media type
// says. The bytes of a blob decide: readers look at the first ones.
type Compression uint8

const (
	// CompressionUnknown is a media type that says nothing.
	CompressionUnknown Compression = iota
	CompressionNone
	CompressionGzip
	CompressionZstd
)

// String is the name of the compression.
func (c Compression) String() string {
	switch c {
	case CompressionNone:
		return "none"
	case CompressionGzip:
		return "gzip"
	case CompressionZstd:
		return "zstd"
	}
	return "unknown"
}

// Descriptor names a blob.
type Descriptor struct {
	MediaType string
	Digest    digest.Digest
	// Size is the number of bytes of the blob as it is transferred.
	Size int64
}

// Layer is the descriptor of a layer.
type Layer struct {
	Descriptor
	// Compression is a hint.
	Compression Compression
}

// descriptor is the JSON form that OCI and Docker schema 2 share.
type descriptor struct {
	MediaType string        `json:"mediaType"`
	Digest    digest.Digest `json:"digest"`
	Size      *int64        `json:"size"`
	URLs      []string      `json:"urls"`
}

// imageManifest is what both manifest formats share.
type imageManifest struct {
	Config *descriptor  `json:"config"`
	Layers []descriptor `json:"layers"`
}

// probe is what tells the kinds of manifest apart.
type probe struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        json.RawMessage `json:"config"`
	Layers        json.RawMessage `json:"layers"`
	Manifests     json.RawMessage `json:"manifests"`
	FSLayers      json.RawMessage `json:"fsLayers"`
}

// detectMediaType is the media type of a manifest. What the manifest says of
// itself wins, because its digest covers it; hint is what the source says.
// A manifest that could be read as another kind is refused.
func detectMediaType(data []byte, hint string) (string, error) {
	if len(data) > maxManifestSize {
		return "", fmt.Errorf("manifest is larger than the limit of %d bytes", maxManifestSize)
	}
	if err := checkUnambiguous(data); err != nil {
		return "", fmt.Errorf("parse manifest: %w", err)
	}
	var p probe
	if err := json.Unmarshal(data, &p); err != nil {
		return "", fmt.Errorf("parse manifest: %w", err)
	}
	mediaType := p.MediaType
	if mediaType == "" && p.SchemaVersion == 1 {
		return mediaTypeDockerSchema1, nil
	}
	if mediaType == "" {
		mediaType = hint
		switch mediaType {
		case MediaTypeOCIManifest, MediaTypeOCIIndex, MediaTypeDockerManifest, MediaTypeDockerList:
		default:
			mediaType = p.guess()
		}
	}
	switch mediaType {
	case MediaTypeOCIIndex, MediaTypeDockerList:
		if p.Config != nil || p.Layers != nil || p.FSLayers != nil {
			return "", errors.New("parse manifest: index has members of a manifest")
		}
	case MediaTypeOCIManifest, MediaTypeDockerManifest:
		if p.Manifests != nil || p.FSLayers != nil {
			return "", errors.New("parse manifest: manifest has members of another kind")
		}
	case "":
		return "", errors.New("parse manifest: unknown kind")
	}
	return mediaType, nil
}

// guess is the kind of a manifest that nobody tells the type of.
func (p *probe) guess() string {
	switch {
	case p.Manifests != nil:
		return MediaTypeOCIIndex
	case p.Config == nil:
		return ""
	}
	var config descriptor
	if json.Unmarshal(p.Config, &config) == nil && config.MediaType == mediaTypeDockerConfig {
		return MediaTypeDockerManifest
	}
	return MediaTypeOCIManifest
}

func isIndex(mediaType string) bool {
	return mediaType == MediaTypeOCIIndex || mediaType == MediaTypeDockerList
}

// unsupportedManifest explains a media type that is neither a manifest that we
// take nor an index. It is nil for one that is.
func unsupportedManifest(mediaType, name string) error {
	switch mediaType {
	case MediaTypeOCIManifest, MediaTypeDockerManifest, MediaTypeOCIIndex, MediaTypeDockerList:
		return nil
	case mediaTypeDockerSchema1, mediaTypeDockerSchema1Signed:
		return &UnsupportedError{
			Reference: name,
			Reason:    "it has a Docker schema 1 manifest",
			Hint:      "convert it with: skopeo copy --format oci",
		}
	}
	return &UnsupportedError{Reference: name, Reason: fmt.Sprintf("its manifest has type %q", mediaType)}
}

// parseManifest reads the descriptors of a manifest.
func parseManifest(data []byte, name string) (config Descriptor, layers []Layer, err error) {
	var m imageManifest
	if err := json.Unmarshal(data, &m); err != nil {
		return Descriptor{}, nil, fmt.Errorf("parse manifest: %w", err)
	}
	if m.Config == nil {
		return Descriptor{}, nil, errors.New("parse manifest: no config")
	}
	config, err = m.Config.check()
	if err != nil {
		return Descriptor{}, nil, fmt.Errorf("parse manifest: config: %w", err)
	}
	if config.Size > maxConfigSize {
		return Descriptor{}, nil, &UnsupportedError{
			Reference: name,
			Reason:    fmt.Sprintf("its config has %d bytes, the limit is %d", config.Size, maxConfigSize),
		}
	}
	if len(m.Layers) > maxLayers {
		return Descriptor{}, nil, &UnsupportedError{
			Reference: name,
			Reason:    fmt.Sprintf("it has %d layers, the limit is %d", len(m.Layers), maxLayers),
		}
	}
	layers = make([]Layer, len(m.Layers))
	for i := range m.Layers {
		d, err := m.Layers[i].check()
		if err != nil {
			return Descriptor{}, nil, fmt.Errorf("parse manifest: layer %d: %w", i, err)
		}
		if len(m.Layers[i].URLs) > 0 {
			return Descriptor{}, nil, &UnsupportedError{
				Reference: name,
				Reason:    fmt.Sprintf("layer %d is a foreign layer, to be had from %.200q", i, m.Layers[i].URLs[0]),
				Hint:      "copy the image to a registry that holds all of its layers",
			}
		}
		layers[i] = Layer{Descriptor: d, Compression: compressionOf(d.MediaType)}
	}
	return config, layers, nil
}

// check validates a descriptor.
func (d *descriptor) check() (Descriptor, error) {
	if err := d.Digest.Validate(); err != nil {
		return Descriptor{}, fmt.Errorf("digest %.100q: %w", string(d.Digest), err)
	}
	if d.Size == nil || *d.Size < 0 {
		return Descriptor{}, errors.New("no size, or a negative one")
	}
	return Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: *d.Size}, nil
}

func compressionOf(mediaType string) Compression {
	switch {
	case strings.HasSuffix(mediaType, "+gzip"), strings.HasSuffix(mediaType, ".tar.gzip"):
		return CompressionGzip
	case strings.HasSuffix(mediaType, "+zstd"), strings.HasSuffix(mediaType, ".tar.zstd"):
		return CompressionZstd
	case strings.HasSuffix(mediaType, ".tar"):
		return CompressionNone
	}
	return CompressionUnknown
}

// manifestMembers are the members of manifests and descriptors that decide
// what an image is.
var manifestMembers = []string{
	"schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "fsLayers",
	"subject", "digest", "size", "urls", "platform", "architecture", "os", "variant",
}

// checkUnambiguous refuses JSON that two parsers may read in two ways: an
// object with a member twice, or with one of manifestMembers in another case,
// which Go would take and other languages would not. Members of "annotations"
// may be called anything.
func checkUnambiguous(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := checkValue(dec, 0, false); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("data after the JSON value")
	}
	return nil
}

func checkValue(dec *json.Decoder, depth int, freeNames bool) error {
	token, err := dec.Token()
	if err != nil {
		return err
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return nil
	}
	if depth >= maxJSONDepth {
		return errors.New("JSON is nested too deeply")
	}
	var seen map[string]bool
	if delim == '{' {
		seen = map[string]bool{}
	}
	for dec.More() {
		free := freeNames
		if seen != nil {
			token, err := dec.Token()
			if err != nil {
				return err
			}
			key, ok := token.(string)
			if !ok {
				return errors.New("JSON object with a name that is not a string")
			}
			if seen[key] {
				return fmt.Errorf("JSON member %.100q is given twice", key)
			}
			seen[key] = true
			if !freeNames {
				for _, name := range manifestMembers {
					if key != name && strings.EqualFold(key, name) {
						return fmt.Errorf("JSON member %.100q is not spelled %q", key, name)
					}
				}
			}
			free = free || key == "annotations"
		}
		if err := checkValue(dec, depth+1, free); err != nil {
			return err
		}
	}
	_, err = dec.Token() // the closing delimiter
	return err
}
