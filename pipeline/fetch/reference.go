// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
)

// Transport says where an image is read from. The names are those of
// containers-transports(5), except for TransportRegistry, which is "docker"
// there.
type Transport string

const (
	TransportRegistry          Transport = "registry"
	TransportOCI               Transport = "oci"
	TransportOCIArchive        Transport = "oci-archive"
	TransportDir               Transport = "dir"
	TransportDockerArchive     Transport = "docker-archive"
	TransportDockerDaemon      Transport = "docker-daemon"
	TransportContainersStorage Transport = "containers-storage"
)

// maxReferenceLen bounds a reference in bytes: a path and a name.
const maxReferenceLen = 8192

// Reference is a parsed image reference. Use ParseReference.
type Reference struct {
	// Original is the user's spelling.
	Original  string
	Transport Transport
	// Name is the rest after the transport. For a registry it is normalised,
	// "docker.io/library/fedora:latest", unless Short is set; a tag beside a
	// digest has been dropped. For the others it is path[:name], as written.
	Name string
	// Short is set for a plain name without a registry, such as "fedora".
	// Open completes it as registries.conf says.
	Short bool
}

// String is the reference with its transport, as skopeo takes it.
func (r Reference) String() string {
	if r.Transport == TransportRegistry {
		if r.Short {
			return r.Name
		}
		return "docker://" + r.Name
	}
	return string(r.Transport) + ":" + r.Name
}

// Digest is the manifest digest that a registry reference is pinned to, or "".
func (r Reference) Digest() digest.Digest {
	if r.Transport != TransportRegistry {
		return ""
	}
	named, err := reference.ParseNormalizedNamed(r.Name)
	if err != nil {
		return ""
	}
	if d, ok := named.(reference.Digested); ok {
		return d.Digest()
	}
	return ""
}

// Registry is host[:port] of a registry reference, or "".
func (r Reference) Registry() string {
	if r.Transport != TransportRegistry || r.Short {
		return ""
	}
	named, err := reference.ParseNormalizedNamed(r.Name)
	if err != nil {
		return ""
	}
	return reference.Domain(named)
}

// pathTransports are the transports other than a registry that a prefix
// selects.
var pathTransports = []Transport{
	TransportOCI, TransportOCIArchive, TransportDir, TransportDockerArchive,
	TransportDockerDaemon, TransportContainersStorage,
}

// ParseReference parses ref without touching anything. With transport "" the
// transport is the prefix of ref ("oci:", "docker://", …), and a registry when
// there is none. Otherwise ref is the bare name within transport and no prefix
// is looked for; "docker" is another word for "registry". Errors are
// UsageError.
//
// A reference into containers-storage parses, so that a caller can send it
// elsewhere, but Open refuses it.
func ParseReference(ref, transport string) (Reference, error) {
	r, err := parseReference(ref, transport)
	if err != nil {
		var usage *UsageError
		if !errors.As(err, &usage) {
			err = &UsageError{Subject: ref, Err: err}
		}
		return Reference{}, err
	}
	return r, nil
}

func parseReference(ref, transport string) (Reference, error) {
	switch {
	case ref == "":
		return Reference{}, errors.New("empty image reference")
	case len(ref) > maxReferenceLen:
		return Reference{}, &UsageError{
			Subject: ref[:64] + "…",
			Err:     fmt.Errorf("image reference is longer than %d bytes", maxReferenceLen),
		}
	case strings.ContainsFunc(ref, func(c rune) bool { return c < ' ' || c == 0x7f }):
		return Reference{}, errors.New("control character in image reference")
	}
	switch transport {
	case "":
		return parsePrefixed(ref)
	case "docker", string(TransportRegistry):
		return parseRegistry(ref, ref, false)
	}
	for _, t := range pathTransports {
		if transport == string(t) {
			return parsePath(ref, t, ref)
		}
	}
	return Reference{}, fmt.Errorf("unknown transport %q", transport)
}

// parsePrefixed finds the transport in the text of ref.
func parsePrefixed(ref string) (Reference, error) {
	if name, ok := strings.CutPrefix(ref, "docker://"); ok {
		return parseRegistry(ref, name, false)
	}
	for _, t := range pathTransports {
		rest, ok := strings.CutPrefix(ref, string(t)+":")
		if !ok {
			continue
		}
		if looksLikePort(rest) {
			return Reference{}, &UsageError{
				Subject: ref,
				Err:     fmt.Errorf("this may be transport %s or a registry on host %q", t, string(t)),
				Hint: fmt.Sprintf("write docker://%s for the registry, or --transport %s %s for the transport",
					ref, t, rest),
			}
		}
		return parsePath(ref, t, rest)
	}
	if scheme, _, ok := strings.Cut(ref, "://"); ok {
		return Reference{}, &UsageError{
			Subject: ref,
			Err:     fmt.Errorf("unknown transport %q", scheme),
			Hint:    "a registry is docker://HOST/NAME or just HOST/NAME",
		}
	}
	return parseRegistry(ref, ref, true)
}

// looksLikePort says whether s is digits followed by a slash.
func looksLikePort(s string) bool {
	port, _, ok := strings.Cut(s, "/")
	return ok && port != "" && strings.Trim(port, "0123456789") == ""
}

func parsePath(original string, t Transport, rest string) (Reference, error) {
	if t == TransportDockerDaemon {
		return Reference{}, &UsageError{
			Subject: original,
			Err:     errors.New("transport docker-daemon is not supported"),
			Hint:    "save the image to a file, docker save -o image.tar NAME, and use docker-archive:image.tar",
		}
	}
	if path, _, _ := strings.Cut(rest, ":"); path == "" && t != TransportContainersStorage {
		return Reference{}, fmt.Errorf("no path after transport %s", t)
	}
	if rest == "" {
		return Reference{}, fmt.Errorf("no image after transport %s", t)
	}
	return Reference{Original: original, Transport: t, Name: rest}, nil
}

// parseRegistry normalises name. A name without a registry stays as it is when
// short names are to be completed later.
func parseRegistry(original, name string, short bool) (Reference, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return Reference{}, err
	}
	// A tag beside a digest says nothing that the digest does not.
	canonical, digested := named.(reference.Digested)
	if _, tagged := named.(reference.Tagged); tagged && digested {
		bare := reference.TrimNamed(named)
		if named, err = reference.WithDigest(bare, canonical.Digest()); err != nil {
			return Reference{}, err
		}
	}
	if digested {
		if err := canonical.Digest().Validate(); err != nil {
			return Reference{}, err
		}
	}
	r := Reference{Original: original, Transport: TransportRegistry, Name: reference.TagNameOnly(named).String()}
	if short && !hasRegistry(name) {
		r.Short = true
		r.Name = reference.FamiliarString(named)
	}
	return r, nil
}

// hasRegistry says whether the first component of name is a host, by the rule
// that all container tools share.
func hasRegistry(name string) bool {
	host, _, ok := strings.Cut(name, "/")
	return ok && (strings.ContainsAny(host, ".:") || host == "localhost")
}
