// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package crashtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/loopfs"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// fault is an error that system calls of a command return.
type fault struct {
	errno  unix.Errno
	calls  []string
	sticky bool // all later ones, too
	images bool // of calls on the images instead of those on the repositories
	codes  []int
	says   string
}

func (f fault) name() string {
	name := unix.ErrnoName(f.errno)
	if f.sticky {
		name += " from then on"
	}
	if f.images {
		name += " of the image"
	}
	return name
}

// faults are what file systems, disks and limits answer. Exit statuses are those
// of a failure and of a repository that could not be opened.
var faults = []fault{
	{errno: unix.ENOSPC, calls: Allocating, codes: []int{5}, says: "no space left on device"},
	{errno: unix.ENOSPC, calls: Allocating, sticky: true, codes: []int{5}, says: "no space left on device"},
	{errno: unix.EDQUOT, calls: Allocating, sticky: true, codes: []int{5}, says: "quota exceeded"},
	{errno: unix.EIO, calls: Changing, codes: []int{1, 125}, says: "input/output error"},
	{errno: unix.EIO, calls: Changing, sticky: true, codes: []int{1, 125}, says: "input/output error"},
	{errno: unix.EIO, calls: Reading, codes: []int{1, 125}, says: "input/output error"},
	{errno: unix.EIO, calls: Reading, images: true, codes: []int{1, 125}, says: "input/output error"},
	{errno: unix.EMFILE, calls: Opening, codes: []int{1, 125}, says: "too many open files"},
	{errno: unix.EMFILE, calls: Opening, sticky: true, codes: []int{1, 125}, says: "too many open files"},
	{errno: unix.ENFILE, calls: Opening, sticky: true, codes: []int{1, 125}, says: "too many open files"},
	{errno: unix.EROFS, calls: Changing, sticky: true, codes: []int{1, 125}, says: "read-only file system"},
}

// faultScenarios are the commands that faults are tried on.
func faultScenarios() []Scenario {
	return slices.DeleteFunc(Scenarios(), func(s Scenario) bool {
		return s.Name == "pull/init" || s.Name == "pull/boot" || s.Name == "upgrade/pull"
	})
}

// TestFault lets system calls fail. The command says what failed and where,
// leaves nothing half done, and has the exit status for it; the repository can
// be used afterwards.
func TestFault(t *testing.T) {
	requireTracer(t)
	bin := program(t)
	scenarios := faultScenarios()
	n, combinations := count(t, "CFS_PULL_FAULTS", 42), len(scenarios)*len(faults)
	for i, s := range scenarios {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			w, err := NewWorld(t.Context(), bin, memory(t), s)
			if err != nil {
				t.Fatal(err)
			}
			for j, f := range faults {
				// Few are spread over commands and faults alike.
				k := j*len(scenarios) + i
				if own := (k+1)*n/combinations - k*n/combinations; own > 0 {
					t.Run(f.name(), func(t *testing.T) { testFault(t, w, f, own) })
				}
			}
		})
	}
}

