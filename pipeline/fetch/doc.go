// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package fetch resolves an image reference and serves the bytes of one
// platform image: its manifest, its config and its layer blobs. It is the
// only way in which image bytes enter cfs-pull, except for images that are in
// a containers-storage already.
//
// # Terms
//
// A reference is what the user wrote. Its transport says where the image is:
// a registry, an OCI layout (oci, oci-archive), a skopeo directory (dir) or a
// docker-save file (docker-archive). A reference leads to a manifest or to an
// index; an index lists one manifest per platform, and Open follows it to the
// manifest of the platform asked for. The manifest names the config and the
// layers by digest.
//
// # Invariants
//
//   - The manifest is kept byte for byte. Image.ManifestDigest is the SHA-256
//     of exactly Image.Manifest; when the reference or an index named the
//     manifest by digest, that digest was verified too.
//   - No byte of a config is returned before its digest and size were
//     verified. A layer is verified while it is read: a reader sees io.EOF
//     only after size and digest were right, and an IntegrityError otherwise.
//     Whoever stops reading before io.EOF has verified nothing.
//   - The signature policy (containers-policy.json(5)) was enforced before
//     Open returns.
//   - Every size that a foreign party chooses is bounded, see the limits in
//     manifest.go; sizes of layers are bounded by the manifest.
//   - Credentials come only from where Options.Auth says. The environment
//     (REGISTRY_AUTH_FILE, DOCKER_CONFIG, CONTAINERS_*) and the home directory
//     of root have no say. The private copy of a credential file lives in
//     anonymous memory until Image.Close.
//   - Nothing is written except temporary files below Options.TempDir: the
//     unpacked form of a compressed archive, which is unlinked before it is
//     filled, and directories that are removed before Open returns.
//   - No type of the container libraries is part of the exported API.
//
// # Failures
//
// Errors are typed by what a caller does about them: UsageError, NotFoundError,
// AuthError, PolicyError, IntegrityError, UnsupportedError. Whatever else
// comes back is a failure of the network, the server or the local system;
// IsRetryable says whether trying again may help. Open, Image.Config and
// Image.Layer retry by themselves as Options.Retries allows. A connection
// that breaks in the middle of a blob is resumed with a Range request by
// containers/image, or, when the server cannot do that, by asking for the blob
// again and skipping what was delivered already, so a reader of a layer sees
// one unbroken stream. When this is exhausted, the read fails with an error
// for which IsRetryable is true, and the caller may restart the whole layer.
package fetch
