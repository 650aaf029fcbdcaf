// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

// repoOptions are the flags of commands that work on a repository that exists.
type repoOptions struct {
	repo, sysroot      string
	allowMissingVerity bool
	force              bool
	lockTimeout        time.Duration
}

func (o *repoOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.repo, "repo", "", "`DIR` directory of the repository (default: composefs below --sysroot)")
	f.StringVar(&o.sysroot, "sysroot", "/sysroot", "`DIR` physical root of the running system")
	addVerityFlag(f, &o.allowMissingVerity, "use a repository that does not require fs-verity; needs --force for one that does")
	f.BoolVar(&o.force, "force", false, "accept --allow-missing-verity for a repository that requires fs-verity")
	addLockTimeoutFlag(f, &o.lockTimeout)
}

// path is the repository's directory.
func (o *repoOptions) path() string {
	if o.repo != "" {
		return o.repo
	}
	return filepath.Join(o.sysroot, "composefs")
}

// openOptions turns the flags into those of [composefs.Open].
func (o *repoOptions) openOptions(readOnly bool) (composefs.OpenOptions, error) {
	timeout, err := waitTime("--lock-timeout", o.lockTimeout)
	if err != nil {
		return composefs.OpenOptions{}, err
	}
	return composefs.OpenOptions{
		AllowMissingVerity: o.allowMissingVerity, Force: o.force, LockTimeout: timeout, ReadOnly: readOnly,
		Upgrade: !readOnly,
	}, nil
}

// open opens the repository. One of an older release is upgraded unless it is
// only to be read, which messages says. Its errors are classified like those of
// a pull that could not open it.
func (o *repoOptions) open(ctx context.Context, messages io.Writer, readOnly bool) (*composefs.Repo, error) {
	options, err := o.openOptions(readOnly)
	if err != nil {
		return nil, err
	}
	repo, err := composefs.Open(ctx, o.path(), options)
	if err == nil && !readOnly {
		if err = repo.Writable(); err != nil {
			_ = repo.Close() // the other error says more
		}
	}
	if err != nil {
		return nil, &pipeline.StageError{Stage: pipeline.StageOpen, Err: err}
	}
	if u := upgradeOf(repo); u != nil {
		fmt.Fprintf(messages, "cfs-pull: info: upgraded the %s\n", describeUpgrade(u))
	}
	return repo, nil
}

// upgradeOf is what opening a repository did to one of an older release; nil
// when it did nothing.
func upgradeOf(repo *composefs.Repo) *pipeline.Upgrade {
	if !repo.Upgraded() {
		return nil
	}
	return &pipeline.Upgrade{Metadata: true}
}

// writeJSON writes a result as every command does.
func writeJSON(out io.Writer, result any) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(result); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

func writeText(out io.Writer, text string) error {
	if _, err := io.WriteString(out, text); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}
