// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/boot"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/pipeline"
	"github.com/cfs-pull/cfs-pull/pipeline/fetch"
)

// Exit statuses. They are part of the interface; exitHelp describes them.
const (
	exitOther     = 1
	exitNotFound  = 2
	exitAuth      = 4
	exitSpace     = 5
	exitVerity    = 6
	exitIntegrity = 7
	exitLocked    = 8
	exitPolicy    = 9
	exitNoBoot    = 11
	exitUsage     = 125
	exitSignal    = 128 // plus the signal's number
)

const exitHelp = `
EXIT STATUS
    0    done, or there was nothing to do
    1    other failure, for instance a malformed image
    2    image or manifest not found
    4    authentication or authorisation refused
    5    not enough space
    6    fs-verity is required but not available
    7    integrity failure: a digest, a size or a unified kernel image's command line
    8    locked by another process
    9    refused by the signature policy
    11   no boot entries
    125  wrong usage, before any work
    130  SIGINT
    143  SIGTERM
`

// failure is what a kind of error means to the caller.
type failure struct {
	code   int
	kind   string // in the result's JSON
	remedy string // what to do about it, if the error does not say
}

// classify finds out what kind of failure an error is.
func classify(err error) failure {
	if sig, ok := errors.AsType[signalError](err); ok {
		return failure{exitSignal + int(sig.signal), "interrupted", "complete layers were kept; run the same command again to go on"}
	}
	switch {
	case is[*usageError](err), is[*fetch.UsageError](err):
		return failure{exitUsage, "usage", ""}
	case is[*fetch.NotFoundError](err):
		return failure{exitNotFound, "not-found", ""}
	case is[*fetch.AuthError](err):
		return failure{exitAuth, "authentication", "name a credential file with --authfile, or use --creds"}
	case is[*fetch.PolicyError](err):
		return failure{exitPolicy, "signature-policy", ""}
	case is[*pipeline.SpaceError](err), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return failure{exitSpace, "space", "free some space on the file system of the repository"}
	case errors.Is(err, composefs.ErrVerityUnavailable):
		return failure{exitVerity, "fs-verity", ""}
	case is[*fetch.IntegrityError](err), errors.Is(err, oci.ErrIntegrity), errors.Is(err, composefs.ErrIntegrity),
		is[*boot.MismatchError](err):
		return failure{exitIntegrity, "integrity", ""}
	case errors.Is(err, composefs.ErrLocked):
		return failure{exitLocked, "locked", ""}
	case errors.Is(err, pipeline.ErrNoBootEntries):
		return failure{exitNoBoot, "no-boot-entries", "accept such an image with --allow-no-boot, or leave out the boot image with --no-boot"}
	case errors.Is(err, composefs.ErrNotRepository):
		return failure{exitOther, "no-repository", "make one with \"cfs-pull init --repo DIR\", or add --init"}
	case errors.Is(err, composefs.ErrSecure):
		return failure{exitOther, "verity-required", "leave out --allow-missing-verity, or insist with --force"}
	case errors.Is(err, oci.ErrMalformed), errors.Is(err, oci.ErrTooLarge):
		return failure{exitOther, "malformed-image", ""}
	case errors.Is(err, context.DeadlineExceeded):
		return failure{exitOther, "timeout", ""}
	}
	return failure{exitOther, "other", ""}
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}
