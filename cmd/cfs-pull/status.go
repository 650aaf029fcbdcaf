// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

// statusJSON is the result of the command status.
type statusJSON struct {
	APIVersion string              `json:"apiVersion"`
	Repository pipeline.Repository `json:"repository"`
	Erofs      statusErofs         `json:"erofs"`
	Features   statusFeatures      `json:"features"`
	// ReadOnly says why the repository cannot be written to, if so.
	ReadOnly string `json:"readOnly,omitempty"`
	// Verity and Reflinks are "yes", "no" or "unknown".
	Verity     string           `json:"verity"`
	Reflinks   string           `json:"reflinks"`
	FileSystem statusFileSystem `json:"fileSystem"`
	Objects    statusObjects    `json:"objects"`
	Tags       int              `json:"tags"`
	Streams    int              `json:"streams"`
	Images     int              `json:"images"` // EROFS images
	// LockHolders are other processes with a lock of the repository.
	LockHolders []statusHolder `json:"lockHolders"`
}

type statusErofs struct {
	Default string   `json:"default"`
	Extra   []string `json:"extra,omitempty"`
}

type statusFeatures struct {
	Compatible         []string `json:"compatible"`
	ReadOnlyCompatible []string `json:"readOnlyCompatible"`
	Incompatible       []string `json:"incompatible"`
}

type statusFileSystem struct {
	Type      string `json:"type"`
	Size      uint64 `json:"size"`
	Available uint64 `json:"available"`
	ReadOnly  bool   `json:"readOnly"`
}

type statusObjects struct {
	Count     int64 `json:"count"`
	Bytes     int64 `json:"bytes"`
	Allocated int64 `json:"allocated"`
	Foreign   int64 `json:"foreign"` // names that are no object's
}

type statusHolder struct {
	PID     int    `json:"pid"`
	Command string `json:"command,omitempty"`
}

func newStatusCommand() *cobra.Command {
	o := viewOptions{}
	cmd := &cobra.Command{
		Use:   "status [options]",
		Short: "Show the state of the repository",
		Long: `Show the state of the repository: its settings, what its file system can do, what is in
it, and who holds a lock of it.

Nothing is changed. Whether there is fs-verity, and whether files can share extents, is
tried on files without a name, which leave no trace; where that is not possible, the
answer is unknown.
` + exitHelp,
		Args:                  usageArgs(0, "no argument"),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return failJSON(cmd, o.json, runStatus(cmd, &o))
		},
	}
	g := newFlagGroup("OPTIONS")
	o.addFlags(g.flags)
	o.addJSONFlag(g.flags)
	setFlags(cmd, g)
	return cmd
}

func runStatus(cmd *cobra.Command, o *viewOptions) error {
	options, err := o.openOptions(false)
	if err != nil {
		return err
	}
	// Open for writing where that is possible: the probes need it. One of an
	// older release stays as it is.
	options.Upgrade = false
	repo, err := composefs.Open(cmd.Context(), o.path(), options)
	if err != nil {
		return &pipeline.StageError{Stage: pipeline.StageOpen, Err: err}
	}
	result, err := statusOf(cmd.Context(), repo)
	if err := errors.Join(err, repo.Close()); err != nil {
		return err
	}
	if o.json {
		return writeJSON(cmd.OutOrStdout(), result)
	}
	return writeText(cmd.OutOrStdout(), result.text())
}

func statusOf(ctx context.Context, repo *composefs.Repo) (*statusJSON, error) {
	meta := repo.Meta()
	r := &statusJSON{
		APIVersion: pipeline.APIVersion,
		Repository: pipeline.Repository{Path: repo.Path(), Algorithm: repo.Algorithm().String(), VerityRequired: repo.Secure()},
		Features: statusFeatures{
			append([]string{}, meta.Compatible...), append([]string{}, meta.ReadOnlyCompatible...), append([]string{}, meta.Incompatible...),
		},
		LockHolders: []statusHolder{},
	}
	for i, v := range repo.Versions() {
		if name := strings.ToLower(v.String()); i == 0 {
			r.Erofs.Default = name
		} else {
			r.Erofs.Extra = append(r.Erofs.Extra, name)
		}
	}
	if err := repo.Writable(); err != nil {
		r.ReadOnly = err.Error()
	}
	var err error
	if r.Verity, err = answer(repo.ProbeVerity(), composefs.ErrVerityUnavailable); err != nil {
		return nil, err
	}
	if r.Reflinks, err = answer(repo.ProbeReflink(), composefs.ErrNoReflink); err != nil {
		return nil, err
	}
	return r, r.count(ctx, repo)
}

// answer turns the result of a probe into a word; no is its error for "no".
func answer(err, no error) (string, error) {
	switch {
	case err == nil:
		return "yes", nil
	case errors.Is(err, no):
		return "no", nil
	case errors.Is(err, composefs.ErrUnknown):
		return "unknown", nil
	}
	return "", err
}

// count fills in what takes a walk through the repository.
func (r *statusJSON) count(ctx context.Context, repo *composefs.Repo) error {
	fs, err := repo.FileSystem()
	if err != nil {
		return err
	}
	r.FileSystem = statusFileSystem(fs)
	usage, err := repo.Usage(ctx)
	if err != nil {
		return err
	}
	r.Objects = statusObjects{usage.Objects, usage.Bytes, usage.Allocated, usage.Foreign}
	tags, err := oci.Tags(repo)
	if err != nil {
		return err
	}
	streams, err := repo.StreamNames()
	if err != nil {
		return err
	}
	images, err := repo.ImageNames()
	if err != nil {
		return err
	}
	r.Tags, r.Streams, r.Images = len(tags), len(streams), len(images)
	holders, err := repo.LockHolders()
	for _, h := range holders {
		r.LockHolders = append(r.LockHolders, statusHolder(h))
	}
	return err
}

func (r *statusJSON) text() string {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s %s\n", name+":", printable(fmt.Sprintf(format, args...)))
	}
	row("Repository", "%s", r.Repository.Path)
	row("Algorithm", "%s", r.Repository.Algorithm)
	row("EROFS", "%s", strings.Join(append([]string{r.Erofs.Default}, r.Erofs.Extra...), ", "))
	row("fs-verity", "%s, available: %s", map[bool]string{true: "required", false: "not required"}[r.Repository.VerityRequired], r.Verity)
	row("Reflinks", "%s", r.Reflinks)
	features := append(append(append([]string{}, r.Features.Compatible...), r.Features.ReadOnlyCompatible...), r.Features.Incompatible...)
	if len(features) > 0 {
		row("Features", "%s", strings.Join(features, ", "))
	}
	row("File system", "%s, %s of %s available", r.FileSystem.Type,
		formatBytes(int64(r.FileSystem.Available)), formatBytes(int64(r.FileSystem.Size)))
	if r.ReadOnly != "" {
		row("Read-only", "%s", r.ReadOnly)
	}
	row("Objects", "%d, %s (%s allocated)", r.Objects.Count, formatBytes(r.Objects.Bytes), formatBytes(r.Objects.Allocated))
	if r.Objects.Foreign > 0 {
		row("Foreign", "%d names below objects/ that are no objects", r.Objects.Foreign)
	}
	row("Tags", "%d", r.Tags)
	row("Streams", "%d", r.Streams)
	row("Images", "%d", r.Images)
	for _, h := range r.LockHolders {
		row("Locked by", "pid %d (%s)", h.PID, h.Command)
	}
	return b.String()
}
