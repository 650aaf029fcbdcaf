// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/dumpfile"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/composefs/scan"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

type computeIDOptions struct {
	viewOptions
	algorithm, erofs string
	xattrs           string
	raw, splitLinks  bool
	named            bool // a repository was named
}

// computeIDJSON is the result of the command compute-id.
type computeIDJSON struct {
	APIVersion string       `json:"apiVersion"`
	Algorithm  string       `json:"algorithm"`
	Boot       bool         `json:"boot"`
	Images     []computedID `json:"images"`
}

type computedID struct {
	Erofs string          `json:"erofs"`
	ID    fsverity.Digest `json:"id"`
}

func newComputeIDCommand() *cobra.Command {
	o := computeIDOptions{}
	cmd := &cobra.Command{
		Use:   "compute-id [options] REF|DIR|DUMPFILE|-",
		Short: "Compute the id of an EROFS image without storing it",
		Long: `Compute the id of the EROFS image of an image in the repository, of a directory or of a
dumpfile. Nothing is stored, and no id that is stored is used: the id of an image comes
from its layers.

An argument that begins with /, ./ or ../ is a directory or a dumpfile, - is a dumpfile
on stdin, and all else is a reference.

A directory is taken for the root of a container image: the root gets the metadata of
/usr, /run is emptied, and of the extended attributes only security.capability is kept.
With --raw it is taken as it is. A dumpfile is always taken as it is, except that --boot
makes a boot image of it; if it has an SELinux policy, the repository must have its files.

For a directory or a dumpfile a repository is only looked at where --repo or --sysroot is
given; otherwise the id is for fsverity-sha512-12, or for the digests in the dumpfile,
and for EROFS format v1.
` + referenceHelp + exitHelp,
		Args:                  usageArgs(1, "one reference, directory or dumpfile"),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return failJSON(cmd, o.json, runComputeID(cmd, &o, args[0]))
		},
	}
	g := newFlagGroup("OPTIONS")
	f := g.flags
	o.addFlags(f)
	o.addBootFlag(f)
	f.StringVar(&o.algorithm, "algorithm", "", "`NAME` fs-verity algorithm of a directory's or a dumpfile's image: fsverity-sha512-12 or fsverity-sha256-12")
	f.StringVar(&o.erofs, "erofs", "", "`FORMAT` format of the EROFS image: v0, v1, v2 or both (default: that of the repository, or v1)")
	addXattrsFlag(f, &o.xattrs)
	f.BoolVar(&o.raw, "raw", false, "take a directory as it is, with all extended attributes")
	f.BoolVar(&o.splitLinks, "split-hard-links", false, "take each name of a file in a directory for a file of its own, as mkcomposefs does")
	o.addJSONFlag(f)
	setFlags(cmd, g)
	return cmd
}

func runComputeID(cmd *cobra.Command, o *computeIDOptions, what string) error {
	mode, err := parseXattrs(o.xattrs)
	if err != nil {
		return err
	}
	var algorithm fsverity.Algorithm
	if o.algorithm != "" {
		if algorithm, err = fsverity.ParseAlgorithm(o.algorithm); err != nil {
			return usagef("--algorithm: %w", err)
		}
	}
	versions, err := parseVersions(o.erofs)
	if err != nil {
		return err
	}
	o.named = cmd.Flags().Changed("repo") || cmd.Flags().Changed("sysroot")
	if o.raw && o.boot {
		return usagef("--raw and --boot exclude each other")
	}
	c := &idComputer{computeIDOptions: o, algorithm: algorithm, versions: versions, mode: mode, stdin: cmd.InOrStdin()}
	result, err := c.compute(cmd.Context(), what)
	if err != nil {
		return err
	}
	if o.json {
		return writeJSON(cmd.OutOrStdout(), result)
	}
	var b strings.Builder
	for _, im := range result.Images {
		if len(result.Images) > 1 {
			fmt.Fprintf(&b, "%s ", im.Erofs)
		}
		fmt.Fprintf(&b, "%s\n", im.ID)
	}
	return writeText(cmd.OutOrStdout(), b.String())
}

// parseVersions parses the value of --erofs; nil when there is none.
func parseVersions(s string) ([]erofs.Version, error) {
	switch s {
	case "":
		return nil, nil
	case "v0": // no repository has it as the only one
		return []erofs.Version{erofs.V0}, nil
	}
	formats, err := parseFormats(s)
	if err != nil {
		return nil, usagef("--erofs %s: want v0, v1, v2 or both", s)
	}
	return formats.Versions(), nil
}

// idComputer computes ids. Algorithm and versions are zero where nobody has
// chosen them.
type idComputer struct {
	*computeIDOptions
	algorithm fsverity.Algorithm
	versions  []erofs.Version
	mode      oci.XattrMode
	stdin     io.Reader
}

// isPath reports whether an argument names a file and not an image.
func isPath(arg string) bool {
	for _, prefix := range []string{"/", "./", "../"} {
		if strings.HasPrefix(arg, prefix) {
			return true
		}
	}
	return arg == "." || arg == ".."
}

