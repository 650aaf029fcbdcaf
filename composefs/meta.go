// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

const (
	// metaVersion is the newest base format this package knows.
	metaVersion = 1

	// flagV1 is the read-only compatible feature of repositories whose
	// default EROFS format is 1.
	flagV1 = "v1_erofs"

	// maxMetaSize bounds meta.json, in bytes; real ones have about 250.
	maxMetaSize = 1 << 20
)

// FormatConfig says which EROFS formats a repository keeps images in.
type FormatConfig struct {
	Default erofs.Version
	// Extra formats are generated too. Order and repetitions do not count.
	Extra []erofs.Version
}

// Versions lists the formats in the order in which images are generated: the
// default one, then the others ascending.
func (c FormatConfig) Versions() []erofs.Version {
	out := []erofs.Version{c.Default}
	for _, v := range sortedVersions(c.Extra) {
		if v != c.Default {
			out = append(out, v)
		}
	}
	return out
}

func (c FormatConfig) equal(d FormatConfig) bool {
	return c.Default == d.Default && slices.Equal(sortedVersions(c.Extra), sortedVersions(d.Extra))
}

func sortedVersions(v []erofs.Version) []erofs.Version {
	out := slices.Clone(v)
	slices.Sort(out)
	return slices.Compact(out)
}

// Meta is the content of meta.json. Unknown keys are not kept: the file is
// written once and never changed, only replaced by [Reset].
type Meta struct {
	// Version is the base format, 0 or 1.
	Version uint32
	// Algorithm is that of every object.
	Algorithm fsverity.Algorithm
	// Feature flags. A reader ignores unknown compatible ones, does not write
	// with unknown read-only compatible ones, and refuses unknown
	// incompatible ones.
	Compatible, ReadOnlyCompatible, Incompatible []string
	// Formats is what the file says; what counts is EffectiveFormats.
	Formats FormatConfig
}

// NewMeta is the metadata of a new repository.
func NewMeta(alg fsverity.Algorithm, formats FormatConfig) Meta {
	m := Meta{Version: metaVersion, Algorithm: alg, Formats: FormatConfig{Default: formats.Default}}
	if v := formats.Versions()[1:]; len(v) > 0 {
		m.Formats.Extra = v
	}
	if m.Formats.Default == erofs.V1 {
		m.ReadOnlyCompatible = []string{flagV1}
	}
	return m
}

// EffectiveFormats is the formats that count. An absent field and an explicit
// format 2 read the same; then the flag decides.
func (m Meta) EffectiveFormats() FormatConfig {
	if m.Formats.equal(FormatConfig{Default: erofs.V2}) && slices.Contains(m.ReadOnlyCompatible, flagV1) {
		return FormatConfig{Default: erofs.V1}
	}
	return m.Formats
}

// unknownReadOnly lists the features that allow to read but not to write.
func (m Meta) unknownReadOnly() []string {
	return slices.DeleteFunc(slices.Clone(m.ReadOnlyCompatible), func(s string) bool { return s == flagV1 })
}

// Equal reports whether two files say the same.
func (m Meta) Equal(o Meta) bool {
	return m.Version == o.Version && m.Algorithm == o.Algorithm && m.Formats.equal(o.Formats) &&
		slices.Equal(m.Compatible, o.Compatible) &&
		slices.Equal(m.ReadOnlyCompatible, o.ReadOnlyCompatible) &&
		slices.Equal(m.Incompatible, o.Incompatible)
}

// Encode is the file, byte for byte as composefs-rs writes it.
func (m Meta) Encode() ([]byte, error) {
	type features struct {
		Compatible         []string `json:"compatible"`
		ReadOnlyCompatible []string `json:"read-only-compatible"`
		Incompatible       []string `json:"incompatible"`
	}
	type formats struct {
		Default int   `json:"default"`
		Extra   []int `json:"extra,omitempty"`
	}
	doc := struct {
		Version   uint32   `json:"version"`
		Algorithm string   `json:"algorithm"`
		Features  features `json:"features"`
		Formats   formats  `json:"erofs_formats"`
	}{
		Version:   m.Version,
		Algorithm: m.Algorithm.String(),
		Features: features{
			append([]string{}, m.Compatible...),
			append([]string{}, m.ReadOnlyCompatible...),
			append([]string{}, m.Incompatible...),
		},
		Formats: formats{Default: int(m.Formats.Default)},
	}
	for _, v := range sortedVersions(m.Formats.Extra) {
		doc.Formats.Extra = append(doc.Formats.Extra, int(v))
	}
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode meta.json: %w", err)
	}
	return append(b, '\n'), nil
}

