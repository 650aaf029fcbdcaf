// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs"
)

// CollectGarbage is [composefs.Repo.CollectGarbage] for a repository with
// images: an artifact that refers to a subject stays as long as the subject
// does, and no longer.
func CollectGarbage(ctx context.Context, repo *composefs.Repo, o composefs.GCOptions) (*composefs.GCResult, error) {
	o.DependsOn = referrerSubject
	return repo.CollectGarbage(ctx, o)
}

// referrerSubject is the manifest stream of the image that the ref of an
// artifact, oci-referrers/<subject>/<artifact>, belongs to. Refs of another form keep what they lead to.
func referrerSubject(ref string) (stream string, ok bool) {
	rest, ok := strings.CutPrefix(ref, referrerPrefix)
	if !ok {
		return "", false
	}
	subject, artifact, ok := strings.Cut(rest, "/")
	if !ok || strings.Contains(artifact, "/") {
		return "", false
	}
	digest, err := ParseDigest(DecodeTag(subject))
	if err != nil {
		return "", false
	}
	return ManifestStream(digest), true
}
