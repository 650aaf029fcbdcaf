// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
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
` + exitHelp,
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
	setFlags(cmd, g)
	return cmd
}

func runInit(cmd *cobra.Command, o *initOptions) error {
	if o.repo == "" {
		return usagef("init needs --repo DIR")
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
	created, err := pipeline.Init(cmd.Context(), o.repo, composefs.InitOptions{
		Algorithm: algorithm, Formats: formats,
		AllowMissingVerity: o.allowMissingVerity, LockTimeout: lockTimeout,
	})
	if err != nil {
		if cause := context.Cause(cmd.Context()); cause != nil {
			return &interruptedError{cause: cause, err: err}
		}
		return &pipeline.StageError{Stage: pipeline.StageOpen, Err: err}
	}
	text := "Created"
	if !created {
		text = "Exists already:"
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s repository %s\n", text, o.repo)
	return err
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
