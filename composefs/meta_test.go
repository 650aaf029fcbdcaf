// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

func TestMetaBytes(t *testing.T) {
	tests := []struct {
		alg     fsverity.Algorithm
		formats FormatConfig
		size    int
		sha256  string // of the file that composefs-rs writes
	}{
		{fsverity.SHA512, FormatConfig{Default: erofs.V1}, 219, "412fb0551a52276280623a1775f3108a6fe434caaa9bd0bc0d80e69cf7a173c1"},
		{fsverity.SHA256, FormatConfig{Default: erofs.V1}, 219, "ce490cd54dea426ea1f0bf50bd761abc89a6377adf85b6966472041836fcfe50"},
		{fsverity.SHA512, FormatConfig{Default: erofs.V2}, 197, "e4af7edd1005b202a219c3fe9d0810ea8e61712e45d60f7e5ef7d758831c37ce"},
		{fsverity.SHA512, FormatConfig{Default: erofs.V1, Extra: []erofs.Version{erofs.V2}}, 249, "0707445d1e5e819ad374ac01c7cdecb8bb4a4b6f5ce0aac2eee042ba5138a46d"},
		{fsverity.SHA512, FormatConfig{Default: erofs.V1, Extra: []erofs.Version{erofs.V2, erofs.V1, erofs.V2}}, 249, "0707445d1e5e819ad374ac01c7cdecb8bb4a4b6f5ce0aac2eee042ba5138a46d"},
	}
	for _, tt := range tests {
		m := NewMeta(tt.alg, tt.formats)
		b := check(m.Encode())(t)
		sum := sha256.Sum256(b)
		if len(b) != tt.size || hex.EncodeToString(sum[:]) != tt.sha256 {
			t.Errorf("%s %v: %d bytes, %x; want %d, %s:\n%s", tt.alg, tt.formats, len(b), sum, tt.size, tt.sha256, b)
		}
		back := check(ParseMeta(b))(t)
		if !back.Equal(m) {
			t.Errorf("%+v read back as %+v", m, back)
		}
	}
}

func TestParseMeta(t *testing.T) {
	const head = `{"version":1,"algorithm":"fsverity-sha256-12",`
	tests := []struct {
		text    string
		want    string // effective formats
		unknown string // read-only features
	}{
		{`{"version":1,"algorithm":"fsverity-sha256-12"}`, "[V2]", "[]"},
		{`{"version":0,"algorithm":"fsverity-sha256-12"}`, "[V2]", "[]"},
		{head + `"features":{}}`, "[V2]", "[]"},
		{head + `"features":{},"erofs_version":2,"ALGORITHM":null,"Features":3}`, "[V2]", "[]"},
		{head + `"features":{"read-only-compatible":["v1_erofs"]}}`, "[V1]", "[]"},
		{head + `"features":{"read-only-compatible":["v1_erofs"]},"erofs_formats":{"default":2}}`, "[V1]", "[]"},
		{head + `"features":{"read-only-compatible":["v1_erofs"]},"erofs_formats":{"default":2,"extra":[]}}`, "[V1]", "[]"},
		{head + `"features":{"read-only-compatible":["v1_erofs"]},"erofs_formats":{"default":2,"extra":[1]}}`, "[V2 V1]", "[]"},
		{head + `"erofs_formats":{"default":1}}`, "[V1]", "[]"},
		{head + `"erofs_formats":{"default":0,"extra":[2,1,0,2]}}`, "[V0 V1 V2]", "[]"},
		{head + `"features":{"compatible":["what"],"read-only-compatible":["new-index"],"more":[]}}`, "[V2]", "[new-index]"},
	}
	for _, tt := range tests {
		m, err := ParseMeta([]byte(tt.text))
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
			continue
		}
		if got := fmt.Sprint(m.EffectiveFormats().Versions()); got != tt.want {
			t.Errorf("%s: formats %s, want %s", tt.text, got, tt.want)
		}
		if got := fmt.Sprint(m.unknownReadOnly()); got != tt.unknown {
			t.Errorf("%s: unknown features %s, want %s", tt.text, got, tt.unknown)
		}
	}
}

func TestParseMetaRefuses(t *testing.T) {
	const head = `{"version":1,"algorithm":"fsverity-sha256-12",`
	for _, text := range []string{
		``, `null`, `[]`, `{}`, `{"version":1}`, `{"algorithm":"fsverity-sha256-12"}`, "\ufeff{}",
		`{"version":2,"algorithm":"fsverity-sha256-12"}`,
		`{"version":-1,"algorithm":"fsverity-sha256-12"}`,
		`{"version":null,"algorithm":"fsverity-sha256-12"}`,
		`{"version":4294967297,"algorithm":"fsverity-sha256-12"}`,
		`{"Version":1,"algorithm":"fsverity-sha256-12"}`,
		`{"version":1,"algorithm":"fsverity-sha256-16"}`,
		`{"version":1,"algorithm":"sha256"}`,
		`{"version":1,"algorithm":"fsverity-sha256-12"} {}`,
		head + `"features":null}`,
		head + `"features":[]}`,
		head + `"features":{"compatible":null}}`,
		head + `"features":{"compatible":[1]}}`,
		head + `"features":{"incompatible":["other"]}}`,
		head + `"erofs_formats":{}}`,
		head + `"erofs_formats":{"default":3}}`,
		head + `"erofs_formats":{"default":257}}`,
		head + `"erofs_formats":{"default":"1"}}`,
		head + `"erofs_formats":{"default":1,"extra":[3]}}`,
		head + `"erofs_formats":null}`,
	} {
		if _, err := ParseMeta([]byte(text)); !errors.Is(err, ErrMeta) {
			t.Errorf("%s: error %v, want %v", text, err, ErrMeta)
		}
	}
	_, err := ParseMeta([]byte(head + `"features":{"incompatible":["packed-objects"]}}`))
	if err == nil || !strings.Contains(err.Error(), "packed-objects") {
		t.Errorf("the unknown feature is not named: %v", err)
	}
}

func FuzzParseMeta(f *testing.F) {
	f.Add([]byte(`{"version":1,"algorithm":"fsverity-sha256-12","features":{"read-only-compatible":["v1_erofs","x"]},"erofs_formats":{"default":0,"extra":[2,1]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMeta(b)
		if err != nil {
			return
		}
		again := check(ParseMeta(check(m.Encode())(t)))(t)
		if !m.Equal(again) {
			t.Errorf("%+v read back as %+v", m, again)
		}
	})
}