// testFault tries n of the calls that a fault can be of, spread over all.
func testFault(t *testing.T, w *World, f fault, n int) {
	if interrupted.Load() {
		t.Skip("interrupted")
	}
	plan := Plan{Calls: f.calls}
	calls := 0
	ignored := map[string]int{}
	for i := -1; i < n; i++ {
		if interrupted.Load() {
			break
		}
		dir, err := w.Copy(t.Context(), "victim")
		if err != nil {
			t.Fatal(err)
		}
		plan.Below = dir
		if f.images {
			plan.Below = filepath.Join(w.Dir, "images")
		}
		if i >= 0 {
			plan.Errno, plan.Sticky, plan.At = f.errno, f.sticky, 1+i%calls
			if n < calls {
				plan.At = 1 + int((float64(i)+shift())*float64(calls)/float64(n))%calls
			}
		}
		r, err := Trace(t.Context(), plan, dir, append([]string{w.Program}, w.Scenario.Command...)...)
		if err != nil {
			t.Fatal(err)
		}
		if i < 0 { // to count
			if calls = len(r.Calls); calls == 0 {
				return // nothing is read of an image, for instance
			}
			continue
		}
		if !r.Happened {
			continue
		}
		tally(w.Scenario.Name, "faults", 1)
		what := fmt.Sprintf("%s (call %d of about %d)", r.Calls[plan.At-1], plan.At, calls)
		// A single error in its trial of overlayfs is for the storage library
		// the answer of the kernel; the errno is lost there.
		misread := !f.sticky && r.Exit == 125 && strings.Contains(r.Stderr, "kernel does not support overlay fs")
		if r.Exit == 0 {
			// Some calls may fail: what they were for has another way.
			ignored[r.Calls[plan.At-1]]++
		} else if !misread && (!slices.Contains(f.codes, r.Exit) || !strings.Contains(r.Stderr, f.says) || !namesPlace(r.Stderr)) {
			t.Errorf("%s: exit status %d, want %v, and a message with %q and a place: %s", what, r.Exit, f.codes, f.says, r.Stderr)
		}
		if strings.Contains(r.Stderr, "panic") || strings.Contains(r.Stderr, "goroutine ") {
			t.Errorf("%s: it panicked: %s", what, r.Stderr)
		}
		left, err := Inspect(filepath.Join(dir, "repo"))
		if err != nil {
			t.Fatal(err)
		}
		if len(left.Leftovers) > 0 && !f.sticky {
			t.Errorf("%s: %q is left", what, left.Leftovers)
		}
		if err := w.Judge(t.Context(), dir, r.Exit == 0); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if len(ignored) > 0 {
		t.Logf("no failure with %s of %v", f.name(), ignored)
	}
}

// namesPlace says whether a message names something that the command works on.
func namesPlace(message string) bool {
	return slices.ContainsFunc([]string{"repo", "store", "from/", "image", "images/"}, func(place string) bool {
		return strings.Contains(message, place)
	})
}

// TestVanished takes away the repository, or a part of it, in the middle of a
// command.
func TestVanished(t *testing.T) {
	t.Parallel()
	requireTracer(t)
	w, err := NewWorld(t.Context(), program(t), memory(t), faultScenarios()[0])
	if err != nil {
		t.Fatal(err)
	}
	n := count(t, "CFS_PULL_FAULTS", 6)
	for _, what := range []string{"repo", "repo/objects", "repo/streams"} {
		t.Run(what, func(t *testing.T) {
			calls, _ := measure(t, w)
			for i := range max(n/3, 1) {
				dir, err := w.Copy(t.Context(), "victim")
				if err != nil {
					t.Fatal(err)
				}
				plan := Plan{Calls: Changing, Below: dir, At: 1 + (2*i+1)*calls/(2*max(n/3, 1))}
				plan.Hook = []string{"/bin/rm", "-rf", filepath.Join(dir, what)}
				r, err := Trace(t.Context(), plan, dir, append([]string{w.Program}, w.Scenario.Command...)...)
				if err != nil {
					t.Fatal(err)
				}
				if !r.Happened || r.HookExit != 0 {
					continue
				}
				if strings.Contains(r.Stderr, "panic") || r.Killed || r.Exit != 0 && !strings.Contains(r.Stderr, "repo") {
					t.Errorf("at %s: exit status %d: %s", r.Calls[plan.At-1], r.Exit, r.Stderr)
				}
				// What was taken away is gone, but nothing is half there.
				got, err := Inspect(filepath.Join(dir, "repo"))
				if err != nil {
					t.Fatal(err)
				}
				// Images of before are not what a pull looks at, and when only
				// locks are left to be given back it looks at nothing any more.
				done := !slices.ContainsFunc(r.Calls[plan.At-1:], func(call string) bool { return call != "flock" })
				if r.Exit == 0 && !done && slices.ContainsFunc(got.BrokenRefs(), isTag(w.Scenario.Tags[0])) {
					t.Errorf("at %s: it claims to have succeeded, but %q", r.Calls[plan.At-1], got.BrokenRefs())
				}
				if what == "repo" {
					continue
				}
				if _, err := w.run(t.Context(), dir, w.Scenario.Command); err != nil {
					t.Errorf("at %s: the next run: %v", r.Calls[plan.At-1], err)
				} else if got, err := Inspect(filepath.Join(dir, "repo")); err != nil || slices.ContainsFunc(got.BrokenRefs(), isTag(w.Scenario.Tags[0])) {
					t.Errorf("at %s: after the next run: %v, %q", r.Calls[plan.At-1], err, got.BrokenRefs())
				}
			}
		})
	}
}

func isTag(tag string) func(string) bool {
	return func(problem string) bool { return strings.HasPrefix(problem, "streams/refs/oci/"+tag+":") }
}

// TestFull runs commands on file systems that are almost full.
func TestFull(t *testing.T) {
	testutil.RequireRoot(t)
	bin := program(t)
	n := count(t, "CFS_PULL_FAULTS", 4)
	for _, kind := range loopfs.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			mount := loopfs.MountSize(t, kind, diskSize[kind])
			w, err := NewWorld(t.Context(), bin, mount, faultScenarios()[0])
			if err != nil {
				t.Fatal(err)
			}
			codes := map[int]int{}
			for i := range max(n, 2) {
				dir, err := w.Copy(t.Context(), "victim")
				if err != nil {
					t.Fatal(err)
				}
				// From nothing to more than the image takes.
				leave := int64(i) * (4 << 20) / int64(max(n, 2)-1)
				filler := fill(t, mount, leave)
				cmd := exec.CommandContext(t.Context(), bin, append(slices.Clone(w.Scenario.Command), "--no-space-check")...)
				cmd.Dir = dir
				out, err := cmd.CombinedOutput()
				code := cmd.ProcessState.ExitCode()
				codes[code]++
				if code != 0 && (code != 5 || !strings.Contains(string(out), "no space left on device")) {
					t.Errorf("%d bytes free: %v: %s", leave, err, out)
				}
				if err := os.Remove(filler); err != nil {
					t.Fatal(err)
				}
				if err := w.Judge(t.Context(), dir, code == 0); err != nil {
					t.Errorf("%d bytes free: %v", leave, err)
				}
			}
			t.Logf("exit statuses %v", codes)
			if codes[5] == 0 {
				t.Error("no run found the file system full")
			}
		})
	}
}

