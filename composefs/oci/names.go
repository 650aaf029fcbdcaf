// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/erofs"
)

// Digest is the SHA-256 digest of a blob, a manifest, a config or an
// uncompressed layer. It is comparable; the zero Digest means "none".
type Digest struct {
	set bool
	sum [sha256.Size]byte
}

// ErrBadDigest reports text that is not "sha256:" and 64 lower-case hex digits.
var ErrBadDigest = errors.New("malformed digest")

// ParseDigest parses "sha256:" followed by 64 lower-case hex digits, the only
// form that can name a stream.
func ParseDigest(s string) (Digest, error) {
	text, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(text) != 2*sha256.Size || strings.ToLower(text) != text {
		return Digest{}, fmt.Errorf("%w %q: want sha256: and 64 lower-case hex digits", ErrBadDigest, s)
	}
	d := Digest{set: true}
	if _, err := hex.Decode(d.sum[:], []byte(text)); err != nil {
		return Digest{}, fmt.Errorf("%w %q: %w", ErrBadDigest, s, err)
	}
	return d, nil
}

// DigestOf is the digest of data.
func DigestOf(data []byte) Digest { return Digest{set: true, sum: sha256.Sum256(data)} }

// digestFromSum makes a Digest of the result of a SHA-256 hash.
func digestFromSum(sum []byte) Digest {
	d := Digest{set: true}
	copy(d.sum[:], sum)
	return d
}

// IsZero reports whether d is the zero Digest, "none".
func (d Digest) IsZero() bool { return !d.set }

// String is "sha256:" and hex; empty for the zero Digest.
func (d Digest) String() string {
	if !d.set {
		return ""
	}
	return "sha256:" + hex.EncodeToString(d.sum[:])
}

// MarshalText writes what String returns.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (d *Digest) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*d = Digest{}
		return nil
	}
	v, err := ParseDigest(string(b))
	if err == nil {
		*d = v
	}
	return err
}

// Names of streams.
const (
	manifestPrefix = "oci-manifest-"
	configPrefix   = "oci-config-"
	layerPrefix    = "oci-layer-"
	tagPrefix      = "oci/"
	configRef      = "config:" // named ref of a manifest that leads to its config
)

// BootcTagPrefix begins the tags that bootc owns; the manifest digest follows.
const BootcTagPrefix = "localhost/bootc-"

// BootcTag is the tag under which bootc keeps a deployment's image.
func BootcTag(manifest Digest) string { return BootcTagPrefix + manifest.String() }

// LayerStream is the name of the stream of the layer with that diff_id.
func LayerStream(diffID Digest) string { return layerPrefix + diffID.String() }

// ConfigStream is the name of the stream of the config with that digest.
func ConfigStream(config Digest) string { return configPrefix + config.String() }

// ManifestStream is the name of the stream of the manifest with that digest.
func ManifestStream(manifest Digest) string { return manifestPrefix + manifest.String() }

// maxName is the longest file name, in bytes.
const maxName = 255

// EncodeTag turns a tag into the name of its ref below streams/refs: "%"
// becomes "%25" and "/" becomes "%2F", nothing else changes.
func EncodeTag(tag string) (string, error) {
	if strings.HasPrefix(tag, "@") {
		return "", fmt.Errorf("tag %q: a tag must not begin with @", tag)
	}
	name := strings.NewReplacer("%", "%25", "/", "%2F").Replace(tag)
	if name == "" || name == "." || name == ".." || strings.IndexByte(name, 0) >= 0 || len(name) > maxName || !utf8.ValidString(name) {
		return "", fmt.Errorf("tag %q cannot be a UTF-8 file name of at most %d bytes", tag, maxName)
	}
	return tagPrefix + name, nil
}

// DecodeTag is the inverse of EncodeTag for the last component of a ref. Other
// escapes than %25 and %2F are kept as they are.
func DecodeTag(name string) string {
	return strings.NewReplacer("%25", "%", "%2F", "/").Replace(name)
}

// XattrMode says which extended attributes of an image's files its EROFS
// images keep.
type XattrMode uint8

// The modes.
const (
	AllowlistOnly XattrMode = iota // security.capability only
	KeepUser                       // also user.*
)

// String is the name used in configs and messages.
func (m XattrMode) String() string {
	if m == KeepUser {
		return "keep-user-xattrs"
	}
	return "allowlist-only"
}

// ImageKey is the name under which a config stream refers to an EROFS image.
func ImageKey(boot bool, v erofs.Version, mode XattrMode) string {
	key := imageRefPrefix
	if boot {
		key = bootRefPrefix
	}
	if v != erofs.V2 {
		key += ".v1"
	}
	if boot && mode == KeepUser {
		key += ".xattrs=" + mode.String()
	}
	return key
}

const (
	imageRefPrefix = composefs.ImageRefPrefix
	bootRefPrefix  = imageRefPrefix + ".boot"
)
