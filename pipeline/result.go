// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"cmp"
	"maps"

	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfs-pull/cfs-pull/composefs/boot"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/cstor"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// APIVersion names the form of a Result's JSON. Keys are only ever added.
const APIVersion = "cfs-pull/v1"

// Result is what a pull did. When the pull failed it holds what is known.
type Result struct {
	APIVersion string `json:"apiVersion"`
	// Changed is false when the repository had everything already.
	Changed   bool   `json:"changed"`
	Mode      string `json:"mode"`
	Transport string `json:"transport"`
	// Reference is as the user wrote it.
	Reference string `json:"reference"`
	// CanonicalReference is complete, with transport, registry and tag.
	CanonicalReference string `json:"canonicalReference,omitempty"`
	// IndexDigest is set when the reference led to a multi-platform index.
	IndexDigest    string          `json:"indexDigest,omitempty"`
	ManifestDigest oci.Digest      `json:"manifestDigest,omitzero"`
	ManifestVerity fsverity.Digest `json:"manifestVerity,omitzero"`
	ConfigDigest   oci.Digest      `json:"configDigest,omitzero"`
	ConfigVerity   fsverity.Digest `json:"configVerity,omitzero"`
	Tag            string          `json:"tag,omitempty"`
	// Tagged is whether the tags are in the repository.
	Tagged bool `json:"tagged"`
	// Bootable is whether the image has a boot image and boot entries.
	Bootable   bool       `json:"bootable"`
	Repository Repository `json:"repository"`
	// Storage is set by a unified pull.
	Storage *Storage `json:"storage,omitempty"`
	// Upgraded is set when the repository was one of an older release.
	Upgraded    *Upgrade    `json:"upgraded,omitempty"`
	Image       *BuiltImage `json:"image,omitempty"`
	BootImage   *BuiltImage `json:"bootImage,omitempty"`
	BootEntries []BootEntry `json:"bootEntries"`
	// ExportedFiles are the files below the directory of --export-boot that
	// belong to this image.
	ExportedFiles []string `json:"exportedFiles,omitempty"`
	// UpdateAvailable is set by Check and by Plan.
	UpdateAvailable *bool `json:"updateAvailable,omitempty"`
	// Plan is set by Plan.
	Plan   *Plan  `json:"plan,omitempty"`
	Stats  Stats  `json:"stats"`
	Labels Labels `json:"labels"`
	// ImageLabels are all labels of the image.
	ImageLabels map[string]string `json:"imageLabels,omitempty"`
	Warnings    []string          `json:"warnings"`
	Error       *ErrorResult      `json:"error,omitempty"`
}

// NewResult is the result of a pull that has done nothing yet.
func NewResult(reference string) *Result {
	return &Result{
		APIVersion: APIVersion, Mode: "direct", Reference: reference,
		BootEntries: []BootEntry{}, Warnings: []string{},
	}
}

// describe notes what the config says about the image.
func (r *Result) describe(c *oci.Config) {
	r.ImageLabels = maps.Clone(c.Labels)
	r.Labels = Labels{
		Version: c.Labels[imgspecv1.AnnotationVersion],
		Created: cmp.Or(c.Labels[imgspecv1.AnnotationCreated], c.Created),
	}
}

// Labels are what a machine's administrator wants to know of an image. Each is
// empty where the image does not say.
type Labels struct {
	Version string `json:"version,omitempty"`
	Created string `json:"created,omitempty"` // as in RFC 3339
}

// Repository describes the repository of a Result.
type Repository struct {
	Path           string `json:"path"`
	Algorithm      string `json:"algorithm"`
	VerityRequired bool   `json:"verityRequired"`
}

// Storage describes the containers-storage of a unified pull, and the image in
// it.
type Storage struct {
	Root    string   `json:"root"`
	ImageID string   `json:"imageID"`
	Names   []string `json:"names"`
	// Copied says how the image came from the host's store, if it did.
	Copied *cstor.CopyStats `json:"copied,omitempty"`
	// Labeled is whether the files have the SELinux labels of the policy.
	Labeled bool `json:"labeled"`
}

// BuiltImage is an EROFS image in the repository's default format and, where
// the repository keeps several, in the others.
type BuiltImage struct {
	ID     fsverity.Digest `json:"id"`
	Erofs  string          `json:"erofs"`
	Others []OtherImage    `json:"others,omitempty"`
}

// OtherImage is the same tree in another EROFS format.
type OtherImage struct {
	Erofs string          `json:"erofs"`
	ID    fsverity.Digest `json:"id"`
}

// BootEntry is something that a boot loader can start.
type BootEntry struct {
	Type boot.Type `json:"type"`
	Name string    `json:"name"`
	Kver string    `json:"kver,omitempty"`
	// BootDigest is the SHA-256 of kernel then initrd.
	BootDigest string     `json:"bootDigest,omitempty"`
	Files      []BootFile `json:"files"`
	// MissingInitrd flags a kernel that cannot be booted for want of an
	// initramfs.
	MissingInitrd bool `json:"missingInitrd,omitempty"`
}

// BootFile is one file of a boot entry.
type BootFile struct {
	Role string `json:"role"`
	Path string `json:"path"`
	// Object is empty for a file of at most 64 bytes, which is in the image.
	Object fsverity.Digest `json:"object,omitzero"`
	Size   uint64          `json:"size"`
}

// Stats counts what a pull moved.
type Stats struct {
	Layers        int         `json:"layers"`
	LayersPresent int         `json:"layersPresent"`
	Objects       ObjectStats `json:"objects"`
	Bytes         ByteStats   `json:"bytes"`
	Seconds       Seconds     `json:"seconds"`
}

// ObjectStats counts objects by how they came.
type ObjectStats struct {
	Reflinked  int64 `json:"reflinked"`
	Hardlinked int64 `json:"hardlinked"`
	Copied     int64 `json:"copied"`
	Present    int64 `json:"present"`
}

// ByteStats counts bytes; Fetched are compressed, Inlined are those of headers
// and of files up to 64 bytes, before compression.
type ByteStats struct {
	Fetched    int64 `json:"fetched"`
	Reflinked  int64 `json:"reflinked"`
	Hardlinked int64 `json:"hardlinked"`
	Copied     int64 `json:"copied"`
	Inlined    int64 `json:"inlined"`
}

// Seconds is how long the stages took.
type Seconds struct {
	Fetch  float64 `json:"fetch"`
	Import float64 `json:"import"`
	Boot   float64 `json:"boot"`
}

// ErrorResult is a failure in a Result.
type ErrorResult struct {
	Code    int    `json:"code"`
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"` // what to do about it
	Stage   Stage  `json:"stage,omitempty"`
}
