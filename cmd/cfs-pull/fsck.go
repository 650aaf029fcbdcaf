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
	"github.com/cfs-pull/cfs-pull/pipeline"
)

type fsckOptions struct {
	repoOptions
	quick       bool
	image       string
	repair      bool
	dropDamaged bool
	json        bool
	jobs        int
	maxFindings int
}

// fsckResult is the JSON of a check.
type fsckResult struct {
	APIVersion string              `json:"apiVersion"`
	Repository pipeline.Repository `json:"repository"`
	*oci.FsckReport
	Upgraded *pipeline.Upgrade     `json:"upgraded,omitempty"`
	Error    *pipeline.ErrorResult `json:"error,omitempty"`
}

// damageError says that a check found errors.
type damageError struct {
	repo   string
	errors int
}

func (e *damageError) Error() string {
	return fmt.Sprintf("repository %s: %s found", e.repo, plural(e.errors, "error"))
}

func newFsckCommand() *cobra.Command {
	o := fsckOptions{}
	cmd := &cobra.Command{
		Use:   "fsck [options]",
		Short: "Check a repository, and repair it",
		Long: `Check a composefs repository: every object against its name, links, the tables
and chunks of streams, layers against their diff_ids, manifests and configs
against their digests, tags, and EROFS images against a rebuild from their
layers. Other programs may use the repository meanwhile; garbage collection has
to wait.

With --repair nobody else may use it. What can be derived from what is there is
made again: EROFS images, missing links, manifests and configs whose content is
there, missing fs-verity; unfinished files and links that nothing needs are
removed. Nothing is guessed. For the rest each finding says what would help.

Each finding has a kind, by which programs can tell what is wrong.
` + exitHelp,
		Args:                  usageArgs(0, "no argument"),
		DisableFlagsInUseLine: true,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return runFsck(cmd, &o) },
	}
	g := newFlagGroup("OPTIONS")
	f := g.flags
	o.repoOptions.addFlags(f)
	f.BoolVar(&o.quick, "quick", false, "do not read the content of objects, and do not rebuild EROFS images")
	f.StringVar(&o.image, "image", "", "`REF` check only what this image needs: a tag or a manifest digest")
	f.BoolVar(&o.repair, "repair", false, "repair what can be repaired")
	f.BoolVar(&o.dropDamaged, "drop-damaged", false, "with --repair: remove objects whose content is wrong and cannot be derived; images that need them cannot be read until they are pulled again")
	f.BoolVar(&o.json, "json", false, "write the result as JSON")
	f.IntVar(&o.maxFindings, "max-findings", composefs.DefaultMaxFindings, "`N` list at most so many findings")
	f.IntVar(&o.jobs, "jobs", 0, "`N` checks at a time (default: one for each CPU)")
	setFlags(cmd, g)
	return cmd
}

func runFsck(cmd *cobra.Command, o *fsckOptions) error {
	if err := needs(cmd.Flags(), "drop-damaged", "repair"); err != nil {
		return err
	}
	if o.maxFindings < 1 || o.jobs < 0 {
		return usagef("--max-findings and --jobs want a positive number")
	}
	result := &fsckResult{APIVersion: pipeline.APIVersion, Repository: pipeline.Repository{Path: o.path()}}
	err := o.check(cmd.Context(), cmd.ErrOrStderr(), result)
	if cause := context.Cause(cmd.Context()); cause != nil && err != nil {
		err = &interruptedError{cause: cause, err: err}
	}
	if err == nil && !result.OK {
		err = &damageError{repo: o.path(), errors: result.Errors}
	}
	if o.json {
		if result.FsckReport == nil {
			result.FsckReport = emptyReport(o)
		}
		if !is[*damageError](err) {
			result.Error = describeError(err)
		}
		return errors.Join(err, writeJSON(cmd.OutOrStdout(), result))
	}
	if result.FsckReport != nil {
		err = errors.Join(err, writeFsck(cmd.OutOrStdout(), result))
	}
	return err
}

func emptyReport(o *fsckOptions) *oci.FsckReport {
	return &oci.FsckReport{
		Quick: o.quick, Image: o.image, ByKind: map[composefs.Kind]int{},
		Findings: []composefs.Finding{}, Repaired: []composefs.Repaired{},
	}
}

