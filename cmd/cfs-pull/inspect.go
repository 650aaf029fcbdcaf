// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

// inspectJSON is the result of the command inspect.
type inspectJSON struct {
	APIVersion     string          `json:"apiVersion"`
	Reference      string          `json:"reference"`
	Tag            string          `json:"tag,omitempty"`
	Bootc          bool            `json:"bootc"`
	ManifestDigest oci.Digest      `json:"manifestDigest,omitzero"`
	ManifestVerity fsverity.Digest `json:"manifestVerity,omitzero"` // its splitstream
	ConfigDigest   oci.Digest      `json:"configDigest,omitzero"`
	ConfigVerity   fsverity.Digest `json:"configVerity,omitzero"`
	// Manifest and Config are the documents as they are.
	Manifest  json.RawMessage `json:"manifest,omitempty"`
	Config    json.RawMessage `json:"config,omitempty"`
	Layers    []inspectLayer  `json:"layers,omitempty"`
	Images    []inspectImage  `json:"images,omitempty"`
	Entries   []bootEntry     `json:"bootEntries,omitempty"`
	Referrers []oci.Digest    `json:"referrers,omitempty"`
	Erofs     *inspectErofs   `json:"erofs,omitempty"`
	Warnings  []string        `json:"warnings"`
}

type bootEntry = pipeline.BootEntry

// inspectLayer is a layer, the lowest first.
type inspectLayer struct {
	DiffID    oci.Digest      `json:"diffID"`
	Digest    string          `json:"digest,omitempty"` // of the blob in a registry
	MediaType string          `json:"mediaType,omitempty"`
	Size      *int64          `json:"size,omitempty"` // of the blob
	Stream    fsverity.Digest `json:"stream,omitzero"`
	Present   bool            `json:"present"` // with all objects
}

// inspectImage is an EROFS image that the config names.
type inspectImage struct {
	ID      fsverity.Digest `json:"id"`
	Boot    bool            `json:"boot"`
	Erofs   string          `json:"erofs"`
	Xattrs  string          `json:"xattrs"`
	Present bool            `json:"present"` // and can be mounted
}

// inspectErofs is an EROFS image that was named by its id.
type inspectErofs struct {
	ID      fsverity.Digest `json:"id"`
	Ref     string          `json:"ref,omitempty"`
	Erofs   string          `json:"erofs"`
	Size    int64           `json:"size"`    // bytes
	Objects int             `json:"objects"` // that it refers to
	Missing int             `json:"missing"` // of these, in the repository
}

type inspectOptions struct {
	viewOptions
	manifest, config bool
}

func newInspectCommand() *cobra.Command {
	o := inspectOptions{}
	cmd := &cobra.Command{
		Use:   "inspect [options] REF",
		Short: "Show what the repository has of an image",
		Long: `Show what the repository has of an image: manifest, config, layers with their diff_ids
and streams, EROFS images, boot entries, and what refers to it.
` + referenceHelp + exitHelp,
		Args:                  usageArgs(1, "one reference"),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return failJSON(cmd, o.json, runInspect(cmd, &o, args[0]))
		},
	}
	g := newFlagGroup("OPTIONS")
	o.addFlags(g.flags)
	o.addJSONFlag(g.flags)
	g.flags.BoolVar(&o.manifest, "manifest", false, "write the manifest, byte for byte, and nothing else")
	g.flags.BoolVar(&o.config, "config", false, "write the config, byte for byte, and nothing else")
	setFlags(cmd, g)
	return cmd
}

func runInspect(cmd *cobra.Command, o *inspectOptions, reference string) error {
	if err := exclusive(cmd.Flags(), "json", "manifest", "config"); err != nil {
		return err
	}
	var raw *oci.Document
	var result *inspectJSON
	err := o.withRepo(cmd.Context(), func(repo *composefs.Repo) error {
		subject, err := oci.Resolve(repo, reference)
		if err != nil {
			return err
		}
		im, err := oci.Load(repo, subject)
		if err != nil && !errors.Is(err, oci.ErrNotContainer) {
			return err
		}
		if o.manifest || o.config {
			if raw = im.ManifestDocument; o.config {
				raw = im.ConfigDocument
			}
			if raw == nil {
				return usagef("%s has no such document in the repository", printable(reference))
			}
			return nil
		}
		result, err = inspectImageOf(cmd.Context(), repo, im)
		return err
	})
	switch {
	case err != nil:
		return err
	case raw != nil:
		return writeText(cmd.OutOrStdout(), string(raw.Raw))
	case o.json:
		return writeJSON(cmd.OutOrStdout(), result)
	}
	return writeText(cmd.OutOrStdout(), result.text())
}

