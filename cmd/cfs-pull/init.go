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

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

type initOptions struct {
	repo               string
	algorithm          string
	erofs              string
	allowMissingVerity bool
	lockTimeout        time.Duration
	resetMetadata      bool
	force              bool
}

func newInitCommand() *cobra.Command {
	o := initOptions{}
	cmd := &cobra.Command{
		Use:   "init [options] --repo DIR",
		Short: "Create a composefs repository",
		Long: `Create a composefs repository. One that exists with the same settings is left
as it is; one with other settings is an error.

A repository requires fs-verity on everything in it, unless it is created with
--allow-missing-verity.

With --reset-metadata, a repository that exists is made a new one, with the
settings given: all tags and links to images and layers are removed, only its
objects stay. That changes the EROFS format, or makes a repository require
fs-verity. An image that is pulled again uses the objects that it has in common
with them; cfs-pull gc removes the rest. The algorithm cannot be changed as long
as there are objects. With images that are mounted or that deployments of bootc
beside the repository need, nothing is removed, unless --force is given.

A reset waits for others that use the repository. One that was interrupted has
removed some tags or all; the same command again finishes it.
` + exitHelp,
		Example: `    cfs-pull init --repo ./repo --allow-missing-verity
    cfs-pull init --repo ./repo --reset-metadata --erofs both`,
		Args:                  usageArgs(0, "no argument"),
		DisableFlagsInUseLine: true,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return runInit(cmd, &o) },
	}
	g := newFlagGroup("OPTIONS")
	f := g.flags
	f.StringVar(&o.repo, "repo", "", "`DIR` directory of the repository; the one above it must exist")
	f.StringVar(&o.algorithm, "algorithm", fsverity.SHA512.String(), "`NAME` fs-verity algorithm: fsverity-sha512-12 or fsverity-sha256-12")
	f.StringVar(&o.erofs, "erofs", "v1", "`FORMAT` format of EROFS images: v1, v2 or both")
	addVerityFlag(f, &o.allowMissingVerity, "do not require fs-verity")
	addLockTimeoutFlag(f, &o.lockTimeout)
	f.BoolVar(&o.resetMetadata, "reset-metadata", false, "remove all tags and links of a repository that exists, keep its objects, and give it the settings anew")
	f.BoolVar(&o.force, "force", false, "with --reset-metadata: remove what mounts and deployments of bootc need, too, and allow --allow-missing-verity for a repository that requires fs-verity")
	setFlags(cmd, g)
	return cmd
}

func runInit(cmd *cobra.Command, o *initOptions) error {
	if o.repo == "" {
		return usagef("init needs --repo DIR")
	}
	if o.force && !o.resetMetadata {
		return usagef("--force needs --reset-metadata")
	}
	algorithm, err := fsverity.ParseAlgorithm(o.algorithm)
	if err != nil {
		return usagef("--algorithm: %w", err)
	}
	formats, err := parseFormats(o.erofs)
	if err != nil {
		return err
	}
	lockTimeout, err := waitTime("--lock-timeout", o.lockTimeout)
	if err != nil {
		return err
	}
	options := composefs.InitOptions{
		Algorithm: algorithm, Formats: formats,
		AllowMissingVerity: o.allowMissingVerity, LockTimeout: lockTimeout,
	}
	text, err := o.initText(cmd.Context(), options, cmd.ErrOrStderr())
	if err != nil {
		if cause := context.Cause(cmd.Context()); cause != nil {
			return &interruptedError{cause: cause, err: err}
		}
		return &pipeline.StageError{Stage: pipeline.StageOpen, Err: err}
	}
	return writeText(cmd.OutOrStdout(), text)
}

// initText creates or resets the repository and says what was done.
func (o *initOptions) initText(ctx context.Context, options composefs.InitOptions, messages io.Writer) (string, error) {
	if !o.resetMetadata {
		created, err := pipeline.Init(ctx, o.repo, options)
		if !created {
			return fmt.Sprintf("Exists already: repository %s\n", o.repo), err
		}
		return fmt.Sprintf("Created repository %s\n", o.repo), err
	}
	removed, err := pipeline.Reset(ctx, o.repo, pipeline.ResetOptions{
		InitOptions: options, Force: o.force, Log: slog.New(&logHandler{out: &console{out: messages}, level: slog.LevelWarn}),
	})
	if removed == nil {
		return fmt.Sprintf("Created repository %s\n", o.repo), err
	}
	return describeReset(o.repo, removed), err
}

// describeReset says what a reset did and what follows from it.
func describeReset(repo string, r *composefs.ResetResult) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Reset repository %s\n", repo)
	fmt.Fprintf(&b, "Removed: %s (tags and others), links to %s and %s\n", plural(r.Refs, "ref"), plural(r.Streams, "stream"), plural(r.Images, "image"))
	if r.Objects {
		b.WriteString("Nothing keeps the objects now: pull images again before \"cfs-pull gc\", which removes those that no image uses\n")
	}
	if r.Unprotected {
		b.WriteString("Some objects lack the fs-verity that is required now: a pull stores those that it uses again, \"cfs-pull fsck --repair\" enables it on all\n")
	}
	return b.String()
}

// parseFormats parses the value of --erofs.
func parseFormats(s string) (composefs.FormatConfig, error) {
	switch s {
	case "v1":
		return composefs.FormatConfig{Default: erofs.V1}, nil
	case "v2":
		return composefs.FormatConfig{Default: erofs.V2}, nil
	case "both":
		return composefs.FormatConfig{Default: erofs.V1, Extra: []erofs.Version{erofs.V2}}, nil
	}
	return composefs.FormatConfig{}, usagef("--erofs %s: want v1, v2 or both", s)
}
