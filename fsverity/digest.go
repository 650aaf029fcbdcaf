// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fsverity

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Algorithm is a hash algorithm by its number in the kernel's fs-verity
// interface. The block size is always 4096 bytes and there is no salt.
type Algorithm uint8

// The algorithms a repository can use.
const (
	SHA256 Algorithm = 1 // 32-byte digests
	SHA512 Algorithm = 2 // 64-byte digests
)

// BlockSize is the size in bytes of data and Merkle tree blocks.
const BlockSize = 4096

// MaxDigestSize is the size in bytes of the largest digest, SHA-512's.
const MaxDigestSize = 64

// ErrBadDigest reports text or bytes that are not a digest.
var ErrBadDigest = errors.New("malformed fs-verity digest")

// Valid reports whether a is an algorithm this package implements.
func (a Algorithm) Valid() bool { return a == SHA256 || a == SHA512 }

// Size is the digest length in bytes: 32 or 64.
func (a Algorithm) Size() int {
	if a == SHA256 {
		return 32
	}
	return 64
}

// HashName is the algorithm's short name, "sha256" or "sha512".
func (a Algorithm) HashName() string {
	switch a {
	case SHA256:
		return "sha256"
	case SHA512:
		return "sha512"
	}
	return fmt.Sprintf("unknown-%d", uint8(a))
}

// String is the name used in meta.json, for instance "fsverity-sha512-12".
// The last number is the base-two logarithm of the block size.
func (a Algorithm) String() string { return "fsverity-" + a.HashName() + "-12" }

// ParseAlgorithm parses the form that [Algorithm.String] writes.
func ParseAlgorithm(s string) (Algorithm, error) {
	switch s {
	case "fsverity-sha256-12":
		return SHA256, nil
	case "fsverity-sha512-12":
		return SHA512, nil
	}
	return 0, fmt.Errorf("unknown fs-verity algorithm %q: want fsverity-sha512-12 or fsverity-sha256-12", s)
}

// Digest is the fs-verity digest of a file: the hash of its 256-byte
// descriptor. It is a comparable value; the zero Digest means "none".
type Digest struct {
	alg Algorithm
	sum [MaxDigestSize]byte
}

// DigestFromBytes makes a Digest of raw bytes, whose length must fit alg.
func DigestFromBytes(alg Algorithm, b []byte) (Digest, error) {
	if !alg.Valid() || len(b) != alg.Size() {
		return Digest{}, fmt.Errorf("%w: %d bytes for %s", ErrBadDigest, len(b), alg)
	}
	d := Digest{alg: alg}
	copy(d.sum[:], b)
	return d, nil
}

// ParseDigest parses lower- or upper-case hex; the length, 64 or 128
// characters, decides the algorithm.
func ParseDigest(s string) (Digest, error) {
	var alg Algorithm
	switch len(s) {
	case 64:
		alg = SHA256
	case 128:
		alg = SHA512
	default:
		return Digest{}, fmt.Errorf("%w: %d characters, want 64 or 128", ErrBadDigest, len(s))
	}
	d := Digest{alg: alg}
	if _, err := hex.Decode(d.sum[:], []byte(s)); err != nil {
		return Digest{}, fmt.Errorf("%w: %w", ErrBadDigest, err)
	}
	return d, nil
}

// ParseObjectPath parses "hh/rest", the name of an object below objects/.
func ParseObjectPath(s string) (Digest, error) {
	if len(s) < 3 || s[2] != '/' || strings.IndexByte(s[3:], '/') >= 0 {
		return Digest{}, fmt.Errorf("%w: %q is not an object path", ErrBadDigest, s)
	}
	return ParseDigest(s[:2] + s[3:])
}

// Algorithm is the digest's algorithm; 0 for the zero Digest.
func (d Digest) Algorithm() Algorithm { return d.alg }

// IsZero reports whether d is the zero Digest, "none".
func (d Digest) IsZero() bool { return d.alg == 0 }

// Bytes is a copy of the raw digest, 32 or 64 bytes long; nil for the zero
// Digest.
func (d Digest) Bytes() []byte {
	if d.alg == 0 {
		return nil
	}
	return append([]byte(nil), d.sum[:d.alg.Size()]...)
}

// AppendBytes appends the raw digest to b.
func (d Digest) AppendBytes(b []byte) []byte {
	if d.alg == 0 {
		return b
	}
	return append(b, d.sum[:d.alg.Size()]...)
}

// String is the digest in lower-case hex; empty for the zero Digest.
func (d Digest) String() string {
	if d.alg == 0 {
		return ""
	}
	return hex.EncodeToString(d.sum[:d.alg.Size()])
}

// ObjectPath is the object's name below objects/: the first byte in hex, a
// slash, the rest in hex.
func (d Digest) ObjectPath() string {
	if d.alg == 0 {
		return ""
	}
	n := d.alg.Size()
	buf := make([]byte, 2*n+1)
	hex.Encode(buf[:2], d.sum[:1])
	buf[2] = '/'
	hex.Encode(buf[3:], d.sum[1:n])
	return string(buf)
}

// MarshalText writes hex, so that a Digest can be a JSON string or key.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (d *Digest) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*d = Digest{}
		return nil
	}
	v, err := ParseDigest(string(b))
	if err != nil {
		return err
	}
	*d = v
	return nil
}
