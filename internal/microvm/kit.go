// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package microvm

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// ErrUnavailable reports a machine that cannot run virtual machines; the
// message says what is missing and how to get it.
var ErrUnavailable = errors.New("cannot run virtual machines: run scripts/install-vm")

// kit is what a run needs of the host.
type kit struct {
	qemu    string // the program
	busybox string // static
	kernel  string // bzImage
	modules string // directory that holds modules.dep
}

// Available reports whether Run can work here: nil, or an [ErrUnavailable]
// that says what is missing.
func Available() error {
	_, err := findKit()
	return err
}

func findKit() (kit, error) {
	if runtime.GOARCH != "amd64" || runtime.GOOS != "linux" {
		return kit{}, fmt.Errorf("%w: only on linux/amd64, this is %s/%s", ErrUnavailable, runtime.GOOS, runtime.GOARCH)
	}
	var k kit
	var err error
	if k.qemu, err = exec.LookPath("qemu-system-x86_64"); err != nil {
		return kit{}, fmt.Errorf("%w: no QEMU: %w", ErrUnavailable, err)
	}
	if k.busybox, err = exec.LookPath("busybox"); err != nil {
		return kit{}, fmt.Errorf("%w: no busybox: %w", ErrUnavailable, err)
	}
	if err := checkStatic(k.busybox); err != nil {
		return kit{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	dir, err := vmDir()
	if err != nil {
		return kit{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	k.kernel = filepath.Join(dir, "current", "vmlinuz")
	k.modules = filepath.Join(dir, "current", "modules")
	for _, path := range []string{k.kernel, filepath.Join(k.modules, modulesDep)} {
		if _, err := os.Stat(path); err != nil {
			return kit{}, fmt.Errorf("%w: no kernel: %w", ErrUnavailable, err)
		}
	}
	return k, nil
}

// vmDir is where scripts/install-vm unpacks the kernel.
func vmDir() (string, error) {
	if dir := os.Getenv("CFS_PULL_VM_DIR"); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, "cfs-pull", "vm"), nil
}

// checkStatic refuses programs that need a dynamic loader: there is none in
// the machine.
func checkStatic(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("read program: %w", err)
	}
	defer f.Close() // read-only
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is not a static program", path)
		}
	}
	return nil
}
