// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
)

func newTagCommand() *cobra.Command {
	o := repoOptions{}
	cmd := &cobra.Command{
		Use:   "tag [options] REF NAME",
		Short: "Give an image in the repository another name",
		Long: `Give an image in the repository another name, which keeps it from being collected. A
tag that exists is moved. The image must be complete.

Names localhost/bootc-DIGEST belong to bootc and are only accepted for the manifest with
that digest.
` + referenceHelp + exitHelp,
		Args:                  usageArgs(2, "a reference and a name"),
		DisableFlagsInUseLine: true,
		RunE:                  func(cmd *cobra.Command, args []string) error { return runTag(cmd, &o, args[0], args[1]) },
	}
	g := newFlagGroup("OPTIONS")
	o.addFlags(g.flags)
	setFlags(cmd, g)
	return cmd
}

func runTag(cmd *cobra.Command, o *repoOptions, reference, name string) error {
	return withRepo(cmd.Context(), o, cmd.ErrOrStderr(), false, func(repo *composefs.Repo) error {
		s, err := oci.Resolve(repo, reference)
		if err != nil {
			return err
		}
		if s.Manifest.IsZero() {
			return usagef("%s is no manifest; only manifests can be tagged", printable(reference))
		}
		previous, err := oci.SetTag(repo, name, s.Manifest)
		if err != nil {
			return err
		}
		text := fmt.Sprintf("Tagged %s as %s", s.Manifest, printable(name))
		if !previous.IsZero() {
			text += fmt.Sprintf("; it was %s", previous)
		}
		return writeText(cmd.OutOrStdout(), text+"\n")
	})
}

func newUntagCommand() *cobra.Command {
	o := repoOptions{}
	cmd := &cobra.Command{
		Use:   "untag [options] NAME",
		Short: "Remove a tag from the repository",
		Long: `Remove a tag from the repository. What no other tag keeps is removed by the next
garbage collection, not by this command.

A tag localhost/bootc-DIGEST keeps what a deployment of bootc may need to boot. It is
only removed with --force.
` + exitHelp,
		Args:                  usageArgs(1, "one tag"),
		DisableFlagsInUseLine: true,
		RunE:                  func(cmd *cobra.Command, args []string) error { return runUntag(cmd, &o, args[0]) },
	}
	g := newFlagGroup("OPTIONS")
	o.addFlags(g.flags)
	g.flags.Lookup("force").Usage += "; remove a tag that belongs to bootc"
	setFlags(cmd, g)
	return cmd
}

func runUntag(cmd *cobra.Command, o *repoOptions, name string) error {
	return withRepo(cmd.Context(), o, cmd.ErrOrStderr(), false, func(repo *composefs.Repo) error {
		if oci.IsBootcTag(name) && !o.force {
			if _, err := oci.TagTarget(repo, name); is[*oci.NotFoundError](err) {
				return err
			}
			return fmt.Errorf("remove tag %s: %w: a deployment may need it to boot", printable(name), oci.ErrBootcTag)
		}
		was, err := oci.RemoveTag(repo, name)
		if err != nil {
			return err
		}
		text := "Removed tag " + printable(name)
		if !was.IsZero() {
			text += " of " + was.String()
		}
		return writeText(cmd.OutOrStdout(), text+"\n")
	})
}
