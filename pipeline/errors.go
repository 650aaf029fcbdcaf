// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"errors"
	"fmt"

	"github.com/cfs-pull/cfs-pull/internal/freespace"
	"github.com/cfs-pull/cfs-pull/pipeline/fetch"
)

// Stage is the part of a pull in which it failed.
type Stage string

// The stages.
const (
	StageOpen        Stage = "open"
	StageFetch       Stage = "fetch"
	StageHostCopy    Stage = "host-copy"
	StageImport      Stage = "import"
	StageTag         Stage = "tag"
	StageBootImage   Stage = "boot-image"
	StageBootEntries Stage = "boot-entries"
	StageLabel       Stage = "label"
	StageGC          Stage = "gc"
)

// StageError says in which stage a pull failed.
type StageError struct {
	Stage Stage
	Err   error

	intoStore bool // of StageFetch: not into the repository
}

func (e *StageError) Error() string {
	text := stageText[e.Stage]
	if e.intoStore {
		text = "fetch into containers-storage failed: "
	}
	return text + e.Err.Error()
}

// Unwrap returns the cause.
func (e *StageError) Unwrap() error { return e.Err }

// stageText tells the stages apart whose errors do not do so themselves.
var stageText = map[Stage]string{
	StageFetch:     "fetch failed: ",
	StageHostCopy:  "copy from the host's containers-storage failed: ",
	StageImport:    "import into composefs failed: ",
	StageTag:       "commit image failed: ",
	StageBootImage: "build boot image failed: ",
	StageLabel:     "label containers-storage failed: ",
}

// transferError marks what went wrong while a layer was fetched, as opposed to
// what went wrong while it was imported.
type transferError struct{ err error }

func (e *transferError) Error() string { return e.err.Error() }
func (e *transferError) Unwrap() error { return e.err }

// unopenedError marks a blob that could not be opened. That was tried again
// already as often as it may be.
type unopenedError struct{ err error }

func (e *unopenedError) Error() string { return e.err.Error() }
func (e *unopenedError) Unwrap() error { return e.err }

// stageOfImport is the stage of an error of importLayers, in which fetch and
// import overlap.
func stageOfImport(err error) Stage {
	if is[*transferError](err) {
		return StageFetch
	}
	return StageImport
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func atStage(stage Stage, err error) error {
	if err == nil || is[*fetch.UsageError](err) {
		return err // what was asked for made no sense from the beginning
	}
	if is[*StageError](err) {
		return err // a stage within a stage
	}
	return &StageError{Stage: stage, Err: err}
}

// KeepError reports something that garbage collection is to keep and that is
// not there.
type KeepError struct {
	Reference string
	Err       error
}

func (e *KeepError) Error() string {
	return fmt.Sprintf("keep %q: %v; nothing was removed", e.Reference, e.Err)
}

// Unwrap returns the cause.
func (e *KeepError) Unwrap() error { return e.Err }

// ErrNoBootEntries reports an image without anything to boot.
var ErrNoBootEntries = errors.New("no boot entries: neither /boot/loader/entries/*.conf, " +
	"nor a unified kernel image, nor /usr/lib/modules/<version>/vmlinuz")

// SpaceError reports a file system with too little free space for an image.
type SpaceError = freespace.Error
