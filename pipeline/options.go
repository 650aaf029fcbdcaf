// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"log/slog"
	"time"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/boot"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/pipeline/fetch"
)

// Options say what to pull, where to, and how.
type Options struct {
	// Reference is the image, with or without a transport.
	Reference string
	// Fetch is how to reach it.
	Fetch fetch.Options

	// Repo is the repository's directory.
	Repo string
	// Init makes the repository if there is none.
	Init bool
	// Formats are the EROFS formats of a repository that Init makes; the zero
	// value means V1. An existing repository keeps its own.
	Formats composefs.FormatConfig
	// AllowMissingVerity makes Init make a repository that does not require
	// fs-verity, and is refused by a repository that does unless Force is set.
	AllowMissingVerity bool
	Force              bool
	LockTimeout        time.Duration

	// Tag is written beside localhost/bootc-<manifest digest>, if set.
	Tag string
	// UntagOnError takes the tags back that this pull wrote when a step after
	// them fails. Tags of before stay, or lead to where they led.
	UntagOnError bool

	// NoBoot leaves out the boot image and the boot entries.
	NoBoot bool
	// AllowNoBoot accepts an image without boot entries; its boot image is
	// built all the same.
	AllowNoBoot bool
	// ExportBoot is a directory to write boot files to, if set.
	ExportBoot string
	KargStyle  boot.KargStyle

	// Jobs is the number of goroutines that hash and store files; 0 means
	// one a CPU.
	Jobs int
	// ParallelLayers is the number of layers fetched at once; 0 means
	// DefaultParallelLayers.
	ParallelLayers int
	Limits         oci.Limits
	// MinFree is the space in bytes to stay free; negative means the default,
	// the larger of 1 % and 512 MiB, but at most 5 % of the file system.
	MinFree int64
	// SkipSpaceCheck leaves out the estimate of the space that an image will
	// take. It is high where most of an image is present in other layers.
	SkipSpaceCheck bool

	// Events is called for each event, by several goroutines but never by two
	// at once. It should return soon. nil is allowed.
	Events func(Event)
	Log    *slog.Logger
}

// DefaultParallelLayers is how many layers are fetched at once.
const DefaultParallelLayers = 6

func (o Options) withDefaults() Options {
	if o.ParallelLayers <= 0 {
		o.ParallelLayers = DefaultParallelLayers
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}
