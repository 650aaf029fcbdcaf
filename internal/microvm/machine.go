// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package microvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The machine's serial ports, by name. Init finds them below
// /sys/class/virtio-ports. Each is a file of the host.
const (
	portOutput = "output" // what the script prints
	portStatus = "status" // the one line of parseStatus
	portFiles  = "files"  // a tar archive of /out
)

// machine is one run of QEMU.
type machine struct {
	qemu, kernel, initrd string
	disks                []Disk
	memoryMiB, cpus      int
	dir                  string // scratch space, for the files behind console and ports
}

func (m *machine) portPath(name string) string { return filepath.Join(m.dir, "port-"+name) }
func (m *machine) consolePath() string         { return filepath.Join(m.dir, "console") }

// args is QEMU's command line.
func (m *machine) args() []string {
	args := []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		// All instructions that QEMU can emulate: Go programs in the machine
		// then take the same code paths as on a real one.
		"-machine", "pc", "-accel", "tcg", "-cpu", "max",
		"-m", strconv.Itoa(m.memoryMiB), "-smp", strconv.Itoa(m.cpus),
		"-kernel", m.kernel, "-initrd", m.initrd,
		// panic=-1 restarts at once, and -no-reboot makes that the end.
		//
		// maxcpus=1: while the kernel moves the PCI devices' memory around,
		// QEMU before 10.1 uses tables that it has freed, and aborts now and
		// then ("iotlb_to_section"), if a second CPU runs at that time. Init
		// starts the others.
		"-append", "console=ttyS0 panic=-1 quiet mitigations=off maxcpus=1",
		"-serial", "file:" + escape(m.consolePath()),
		"-device", "virtio-serial-pci",
	}
	for i, name := range []string{portOutput, portStatus, portFiles} {
		args = append(args,
			"-chardev", fmt.Sprintf("file,id=%s,path=%s", name, escape(m.portPath(name))),
			"-device", fmt.Sprintf("virtserialport,nr=%d,chardev=%s,name=%s", i+1, name, name))
	}
	for i, d := range m.disks {
		args = append(args, diskArgs(i, d)...)
	}
	return args
}

func diskArgs(i int, d Disk) []string {
	node := fmt.Sprintf("disk%d", i)
	readOnly := "off"
	if d.ReadOnly {
		readOnly = "on"
	}
	// The image is thrown away when the host crashes, so no flush has to
	// reach the host's disk.
	file := fmt.Sprintf("driver=file,cache.no-flush=on,read-only=%s,filename=%s", readOnly, escape(d.Path))
	args := []string{"-blockdev", "node-name=" + node + "-file," + file}
	if d.WriteLog == "" {
		args = append(args, "-blockdev", fmt.Sprintf("driver=raw,node-name=%s,read-only=%s,file=%s-file", node, readOnly, node))
	} else {
		args = append(args,
			"-blockdev", fmt.Sprintf("driver=file,cache.no-flush=on,node-name=%s-log,filename=%s", node, escape(d.WriteLog)),
			"-blockdev", fmt.Sprintf("driver=blklogwrites,log-sector-size=512,node-name=%s,file=%s-file,log=%s-log", node, node, node))
	}
	return append(args, "-device", "virtio-blk-pci,drive="+node)
}

// escape doubles commas, which separate QEMU's options.
func escape(path string) string { return strings.ReplaceAll(path, ",", ",,") }

// maxStarts is how often a machine is started that does not come to its script.
const maxStarts = 4

// run runs QEMU to its end, or kills it when ctx ends. Emulated machines crash
// now and then while they boot: QEMU itself does, or the kernel has an exception
// before it has a console, which is a reset and so the end. Nothing has happened
// to the disks by then, and the machine is started again.
func (m *machine) run(ctx context.Context) error {
	for start := 1; ; start++ {
		err := m.runOnce(ctx)
		if ctx.Err() != nil || start == maxStarts || err != nil && !crashed(err) {
			return err
		}
		status, statusErr := m.readPort(portStatus)
		if statusErr != nil || status != "" {
			return err
		}
	}
}

// crashed tells whether a program was ended by a signal.
func crashed(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled()
}

func (m *machine) runOnce(ctx context.Context) error {
	for _, d := range m.disks {
		if d.WriteLog == "" {
			continue
		}
		// QEMU opens the log but does not create it.
		if err := os.WriteFile(d.WriteLog, nil, 0o600); err != nil {
			return fmt.Errorf("create write log: %w", err)
		}
	}
	cmd := exec.CommandContext(ctx, m.qemu, m.args()...)
	cmd.WaitDelay = 10 * time.Second
	var printed bytes.Buffer
	cmd.Stdout, cmd.Stderr = &printed, &printed
	err := cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(m.qemu), err, bytes.TrimSpace(printed.Bytes()))
	}
	return nil
}

func (m *machine) readPort(name string) (string, error) { return readBounded(m.portPath(name)) }

// readConsole is what the console got, without the control sequences that the
// firmware starts with.
func (m *machine) readConsole() (string, error) {
	text, err := readBounded(m.consolePath())
	text = strings.ReplaceAll(text, "\r\n", "\n")
	if i := strings.LastIndex(text, "\x1b["); i >= 0 {
		if _, after, ok := strings.Cut(text[i:], "\n"); ok {
			text = after
		}
	}
	return text, err
}

// readBounded reads at most maxOutput bytes; a file that is absent is empty,
// as it is when QEMU did not start.
func readBounded(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read what the virtual machine printed: %w", err)
	}
	defer f.Close() // read-only
	b, err := io.ReadAll(io.LimitReader(f, maxOutput))
	if err != nil {
		return "", fmt.Errorf("read what the virtual machine printed: %w", err)
	}
	return string(b), nil
}