// ParseMeta reads meta.json and refuses what it must not be opened with.
// Errors wrap [ErrMeta].
func ParseMeta(b []byte) (Meta, error) {
	m, err := parseMeta(b)
	if err != nil {
		return Meta{}, fmt.Errorf("%w: parse meta.json: %w", ErrMeta, err)
	}
	if m.Version > metaVersion {
		return Meta{}, fmt.Errorf("%w: format version %d is newer than %d: %w", ErrMeta, m.Version, metaVersion, ErrNewer)
	}
	if len(m.Incompatible) > 0 {
		return Meta{}, fmt.Errorf("%w: unknown incompatible features %s: %w",
			ErrMeta, strings.Join(m.Incompatible, ", "), ErrNewer)
	}
	return m, nil
}

// object is a JSON object. Its keys are exact, where struct tags would match
// them in any case.
type object map[string]json.RawMessage

func parseObject(b []byte) (object, error) {
	var o object
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, err
	}
	if o == nil {
		return nil, fmt.Errorf("null is not an object")
	}
	return o, nil
}

// get decodes a key into v and reports whether it was there. The value null
// is an error.
func (o object) get(key string, v any) (bool, error) {
	raw, ok := o[key]
	if !ok {
		return false, nil
	}
	if bytes.Equal(raw, []byte("null")) {
		return false, fmt.Errorf("%s is null", key)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return false, fmt.Errorf("%s: %w", key, err)
	}
	return true, nil
}

func parseMeta(b []byte) (Meta, error) {
	top, err := parseObject(b)
	if err != nil {
		return Meta{}, err
	}
	m := Meta{Formats: FormatConfig{Default: erofs.V2}}
	if ok, err := top.get("version", &m.Version); err != nil || !ok {
		return Meta{}, missing("version", err)
	}
	var alg string
	if ok, err := top.get("algorithm", &alg); err != nil || !ok {
		return Meta{}, missing("algorithm", err)
	}
	if m.Algorithm, err = fsverity.ParseAlgorithm(alg); err != nil {
		return Meta{}, err
	}
	var raw json.RawMessage
	if ok, err := top.get("features", &raw); err != nil {
		return Meta{}, err
	} else if ok {
		if err := m.parseFeatures(raw); err != nil {
			return Meta{}, fmt.Errorf("features: %w", err)
		}
	}
	if ok, err := top.get("erofs_formats", &raw); err != nil {
		return Meta{}, err
	} else if ok {
		if m.Formats, err = parseFormats(raw); err != nil {
			return Meta{}, fmt.Errorf("erofs_formats: %w", err)
		}
	}
	return m, nil
}

func missing(key string, err error) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("%s is missing", key)
}

func (m *Meta) parseFeatures(raw []byte) error {
	o, err := parseObject(raw)
	if err != nil {
		return err
	}
	for key, dst := range map[string]*[]string{
		"compatible":           &m.Compatible,
		"read-only-compatible": &m.ReadOnlyCompatible,
		"incompatible":         &m.Incompatible,
	} {
		if _, err := o.get(key, dst); err != nil {
			return err
		}
	}
	return nil
}

func parseFormats(raw []byte) (FormatConfig, error) {
	o, err := parseObject(raw)
	if err != nil {
		return FormatConfig{}, err
	}
	var number uint64
	if ok, err := o.get("default", &number); err != nil || !ok {
		return FormatConfig{}, missing("default", err)
	}
	var c FormatConfig
	if c.Default, err = parseVersion(number); err != nil {
		return FormatConfig{}, err
	}
	var extra []uint64
	if _, err := o.get("extra", &extra); err != nil {
		return FormatConfig{}, err
	}
	for _, n := range extra {
		v, err := parseVersion(n)
		if err != nil {
			return FormatConfig{}, err
		}
		c.Extra = append(c.Extra, v)
	}
	c.Extra = sortedVersions(c.Extra)
	return c, nil
}

func parseVersion(n uint64) (erofs.Version, error) {
	if n > math.MaxUint8 || erofs.Version(n) > erofs.V2 {
		return 0, fmt.Errorf("EROFS format %d is not known", n)
	}
	return erofs.Version(n), nil
}
