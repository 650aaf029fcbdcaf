// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

// referenceHelp says what can be written for REF.
const referenceHelp = `
REF is a tag; sha256:DIGEST or @sha256:DIGEST, a manifest's digest or enough of its
beginning, or a config's; the id of an EROFS image, or at least eight digits of it; or
refs/NAME, a ref of an EROFS image, or only NAME if that is no tag.
`

// viewOptions are what commands that look at an image have in common.
type viewOptions struct {
	repoOptions
	boot, json bool
}

func (o *viewOptions) addBootFlag(f *pflag.FlagSet) {
	f.BoolVar(&o.boot, "boot", false, "the boot image instead of the plain one")
}

func (o *viewOptions) addJSONFlag(f *pflag.FlagSet) {
	f.BoolVar(&o.json, "json", false, "write the result as JSON; a failure, too")
}

// withRepo opens the repository for reading and calls f.
func (o *viewOptions) withRepo(ctx context.Context, f func(*composefs.Repo) error) error {
	return withRepo(ctx, &o.repoOptions, io.Discard, true, f)
}

func withRepo(ctx context.Context, o *repoOptions, messages io.Writer, readOnly bool, f func(*composefs.Repo) error) (err error) {
	repo, err := o.open(ctx, messages, readOnly)
	if err == nil {
		defer func() { err = errors.Join(err, repo.Close()) }()
		err = f(repo)
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return &interruptedError{cause: cause, err: err}
		}
	}
	return err
}

// withImage opens the repository, finds what a reference names and calls f.
func (o *viewOptions) withImage(ctx context.Context, reference string, f func(*composefs.Repo, *oci.Stored) error) error {
	return o.withRepo(ctx, func(repo *composefs.Repo) error {
		subject, err := oci.Resolve(repo, reference)
		if err != nil {
			return err
		}
		im, err := oci.Load(repo, subject)
		if err != nil {
			return err
		}
		return f(repo, im)
	})
}

// failureJSON is the result of a command that failed.
type failureJSON struct {
	APIVersion string                `json:"apiVersion"`
	Error      *pipeline.ErrorResult `json:"error"`
}

// failJSON writes err as JSON if that was asked for, and returns it.
func failJSON(cmd *cobra.Command, asJSON bool, err error) error {
	if err != nil && asJSON {
		// The error itself says more than one of writing it.
		_ = writeJSON(cmd.OutOrStdout(), failureJSON{pipeline.APIVersion, describeError(err)})
	}
	return err
}

// printable writes foreign text so that it stays on its line and a terminal
// takes it for text.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) || !utf8.ValidString(s) {
		return strconv.Quote(s)
	}
	return s
}

// short is the beginning of a digest or id, enough to name it.
func short(s string) string {
	const digits = 12
	sign, hex, ok := strings.Cut(s, ":")
	if !ok {
		sign, hex = "", s
	} else {
		sign += ":"
	}
	return sign + hex[:min(len(hex), digits)]
}

// columns writes rows with their columns aligned, the first row as it is.
func columns(out io.Writer, rows [][]string) error {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		line := ""
		for i, cell := range row {
			line += fmt.Sprintf("%-*s  ", widths[i], cell)
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return writeText(out, b.String())
}

// erofsImages describes the EROFS images that a config names, in the
// repository's formats; nil when it names none.
func erofsImages(repo *composefs.Repo, im *oci.Stored, boot bool) *pipeline.BuiltImage {
	var b *pipeline.BuiltImage
	for _, v := range repo.Versions() {
		id, ok := im.ConfigDocument.Refs[oci.ImageKey(boot, v, oci.AllowlistOnly)]
		if !ok {
			continue
		}
		format := strings.ToLower(v.String())
		if b == nil {
			b = &pipeline.BuiltImage{ID: id, Erofs: format}
		} else {
			b.Others = append(b.Others, pipeline.OtherImage{Erofs: format, ID: id})
		}
	}
	return b
}

// kindNames are the file types in results.
var kindNames = map[tree.Kind]string{
	tree.Directory: "directory", tree.Regular: "file", tree.Symlink: "symlink", tree.CharDevice: "char-device",
	tree.BlockDevice: "block-device", tree.FIFO: "fifo", tree.Socket: "socket",
}
