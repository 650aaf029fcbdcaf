// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

// Task is a stage of a pull that reports progress.
type Task string

// The tasks, in order.
const (
	TaskPulling   Task = "pulling"    // layers are fetched; a direct pull imports them with that
	TaskImporting Task = "importing"  // layers are imported from a containers-storage
	TaskBootImage Task = "boot-image" // EROFS images are built
)

// State says what an Event is about.
type State string

// The states.
const (
	Started  State = "started"
	Progress State = "progress"
	Skipped  State = "skipped" // nothing to do: it is there already
	Done     State = "done"
)

// Event is one step of a task or, when Layer is set, of one layer of it.
// Counts never decrease and never exceed their totals.
type Event struct {
	Task  Task
	State State
	// Layer is the digest of the layer's blob, or with TaskImporting its
	// diff_id; empty for the task itself.
	Layer string
	// Bytes of Total are done, of which Cached were there before. Of
	// TaskPulling they are bytes of compressed layers, of TaskImporting those
	// of uncompressed ones. 0 of 0 when a task does not count bytes.
	Bytes, Total, Cached int64
}
