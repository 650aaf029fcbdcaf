// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// helpHostStore makes the host's store, in a mount namespace of its own with an
// empty /var/lib, and says what is in it.
func helpHostStore(ctx context.Context) (err error) {
	if err := unix.Mount("tmpfs", "/var/lib", "tmpfs", 0, ""); err != nil {
		return err
	}
	s, err := Ensure(ctx, Options{GraphRoot: HostGraphRoot, RunRoot: os.Getenv("CSTOR_RUN")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	backend, err := os.ReadFile(filepath.Join(s.GraphRoot(), networkBackend))
	if err != nil {
		return err
	}
	fmt.Printf("created=%v backend=%s\n", s.Created(), backend)
	if _, err := Ensure(ctx, Options{GraphRoot: HostGraphRoot, RunRoot: os.Getenv("CSTOR_RUN")}); err != nil {
		return err
	}
	return nil
}

// podman decides about its network by whether it was the first in its store.
func TestPodmanIsFirstInItsStore(t *testing.T) {
	testutil.RequireRoot(t)
	unshare := testutil.RequireTool(t, "unshare", "util-linux")
	for _, test := range []struct {
		name, podman string // a script, empty for none
		want         string
		calls        int
	}{
		{"no podman", "", "created=true backend=netavark", 0},
		{"podman", "mkdir -p $S && printf cni > $S/defaultNetworkBackend", "created=true backend=cni", 1},
		{"podman makes the store", "mkdir -p $S/overlay $S/overlay-layers $S/overlay-images && printf cni > $S/defaultNetworkBackend", "created=false backend=cni", 1},
		{"podman fails", "mkdir -p $S && printf none > $S/defaultNetworkBackend; exit 125", "created=true backend=none", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			bin, run := t.TempDir(), t.TempDir()
			calls := filepath.Join(run, "calls")
			if test.podman != "" {
				script := fmt.Sprintf("#!/bin/sh\nPATH=/usr/bin:/bin\nS=%s\necho \"$@\" >> %s\ntest -e $S && exit 1\n%s\n", HostGraphRoot, calls, test.podman)
				must(t, os.WriteFile(filepath.Join(bin, "podman"), []byte(script), 0o755))
			}
			cmd := exec.CommandContext(t.Context(), unshare, "--mount", "--propagation", "private", check(os.Executable())(t))
			cmd.Env = append(os.Environ(), "CSTOR_TEST_HELPER=host-store", "CSTOR_RUN="+filepath.Join(run, "r"), "PATH="+bin)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if got := strings.TrimSpace(string(out)); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
			log, err := os.ReadFile(calls)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if want := strings.Repeat("system info\n", test.calls); string(log) != want {
				t.Errorf("podman was called with %q, want %q", log, want)
			}
		})
	}
}