func (c *idComputer) compute(ctx context.Context, what string) (*computeIDJSON, error) {
	switch {
	case what == "-":
		return c.ofFile(ctx, func(repo *composefs.Repo) (*computeIDJSON, error) { return c.ofDump(repo, c.stdin) })
	case isPath(what):
		return c.ofFile(ctx, func(repo *composefs.Repo) (*computeIDJSON, error) { return c.ofPath(ctx, repo, what) })
	}
	var result *computeIDJSON
	err := c.withImage(ctx, what, func(repo *composefs.Repo, im *oci.Stored) error {
		if c.algorithm != 0 && c.algorithm != repo.Algorithm() {
			return usagef("--algorithm %s: the repository has %s", c.algorithm, repo.Algorithm())
		}
		if c.raw || c.splitLinks {
			return usagef("--raw and --split-hard-links are for directories")
		}
		c.useDefaults(repo)
		root, err := rebuiltTree(ctx, repo, im, c.boot, c.mode)
		if err != nil {
			return err
		}
		result, err = c.ids(root)
		return err
	})
	if is[*oci.NotFoundError](err) || errors.Is(err, composefs.ErrNotRepository) {
		if _, statErr := os.Lstat(what); statErr == nil {
			return nil, fmt.Errorf("%w; for the file of that name write ./%s", err, what)
		}
	}
	return result, err
}

// ofFile calls f for what is in no repository, with the repository that
// somebody has named, or nil.
func (c *idComputer) ofFile(ctx context.Context, f func(*composefs.Repo) (*computeIDJSON, error)) (result *computeIDJSON, err error) {
	if !c.named {
		return f(nil)
	}
	err = c.withRepo(ctx, func(repo *composefs.Repo) error {
		c.useDefaults(repo)
		result, err = f(repo)
		return err
	})
	return result, err
}

// useDefaults takes from the repository what nobody has chosen.
func (c *idComputer) useDefaults(repo *composefs.Repo) {
	if c.algorithm == 0 {
		c.algorithm = repo.Algorithm()
	}
	if c.versions == nil {
		c.versions = repo.Versions()
	}
}

// ids computes the ids of a tree. Algorithm is set.
func (c *idComputer) ids(root *tree.Node) (*computeIDJSON, error) {
	if c.versions == nil {
		c.versions = []erofs.Version{erofs.V1}
	}
	result := &computeIDJSON{APIVersion: pipeline.APIVersion, Algorithm: c.algorithm.String(), Boot: c.boot}
	for _, v := range c.versions {
		id, err := oci.ComputeImage(root, v, c.algorithm)
		if err != nil {
			return nil, err
		}
		result.Images = append(result.Images, computedID{strings.ToLower(v.String()), id})
	}
	return result, nil
}

// ofPath computes the ids of a directory or of a dumpfile.
func (c *idComputer) ofPath(ctx context.Context, repo *composefs.Repo, path string) (*computeIDJSON, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &usageError{err}
	}
	defer f.Close() // read-only
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch {
	case info.IsDir():
		return c.ofDir(ctx, f)
	case info.Mode().IsRegular():
		return c.ofDump(repo, f)
	}
	return nil, usagef("%s is neither a directory nor a file", path)
}

func (c *idComputer) ofDir(ctx context.Context, dir *os.File) (*computeIDJSON, error) {
	if c.algorithm == 0 {
		c.algorithm = fsverity.SHA512
	}
	scanned, err := scan.Read(ctx, dir, scan.Options{Algorithm: c.algorithm, SplitHardLinks: c.splitLinks})
	if err != nil {
		return nil, err
	}
	if !c.raw {
		if err := oci.Transform(scanned.Root, c.mode); err != nil {
			return nil, fmt.Errorf("%s: %w; --raw takes it as it is", dir.Name(), err)
		}
	}
	if c.boot {
		if err := oci.TransformBoot(scanned.Root, scanned); err != nil {
			return nil, fmt.Errorf("%s: %w", dir.Name(), err)
		}
	}
	return c.ids(scanned.Root)
}

func (c *idComputer) ofDump(repo *composefs.Repo, r io.Reader) (*computeIDJSON, error) {
	if c.raw || c.splitLinks {
		return nil, usagef("--raw and --split-hard-links are for directories")
	}
	root, err := dumpfile.ParseTree(bufio.NewReader(r), dumpfile.ParseOptions{Algorithm: c.algorithm})
	if err != nil {
		return nil, err
	}
	if c.algorithm == 0 {
		c.algorithm = algorithmOf(root)
	}
	if c.boot {
		if err := oci.TransformBoot(root, dumpContent{repo}); err != nil {
			return nil, err
		}
	}
	return c.ids(root)
}

// dumpContent is the content of a dumpfile's files: in a repository, if one
// was named. Of an image with an SELinux policy a boot image needs some.
type dumpContent struct{ repo *composefs.Repo }

// Open implements tree.Content.
func (c dumpContent) Open(n *tree.Node) (tree.File, error) {
	if c.repo == nil && !n.Object.IsZero() {
		return nil, usagef("a dumpfile has no content of files, which the labels of a boot image come from; name a repository that has it with --repo")
	}
	return oci.Contents{Repo: c.repo}.Open(n)
}

// algorithmOf is the algorithm of the objects in a tree, or the usual one.
func algorithmOf(root *tree.Node) fsverity.Algorithm {
	todo := []*tree.Node{root}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if !n.Object.IsZero() {
			return n.Object.Algorithm()
		}
		for _, child := range n.Entries() {
			todo = append(todo, child)
		}
	}
	return fsverity.SHA512
}
