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

	"github.com/cfs-pull/cfs-pull/cstor"
	"github.com/cfs-pull/cfs-pull/internal/selinux"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

type labelOptions struct {
	sysroot, storage string
	policyRoot       string
	force, check     bool
	json             bool
}

// labelResult is the JSON of a labelling.
type labelResult struct {
	APIVersion string `json:"apiVersion"`
	Storage    string `json:"storage"`
	PolicyRoot string `json:"policyRoot"`
	*cstor.LabelResult
	Check *cstor.LabelCheck     `json:"check,omitempty"`
	Error *pipeline.ErrorResult `json:"error,omitempty"`
}

// labelError says that a check found wrong labels.
type labelError struct {
	storage string
	check   *cstor.LabelCheck
}

func (e *labelError) Error() string {
	text := fmt.Sprintf("containers-storage %s: %s with another label than the policy has", e.storage, plural(int(e.check.Wrong), "file"))
	if e.check.StampIsWrong() {
		text += fmt.Sprintf(", although %s says that all are labelled", cstor.LabelStamp)
	}
	return text
}

func newLabelCommand() *cobra.Command {
	o := labelOptions{}
	cmd := &cobra.Command{
		Use:   "label [options]",
		Short: "Give the files of the containers-storage their SELinux labels",
		Long: `Give every file of the bootc-owned containers-storage the SELinux label that the
policy has for it as part of /var/lib/containers/storage. Pulls do that by
themselves; this command is for a store that somebody else has changed.

A store that has been labelled has the file ` + cstor.LabelStamp + `, and is left alone
unless --force is given. Labels are written only where they differ. Links are
not followed, and what is mounted in the store is left alone, with all below it.

Without a policy nothing is done: where there is no etc/selinux/config below the
policy root, where it says SELINUX=disabled, or where it names no SELINUXTYPE.
` + exitHelp,
		Example: `    cfs-pull label
    cfs-pull label --check
    cfs-pull label --force --sysroot /mnt --selinux-policy-root /mnt/ostree/deploy/os`,
		Args:                  usageArgs(0, "no argument"),
		DisableFlagsInUseLine: true,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return runLabel(cmd, &o) },
	}
	g := newFlagGroup("OPTIONS")
	f := g.flags
	f.StringVar(&o.storage, "storage", "", "`DIR` directory of the store (default: composefs/bootc/storage below --sysroot)")
	f.StringVar(&o.sysroot, "sysroot", cstor.DefaultSysroot, "`DIR` physical root of the running system")
	f.StringVar(&o.policyRoot, "selinux-policy-root", "/", "`DIR` root directory with the SELinux policy")
	f.BoolVar(&o.force, "force", false, "look at every file, even if the store has been labelled")
	f.BoolVar(&o.check, "check", false, "change nothing, and fail if a file has another label than the policy says")
	f.BoolVar(&o.json, "json", false, "write the result as JSON; a failure, too")
	setFlags(cmd, g)
	return cmd
}

func runLabel(cmd *cobra.Command, o *labelOptions) error {
	for _, names := range [][]string{{"force", "check"}, {"storage", "sysroot"}} {
		if err := exclusive(cmd.Flags(), names...); err != nil {
			return err
		}
	}
	result := &labelResult{APIVersion: pipeline.APIVersion, Storage: o.storage, PolicyRoot: o.policyRoot}
	err := o.run(cmd.Context(), result)
	if cause := context.Cause(cmd.Context()); cause != nil && err != nil {
		err = &interruptedError{cause: cause, err: err}
	}
	if o.json {
		result.Error = describeError(err)
		return errors.Join(err, writeJSON(cmd.OutOrStdout(), result))
	}
	if err != nil && !is[*labelError](err) {
		return err
	}
	return errors.Join(err, writeLabels(cmd.OutOrStdout(), result))
}

func (o *labelOptions) run(ctx context.Context, result *labelResult) (err error) {
	store, err := cstor.OpenExisting(ctx, cstor.Options{Sysroot: o.sysroot, GraphRoot: o.storage})
	if err != nil {
		return &pipeline.StageError{Stage: pipeline.StageOpen, Err: err}
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	result.Storage = store.GraphRoot()
	policy, err := selinux.LoadEnabled(selinux.Root(o.policyRoot))
	if err != nil {
		return &pipeline.StageError{Stage: pipeline.StageLabel, Err: fmt.Errorf("read SELinux policy of %s: %w", o.policyRoot, err)}
	}
	if !o.check {
		result.LabelResult, err = cstor.Label(ctx, store.GraphRoot(), policy, cstor.LabelOptions{Force: o.force})
		return err
	}
	result.Check, err = cstor.CheckLabels(ctx, store.GraphRoot(), policy)
	if err == nil && result.Check.Wrong > 0 {
		return &labelError{store.GraphRoot(), result.Check}
	}
	return err
}

// writeLabels writes a result as text.
func writeLabels(out io.Writer, r *labelResult) error {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-8s %s\n", name+":", fmt.Sprintf(format, args...))
	}
	row("Storage", "%s", r.Storage)
	none := func() { row("Labels", "none: %s has no SELinux policy, or it is turned off", r.PolicyRoot) }
	if c := r.Check; c != nil {
		if !c.Policy {
			none()
			return writeText(out, b.String())
		}
		stamp := "says that it is labelled"
		if !c.Stamped {
			stamp = "none"
		}
		row("Stamp", "%s", stamp)
		row("Labels", "%d checked, %d wrong", c.Visited, c.Wrong)
		for _, m := range c.Examples {
			have := m.Have
			if have == "" {
				have = "no label"
			}
			row("Wrong", "%s: %s, want %s", m.Path, have, m.Want)
		}
		if more := c.Wrong - int64(len(c.Examples)); more > 0 {
			fmt.Fprintf(&b, "... and %d more\n", more)
		}
		return writeText(out, b.String())
	}
	switch l := r.LabelResult; l.Status {
	case cstor.LabelNoPolicy:
		none()
	case cstor.LabelStamped:
		row("Labels", "set before; --force looks again")
	default:
		row("Labels", "%d looked at, %d written", l.Visited, l.Changed)
		if l.Mounts > 0 {
			row("Mounts", "%d left alone", l.Mounts)
		}
	}
	return writeText(out, b.String())
}
