// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/boot"
	"github.com/cfs-pull/cfs-pull/composefs/bootc"
	"github.com/cfs-pull/cfs-pull/composefs/mount"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/cstor"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/pipeline"
	"github.com/cfs-pull/cfs-pull/pipeline/fetch"
)

// Exit statuses. They are part of the interface; exitHelp describes them.
const (
	exitOther     = 1
	exitNotFound  = 2
	exitZeroCopy  = 3
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
    2    image, manifest or file in an image not found
    3    files of the store cannot be shared with the repository (zero-copy)
    4    authentication or authorisation refused
    5    not enough space
    6    fs-verity is required but not available
    7    integrity failure: a digest, a size, a unified kernel image's command line, or what fsck found
    8    locked by another process
    9    refused by the signature policy
    11   no boot entries
    125  wrong usage, or nothing to work with, such as no repository; before any work
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
		return failure{exitSignal + int(sig.signal), "interrupted", "what is complete was kept; run the same command again to go on"}
	}
	switch {
	case is[timeoutError](err):
		return failure{exitOther, "timeout", "what is complete was kept; run the same command again to go on"}
	case is[*usageError](err), is[*fetch.UsageError](err):
		return failure{exitUsage, "usage", ""}
	case is[*oci.NotFoundError](err):
		return failure{exitNotFound, "not-found", "\"cfs-pull images\" lists what is in the repository"}
	case is[*oci.AmbiguousError](err):
		return failure{exitUsage, "ambiguous", "write more of the digest"}
	case errors.Is(err, oci.ErrReference), errors.Is(err, composefs.ErrBadName):
		return failure{exitUsage, "usage", ""}
	case errors.Is(err, oci.ErrBootcTag):
		return failure{exitUsage, "bootc-tag", "to remove a tag that no deployment needs, insist with --force"}
	case errors.Is(err, tree.ErrNotExist), errors.Is(err, oci.ErrNoImage):
		return failure{exitNotFound, "not-found", ""}
	case is[*fetch.NotFoundError](err), is[*cstor.NotFoundError](err):
		return failure{exitNotFound, "not-found", ""}
	case errors.Is(err, oci.ErrSameRepository):
		return failure{exitUsage, "same-repository", "\"cfs-pull tag\" gives an image another name"}
	case is[*fetch.AuthError](err):
		return failure{exitAuth, "authentication", "name a credential file with --authfile, or use --creds"}
	case is[*fetch.PolicyError](err):
		return failure{exitPolicy, "signature-policy", "another policy can be named with --signature-policy"}
	case is[*composefs.NotSharedError](err):
		remedy := "put store and repository on one file system with reflinks (btrfs, xfs), or allow copies with --local-copy=auto"
		if e, _ := errors.AsType[*composefs.NotSharedError](err); e.NoHardlink != "" {
			remedy += "; --local-copy=hardlink allows hard links"
		}
		return failure{exitZeroCopy, "zero-copy", remedy}
	case is[*cstor.UnusableLayerError](err):
		return failure{exitZeroCopy, "zero-copy", "pull the image from where it came from, with --local-copy=auto or --direct"}
	case is[*pipeline.SpaceError](err):
		return failure{exitSpace, "space", ""} // it says what would help
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return failure{exitSpace, "space", "free some space on the file system of the repository"}
	case errors.Is(err, mount.ErrTarget), errors.Is(err, mount.ErrUpper), errors.Is(err, mount.ErrNotMounted):
		return failure{exitUsage, "directory", ""}
	case errors.Is(err, mount.ErrBusy):
		return failure{exitOther, "busy", "close what is open there and leave its directories, or unmount it with --lazy"}
	case is[*mount.KernelError](err):
		refused, _ := errors.AsType[*mount.KernelError](err)
		return failure{exitUsage, "kernel", refused.Remedy}
	case errors.Is(err, composefs.ErrVerityUnavailable):
		return failure{exitVerity, "fs-verity", "--allow-missing-verity creates a repository that does not require fs-verity"}
	case is[*pipeline.KeepError](err):
		return failure{exitUsage, "nothing-to-keep", ""}
	case is[*composefs.DanglingError](err):
		return failure{exitIntegrity, "dangling", "they can be removed with --drop-dangling, if nothing is to be kept by them"}
	case is[*pipeline.NeededError](err):
		return failure{exitUsage, "needed", "unmount what is mounted; --force removes the images all the same, but until they are pulled again, deployments do not boot"}
	case errors.Is(err, bootc.ErrState):
		return failure{exitOther, "deployments", ""}
	case errors.Is(err, composefs.ErrUndecided) && isAny(err, unix.EIO, unix.EUCLEAN, unix.EROFS, unix.EACCES, unix.EPERM,
		unix.EMFILE, unix.ENFILE, unix.ENOMEM):
		return failure{exitOther, "undecided", ""} // the repository may be all right
	case errors.Is(err, composefs.ErrUndecided):
		return failure{exitIntegrity, "undecided", "pull the image again, or remove its tag; \"cfs-pull fsck\" says what is wrong"}
	case is[*labelError](err):
		return failure{exitOther, "labels", "\"cfs-pull label --force\" sets them"}
	case is[*garbageError](err):
		return failure{exitOther, "garbage", ""}
	case is[*fetch.IntegrityError](err), errors.Is(err, oci.ErrIntegrity), errors.Is(err, composefs.ErrIntegrity),
		errors.Is(err, composefs.ErrChanged), is[*cstor.IntegrityError](err), is[*boot.MismatchError](err), is[*damageError](err):
		return failure{exitIntegrity, "integrity", ""}
	case errors.Is(err, composefs.ErrResetUnfinished):
		return failure{exitOther, "unfinished", ""}
	case errors.Is(err, composefs.ErrLocked):
		return failure{exitLocked, "locked", "--lock-timeout says how long to wait"}
	case errors.Is(err, pipeline.ErrNoBootEntries):
		return failure{exitNoBoot, "no-boot-entries", "accept such an image with --allow-no-boot, or leave out the boot image with --no-boot"}
	case errors.Is(err, oci.ErrMalformed), errors.Is(err, oci.ErrTooLarge), errors.Is(err, oci.ErrNotContainer),
		errors.Is(err, erofs.ErrCorrupt):
		return failure{exitOther, "malformed-image", ""}
	case is[*fetch.UnsupportedError](err), errors.Is(err, cstor.ErrUnsupported):
		return failure{exitOther, "unsupported-image", ""}
	case errors.Is(err, cstor.ErrCorrupt), errors.Is(err, cstor.ErrIncomplete):
		return failure{exitOther, "damaged-store", ""}
	case is[x509.UnknownAuthorityError](err):
		return failure{exitOther, "certificate", "the registry's certificate authority can be put into a directory for --cert-dir, as *.crt"}
	case errors.Is(err, http.ErrSchemeMismatch):
		return failure{exitOther, "plain-http", "plain HTTP has to be allowed for this registry: insecure = true in registries.conf, or --tls-verify=false"}
	case errors.Is(err, context.DeadlineExceeded):
		return failure{exitOther, "timeout", ""}
	}
	if stage, ok := errors.AsType[*pipeline.StageError](err); ok && stage.Stage == pipeline.StageOpen {
		return classifyOpen(err)
	}
	return failure{exitOther, "other", ""}
}

