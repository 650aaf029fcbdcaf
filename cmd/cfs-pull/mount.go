// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/mount"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

type mountOptions struct {
	viewOptions
	mount.Options
}

// mountJSON is the result of the command mount.
type mountJSON struct {
	APIVersion string          `json:"apiVersion"`
	Reference  string          `json:"reference"`
	ID         fsverity.Digest `json:"id"`
	Directory  string          `json:"directory"`
	ReadWrite  bool            `json:"readWrite"`
	// VerityRequired is whether every file must have fs-verity to be read.
	VerityRequired bool `json:"verityRequired"`
}

func newMountCommand() *cobra.Command {
	o := mountOptions{}
	cmd := &cobra.Command{
		Use:   "mount [options] REF DIR",
		Short: "Mount an image",
		Long: `Mount an image on a directory: its EROFS image, stacked on the repository's objects by
overlayfs. It takes root, and Linux 6.5 or newer.

The EROFS image must have the digest that names it, which the kernel enforces or which is
computed before, whatever the repository says about fs-verity. Where the repository
requires fs-verity, and with --require-verity, the kernel refuses every file that does
not have the right fs-verity digest.

The mount is read-only, unless --read-write names a directory for changes. Set-user-ID
programs and device nodes work as on a root file system; --nosuid, --nodev and --noexec
take that away. While it is mounted, something must keep the image: a tag, or a ref;
"cfs-pull gc" keeps what it sees mounted, garbage collection of other programs does not.
` + referenceHelp + exitHelp,
		Args:                  usageArgs(2, "a reference and a directory"),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return failJSON(cmd, o.json, runMount(cmd, &o, args[0], args[1]))
		},
	}
	g := newFlagGroup("OPTIONS")
	f := g.flags
	o.addFlags(f)
	o.addBootFlag(f)
	f.StringVar(&o.Upper, "read-write", "", "`UPPER` directory that keeps changes, in UPPER/upper and UPPER/work, which are made")
	f.BoolVar(&o.RequireVerity, "require-verity", false, "require fs-verity also where the repository does not")
	f.BoolVar(&o.NoSuid, "nosuid", false, "ignore set-user-ID and set-group-ID bits and file capabilities")
	f.BoolVar(&o.NoDev, "nodev", false, "do not let device nodes be opened")
	f.BoolVar(&o.NoExec, "noexec", false, "do not let programs be run")
	o.addJSONFlag(f)
	setFlags(cmd, g)
	return cmd
}

func runMount(cmd *cobra.Command, o *mountOptions, reference, target string) error {
	if cmd.Flags().Changed("read-write") && o.Upper == "" {
		return usagef("--read-write: want a directory")
	}
	result := mountJSON{APIVersion: pipeline.APIVersion, Reference: reference, Directory: target, ReadWrite: o.Upper != ""}
	err := o.withImage(cmd.Context(), reference, func(repo *composefs.Repo, im *oci.Stored) error {
		id, err := im.Erofs(repo, o.boot)
		if err != nil {
			return err
		}
		result.ID, result.VerityRequired = id, repo.Enforcing() || o.RequireVerity
		return mount.Image(repo, id, target, o.Options)
	})
	if err != nil {
		return err
	}
	if o.json {
		return writeJSON(cmd.OutOrStdout(), result)
	}
	return writeText(cmd.OutOrStdout(), fmt.Sprintf("Mounted %s on %s\n", result.ID, printable(target)))
}

func newUmountCommand() *cobra.Command {
	lazy := false
	cmd := &cobra.Command{
		Use:   "umount [options] DIR",
		Short: "Unmount an image",
		Long: `Unmount the image that is mounted on a directory, and what belongs to the mount. What is
no mount of a composefs image is left alone.
` + exitHelp,
		Args:                  usageArgs(1, "one directory"),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := mount.Unmount(args[0], lazy); err != nil {
				return err
			}
			return writeText(cmd.OutOrStdout(), fmt.Sprintf("Unmounted %s\n", printable(args[0])))
		},
	}
	g := newFlagGroup("OPTIONS")
	g.flags.BoolVarP(&lazy, "lazy", "l", false, "take a mount that is in use out of sight now, and away when it is not in use any more")
	setFlags(cmd, g)
	return cmd
}
