// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/ocilayout"
	"github.com/cfs-pull/cfs-pull/internal/testregistry"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// unifiedSystem is a system below a directory, and a registry with an image of
// two layers for it.
type unifiedSystem struct {
	root, run, authFile string
	registry            *testregistry.Registry
	layers              []string // digests, the small layer first
}

func newUnifiedSystem(t *testing.T, o testregistry.Options) *unifiedSystem {
	t.Helper()
	testutil.RequireRoot(t)
	layout := makeLayout(t, random(), ocilayout.Gzip, 200<<10, 3<<20)
	registry := testregistry.New(t, o)
	registry.PutLayout(t, "os", layout)
	dir := t.TempDir()
	s := &unifiedSystem{
		root: filepath.Join(dir, "root"), run: filepath.Join(dir, "run"), authFile: filepath.Join(dir, "auth.json"),
		registry: registry, layers: layerDigests(t, layout),
	}
	if err := os.Mkdir(s.root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.authFile, registry.AuthFile("puller", "wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// command is a unified pull. Files are copied where the file system of
// temporary directories can do nothing else.
func (s *unifiedSystem) command(t *testing.T, more ...string) *exec.Cmd {
	t.Helper()
	args := append([]string{
		"--unified", "--root", s.root, "--run-root", s.run, "--local-copy", "auto", "--allow-missing-verity",
		"--insecure-policy", "--registries-conf", s.registry.InsecureConf(t), "--selinux-policy-root", t.TempDir(),
		"--os", "linux", "--arch", "amd64", "--min-free", "0", "--no-boot", "--json", "--retry-delay", "50ms",
	}, more...)
	return exec.CommandContext(t.Context(), "cfs-pull", append(args, s.registry.Host()+"/os:latest")...)
}

func (s *unifiedSystem) repo() string { return filepath.Join(s.root, "composefs") }

// checkNothingVisible fails if an image is to be seen, or half a store.
func (s *unifiedSystem) checkNothingVisible(t *testing.T) {
	t.Helper()
	if left := tags(t, s.repo()); len(left) > 0 {
		t.Errorf("there are tags: %v", left)
	}
	bootc := filepath.Join(s.repo(), "bootc")
	if images, err := os.ReadFile(filepath.Join(bootc, "storage", "overlay-images", "images.json")); err == nil && len(bytes.TrimSpace(images)) > len("[]") {
		t.Errorf("the store has images: %s", images)
	}
	s.checkNoMounts(t)
}

func (s *unifiedSystem) checkNoMounts(t *testing.T) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), s.root) {
		t.Errorf("something is mounted below %s:\n%s", s.root, mounts)
	}
}

// blobs lists the layers that were asked for since the log was reset.
func (s *unifiedSystem) blobs() []string {
	var asked []string
	for _, request := range s.registry.Requests() {
		for _, layer := range s.layers {
			if request.Kind == testregistry.Blob && request.Target == layer {
				asked = append(asked, layer)
			}
		}
	}
	return asked
}

// A registry that fails is asked again; one that lies or refuses is not
// . What a failed pull leaves is in nobody's way.
func TestUnifiedRegistryFaults(t *testing.T) {
	for name, c := range map[string]struct {
		fault testregistry.Fault
		code  int
		text  string // of the message
		asked int    // requests for the large layer; 0: any number
	}{
		"dropped":       {testregistry.Fault{Times: 1, DropAfter: new(int64(1 << 20))}, 0, "", 2},
		"busy":          {testregistry.Fault{Times: 1, Status: 429, RetryAfter: "1"}, 0, "", 2},
		"two errors":    {testregistry.Fault{Times: 2, Status: 500}, 0, "", 3},
		"errors":        {testregistry.Fault{Times: -1, Status: 500}, exitOther, "500", 4},
		"too long":      {testregistry.Fault{Times: -1, Pad: 1}, exitIntegrity, "the manifest says", 0},
		"too short":     {testregistry.Fault{Times: -1, Truncate: new(int64(1000))}, exitIntegrity, "source has 1000 bytes", 0},
		"other content": {testregistry.Fault{Times: -1, Corrupt: new(int64(1 << 20))}, exitIntegrity, "content has digest", 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := newUnifiedSystem(t, testregistry.Options{})
			c.fault.Kind, c.fault.Target = testregistry.Blob, s.layers[1]
			s.registry.Inject(c.fault)
			cmd := s.command(t)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if got := exitCode(t, err); got != c.code {
				t.Fatalf("exit status %d, want %d: %s", got, c.code, stderr.String())
			}
			asked := 0
			for _, layer := range s.blobs() {
				if layer == s.layers[1] {
					asked++
				}
			}
			if c.asked > 0 && asked != c.asked {
				t.Errorf("the layer was asked for %d times, want %d", asked, c.asked)
			}
			r := parseResult(t, out)
			if r.Tagged != (c.code == 0) || r.Error.Code != c.code {
				t.Errorf("result %+v", r)
			}
			if c.code == 0 {
				return
			}
			for _, text := range []string{c.text, s.registry.Host(), s.layers[1]} {
				if !strings.Contains(stderr.String(), text) {
					t.Errorf("%q is not in: %s", text, stderr.String())
				}
			}
			s.checkNothingVisible(t)

			// The layer that was complete is there.
			s.registry.ClearFaults()
			s.registry.ResetLog()
			if out, err := s.command(t).Output(); err != nil || !parseResult(t, out).Tagged {
				t.Fatalf("the next pull: %v\n%s", err, out)
			}
			if diff := cmp.Diff(s.layers[1:], s.blobs()); diff != "" {
				t.Errorf("layers fetched by the next pull (-want +got):\n%s", diff)
			}
		})
	}
}

