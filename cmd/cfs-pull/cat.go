// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"

	"github.com/spf13/cobra"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

func newCatCommand() *cobra.Command {
	o := viewOptions{}
	cmd := &cobra.Command{
		Use:   "cat [options] REF PATH",
		Short: "Write the content of a file of an image",
		Long: `Write the content of a file of an image to stdout. Symbolic links are followed inside
the image.

The content is hashed while it is written. When it is not what the image names, the exit
status is 7, and what was written is worth nothing.
` + referenceHelp + exitHelp,
		Args:                  usageArgs(2, "a reference and a path"),
		DisableFlagsInUseLine: true,
		RunE:                  func(cmd *cobra.Command, args []string) error { return runCat(cmd, &o, args[0], args[1]) },
	}
	g := newFlagGroup("OPTIONS")
	o.addFlags(g.flags)
	o.addBootFlag(g.flags)
	setFlags(cmd, g)
	return cmd
}

func runCat(cmd *cobra.Command, o *viewOptions, reference, name string) error {
	return o.withImage(cmd.Context(), reference, func(repo *composefs.Repo, im *oci.Stored) error {
		root, err := im.Tree(cmd.Context(), repo, o.boot)
		if err != nil {
			return err
		}
		n, err := root.Follow(name, true)
		if err == nil && n.Kind != tree.Regular {
			err = fmt.Errorf("it is no regular file but a %s", kindNames[n.Kind])
		}
		if err == nil {
			err = writeContent(cmd.Context(), cmd.OutOrStdout(), repo, n)
		}
		if err != nil {
			return pathError(reference, name, err)
		}
		return nil
	})
}

// writeContent writes a file's content and makes sure that it is what the
// image names.
func writeContent(ctx context.Context, out io.Writer, repo *composefs.Repo, n *tree.Node) error {
	f, err := oci.Contents{Repo: repo}.Open(n)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: object %s is missing: %w", composefs.ErrIntegrity, n.Object, err)
	}
	if err != nil {
		return err
	}
	defer f.Close() // read-only
	if n.Object.IsZero() {
		return writeText(out, string(n.Content))
	}
	if n.Size > math.MaxInt64-1 {
		return fmt.Errorf("%w: a file of %d bytes", composefs.ErrIntegrity, n.Size)
	}
	// One byte more than there should be shows that there is more.
	content := io.NewSectionReader(f, 0, int64(n.Size)+1)
	hasher := fsverity.NewHasher(repo.Algorithm())
	written, err := io.Copy(io.MultiWriter(hasher, writerFunc(func(b []byte) (int, error) {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return out.Write(b)
	})), content)
	switch {
	case err != nil:
		return fmt.Errorf("write content: %w", err)
	case uint64(written) != n.Size:
		return fmt.Errorf("%w: object %s does not have the %d bytes of the file", composefs.ErrIntegrity, n.Object, n.Size)
	}
	if got := hasher.Sum(); got != n.Object {
		return fmt.Errorf("%w: object %s has digest %s", composefs.ErrIntegrity, n.Object, got)
	}
	return nil
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
