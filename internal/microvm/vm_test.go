// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package microvm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// mustRun runs the script and wants exit code 0.
func mustRun(t *testing.T, c Config) Result {
	t.Helper()
	start := time.Now()
	r, err := Run(t.Context(), c)
	if err != nil || r.ExitCode != 0 {
		t.Fatalf("Run: %v\n%s", err, r)
	}
	t.Logf("virtual machine ran %v", time.Since(start).Round(100*time.Millisecond))
	return r
}

func TestRun(t *testing.T) {
	Require(t)
	t.Parallel()
	in := filepath.Join(t.TempDir(), "in")
	if err := os.MkdirAll(filepath.Join(in, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(in, "sub", "data"), []byte("from the host\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sub/data", filepath.Join(in, "link")); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	r, err := Run(t.Context(), Config{
		Files:     map[string]string{"/in": in, "/opt/one": filepath.Join(in, "sub", "data")},
		OutputDir: out,
		Script: `
			echo standard output
			echo standard error >&2
			cat /in/link /opt/one
			stat -c %a:%u /in/sub/data
			ping -c 1 -W 5 127.0.0.1 >/dev/null && echo loopback
			echo "$(nproc) processors"
			# containers/storage moves into a layer with pivot_root.
			mkdir /tmp/new && mount -t tmpfs tmpfs /tmp/new && mkdir /tmp/new/old &&
				unshare -m pivot_root /tmp/new /tmp/new/old && echo pivoted
			mkdir /out/dir && echo back >/out/dir/file
			exit 7`,
	})
	if err != nil {
		t.Fatalf("Run: %v\n%s", err, r)
	}
	const want = "standard output\nstandard error\nfrom the host\nfrom the host\n640:0\nloopback\n2 processors\npivoted\n"
	if r.ExitCode != 7 || r.Output != want {
		t.Errorf("exit code %d, output %q, want 7, %q", r.ExitCode, r.Output, want)
	}
	back, err := os.ReadFile(filepath.Join(out, "dir", "file"))
	if err != nil || string(back) != "back\n" {
		t.Errorf("file from /out: %q, %v, want %q", back, err, "back\n")
	}
}

func TestDisks(t *testing.T) {
	Require(t)
	t.Parallel()
	first, second := Ext4(t, 16), Ext4(t, 16)
	disks := []Disk{{Path: first}, {Path: second, ReadOnly: true}}
	mustRun(t, Config{Disks: disks, Script: `
		mount -t ext4 /dev/vda /mnt && echo kept >/mnt/file && umount /mnt &&
		! dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync`})
	r := mustRun(t, Config{Disks: disks, Script: `
		mount -t ext4 /dev/vda /mnt && cat /mnt/file &&
		umount /mnt && mount -t ext4 -o ro /dev/vdb /mnt && ls /mnt`})
	if want := "kept\nlost+found\n"; r.Output != want {
		t.Errorf("second run printed %q, want %q", r.Output, want)
	}
}

// TestPowerCut checks that what was not flushed is lost.
func TestPowerCut(t *testing.T) {
	Require(t)
	t.Parallel()
	disk := Ext4(t, 16)
	log := filepath.Join(t.TempDir(), "log")
	r, err := Run(t.Context(), Config{
		Disks: []Disk{{Path: disk, WriteLog: log}},
		Script: `
			mount -t ext4 /dev/vda /mnt
			echo flushed >/mnt/flushed && sync
			echo lost >/mnt/lost
			echo cutting
			echo o >/proc/sysrq-trigger
			sleep 100`,
	})
	if !errors.Is(err, ErrNoStatus) || r.ExitCode != -1 || r.Output != "cutting\n" {
		t.Fatalf("Run: %v, want %v\n%s", err, ErrNoStatus, r)
	}
	if info, err := os.Stat(log); err != nil || info.Size() < 8192 {
		t.Errorf("write log: %v, %v, want some writes", info, err)
	}
	r = mustRun(t, Config{Disks: []Disk{{Path: disk}}, Script: `mount -t ext4 /dev/vda /mnt && cd /mnt && ls -d flushed lost; cat flushed`})
	if !strings.Contains(r.Output, "flushed\nflushed\n") || !strings.Contains(r.Output, "lost: No such file") {
		t.Errorf("after the power cut: %q, want the flushed file alone", r.Output)
	}
}

func TestTimeLimit(t *testing.T) {
	Require(t)
	t.Parallel()
	_, err := Run(t.Context(), Config{Script: "sleep 1000", Timeout: time.Second})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no end after 1s") {
		t.Errorf("Run past its time limit: %v, want %v that names the limit", err, context.DeadlineExceeded)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, Config{Script: "true"}); !errors.Is(err, context.Canceled) {
		t.Errorf("Run with a canceled context: %v, want %v", err, context.Canceled)
	}
}

func TestSetupErrors(t *testing.T) {
	Require(t)
	t.Parallel()
	if _, err := Run(t.Context(), Config{Modules: []string{"no-such-module"}}); err == nil || !strings.Contains(err.Error(), "no_such_module") {
		t.Errorf("Run with an unknown module: %v, want an error that names it", err)
	}
	if _, err := Run(t.Context(), Config{Files: map[string]string{"/x": "/does/not/exist"}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Run with a missing file: %v, want %v", err, os.ErrNotExist)
	}
	if _, err := Run(t.Context(), Config{Disks: []Disk{{Path: "/does/not/exist"}}}); err == nil || !strings.Contains(err.Error(), "/does/not/exist") {
		t.Errorf("Run with a missing disk: %v, want QEMU's message", err)
	}
}
