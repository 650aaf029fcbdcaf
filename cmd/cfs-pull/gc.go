// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cfs-pull/cfs-pull/pipeline"
)

// gcOptions are the flags of gc.
type gcOptions struct {
	repoOptions
	keep         []string
	keepRecent   time.Duration
	dryRun       bool
	assertNoOp   bool
	dropDangling bool
	json         bool
	verbose      bool
}

func newGCCommand() *cobra.Command {
	o := gcOptions{}
	cmd := &cobra.Command{
		Use:     "gc [options]",
		Aliases: []string{"prune"},
		Short:   "Remove what no tag and no deployment needs",
		Long: `Remove from a repository what no tag, no other ref and no deployment of bootc
needs: objects, links, and temporary files that crashes left. The files of EROFS
images that are mounted, as far as this process sees mounts, stay as well.

With --sysroot, on a system whose deployments bootc keeps below state/deploy,
tags localhost/bootc-<manifest digest> that no deployment needs are removed
first, as bootc does, except recent ones; deployments that lack such a tag get
it. With --repo alone, and on other systems, no tag is removed. Other tags are
never touched.

Everything in use is found before anything is removed. What is in use and cannot
be read, a deployment that cannot be understood, or one whose image is not in
the repository, ends the command with nothing removed.

A repository that an older release made is upgraded first, with --dry-run too.

While a pull or another program uses the repository, gc waits, see
--lock-timeout; while gc works, others wait. Do not run it with --repo while
bootc installs to that repository: bootc writes a deployment down after its
image.
` + exitHelp,
		Example: `    cfs-pull gc --dry-run
    cfs-pull gc --repo ./repo --keep example.com/os:latest`,
		Args:                  usageArgs(0, "no argument"),
		DisableFlagsInUseLine: true,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return runGC(cmd, &o) },
	}
	g := newFlagGroup("REPOSITORY")
	o.addFlags(g.flags)
	h := newFlagGroup("GARBAGE COLLECTION")
	f := h.flags
	f.BoolVar(&o.dryRun, "dry-run", false, "only say what would be removed")
	f.BoolVar(&o.assertNoOp, "assert-no-op", false, "like --dry-run, and fail if anything would be removed")
	f.StringArrayVar(&o.keep, "keep", nil, "`REF` tag, manifest digest, or name of a stream or an image to keep; can be given repeatedly, and must exist")
	f.DurationVar(&o.keepRecent, "keep-recent", pipeline.DefaultKeepRecent, "`TIME` keep tags of bootc that were written within this time even if no deployment needs them; 0 is none")
	f.BoolVar(&o.dropDangling, "drop-dangling", false, "remove tags and other refs that lead to nothing")
	f.BoolVar(&o.json, "json", false, "write the result as JSON; a failure, too")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "list every object and link, and say what is decided on the way")
	f.BoolP("help", "h", false, "print this text")
	setFlags(cmd, g, h)
	return cmd
}

// garbageError is what --assert-no-op found.
type garbageError struct{ removed pipeline.GCRemoved }

func (e *garbageError) Error() string {
	r := e.removed
	return fmt.Sprintf("--assert-no-op: %d objects, %d links, %d refs and %d temporary files would be removed",
		r.Objects, len(r.Streams)+len(r.Images), len(r.Tags)+len(r.Refs), len(r.Temporaries))
}

func runGC(cmd *cobra.Command, o *gcOptions) error {
	result := pipeline.NewGCResult()
	options, err := o.pipelineOptions(cmd.Flags(), cmd.ErrOrStderr())
	if err == nil {
		result, err = pipeline.GC(cmd.Context(), options)
		if cause := context.Cause(cmd.Context()); err != nil && cause != nil {
			err = &interruptedError{cause: cause, err: err}
		}
	}
	if err == nil && o.assertNoOp && result.Changed {
		err = &garbageError{result.Removed}
	}
	return o.write(cmd.OutOrStdout(), result, err)
}

func (o *gcOptions) pipelineOptions(f *pflag.FlagSet, stderr io.Writer) (pipeline.GCOptions, error) {
	open, err := o.openOptions(false)
	if err != nil {
		return pipeline.GCOptions{}, err
	}
	level, err := logLevel("", o.verbose, false)
	if err != nil {
		return pipeline.GCOptions{}, err
	}
	recent, err := waitTime("--keep-recent", o.keepRecent)
	if err != nil {
		return pipeline.GCOptions{}, err
	}
	options := pipeline.GCOptions{
		Repo:               o.path(),
		AllowMissingVerity: open.AllowMissingVerity, Force: open.Force, LockTimeout: open.LockTimeout,
		Keep: o.keep, KeepRecent: recent, DryRun: o.dryRun || o.assertNoOp, DropDangling: o.dropDangling,
		ListObjects: o.verbose,
		Log:         slog.New(&logHandler{out: &console{out: stderr}, level: level}),
	}
	if o.repo == "" || f.Changed("sysroot") {
		options.Sysroot = o.sysroot
	}
	return options, nil
}

// write writes the result of a collection that ended with gcErr to stdout, and
// returns that error or one of its own. A failure in the middle has removed
// something, which is said.
func (o *gcOptions) write(out io.Writer, r *pipeline.GCResult, gcErr error) error {
	var err error
	switch {
	case o.json:
		r.Error = describeError(gcErr)
		err = writeJSON(out, r)
	case gcErr == nil || r.Changed:
		err = writeText(out, describeGC(r, o.verbose))
	}
	if gcErr == nil {
		return err
	}
	return gcErr
}

func describeGC(r *pipeline.GCResult, verbose bool) string {
	var b strings.Builder
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-12s %s\n", name+":", value)
		}
	}
	list := func(name string, values []string) {
		for _, v := range values {
			row(name, v)
		}
	}
	m := &r.Removed
	removed, freed := "removed", "freed"
	if r.DryRun {
		removed, freed = "would be removed", "would be freed"
	}
	row("Upgraded", describeUpgrade(r.Upgraded))
	list("Created tag", r.TagsCreated)
	list("Removed tag", m.Tags)
	for _, ref := range m.Refs {
		row("Removed ref", fmt.Sprintf("%s to %s, %s", ref.Path, ref.Target, strings.ReplaceAll(string(ref.Reason), "-", " ")))
	}
	if verbose {
		list("Stream", m.Streams)
		list("Image", m.Images)
		list("Temporary", m.Temporaries)
		for _, id := range m.ObjectIDs {
			row("Object", id.String())
		}
	}
	objects := fmt.Sprintf("%d %s, %s %s", m.Objects, removed, formatBytes(m.Bytes-m.LinkedBytes), freed)
	if m.LinkedBytes > 0 {
		objects += fmt.Sprintf("; %s more have other names and stay", formatBytes(m.LinkedBytes))
	}
	row("Objects", objects)
	row("Links", fmt.Sprintf("%d streams, %d images %s", len(m.Streams), len(m.Images), removed))
	if n := len(m.Temporaries); n > 0 {
		row("Temporaries", fmt.Sprintf("%d %s", n, removed))
	}
	return b.String()
}