// A refusal names the registry and the file of credentials, and is not tried
// again.
func TestUnifiedIsRefused(t *testing.T) {
	s := newUnifiedSystem(t, testregistry.Options{Auth: testregistry.BasicAuth, User: "puller", Password: "secret"})
	cmd := s.command(t, "--authfile", s.authFile)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if got := exitCode(t, err); got != exitAuth {
		t.Errorf("exit status %d, want %d", got, exitAuth)
	}
	if r := parseResult(t, out); r.Tagged || r.Error.Code != exitAuth {
		t.Errorf("result %+v", r)
	}
	for _, text := range []string{"refused by registry " + s.registry.Host(), "credentials: ", s.authFile} {
		if !strings.Contains(stderr.String(), text) {
			t.Errorf("%q is not in: %s", text, stderr.String())
		}
	}
	if strings.Contains(stderr.String(), "wrong") {
		t.Errorf("the password is in: %s", stderr.String())
	}
	if s.registry.Count(testregistry.Blob) > 0 {
		t.Error("blobs were asked for")
	}
	s.checkNothingVisible(t)
}

// While one pull runs, another one and gc say who is in the way. Whatever ends
// a pull, the next one goes on from the layers that were complete.
func TestUnifiedIsInterrupted(t *testing.T) {
	for signal, code := range map[unix.Signal]int{unix.SIGINT: 130, unix.SIGTERM: 143, unix.SIGKILL: -1} {
		t.Run(unix.SignalName(signal), func(t *testing.T) {
			s := newUnifiedSystem(t, testregistry.Options{})
			s.registry.Inject(testregistry.Fault{
				Kind: testregistry.Blob, Target: s.layers[1], Times: 1, StallAfter: new(int64(1 << 20)),
			})
			first := s.command(t)
			stderr, err := first.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := first.Start(); err != nil {
				t.Fatal(err)
			}
			messages := &waitingReader{from: stderr}
			messages.waitFor(t, "layer "+shortDigest(s.layers[0])+": done")
			for name, cmd := range map[string]*exec.Cmd{
				"pull": s.command(t, "--lock-timeout", "100ms"),
				"gc":   exec.CommandContext(t.Context(), "cfs-pull", "gc", "--repo", s.repo(), "--allow-missing-verity", "--lock-timeout", "100ms"),
			} {
				out, err := cmd.CombinedOutput()
				holder := fmt.Sprintf("held by pid %d (cfs-pull)", first.Process.Pid)
				if got := exitCode(t, err); got != exitLocked || !strings.Contains(string(out), holder) {
					t.Errorf("%s meanwhile: exit status %d, want %d and %q: %s", name, got, exitLocked, holder, out)
				}
			}
			if err := first.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			rest := messages.rest(t)
			if got := exitCode(t, first.Wait()); got != code {
				t.Errorf("exit status %d, want %d: %s", got, code, rest)
			}
			s.checkNothingVisible(t)

			s.registry.ClearFaults()
			s.registry.ResetLog()
			out, err := s.command(t, "--lock-timeout", "0").Output()
			if err != nil || !parseResult(t, out).Tagged {
				t.Fatalf("the next pull: %v\n%s", err, out)
			}
			if diff := cmp.Diff(s.layers[1:], s.blobs()); diff != "" {
				t.Errorf("layers fetched by the next pull (-want +got):\n%s", diff)
			}
			for _, pattern := range []string{"bootc/*.tmp", "bootc/storage/overlay/tempdirs/*", "bootc/storage/overlay-layers/tmp/*"} {
				if left, err := filepath.Glob(filepath.Join(s.repo(), pattern)); err != nil || len(left) > 0 {
					t.Errorf("left: %v (%v)", left, err)
				}
			}
			s.checkNoMounts(t)
		})
	}
}
