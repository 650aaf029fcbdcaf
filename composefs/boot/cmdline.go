// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// The two keys of the composefs kernel argument.
const (
	kargShort  = "composefs="
	kargDigest = "composefs.digest="
)

// isSpace reports ASCII white space as the boot loader and initramfs tools of
// composefs understand it; the vertical tab is none.
func isSpace(b byte) bool {
	return b == ' ' || b == '\t' || b == '\n' || b == '\f' || b == '\r'
}

// Args yields the arguments of a kernel command line. White space separates
// them, except between double quotes; there is no escape, and the quotes stay
// part of the argument.
func Args(cmdline string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for start, end := range argSpans(cmdline) {
			if !yield(cmdline[start:end]) {
				return
			}
		}
	}
}

// argSpans yields where arguments begin and end.
func argSpans(s string) iter.Seq2[int, int] {
	return func(yield func(int, int) bool) {
		start, quoted := 0, false
		for i := 0; i < len(s); i++ {
			switch {
			case s[i] == '"':
				quoted = !quoted
			case !quoted && isSpace(s[i]):
				if i > start && !yield(start, i) {
					return
				}
				start = i + 1
			}
		}
		if len(s) > start {
			yield(start, len(s))
		}
	}
}

// balanced reports whether every double quote is closed. What is appended to
// an unbalanced command line would become part of its last argument.
func balanced(s string) bool { return strings.Count(s, `"`)%2 == 0 }

// checkArg accepts exactly one kernel argument.
func checkArg(arg string) error {
	if strings.ContainsAny(arg, "\n\r\x00") || !balanced(arg) {
		return fmt.Errorf("bad kernel argument %q", arg)
	}
	n := 0
	for a := range Args(arg) {
		if a != arg {
			return fmt.Errorf("kernel argument %q is more than one", arg)
		}
		n++
	}
	if n == 0 {
		return errors.New("empty kernel argument")
	}
	return nil
}

// KargStyle is the way the composefs kernel argument is written.
type KargStyle uint8

// The styles. bootc writes the short form whatever the version of the image
// is; the initramfs of both reads either.
const (
	// KargBootc is composefs=[?]<hex>.
	KargBootc KargStyle = iota
	// KargDigest is composefs.digest=[?]v1-<hash>-12:<hex> for images of
	// format version 0 and 1, and the short form for version 2.
	KargDigest
)

// Karg is the composefs kernel argument: which image is the root.
type Karg struct {
	// ID is the fs-verity digest of the EROFS image.
	ID fsverity.Digest
	// Version is the format version that the argument's form stands for, V1
	// or V2 when parsed. bootc writes the form of V2 for images of V1 as well,
	// so a parsed short form says nothing about the image.
	Version erofs.Version
	// Insecure makes fs-verity optional at boot; it is written as a "?"
	// directly after the equals sign.
	Insecure bool
}

// Format is the argument in the given style.
func (k Karg) Format(style KargStyle) string {
	mark := ""
	if k.Insecure {
		mark = "?"
	}
	if style == KargDigest && k.Version < erofs.V2 {
		return kargDigest + mark + "v1-" + k.ID.Algorithm().HashName() + "-12:" + k.ID.String()
	}
	return kargShort + mark + k.ID.String()
}

// FindKarg finds the composefs argument for digests of algorithm alg.
// Arguments of the long form come first, in order; those for another algorithm
// are passed over and the first that fits is the result. Only without one is
// the first argument of the short form used. A malformed argument that is
// looked at is an error. found is false when there is no argument.
func FindKarg(cmdline string, alg fsverity.Algorithm) (k Karg, found bool, err error) {
	for arg := range Args(cmdline) {
		value, ok := strings.CutPrefix(arg, kargDigest)
		if !ok {
			continue
		}
		k, argAlg, err := parseLongKarg(value)
		if err != nil {
			return Karg{}, false, fmt.Errorf("parse kernel argument %q: %w", clip(arg), err)
		}
		if argAlg != alg {
			continue
		}
		// The digest of a foreign algorithm is never looked at, so it is
		// parsed only here.
		_, text, _ := strings.Cut(value, ":")
		if k.ID, err = parseID(text, alg); err != nil {
			return Karg{}, false, fmt.Errorf("parse kernel argument %q: %w", clip(arg), err)
		}
		return k, true, nil
	}
	for arg := range Args(cmdline) {
		value, ok := strings.CutPrefix(arg, kargShort)
		if !ok {
			continue
		}
		k := Karg{Version: erofs.V2}
		value, k.Insecure = strings.CutPrefix(value, "?")
		if k.ID, err = parseID(value, alg); err != nil {
			return Karg{}, false, fmt.Errorf("parse kernel argument %q: %w", clip(arg), err)
		}
		return k, true, nil
	}
	return Karg{}, false, nil
}

// parseLongKarg parses [?]v<version>-<hash>-<log2 of block size>:<hex> without
// looking at the digest.
func parseLongKarg(value string) (k Karg, alg fsverity.Algorithm, err error) {
	value, k.Insecure = strings.CutPrefix(value, "?")
	descriptor, _, ok := strings.Cut(value, ":")
	if !ok {
		return Karg{}, 0, errors.New("want <version>-<hash>-<block size>:<digest>")
	}
	version, rest, ok := strings.Cut(descriptor, "-")
	if !ok {
		return Karg{}, 0, errors.New("want <version>-<hash>-<block size> before the colon")
	}
	switch version {
	case "v1":
		k.Version = erofs.V1
	case "v2":
		k.Version = erofs.V2
	default:
		return Karg{}, 0, fmt.Errorf("unknown format version %q", clip(version))
	}
	alg, err = fsverity.ParseAlgorithm("fsverity-" + rest)
	return k, alg, err
}

func parseID(text string, alg fsverity.Algorithm) (fsverity.Digest, error) {
	if len(text) != 2*alg.Size() {
		return fsverity.Digest{}, fmt.Errorf("digest has %d characters, want %d", len(text), 2*alg.Size())
	}
	return fsverity.ParseDigest(text)
}

// isKarg reports whether an argument is a composefs argument of either form.
func isKarg(arg string) bool {
	return strings.HasPrefix(arg, kargShort) || strings.HasPrefix(arg, kargDigest)
}

// clip shortens foreign text for an error message.
func clip(s string) string {
	const limit = 200
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "…"
}
