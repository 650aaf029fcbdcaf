// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/dumpfile"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
)

// addXattrsFlag adds --xattrs, the mode in which an image is built.
func addXattrsFlag(f *pflag.FlagSet, to *string) {
	f.StringVar(to, "xattrs", oci.AllowlistOnly.String(), "`MODE` extended attributes of files that are kept: "+oci.AllowlistOnly.String()+" or "+oci.KeepUser.String())
}

func parseXattrs(s string) (oci.XattrMode, error) {
	for _, mode := range []oci.XattrMode{oci.AllowlistOnly, oci.KeepUser} {
		if s == mode.String() {
			return mode, nil
		}
	}
	return 0, usagef("--xattrs %s: want %s or %s", s, oci.AllowlistOnly, oci.KeepUser)
}

type dumpOptions struct {
	viewOptions
	xattrs string
}

func newDumpCommand() *cobra.Command {
	o := dumpOptions{}
	cmd := &cobra.Command{
		Use:   "dump [options] REF",
		Short: "Write the tree of an image as a dumpfile",
		Long: `Write the tree of an image as a dumpfile of composefs: one line for each name, with
metadata, the digest of the content and extended attributes. It is the tree that the
layers give; that of an EROFS image where REF is one.
` + referenceHelp + exitHelp,
		Args:                  usageArgs(1, "one reference"),
		DisableFlagsInUseLine: true,
		RunE:                  func(cmd *cobra.Command, args []string) error { return runDump(cmd, &o, args[0]) },
	}
	g := newFlagGroup("OPTIONS")
	o.addFlags(g.flags)
	o.addBootFlag(g.flags)
	addXattrsFlag(g.flags, &o.xattrs)
	setFlags(cmd, g)
	return cmd
}

func runDump(cmd *cobra.Command, o *dumpOptions, reference string) error {
	mode, err := parseXattrs(o.xattrs)
	if err != nil {
		return err
	}
	return o.withImage(cmd.Context(), reference, func(repo *composefs.Repo, im *oci.Stored) error {
		root, err := rebuiltTree(cmd.Context(), repo, im, o.boot, mode)
		if err != nil {
			return err
		}
		return dumpfile.Write(cmd.OutOrStdout(), root, repo.Algorithm())
	})
}

// rebuiltTree is the tree that the layers of an image give, or that of an EROFS
// image that was named itself.
func rebuiltTree(ctx context.Context, repo *composefs.Repo, im *oci.Stored, boot bool, mode oci.XattrMode) (*tree.Node, error) {
	if im.Image.IsZero() {
		return im.LayersTree(ctx, repo, boot, mode)
	}
	return im.Tree(ctx, repo, boot)
}
