// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What callers branch on; test with [errors.Is].
var (
	// ErrTarget: the target is no directory, or something is in the way.
	ErrTarget = errors.New("cannot be mounted on")

	// ErrUpper: the directory for changes cannot be used.
	ErrUpper = errors.New("cannot keep changes there")

	// ErrNotMounted: what is to be unmounted is no composefs mount.
	ErrNotMounted = errors.New("no composefs image is mounted there")

	// ErrBusy: the mount is in use.
	ErrBusy = errors.New("the mount is in use")
)

// KernelError is a step of mounting that the kernel refused.
type KernelError struct {
	Step    string
	Message string // what the kernel said, if anything
	Remedy  string // what to do about it, if that is known
	Err     error  // an errno
}

func (e *KernelError) Error() string {
	text := fmt.Sprintf("%s: %v", e.Step, e.Err)
	if e.Message != "" {
		text += " (kernel: " + e.Message + ")"
	}
	return text
}

// Unwrap returns the errno.
func (e *KernelError) Unwrap() error { return e.Err }

// The remedies.
const (
	remedyPrivilege = "mounting needs root, or CAP_SYS_ADMIN in the initial user namespace"
	remedyAPI       = "mounting needs Linux 5.2 or newer"
	remedyOverlay   = "data-only lower layers of overlayfs need Linux 6.5 or newer"
	remedyVerity    = "verity=require of overlayfs needs Linux 6.6 or newer, with CONFIG_FS_VERITY"
	remedyUpper     = "the directory for changes must be on a file system that can be an upper layer, such as ext4, xfs, btrfs or tmpfs, and not on an overlayfs"
)

// remedyModule is for a file system that the kernel does not know.
func remedyModule(name string) string {
	return fmt.Sprintf("load the driver with \"modprobe %s\", or use a kernel that has it", name)
}

// kernelError makes a KernelError of an errno. remedy is for what is special
// about the step.
func kernelError(step, message, remedy string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		remedy = remedyPrivilege
	case errors.Is(err, unix.ENOSYS):
		remedy = remedyAPI
	}
	return &KernelError{Step: step, Message: message, Remedy: remedy, Err: err}
}
