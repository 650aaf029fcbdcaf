// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package crashtest

import (
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/loopfs"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// count is how much of something a test does: a number from the environment
// for the long form, else the short one.
func count(t *testing.T, name string, short int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return short
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		t.Fatalf("%s=%q: want a number", name, text)
	}
	return n
}

// long says that the long form was asked for.
var long = os.Getenv("CFS_PULL_KILLS")+os.Getenv("CFS_PULL_CUTS")+os.Getenv("CFS_PULL_FAULTS") != ""

// shift is how far, of the distance between two of the moments that a run
// chooses, they lie behind those of the first run: the long form runs several
// times and hits other moments each time.
func shift() float64 {
	seed, err := strconv.Atoi(os.Getenv("CFS_PULL_SEED"))
	if err != nil {
		return 0
	}
	_, part := math.Modf(float64(seed) * math.Phi)
	return part
}

// requireTracer skips the test where programs cannot be traced.
func requireTracer(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		t.Skip("the tracer works on linux/amd64 only")
	}
	plan := Plan{Calls: []string{"mkdir", "mkdirat"}, At: 1, Errno: unix.EIO}
	r, err := Trace(t.Context(), plan, t.TempDir(), "/bin/mkdir", "a")
	if err != nil || !r.Happened {
		t.Skipf("system calls cannot be stopped here (container without CAP_SYS_PTRACE?): %v %+v", err, r)
	}
}

// memory is an empty directory on a file system in memory, where flushing costs
// nothing, if one can be mounted.
func memory(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("crashtest", dir, "tmpfs", 0, "size=1g"); err != nil {
		return dir
	}
	t.Cleanup(func() {
		if err := unmountBelow(dir); err != nil {
			t.Error(err)
		}
		loopfs.Unmount(t, dir)
	})
	return dir
}

// program is cfs-pull, built once for all tests.
func program(t *testing.T) string {
	t.Helper()
	built.Do(func() {
		out := filepath.Join(buildDir, "cfs-pull")
		cmd := exec.CommandContext(t.Context(), "go", "build", "-tags=containers_image_openpgp", "-o", out, "./cmd/cfs-pull")
		cmd.Dir = testutil.ModuleRoot(t)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // it runs in a virtual machine, too
		if printed, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build cfs-pull: %v\n%s", err, printed)
		}
		programPath = out
	})
	if programPath == "" {
		t.Fatal("cfs-pull was not built")
	}
	return programPath
}

// TestKill kills commands, before system calls spread evenly over all that
// they make and after random times.
func TestKill(t *testing.T) {
	requireTracer(t)
	scenarios := Scenarios()
	kills := count(t, "CFS_PULL_KILLS", 54)
	bin := program(t)
	for i, s := range scenarios {
		// What does not divide evenly goes to the first ones.
		n := (kills + len(scenarios) - 1 - i) / len(scenarios)
		t.Run(s.Name, func(t *testing.T) { killScenario(t, bin, s, n) })
	}
}

func killScenario(t *testing.T, bin string, s Scenario, kills int) {
	t.Parallel()
	if interrupted.Load() {
		t.Skip("interrupted")
	}
	w, err := NewWorld(t.Context(), bin, memory(t), s)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	calls, took := measure(t, w)
	// A quarter of the kills comes at any time.
	byCall := kills - kills/4
	killed, complete := 0, 0
	at := map[string]int{}
	for n := range kills {
		if interrupted.Load() {
			break
		}
		dir, err := w.Copy(t.Context(), "victim")
		if err != nil {
			t.Fatal(err)
		}
		var name string
		var done bool
		if n < byCall {
			// All calls in turn when there are more kills than calls.
			call := 1 + n%calls
			if byCall < calls {
				call = 1 + int((float64(n)+shift())*float64(calls)/float64(byCall))%calls
			}
			name, done = killAtCall(t, w, dir, call)
		} else {
			name, done = killAtTime(t, w, dir, time.Duration((float64(n-byCall)+shift())*float64(took)/float64(kills-byCall)))
		}
		if done {
			complete++
		} else {
			killed++
			at[strings.Fields(name)[0]]++
		}
		w.Found = nil
		if long && n%4 == 0 {
			w.Found = found
		}
		if err := w.Judge(t.Context(), dir, done); err != nil {
			t.Errorf("killed at %s: %v", name, err)
		}
	}
	t.Logf("%d kills, %d runs that were done before; %d calls, %v; kills by call: %v; fsck found: %v",
		killed, complete, calls, took.Round(time.Millisecond), at, found)
	tally(s.Name, "kills", killed)
	if killed < kills/2 && !interrupted.Load() {
		t.Errorf("only %d of %d kills came before the end", killed, kills)
	}
}

// measure finds out how many calls the command makes and how long it takes.
func measure(t *testing.T, w *World) (int, time.Duration) {
	t.Helper()
	dir, err := w.Copy(t.Context(), "victim")
	if err != nil {
		t.Fatal(err)
	}
	r, err := Trace(t.Context(), Plan{Calls: Changing, Below: dir}, dir, append([]string{w.Program}, w.Scenario.Command...)...)
	if err != nil {
		t.Fatal(err)
	}
	if r.Exit != 0 || len(r.Calls) == 0 {
		t.Fatalf("the command fails under the tracer: %+v", r)
	}
	if dir, err = w.Copy(t.Context(), "victim"); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if _, err := w.run(t.Context(), dir, w.Scenario.Command); err != nil {
		t.Fatal(err)
	}
	return len(r.Calls), time.Since(begin)
}

// killAtCall kills the command before its n-th call; done when it made fewer
// this time.
func killAtCall(t *testing.T, w *World, dir string, n int) (name string, done bool) {
	t.Helper()
	plan := Plan{Calls: Changing, Below: dir, At: n, Kill: true}
	r, err := Trace(t.Context(), plan, dir, append([]string{w.Program}, w.Scenario.Command...)...)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Happened {
		if r.Exit != 0 {
			t.Fatalf("the command failed: %+v", r)
		}
		return "the end", true
	}
	return r.Calls[n-1] + " (call " + strconv.Itoa(n) + ")", false
}

// killAtTime kills the command after a time.
func killAtTime(t *testing.T, w *World, dir string, after time.Duration) (name string, done bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), w.Program, w.Scenario.Command...)
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	timer.Stop()
	return "time " + after.String(), err == nil
}
