// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
)

// maxInspected bounds how many images of an index are looked into for their
// platform.
const maxInspected = 64

// platformOf finds the platform of a manifest that an index does not tell.
type platformOf func(ctx context.Context, d digest.Digest) (*imgspecv1.Platform, error)

// choosePlatform picks the entry of an index that suits sys. An entry without
// a platform is taken when it is the only one, and otherwise when its config
// suits; entries with a platform go first.
func choosePlatform(ctx context.Context, entries []imgspecv1.Descriptor, sys *types.SystemContext, inspect platformOf) (imgspecv1.Descriptor, error) {
	entries, err := eligible(entries)
	if err != nil {
		return imgspecv1.Descriptor{}, err
	}
	if len(entries) == 0 {
		return imgspecv1.Descriptor{}, errors.New("the index names no image")
	}
	if same := slices.CompactFunc(slices.Clone(entries), sameDigest); len(same) == 1 && same[0].Platform == nil {
		return same[0], nil
	}
	known := slices.DeleteFunc(slices.Clone(entries), func(d imgspecv1.Descriptor) bool { return d.Platform == nil })
	if d, ok := chooseKnown(known, sys); ok {
		return d, nil
	}
	var looked []imgspecv1.Descriptor
	for _, d := range entries {
		if d.Platform != nil || isIndex(d.MediaType) {
			continue
		}
		if len(looked) == maxInspected {
			break
		}
		if d.Platform, err = inspect(ctx, d.Digest); err != nil {
			return imgspecv1.Descriptor{}, fmt.Errorf("find platform of %s: %w", d.Digest, err)
		}
		looked = append(looked, d)
	}
	if d, ok := chooseKnown(looked, sys); ok {
		return d, nil
	}
	return imgspecv1.Descriptor{}, fmt.Errorf("no image for platform %s; there are: %s",
		wantedPlatform(sys), listSome(platformNames(append(known, looked...))))
}

// eligible are the entries that are images or indexes, with valid digests.
func eligible(entries []imgspecv1.Descriptor) ([]imgspecv1.Descriptor, error) {
	var out []imgspecv1.Descriptor
	for _, d := range entries {
		switch d.MediaType {
		case MediaTypeOCIManifest, MediaTypeDockerManifest, MediaTypeOCIIndex, MediaTypeDockerList,
			mediaTypeDockerSchema1, mediaTypeDockerSchema1Signed, "":
		default:
			continue
		}
		if err := d.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("index: digest %.100q: %w", string(d.Digest), err)
		}
		out = append(out, d)
	}
	return out, nil
}

func sameDigest(a, b imgspecv1.Descriptor) bool { return a.Digest == b.Digest }

// chooseKnown leaves the rules of variants and preferences to the library, so
// that we agree with podman.
func chooseKnown(entries []imgspecv1.Descriptor, sys *types.SystemContext) (imgspecv1.Descriptor, bool) {
	entries = slices.DeleteFunc(slices.Clone(entries), func(d imgspecv1.Descriptor) bool {
		return d.Platform == nil || d.Platform.Architecture == ""
	})
	if len(entries) == 0 {
		return imgspecv1.Descriptor{}, false
	}
	chosen, err := manifest.OCI1IndexFromComponents(entries, nil).ChooseInstance(sys)
	if err != nil {
		return imgspecv1.Descriptor{}, false
	}
	i := slices.IndexFunc(entries, func(d imgspecv1.Descriptor) bool { return d.Digest == chosen })
	return entries[i], true
}

func wantedPlatform(sys *types.SystemContext) string {
	p := imgspecv1.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH, Variant: sys.VariantChoice}
	if sys.OSChoice != "" {
		p.OS = sys.OSChoice
	}
	if sys.ArchitectureChoice != "" {
		p.Architecture = sys.ArchitectureChoice
	}
	return platformName(&p)
}

func platformName(p *imgspecv1.Platform) string {
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return name
}

// platformNames lists what an index has, without attestations, whose platform
// is "unknown".
func platformNames(entries []imgspecv1.Descriptor) []string {
	var names []string
	for _, d := range entries {
		if d.Platform == nil || d.Platform.Architecture == "" || d.Platform.Architecture == "unknown" {
			continue
		}
		names = append(names, fmt.Sprintf("%.64s", platformName(d.Platform)))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// configPlatform reads the platform from a config.
func configPlatform(config []byte) (*imgspecv1.Platform, error) {
	var p struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
		Variant      string `json:"variant"`
	}
	if err := json.Unmarshal(config, &p); err != nil {
		return nil, fmt.Errorf("parse config: %w", err)
	}
	return &imgspecv1.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}, nil
}
