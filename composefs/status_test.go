// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/loopfs"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

func TestUsage(t *testing.T) {
	r := insecureRepo(t)
	u, err := r.Usage(t.Context())
	if err != nil || u != (Usage{}) {
		t.Errorf("usage of a repository without objects: %+v, %v", u, err)
	}
	if _, err := r.OpenObjects(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open objects that are not there: %v", err)
	}
	for _, text := range []string{"one", strings.Repeat("two", 5000)} {
		if _, _, err := r.Put([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	objects := filepath.Join(r.Path(), "objects")
	other := fsverity.Sum(fsverity.SHA256, nil).ObjectPath() // another algorithm's
	must(t, os.MkdirAll(filepath.Join(objects, filepath.Dir(other)), 0o755))
	for _, name := range []string{"stray", other} {
		must(t, os.WriteFile(filepath.Join(objects, name), []byte("x"), 0o600))
	}
	u, err = r.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if u.Allocated < 8192 {
		t.Errorf("%d bytes are allocated", u.Allocated)
	}
	u.Allocated = 0
	if diff := cmp.Diff(Usage{Objects: 2, Bytes: 15003, Foreign: 2}, u); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
}

// TestProbes asks each file system for what it is known to have.
func TestProbes(t *testing.T) {
	for _, kind := range loopfs.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			path := filepath.Join(loopfs.Mount(t, kind), "repo")
			check(Init(t.Context(), path, InitOptions{AllowMissingVerity: true}))(t)
			r := openRepo(t, path, kernelVerity(), OpenOptions{})
			info, err := r.FileSystem()
			if err != nil || info.Type != string(kind) || info.Available == 0 || info.Size < info.Available || info.ReadOnly {
				t.Errorf("file system %+v, %v", info, err)
			}
			err = r.ProbeReflink()
			if kind.Reflinks() && err != nil || !kind.Reflinks() && !errors.Is(err, ErrNoReflink) {
				t.Errorf("reflinks: %v", err)
			}
			// mkfs does not give ext4 the feature, and xfs has none.
			if err := r.ProbeVerity(); kind != loopfs.Btrfs && !errors.Is(err, ErrVerityUnavailable) {
				t.Errorf("fs-verity: %v", err)
			}
			entries, err := os.ReadDir(path)
			if err != nil || len(entries) != 1 {
				t.Errorf("the probes left %v, %v", entries, err)
			}
			ro := openRepo(t, path, kernelVerity(), OpenOptions{ReadOnly: true})
			for _, err := range []error{ro.ProbeReflink(), ro.ProbeVerity()} {
				if !errors.Is(err, ErrUnknown) {
					t.Errorf("probe of a repository that is opened for reading: %v", err)
				}
			}
		})
	}
}

func TestLockHolders(t *testing.T) {
	program := testutil.RequireTool(t, "flock", "util-linux")
	r := insecureRepo(t)
	if got, err := r.LockHolders(); err != nil || len(got) != 0 {
		t.Errorf("lock holders: %v, %v, want none beside this process", got, err)
	}
	cmd := exec.Command(program, "--shared", "--no-fork", r.Path(), "sh", "-c", "echo locked; read line || :")
	in := check(cmd.StdinPipe())(t)
	out := check(cmd.StdoutPipe())(t)
	must(t, cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "locked\n" {
		t.Fatalf("%q, %v", line, err)
	}
	got, err := r.LockHolders()
	if err != nil || len(got) != 1 || got[0].PID != cmd.Process.Pid || got[0].Command != "sh" {
		t.Errorf("lock holders: %v, %v, want process %d", got, err, cmd.Process.Pid)
	}
	must(t, in.Close())
	must(t, cmd.Wait())
}
