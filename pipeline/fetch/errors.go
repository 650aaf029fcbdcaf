// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

// UsageError is a request that cannot be carried out as it was put: a
// reference that does not parse, a configuration file that does not parse, no
// signature policy. Nothing was contacted and nothing was written.
type UsageError struct {
	// Subject is the reference or the file that is at fault.
	Subject string
	// Hint says what to do about it. It may be empty.
	Hint string
	Err  error
}

func (e *UsageError) Error() string {
	return withHint(fmt.Sprintf("%q: %v", e.Subject, e.Err), e.Hint)
}

func (e *UsageError) Unwrap() error { return e.Err }

// NotFoundError is an image, a platform of an image or a blob that the source
// says it does not have.
type NotFoundError struct {
	// Reference is the image as it was asked for.
	Reference string
	Err       error
}

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("find image %s: %v", e.Reference, e.Err)
}

func (e *NotFoundError) Unwrap() error { return e.Err }

// AuthError is a registry that refused access.
type AuthError struct {
	// Reference is the image as it was asked for.
	Reference string
	// Registry is host[:port] of the reference. A mirror may have been asked
	// in its place.
	Registry string
	// CredentialSource is the file that the credentials were taken from, or
	// words for another source. It is empty when none was found.
	CredentialSource string
	// Searched lists where credentials were looked for.
	Searched []string
	// Realm is the URL of the token server, without its query, when the
	// registry named one.
	Realm string
	Err   error
}

func (e *AuthError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "access to %s refused by registry %s", e.Reference, e.Registry)
	if e.Realm != "" {
		fmt.Fprintf(&b, " (realm %s)", e.Realm)
	}
	b.WriteString("; credentials: ")
	switch {
	case e.CredentialSource != "":
		b.WriteString(e.CredentialSource)
	case len(e.Searched) > 0:
		b.WriteString("none found; searched " + strings.Join(e.Searched, ", "))
	default:
		b.WriteString("none")
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	return b.String()
}

func (e *AuthError) Unwrap() error { return e.Err }

// PolicyError is an image that the signature policy does not allow.
type PolicyError struct {
	Reference string
	// Policy is the path of the policy file, or words for a built-in policy.
	Policy string
	Err    error
}

func (e *PolicyError) Error() string {
	return fmt.Sprintf("image %s refused by signature policy %s: %v", e.Reference, e.Policy, e.Err)
}

func (e *PolicyError) Unwrap() error { return e.Err }

// Parts of an image that are not layers, for IntegrityError.Layer.
const (
	PartManifest = -1
	PartConfig   = -2
)

// IntegrityError is content that is not what its digest or size promised.
type IntegrityError struct {
	// Reference is the image as it was asked for.
	Reference string
	// Layer is the index of the layer in the manifest, counted from 0, or
	// PartManifest or PartConfig.
	Layer int
	// Layers is how many layers the manifest has; 0 when that is not known.
	Layers int
	// Digest is the digest that the content should have had.
	Digest digest.Digest
	// Reason says what was wrong.
	Reason string
}

func (e *IntegrityError) Error() string {
	part := fmt.Sprintf("layer %d", e.Layer+1) // people count from 1
	switch {
	case e.Layer == PartManifest:
		part = "manifest"
	case e.Layer == PartConfig:
		part = "config"
	case e.Layers > 0:
		part = fmt.Sprintf("%s of %d", part, e.Layers)
	}
	return fmt.Sprintf("verify image %s: %s (%s): %s", e.Reference, part, e.Digest, e.Reason)
}

// UnsupportedError is an image that was reached and that cfs-pull cannot take,
// for example one with a schema 1 manifest.
type UnsupportedError struct {
	Reference string
	Reason    string
	// Hint says what to do about it. It may be empty.
	Hint string
}

func (e *UnsupportedError) Error() string {
	return withHint(fmt.Sprintf("image %s is not supported: %s", e.Reference, e.Reason), e.Hint)
}

func withHint(text, hint string) string {
	if hint == "" {
		return text
	}
	return text + " (" + hint + ")"
}

// isTyped says whether err has been given its final type already.
func isTyped(err error) bool {
	var (
		usage       *UsageError
		notFound    *NotFoundError
		auth        *AuthError
		policy      *PolicyError
		integrity   *IntegrityError
		unsupported *UnsupportedError
	)
	return errors.As(err, &usage) || errors.As(err, &notFound) || errors.As(err, &auth) ||
		errors.As(err, &policy) || errors.As(err, &integrity) || errors.As(err, &unsupported)
}
