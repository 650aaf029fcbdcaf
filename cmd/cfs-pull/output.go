// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

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
	f.StringVar(&o.format, "format", "table", "`FORMAT` form of the result on stdout: table or json")
	f.BoolVar(&o.json, "json", false, "the same as --format json; a failure is written as JSON, too")
	f.StringVar(&o.digestFile, "digestfile", "", "`FILE` write the manifest digest to this file")
}

func (o *outputOptions) check() error {
	switch o.format {
	case "json":
		o.json = true
	case "table":
	default:
		return usagef("--format %s: want table or json", o.format)
	}
	return nil
}

// write writes the result of a pull that ended with pullErr to stdout, and
// returns that error or one of its own. As JSON a failure is a result, too.
func (o *outputOptions) write(out io.Writer, r *pipeline.Result, pullErr error, quiet bool) error {
	if pullErr == nil && o.digestFile != "" {
		if err := os.WriteFile(o.digestFile, []byte(r.ManifestDigest.String()), 0o666); err != nil {
			pullErr = fmt.Errorf("write digest file: %w", err)
		}
	}
	var err error
	switch {
	case o.json:
		r.Error = describeError(pullErr)
		err = writeJSON(out, r)
	case pullErr != nil:
	case quiet:
		err = writeText(out, r.ManifestDigest.String()+"\n")
	default:
		err = writeTable(out, r)
	}
	if pullErr == nil {
		return err
	}
	return pullErr
}

func describeError(err error) *pipeline.ErrorResult {
	if err == nil {
		return nil
	}
	f := classify(err)
	described := &pipeline.ErrorResult{Code: f.code, Kind: f.kind, Message: err.Error(), Remedy: f.remedy}
	if stage, ok := errors.AsType[*pipeline.StageError](err); ok {
		described.Stage = stage.Stage
	}
	return described
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
	if r.Storage != nil {
		row("Store", r.Storage.Root+" "+strings.Join(r.Storage.Names, " "))
	}
	if r.Image != nil {
		row("Image ID", r.Image.ID.String())
	}
	if r.BootImage != nil {
		row("Boot ID", r.BootImage.ID.String())
		row("Entries", describeEntries(r.BootEntries))
	}
	switch {
	case r.UpdateAvailable == nil:
		row("Storage", describeStorage(&r.Stats))
	case *r.UpdateAvailable:
		row("Update", "available")
	default:
		row("Update", "none, the repository has this image")
	}
	if r.Plan != nil {
		row("Plan", describePlan(r.Plan))
		for _, layer := range r.Plan.Layers {
			if !layer.Present {
				row("Fetch", fmt.Sprintf("%s %s", layer.Digest, formatBytes(layer.Size)))
			}
		}
	}
	row("Upgraded", describeUpgrade(r.Upgraded))
	for _, file := range r.ExportedFiles {
		row("Exported", file)
	}
	if !r.Changed && r.UpdateAvailable == nil {
		row("Changed", "no, everything was there already")
	}
	return writeText(out, b.String())
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

func describeUpgrade(u *pipeline.Upgrade) string {
	if u == nil {
		return ""
	}
	var parts []string
	if u.Metadata {
		parts = append(parts, "wrote meta.json")
	}
	if u.Images > 0 {
		parts = append(parts, fmt.Sprintf("built EROFS images for %d images", u.Images))
	}
	return "repository of an older release: " + strings.Join(parts, ", ")
}

func describePlan(p *pipeline.Plan) string {
	fetch := 0
	for _, layer := range p.Layers {
		if !layer.Present {
			fetch++
		}
	}
	return fmt.Sprintf("fetch %d of %d layers, %s; already present: %s",
		fetch, len(p.Layers), formatBytes(p.BytesToFetch), formatBytes(p.BytesPresent))
}

func describeStorage(s *pipeline.Stats) string {
	var parts []string
	for _, kind := range []struct {
		name           string
		objects, bytes int64
		always         bool
	}{
		{"reflinked", s.Objects.Reflinked, s.Bytes.Reflinked, false},
		{"hard-linked", s.Objects.Hardlinked, s.Bytes.Hardlinked, false},
		{"copied", s.Objects.Copied, s.Bytes.Copied, true},
	} {
		if kind.always || kind.objects > 0 {
			parts = append(parts, fmt.Sprintf("%d objects, %s %s", kind.objects, formatBytes(kind.bytes), kind.name))
		}
	}
	parts = append(parts, formatBytes(s.Bytes.Inlined)+" inline",
		fmt.Sprintf("already present: %d objects, %d/%d layers", s.Objects.Present, s.LayersPresent, s.Layers))
	return strings.Join(parts, "; ")
}
