// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package microvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Defaults of Config, and bounds of what comes back.
const (
	DefaultMemoryMiB = 1024
	DefaultCPUs      = 2
	DefaultTimeout   = 20 * time.Minute // only against hanging: a run takes seconds where the machine is idle

	maxOutput = 16 << 20 // bytes of Output and of Console that are kept
)

// ErrNoStatus reports a machine that stopped before the script's end: a panic,
// a cut of the power, or an out-of-memory kill of process 1.
var ErrNoStatus = errors.New("virtual machine stopped before the script ended")

// Config says what to run. Only Script is needed.
type Config struct {
	// Script is the text of a shell script.
	Script string

	// Files are put into the machine: the path inside to a file or a
	// directory of the host. Permission bits are kept; owners become root.
	// A file of the same path replaces one of the machine's own.
	Files map[string]string

	// Modules are kernel modules to load before the script runs, by name;
	// what they depend on comes with them. ext4, fuse and fs-verity need
	// none. Useful: loop, erofs, overlay, xfs, vfat, and btrfs, which
	// measures its own speed for some seconds when loaded.
	Modules []string

	// Disks are /dev/vda, /dev/vdb and so on, in this order.
	Disks []Disk

	// OutputDir is a directory of the host that gets what the script left
	// in /out: regular files and directories.
	OutputDir string

	MemoryMiB int           // default DefaultMemoryMiB; Files live there too
	CPUs      int           // default DefaultCPUs
	Timeout   time.Duration // default DefaultTimeout
}

// Disk is a raw disk image.
type Disk struct {
	Path     string
	ReadOnly bool

	// WriteLog is the path of a file to record every write and flush in,
	// in the format of Linux's dm-log-writes. Empty: none.
	WriteLog string
}

// Result is what a run left.
type Result struct {
	ExitCode int    // of the script; -1 where it did not end
	Output   string // what the script printed, standard output and error
	Console  string // what the kernel and QEMU printed
}

// String is for the message of a failed test.
func (r Result) String() string {
	return fmt.Sprintf("exit code %d\n--- output\n%s\n--- console\n%s", r.ExitCode, r.Output, r.Console)
}

// Run boots a machine, runs the script and waits for the end. An exit code
// other than 0 is not an error. With an error, the result still has what was
// printed.
func Run(ctx context.Context, c Config) (Result, error) {
	none := Result{ExitCode: -1}
	kit, err := findKit()
	if err != nil {
		return none, err
	}
	work, err := os.MkdirTemp("", "microvm-")
	if err != nil {
		return none, fmt.Errorf("create work directory: %w", err)
	}
	defer os.RemoveAll(work)

	guest, err := newGuest(kit, c)
	if err != nil {
		return none, err
	}
	initrd := filepath.Join(work, "initrd")
	if err := guest.writeFile(initrd); err != nil {
		return none, err
	}
	timeout := orDefault(c.Timeout, DefaultTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no end after %v: %w", timeout, context.DeadlineExceeded))
	defer cancel()
	m := machine{
		qemu:      kit.qemu,
		kernel:    kit.kernel,
		initrd:    initrd,
		disks:     c.Disks,
		memoryMiB: orDefault(c.MemoryMiB, DefaultMemoryMiB),
		cpus:      orDefault(c.CPUs, DefaultCPUs),
		dir:       work,
	}
	runErr := m.run(ctx)

	r := none
	var errs []error
	if r.Output, err = m.readPort(portOutput); err != nil {
		errs = append(errs, err)
	}
	if r.Console, err = m.readConsole(); err != nil {
		errs = append(errs, err)
	}
	if runErr != nil {
		return r, fmt.Errorf("run virtual machine: %w", errors.Join(append(errs, runErr)...))
	}
	status, err := m.readPort(portStatus)
	if err != nil {
		errs = append(errs, err)
	}
	if r.ExitCode, err = parseStatus(status); err != nil {
		errs = append(errs, err)
	}
	if c.OutputDir != "" && err == nil {
		if err := extract(m.portPath(portFiles), c.OutputDir); err != nil {
			errs = append(errs, fmt.Errorf("bring files out of the virtual machine: %w", err))
		}
	}
	return r, errors.Join(errs...)
}

// parseStatus reads what init writes: "start" before the script, then "exit
// CODE"; or "setup" and what went wrong before the script.
func parseStatus(status string) (int, error) {
	line, ok := strings.CutSuffix(strings.TrimPrefix(status, "start\n"), "\n")
	if !ok {
		return -1, ErrNoStatus
	}
	if why, ok := strings.CutPrefix(line, "setup "); ok {
		return -1, fmt.Errorf("set up virtual machine: %s", why)
	}
	code, err := strconv.ParseUint(strings.TrimPrefix(line, "exit "), 10, 8)
	if err != nil {
		return -1, fmt.Errorf("%w: bad status line %q", ErrNoStatus, line)
	}
	return int(code), nil
}

func orDefault[T int | time.Duration](v, def T) T {
	if v > 0 {
		return v
	}
	return def
}