// fill writes a file that leaves so many bytes free.
func fill(t *testing.T, dir string, leave int64) string {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	piece := make([]byte, 1<<20)
	for len(piece) >= 512 {
		if _, err := f.Write(piece); err != nil {
			piece = piece[:len(piece)/2]
		}
		// Delayed allocation would find out later.
		if err := f.Sync(); err != nil {
			piece = piece[:len(piece)/2]
		}
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(max(info.Size()-leave, 0)); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestReadOnly lets the file system give up in the middle of a command, as ext4
// does when its disk fails: it becomes read-only for good.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	requireTracer(t)
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	if err := os.Mkdir(mount, 0o755); err != nil {
		t.Fatal(err)
	}
	loopfs.Format(t, loopfs.Ext4, image, diskSize[loopfs.Ext4])
	attach := func() {
		t.Helper()
		if err := loopfs.Attach(loopfs.Ext4, image, mount); err != nil {
			t.Fatal(err)
		}
	}
	attach()
	defer loopfs.Unmount(t, mount)
	w, err := NewWorld(t.Context(), program(t), mount, faultScenarios()[0])
	if err != nil {
		t.Fatal(err)
	}
	calls, _ := measure(t, w)
	n := count(t, "CFS_PULL_FAULTS", 5)
	for i := range n {
		dir, err := w.Copy(t.Context(), "victim")
		if err != nil {
			t.Fatal(err)
		}
		if err := syncFS(mount); err != nil {
			t.Fatal(err)
		}
		plan := Plan{Calls: Changing, Below: dir, At: 1 + (2*i+1)*calls/(2*n)}
		plan.Hook = []string{"/bin/mount", "-o", "remount,abort", mount}
		r, err := Trace(t.Context(), plan, dir, append([]string{w.Program}, w.Scenario.Command...)...)
		if err != nil {
			t.Fatal(err)
		}
		if !r.Happened || r.HookExit != 0 {
			t.Errorf("the file system did not give up: %+v", r)
			continue
		}
		says := strings.Contains(r.Stderr, "read-only file system") || strings.Contains(r.Stderr, "input/output error")
		if r.Exit != 0 && (!says || !strings.Contains(r.Stderr, "repo")) {
			t.Errorf("read-only at %s: exit status %d: %s", r.Calls[plan.At-1], r.Exit, r.Stderr)
		}
		// Another disk with what the file system had saved: all of it, where
		// the command, which had nothing more to write, has succeeded.
		loopfs.Unmount(t, mount)
		attach()
		if err := w.Judge(t.Context(), dir, r.Exit == 0); err != nil {
			t.Errorf("read-only at call %d: %v", plan.At, err)
		}
	}
}

// TestDescriptors runs commands that may open few files.
func TestDescriptors(t *testing.T) {
	t.Parallel()
	for _, s := range faultScenarios() {
		t.Run(s.Name, func(t *testing.T) {
			w, err := NewWorld(t.Context(), program(t), memory(t), s)
			if err != nil {
				t.Fatal(err)
			}
			codes := map[int]int{}
			for _, limit := range []int{16, 24, 40} { // with fewer the Go runtime does not start
				dir, err := w.Copy(t.Context(), "victim")
				if err != nil {
					t.Fatal(err)
				}
				args := append([]string{"-c", `ulimit -n "$0" && exec "$@"`, strconv.Itoa(limit), w.Program}, s.Command...)
				cmd := exec.CommandContext(t.Context(), "/bin/sh", args...)
				cmd.Dir = dir
				out, err := cmd.CombinedOutput()
				code := cmd.ProcessState.ExitCode()
				codes[code]++
				if code != 0 && (code != 1 && code != 125 || !strings.Contains(string(out), "too many open files")) {
					t.Errorf("%d descriptors: %v: %s", limit, err, out)
				}
				if err := w.Judge(t.Context(), dir, code == 0); err != nil {
					t.Errorf("%d descriptors: %v", limit, err)
				}
			}
			t.Logf("exit statuses %v", codes)
		})
	}
}