// classifyOpen is classify for a repository that could not be opened or
// created.
func classifyOpen(err error) failure {
	switch {
	case errors.Is(err, composefs.ErrNotRepository):
		return failure{exitUsage, "no-repository", "create one with \"cfs-pull init --repo DIR\", or add --init to the pull"}
	case errors.Is(err, composefs.ErrSecure):
		return failure{exitUsage, "verity-required", "leave out --allow-missing-verity, or insist with --force"}
	case errors.Is(err, composefs.ErrDifferentMeta):
		return failure{exitUsage, "different-settings", "settings of a repository cannot be changed; leave the options out, use another directory, or begin anew with \"cfs-pull init --reset-metadata\", which removes all tags"}
	case errors.Is(err, composefs.ErrObjectAlgorithm):
		return failure{exitUsage, "different-settings", "name the algorithm of the objects with --algorithm, or remove the directory objects as well"}
	case errors.Is(err, composefs.ErrForeign):
		return failure{exitUsage, "foreign", "move it away; only a repository's own links are removed"}
	case errors.Is(err, composefs.ErrReadOnly):
		return failure{exitUsage, "read-only", ""}
	case errors.Is(err, composefs.ErrOldFormat):
		return failure{exitUsage, "old-format", "commands that write to the repository upgrade it, for instance a pull or \"cfs-pull gc\""}
	case errors.Is(err, composefs.ErrMixedVerity):
		return failure{exitUsage, "mixed-verity", "--allow-missing-verity makes it one that does not require fs-verity"}
	case errors.Is(err, composefs.ErrMeta):
		return failure{exitUsage, "unusable-repository", ""}
	}
	return failure{exitUsage, "environment", ""}
}

// isAny reports whether an error is one of several.
func isAny(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}
