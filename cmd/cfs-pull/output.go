// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cfs-pull/cfs-pull/pipeline"
)

// outputOptions say how a result is written.
type outputOptions struct {
	format     string
	json       bool
	digestFile string
}

func (o *outputOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.format, "format", "table", "form of the result: table or json")
	f.BoolVar(&o.json, "json", false, "the same as --format json")
	f.StringVar(&o.digestFile, "digestfile", "", "write the manifest digest to this file")
}

// write writes a result to stdout. JSON is written also when the pull failed;
// then pullErr is part of it.
func (o *outputOptions) write(cmd *cobra.Command, r *pipeline.Result, pullErr error, quiet bool) error {
	if o.format != "table" && o.format != "json" {
		return usagef("--format %s: want table or json", o.format)
	}
	asJSON := o.json || o.format == "json"
	if pullErr != nil {
		if !asJSON {
			return pullErr
		}
		f := classify(pullErr)
		r.Error = &pipeline.ErrorResult{Code: f.code, Kind: f.kind, Message: pullErr.Error()}
		if stage, ok := errors.AsType[*pipeline.StageError](pullErr); ok {
			r.Error.Stage = stage.Stage
		}
	}
	if pullErr == nil && o.digestFile != "" {
		if err := os.WriteFile(o.digestFile, []byte(r.ManifestDigest.String()), 0o666); err != nil {
			return fmt.Errorf("write digest file: %w", err)
		}
	}
	out := cmd.OutOrStdout()
	var err error
	switch {
	case asJSON:
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		err = encoder.Encode(r)
	case quiet:
		_, err = fmt.Fprintln(out, r.ManifestDigest)
	default:
		err = writeTable(out, r)
	}
	if err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return pullErr
}

func writeTable(out io.Writer, r *pipeline.Result) error {
	var b strings.Builder
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-10s %s\n", name+":", value)
		}
	}
	row("Image", r.Reference)
	row("Index", r.IndexDigest)
	row("Manifest", r.ManifestDigest.String())
	row("Tag", r.Tag)
	if r.Image != nil {
		row("Image ID", r.Image.ID.String())
	}
	if r.BootImage != nil {
		row("Boot ID", r.BootImage.ID.String())
		row("Entries", describeEntries(r.BootEntries))
	}
	row("Storage", describeStorage(&r.Stats))
	for _, file := range r.ExportedFiles {
		row("Exported", file)
	}
	if !r.Changed {
		row("Changed", "no, everything was there already")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func describeEntries(entries []pipeline.BootEntry) string {
	if len(entries) == 0 {
		return "none"
	}
	var names []string
	for _, e := range entries {
		text := e.Type.String() + " " + e.Name
		if e.MissingInitrd {
			text += ", without initramfs"
		}
		names = append(names, text)
	}
	return fmt.Sprintf("%d (%s)", len(entries), strings.Join(names, "; "))
}

func describeStorage(s *pipeline.Stats) string {
	return fmt.Sprintf("%d objects, %s copied; %s inline; already present: %d objects, %d/%d layers",
		s.Objects.Copied, formatBytes(s.Bytes.Copied), formatBytes(s.Bytes.Inlined),
		s.Objects.Present, s.LayersPresent, s.Layers)
}
