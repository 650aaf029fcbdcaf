// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package securemode

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os/exec"
	"sync/atomic"
	"testing"
)

// result is what the tests need of a pull's JSON.
type result struct {
	Changed    bool
	Tag        string
	Tagged     bool
	Bootable   bool
	Repository struct {
		Algorithm      string
		VerityRequired bool
	}
	Image, BootImage struct {
		ID     string
		Others []struct{ ID string }
	}
	Stats struct {
		Objects struct{ Copied, Present int }
	}
	Error *struct {
		Code          int
		Kind, Message string
		Remedy        string
	}
}

// command runs cfs-pull and returns its exit status.
func command(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || !exit.Exited()) {
		t.Fatalf("cfs-pull %q: %v\n%s", args, err, errOut.Bytes())
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// initRepository creates a repository, protected unless args say otherwise.
func initRepository(t *testing.T, repo string, args ...string) {
	t.Helper()
	if _, stderr, code := command(t, append([]string{"init", "--repo", repo}, args...)...); code != 0 {
		t.Fatalf("init %q: exit status %d\n%s", args, code, stderr)
	}
}

// tryPull pulls and returns the result and the exit status.
func tryPull(t *testing.T, repo, ref string, args ...string) (result, int) {
	t.Helper()
	all := append([]string{"--direct", "--insecure-policy", "--progress=none", "--json", "--repo", repo}, args...)
	stdout, stderr, code := command(t, append(all, ref)...)
	var r result
	if err := json.Unmarshal([]byte(stdout), &r); err != nil {
		t.Fatalf("pull %s %q: exit status %d, %v in %q\n%s", ref, args, code, err, stdout, stderr)
	}
	if (code == 0) != (r.Error == nil) || r.Error != nil && r.Error.Code != code {
		t.Errorf("pull %s %q: exit status %d, but the result has the error %+v", ref, args, code, r.Error)
	}
	if code != 0 && stderr == "" {
		t.Errorf("pull %s %q: exit status %d without a message", ref, args, code)
	}
	return r, code
}

// pull pulls and wants success.
func pull(t *testing.T, repo, ref string, args ...string) result {
	t.Helper()
	r, code := tryPull(t, repo, ref, args...)
	if code != 0 {
		t.Fatalf("pull %s %q: exit status %d: %+v", ref, args, code, r.Error)
	}
	if !r.Tagged || !r.Bootable {
		t.Errorf("pull %s %q: %+v, want an image that is tagged and bootable", ref, args, r)
	}
	return r
}

// layout is the reference of an image.
func layout(name string) string { return "oci:" + imagesDir + "/" + name + ":latest" }

// deadRegistry listens like a registry, but hangs up on everybody. calls counts
// those who tried.
func deadRegistry(t *testing.T) (ref string, calls *atomic.Int64) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	calls = new(atomic.Int64)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			calls.Add(1)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
	})
	return "docker://" + listener.Addr().String() + "/os:latest", calls
}
