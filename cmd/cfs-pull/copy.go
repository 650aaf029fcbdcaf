// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

type copyOptions struct {
	repoOptions
	from  string
	tag   string
	jobs  int
	json  bool
	quiet bool
}

func newCopyCommand() *cobra.Command {
	o := copyOptions{}
	cmd := &cobra.Command{
		Use:   "copy [options] REF --from DIR",
		Short: "Copy an image from another composefs repository",
		Long: `Copy an image from another composefs repository: its layers, manifest and config, and
the EROFS images, with the tags localhost/bootc-<manifest digest> and the one that REF
is, or that --tag names.

REF is a tag of the other repository, or sha256:DIGEST of a manifest there.

Everything is read and compared with the digests that name it, and the EROFS images are
made from the layers: the other repository need not be trusted more than the image's
manifest digest. Files share their storage with the other repository where the file
system can do that (xfs, btrfs). The two may differ in algorithm and EROFS formats. Both
are locked against garbage collection meanwhile.
` + exitHelp,
		Example: `    cfs-pull copy os:latest --from /run/media/disk/composefs
    cfs-pull copy sha256:0123… --from /mnt/old/composefs --repo ./repo --tag os:old`,
		Args:                  usageArgs(1, "one image"),
		DisableFlagsInUseLine: true,
		RunE:                  func(cmd *cobra.Command, args []string) error { return runCopy(cmd, &o, args[0]) },
	}
	g := newFlagGroup("OPTIONS")
	f := g.flags
	f.StringVar(&o.from, "from", "", "`DIR` directory of the repository to copy from")
	o.addFlags(f)
	f.StringVar(&o.tag, "tag", "", "`NAME` tag to write instead of REF")
	f.IntVar(&o.jobs, "jobs", 0, "`N` threads that hash and store files (default: one a CPU)")
	f.BoolVar(&o.json, "json", false, "write the result as JSON; a failure, too")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print nothing but the manifest digest, and errors")
	setFlags(cmd, g)
	return cmd
}

// copyResult is what a copy did.
type copyResult struct {
	APIVersion     string                     `json:"apiVersion"`
	Changed        bool                       `json:"changed"`
	Reference      string                     `json:"reference"`
	From           string                     `json:"from"`
	Repository     string                     `json:"repository"`
	ManifestDigest oci.Digest                 `json:"manifestDigest,omitzero"`
	ManifestVerity fsverity.Digest            `json:"manifestVerity,omitzero"`
	ConfigDigest   oci.Digest                 `json:"configDigest,omitzero"`
	ConfigVerity   fsverity.Digest            `json:"configVerity,omitzero"`
	Tags           []string                   `json:"tags"`
	Images         map[string]fsverity.Digest `json:"images"` // by the key in the config's stream
	Stats          copyStats                  `json:"stats"`
	Upgraded       *pipeline.Upgrade          `json:"upgraded,omitempty"`
	Warnings       []string                   `json:"warnings"`
	Error          *pipeline.ErrorResult      `json:"error,omitempty"`
}

// copyStats counts as [pipeline.Stats] does.
type copyStats struct {
	Layers        int                  `json:"layers"`
	LayersPresent int                  `json:"layersPresent"`
	Objects       pipeline.ObjectStats `json:"objects"`
	Bytes         pipeline.ByteStats   `json:"bytes"`
}

func runCopy(cmd *cobra.Command, o *copyOptions, ref string) error {
	result := copyResult{
		APIVersion: pipeline.APIVersion, Reference: ref, From: o.from, Repository: o.path(),
		Tags: []string{}, Images: map[string]fsverity.Digest{}, Warnings: []string{},
	}
	copied, err := o.copy(cmd.Context(), ref, cmd.ErrOrStderr(), &result)
	if copied != nil {
		result.fill(copied)
	}
	if cause := context.Cause(cmd.Context()); err != nil && cause != nil {
		err = &interruptedError{cause: cause, err: err}
	}
	if o.json {
		result.Error = describeError(err)
		return errors.Join(err, writeJSON(cmd.OutOrStdout(), result))
	}
	for _, w := range result.Warnings {
		fmt.Fprintf(cmd.ErrOrStderr(), "cfs-pull: warning: %s\n", w)
	}
	switch {
	case err != nil:
		return err
	case o.quiet:
		return writeText(cmd.OutOrStdout(), result.ManifestDigest.String()+"\n")
	}
	return writeText(cmd.OutOrStdout(), result.text())
}