func inspectImageOf(ctx context.Context, repo *composefs.Repo, im *oci.Stored) (*inspectJSON, error) {
	r := &inspectJSON{
		APIVersion: pipeline.APIVersion, Reference: im.Reference, Tag: im.Tag, Bootc: oci.IsBootcTag(im.Tag),
		ManifestDigest: im.Manifest, ConfigDigest: im.Config, Warnings: []string{},
	}
	var err error
	if !im.Image.IsZero() {
		r.Erofs, err = inspectErofsImage(repo, im)
		return r, err
	}
	if m := im.ManifestDocument; m != nil {
		r.ManifestVerity, r.Manifest = m.Stream, m.Raw
		if r.Referrers, err = oci.Referrers(repo, im.Manifest); err != nil {
			return nil, err
		}
	}
	if im.ConfigDocument == nil { // an artifact
		return r, nil
	}
	r.ConfigVerity, r.Config = im.ConfigDocument.Stream, im.ConfigDocument.Raw
	if err := r.addLayers(repo, im); err != nil {
		return nil, err
	}
	for _, n := range im.ConfigDocument.NamedImages() {
		present, err := repo.HasImage(n.ID)
		if err != nil {
			return nil, err
		}
		r.Images = append(r.Images, inspectImage{
			ID: n.ID, Boot: n.Boot, Erofs: map[bool]string{true: "v2", false: "v1"}[n.V2], Xattrs: n.Xattr, Present: present,
		})
	}
	entries, err := im.BootEntries(ctx, repo)
	if err == nil {
		r.Entries, err = pipeline.DescribeEntries(ctx, entries, oci.Contents{Repo: repo})
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		// The rest is worth to be seen all the more.
		r.Warnings = append(r.Warnings, "boot entries cannot be read: "+err.Error())
	}
	return r, nil
}

func (r *inspectJSON) addLayers(repo *composefs.Repo, im *oci.Stored) error {
	layers, err := im.StoredLayers(repo)
	if err != nil {
		return err
	}
	for i, l := range layers {
		out := inspectLayer{DiffID: l.DiffID, Stream: l.Stream, Present: l.Present}
		if im.ManifestInfo != nil {
			d := &im.ManifestInfo.Layers[i]
			out.Digest, out.MediaType, out.Size = d.Digest, d.MediaType, &d.Size
		}
		r.Layers = append(r.Layers, out)
	}
	return nil
}

func inspectErofsImage(repo *composefs.Repo, im *oci.Stored) (*inspectErofs, error) {
	image, err := oci.OpenErofs(repo, im.Image)
	if err != nil {
		return nil, err
	}
	objects, err := image.Objects()
	if err != nil {
		return nil, fmt.Errorf("read image %s: %w", im.Image, err)
	}
	out := &inspectErofs{
		ID: im.Image, Ref: im.ImageRef, Erofs: strings.ToLower(image.Version().String()),
		Size: image.Size(), Objects: len(objects),
	}
	for _, id := range objects {
		if ok, err := repo.HasObject(id, -1); err != nil {
			return nil, err
		} else if !ok {
			out.Missing++
		}
	}
	return out, nil
}

func (r *inspectJSON) text() string {
	var b strings.Builder
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-12s %s\n", name+":", printable(value))
		}
	}
	if r.Tag != "" {
		row("Tag", r.Tag)
	}
	row("Manifest", r.ManifestDigest.String())
	row("Config", r.ConfigDigest.String())
	for _, l := range r.Layers {
		text := l.DiffID.String()
		if l.Size != nil {
			text += " " + formatBytes(*l.Size)
		}
		if !l.Present {
			text += " MISSING OR INCOMPLETE"
		}
		row("Layer", text)
	}
	for _, im := range r.Images {
		name := "Image"
		if im.Boot {
			name = "Boot image"
		}
		text := im.ID.String() + " " + im.Erofs
		if im.Xattrs != oci.AllowlistOnly.String() {
			text += " " + im.Xattrs
		}
		if !im.Present {
			text += " MISSING"
		}
		row(name, text)
	}
	if r.ConfigDigest.IsZero() || len(r.Warnings) > 0 {
		// no entries to speak of
	} else {
		row("Entries", describeEntries(r.Entries))
	}
	for _, d := range r.Referrers {
		row("Referrer", d.String())
	}
	if e := r.Erofs; e != nil {
		row("EROFS image", e.ID.String())
		row("Ref", e.Ref)
		row("Format", e.Erofs)
		row("Size", formatBytes(e.Size))
		row("Objects", fmt.Sprintf("%d, %d of them missing", e.Objects, e.Missing))
	}
	for _, w := range r.Warnings {
		row("Warning", w)
	}
	return b.String()
}
