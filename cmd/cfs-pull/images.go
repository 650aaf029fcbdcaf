// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"strings"
	"time"

	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

type imagesOptions struct {
	viewOptions
	all, noTrunc bool
}

// imagesJSON is the result of the command images.
type imagesJSON struct {
	APIVersion string      `json:"apiVersion"`
	Images     []imageJSON `json:"images"`
}

// imageJSON is a tag and what it leads to. What is not known is left out.
type imageJSON struct {
	Tag string `json:"tag,omitempty"`
	// Bootc is whether the tag belongs to bootc.
	Bootc          bool       `json:"bootc"`
	ManifestDigest oci.Digest `json:"manifestDigest,omitzero"`
	ConfigDigest   oci.Digest `json:"configDigest,omitzero"`
	// Artifact is whether it is no container image.
	Artifact     bool   `json:"artifact,omitempty"`
	Created      string `json:"created,omitempty"`
	Version      string `json:"version,omitempty"`
	Architecture string `json:"architecture,omitempty"`
	OS           string `json:"os,omitempty"`
	// Size is that of the compressed blobs, in bytes.
	Size      *int64               `json:"size,omitempty"`
	Layers    *int                 `json:"layers,omitempty"`
	Image     *pipeline.BuiltImage `json:"image,omitempty"`
	BootImage *pipeline.BuiltImage `json:"bootImage,omitempty"`
	Bootable  bool                 `json:"bootable"`
	Referrers int                  `json:"referrers"`
	Error     string               `json:"error,omitempty"`
}

func newImagesCommand() *cobra.Command {
	o := imagesOptions{}
	cmd := &cobra.Command{
		Use:   "images [options]",
		Short: "List the images in the repository",
		Long: `List the tags of the repository with what they lead to: manifest, date, size of the
compressed blobs, ids of the plain and the boot EROFS image in the repository's format,
and whether the image can be booted. Tags localhost/bootc-DIGEST belong to bootc, which
keeps by them what its deployments need.

An image that cannot be read is listed with the reason, and the exit status is 1.
` + exitHelp,
		Args:                  usageArgs(0, "no argument"),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return failJSON(cmd, o.json, runImages(cmd, &o))
		},
	}
	g := newFlagGroup("OPTIONS")
	o.addFlags(g.flags)
	g.flags.BoolVar(&o.all, "all", false, "also manifests without a tag")
	g.flags.BoolVar(&o.noTrunc, "no-trunc", false, "do not shorten digests and ids")
	o.addJSONFlag(g.flags)
	setFlags(cmd, g)
	return cmd
}

// errListedBroken reports that the list of images is complete, but an image is
// not.
var errListedBroken = errors.New("some images cannot be read")

func runImages(cmd *cobra.Command, o *imagesOptions) error {
	var result imagesJSON
	err := o.withRepo(cmd.Context(), func(repo *composefs.Repo) error {
		list, err := oci.List(cmd.Context(), repo, o.all)
		if err != nil {
			return err
		}
		result = imagesJSON{pipeline.APIVersion, []imageJSON{}}
		for i := range list {
			result.Images = append(result.Images, describeImage(repo, &list[i]))
		}
		return nil
	})
	if err != nil {
		return err
	}
	var broken error
	for _, im := range result.Images {
		if im.Error != "" {
			broken = errListedBroken
		}
	}
	if o.json {
		// The list says which, and is the one document.
		o.json = false
		err = writeJSON(cmd.OutOrStdout(), result)
	} else {
		err = columns(cmd.OutOrStdout(), imageRows(result.Images, o.noTrunc))
	}
	return errors.Join(err, broken)
}

func describeImage(repo *composefs.Repo, l *oci.Listed) imageJSON {
	out := imageJSON{
		Tag: l.Tag, Bootc: oci.IsBootcTag(l.Tag), ManifestDigest: l.Manifest,
		Artifact: l.Artifact, Bootable: l.Bootable, Referrers: l.Referrers,
	}
	if l.Err != nil {
		out.Error = l.Err.Error()
	}
	if l.Image == nil || l.Artifact {
		return out
	}
	config := l.Image.ConfigInfo
	size, layers := l.Image.ManifestInfo.CompressedSize(), len(config.DiffIDs)
	out.ConfigDigest, out.Size, out.Layers = l.Image.Config, &size, &layers
	out.Created, out.Version = config.Created, config.Labels[imgspecv1.AnnotationVersion]
	out.Architecture, out.OS = config.Architecture, config.OS
	out.Image, out.BootImage = erofsImages(repo, l.Image, false), erofsImages(repo, l.Image, true)
	return out
}

func imageRows(images []imageJSON, noTrunc bool) [][]string {
	cut := short
	if noTrunc {
		cut = func(s string) string { return s }
	}
	rows := [][]string{{"TAG", "MANIFEST", "CREATED", "SIZE", "IMAGE", "BOOT IMAGE", "BOOTABLE", "OWNER"}}
	for _, im := range images {
		tag, owner := "<none>", ""
		if im.Tag != "" {
			tag = printable(im.Tag)
		}
		if im.Bootc {
			owner = "bootc"
			if rest, ok := strings.CutPrefix(tag, oci.BootcTagPrefix); ok {
				tag = oci.BootcTagPrefix + cut(rest)
			}
		}
		if im.Error != "" {
			rows = append(rows, []string{tag, orDash(cut(im.ManifestDigest.String())), "broken: " + printable(im.Error)})
			continue
		}
		rows = append(rows, []string{
			tag, orDash(cut(im.ManifestDigest.String())), createdText(im.Created), sizeText(im.Size),
			idText(im.Image, cut), idText(im.BootImage, cut), map[bool]string{true: "yes", false: "no"}[im.Bootable], owner,
		})
	}
	return rows
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// createdText is the day and the minute of a date as images have it.
func createdText(s string) string {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t.UTC().Format("2006-01-02 15:04")
	}
	return orDash(printable(s))
}

func sizeText(n *int64) string {
	if n == nil {
		return "-"
	}
	return formatBytes(*n)
}

func idText(b *pipeline.BuiltImage, cut func(string) string) string {
	if b == nil {
		return "-"
	}
	return cut(b.ID.String())
}
