// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"log/slog"
	"time"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/boot"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/cstor"
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

	// Store is the containers-storage that Unified brings the image into.
	Store cstor.Options
	// Policy says when Unified asks the source of the image.
	Policy cstor.Policy
	// StoreName is the image's name in the store; empty means the reference,
	// or one made of the manifest digest when it is no name.
	StoreName string
	// HostStore is the containers-storage that a reference with that transport
	// leads to; empty means DefaultHostStore.
	HostStore string
	// SourceStore says which store Unified looks for such a reference in.
	SourceStore SourceStore
	// LocalCopy says how files of a store may become objects.
	LocalCopy LocalCopy
	// PolicyRoot is the root directory whose SELinux policy the store is
	// labelled with; empty means "/". NoLabel leaves labels alone.
	PolicyRoot string
	NoLabel    bool
	// SkipDiffID leaves out that layers are compared with the diff_ids of the
	// config. It is for measuring what that costs.
	SkipDiffID bool

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

// DefaultHostStore is where podman keeps the images of root.
const DefaultHostStore = cstor.HostGraphRoot

// SourceStore says where a unified pull looks for an image that is named by
// the transport containers-storage.
type SourceStore string

// The stores.
const (
	SourceAuto  SourceStore = "auto" // both; the newer image wins
	SourceOwned SourceStore = "owned"
	SourceHost  SourceStore = "host"
)

// LocalCopy says how a file of a containers-storage may become an object
//
type LocalCopy string

// The ways. A reflink is tried first, except by CopyAlways.
const (
	// ZeroCopy is reflinks and, where no SELinux policy is at hand, hard links:
	// a file has one label, and store and repository need different ones. It
	// fails where neither is possible.
	ZeroCopy LocalCopy = "zerocopy"
	// CopyIfNeeded is ZeroCopy, and copies where that would fail.
	CopyIfNeeded LocalCopy = "auto"
	// CopyAlways is for a repository that must not share anything.
	CopyAlways LocalCopy = "copy"
	// HardlinkToo is ZeroCopy with hard links also where there is a policy.
	HardlinkToo LocalCopy = "hardlink"
)

// DefaultParallelLayers is how many layers are fetched at once.
const DefaultParallelLayers = 6

func (o Options) withDefaults() Options {
	if o.ParallelLayers <= 0 {
		o.ParallelLayers = DefaultParallelLayers
	}
	if o.HostStore == "" {
		o.HostStore = DefaultHostStore
	}
	if o.SourceStore == "" {
		o.SourceStore = SourceAuto
	}
	if o.PolicyRoot == "" {
		o.PolicyRoot = "/"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}