// check checks the repository. Metadata that are no good are a finding, too,
// but not those of a newer release, which are as they should be.
func (o *fsckOptions) check(ctx context.Context, messages io.Writer, result *fsckResult) (err error) {
	repo, err := o.open(ctx, messages, !o.repair)
	if errors.Is(err, composefs.ErrMeta) && !errors.Is(err, composefs.ErrNewer) {
		result.FsckReport = emptyReport(o)
		result.Errors, result.ByKind[composefs.MetadataParseFailed] = 1, 1
		result.Findings = append(result.Findings, composefs.Finding{
			Kind: composefs.MetadataParseFailed, Path: "meta.json", Message: err.Error(),
			Help: "if you know the algorithm and the EROFS format, write meta.json anew: \"cfs-pull init\" in an empty directory shows how it looks",
		})
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, repo.Close()) }()
	result.Upgraded = upgradeOf(repo)
	result.Repository.Algorithm, result.Repository.VerityRequired = repo.Algorithm().String(), repo.Secure()
	timeout, err := waitTime("--lock-timeout", o.lockTimeout)
	if err != nil {
		return err
	}
	result.FsckReport, err = oci.Fsck(ctx, repo, oci.FsckOptions{
		Quick: o.quick, Image: o.image, Repair: o.repair, DropDamaged: o.dropDamaged,
		LockTimeout: timeout, Workers: o.jobs, MaxFindings: o.maxFindings,
	})
	return err
}

// writeFsck writes a result as text.
func writeFsck(out io.Writer, r *fsckResult) error {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-11s %s\n", name+":", fmt.Sprintf(format, args...))
	}
	damaged := func(n int64) string {
		if n == 0 {
			return ""
		}
		return fmt.Sprintf("; %d damaged", n)
	}
	verity := "fs-verity not required"
	if r.Repository.VerityRequired {
		verity = "fs-verity required"
	}
	if r.Repository.Algorithm != "" {
		row("Repository", "%s (%s, %s)", r.Repository.Path, r.Repository.Algorithm, verity)
	} else {
		row("Repository", "%s", r.Repository.Path)
	}
	if r.Image != "" {
		row("Image", "%s", r.Image)
	}
	c := &r.Counts
	read := "content not read"
	if !r.Quick {
		read = formatBytes(c.BytesRead) + " read"
	}
	row("Objects", "%d checked, %s%s", c.Objects, read, damaged(c.ObjectsDamaged))
	row("Streams", "%d checked%s", c.Streams, damaged(c.StreamsDamaged))
	rebuilt := "not rebuilt"
	if !r.Quick {
		rebuilt = fmt.Sprintf("%d equal to a rebuild", c.ImagesRebuilt)
	}
	row("EROFS", "%d checked, %s%s", c.Images, rebuilt, damaged(c.ImagesDamaged))
	row("Images", "%d checked%s", c.Manifests, damaged(c.ManifestsDamaged))
	if r.Image == "" {
		row("Tags", "%d checked%s", c.Tags, damaged(c.TagsDamaged))
	}
	for _, x := range r.Repaired {
		if x.Error != "" {
			row("Not done", "%s: %s", x.Path, x.Error)
		} else {
			row("Repaired", "%s: %s", x.Path, x.Done)
		}
	}
	writeFindings(&b, r.Findings)
	if r.Omitted > 0 {
		fmt.Fprintf(&b, "... and %d more; --max-findings says how many are listed\n", r.Omitted)
	}
	status := "ok"
	if r.Errors > 0 {
		status = plural(r.Errors, "error")
	}
	if r.Warnings > 0 {
		status += ", " + plural(r.Warnings, "warning")
	}
	row("Status", "%s", status)
	return writeText(out, b.String())
}

// writeFindings writes findings. What would help is said once for those of a
// kind.
func writeFindings(b *strings.Builder, findings []composefs.Finding) {
	said := map[string]bool{}
	for _, f := range findings {
		fmt.Fprintf(b, "%s: %s: %s: %s\n", f.Severity, f.Kind, f.Path, f.Message)
		if len(f.UsedBy) > 0 {
			fmt.Fprintf(b, "    used by %s\n", strings.Join(f.UsedBy, ", "))
		}
		if key := string(f.Kind) + f.Help; f.Help != "" && !said[key] {
			said[key] = true
			fmt.Fprintf(b, "    help: %s\n", f.Help)
		}
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