// copy opens both repositories and copies.
func (o *copyOptions) copy(ctx context.Context, ref string, messages io.Writer, result *copyResult) (_ *oci.Copied, err error) {
	if o.from == "" {
		return nil, usagef("copy needs --from DIR")
	}
	if o.jobs < 0 {
		return nil, usagef("--jobs %d: want a number from 0 on", o.jobs)
	}
	source := repoOptions{repo: o.from, lockTimeout: o.lockTimeout}
	// Like a pull: not at the same time as a collection that looks which tags
	// are needed, and before the repository is opened.
	timeout, err := waitTime("--lock-timeout", o.lockTimeout)
	if err != nil {
		return nil, err
	}
	release, err := composefs.LockOperation(ctx, o.path(), timeout)
	if err != nil {
		return nil, &pipeline.StageError{Stage: pipeline.StageOpen, Err: err}
	}
	defer func() { err = errors.Join(err, release()) }()
	from, err := source.open(ctx, messages, true)
	if err != nil {
		return nil, fmt.Errorf("--from: %w", err)
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to, err := o.open(ctx, messages, false)
	if err != nil {
		return nil, err
	}
	result.Upgraded = upgradeOf(to)
	defer func() { err = errors.Join(err, to.Close()) }()
	if err := to.CheckVerity(); err != nil {
		return nil, &pipeline.StageError{Stage: pipeline.StageOpen, Err: err}
	}
	return oci.Copy(ctx, to, from, oci.CopyOptions{Reference: ref, Tag: o.tag, Jobs: o.jobs})
}

func (r *copyResult) fill(c *oci.Copied) {
	r.Changed, r.Tags, r.Images = c.Changed, c.Tags, c.Images
	r.ManifestDigest, r.ManifestVerity = c.ManifestDigest, c.ManifestStream
	r.ConfigDigest, r.ConfigVerity = c.ConfigDigest, c.ConfigStream
	r.Stats.Layers, r.Stats.LayersPresent = c.Layers, c.LayersPresent
	r.Stats.Objects = pipeline.ObjectStats{
		Reflinked: c.Stats.ObjectsReflinked.Load(), Copied: c.Stats.ObjectsStored.Load(), Present: c.Stats.ObjectsPresent.Load(),
	}
	r.Stats.Bytes = pipeline.ByteStats{
		Reflinked: c.Stats.BytesReflinked.Load(), Copied: c.Stats.BytesStored.Load(), Inlined: c.Stats.BytesInlined.Load(),
	}
	r.Warnings = append(r.Warnings, c.Warnings...)
}

func (r *copyResult) text() string {
	var b strings.Builder
	row := func(name, value string) { fmt.Fprintf(&b, "%-10s %s\n", name+":", value) }
	row("Image", r.Reference)
	row("Manifest", r.ManifestDigest.String())
	for _, tag := range r.Tags {
		row("Tag", tag)
	}
	s := &r.Stats
	row("Storage", fmt.Sprintf("%d objects, %s reflinked; %d objects, %s copied; %s inline; already present: %d objects, %d/%d layers",
		s.Objects.Reflinked, formatBytes(s.Bytes.Reflinked), s.Objects.Copied, formatBytes(s.Bytes.Copied),
		formatBytes(s.Bytes.Inlined), s.Objects.Present, s.LayersPresent, s.Layers))
	if !r.Changed {
		row("Changed", "no, everything was there already")
	}
	return b.String()
}
