// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"log/slog"
	"time"
)

// Default places, see requirements.
const (
	DefaultSysroot = "/sysroot"
	DefaultRunRoot = "/run/cfs-pull/storage"
)

// DefaultLockTimeout is how long a lock is waited for when the options do not
// say: as long as systemd waits for a service to start.
const DefaultLockTimeout = 90 * time.Second

// Options say which store to open. The zero value is the bootc-owned store of
// the running system.
type Options struct {
	// Sysroot is the physical root of the system; empty means DefaultSysroot.
	// It matters only when GraphRoot is empty: then the store is the one that
	// bootc owns, composefs/bootc/storage below it, unless ostree/bootc is a
	// real directory of an older system, which then holds it.
	Sysroot string
	// GraphRoot is the directory of the store, what podman calls --root.
	GraphRoot string
	// RunRoot is the directory for what a reboot may lose, what podman calls
	// --runroot; empty means DefaultRunRoot.
	RunRoot string

	// AdditionalImageStores are graph roots that are only read. Their images
	// are found as if they were in the store, with ReadOnly set.
	AdditionalImageStores []string

	// LockTimeout is how long to wait for a lock; 0 means DefaultLockTimeout,
	// a negative value not at all.
	LockTimeout time.Duration

	// Log is told what Ensure and Pull decide. nil is allowed.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Sysroot == "" {
		o.Sysroot = DefaultSysroot
	}
	if o.RunRoot == "" {
		o.RunRoot = DefaultRunRoot
	}
	if o.LockTimeout == 0 {
		o.LockTimeout = DefaultLockTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}
