// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package crashtest

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// buildDir, built and programPath belong to program.
var (
	buildDir    string
	built       sync.Once
	programPath string
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "crashtest-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	buildDir = dir
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	go func() {
		<-signals
		signal.Stop(signals) // the next one ends the program
		interrupted.Store(true)
	}()
	status := m.Run()
	if long {
		printTally()
	}
	return status
}

// interrupted says that the tests should come to an end and clean up.
var interrupted atomic.Bool

// tallies counts what was done, by scenario and kind, for the long form.
var (
	tallies   = map[[2]string]int{}
	talliesMu sync.Mutex
)

func tally(scenario, kind string, n int) {
	talliesMu.Lock()
	tallies[[2]string{scenario, kind}] += n
	talliesMu.Unlock()
}

func printTally() {
	keys := slices.SortedFunc(maps.Keys(tallies), func(a, b [2]string) int {
		return cmp.Or(strings.Compare(a[1], b[1]), strings.Compare(a[0], b[0]))
	})
	for _, k := range keys {
		fmt.Printf("count %d %s: %s\n", tallies[k], k[1], k[0])
	}
}

// TestTrace makes sure that the tracer does what the other tests rely on: a
// call that is killed or fails is not made, and those before it are.
func TestTrace(t *testing.T) {
	const script = `mkdir a; mkdir b && mkdir c; echo "$?"`
	for name, c := range map[string]struct {
		plan           Plan
		calls          int
		killed         bool
		stdout, stderr string
		made           string
	}{
		"count":       {plan: Plan{}, calls: 3, stdout: "0\n", made: "a b c"},
		"kill first":  {plan: Plan{At: 1, Kill: true}, calls: 1, killed: true},
		"kill second": {plan: Plan{At: 2, Kill: true}, calls: 2, killed: true, made: "a"},
		"one fault":   {plan: Plan{At: 2, Errno: unix.ENOSPC}, calls: 2, stdout: "1\n", stderr: "No space left", made: "a"},
		"faults":      {plan: Plan{At: 1, Errno: unix.EIO, Sticky: true}, calls: 2, stdout: "1\n", stderr: "Input/output error"},
		"hook":        {plan: Plan{At: 3, Hook: []string{"/bin/mkdir", "c"}}, calls: 3, stdout: "1\n", stderr: "File exists", made: "a b c"},
		"elsewhere":   {plan: Plan{At: 1, Kill: true, Below: "/nowhere"}, stdout: "0\n", made: "a b c"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c.plan.Calls = []string{"mkdir", "mkdirat"}
			if c.plan.Below == "" {
				c.plan.Below = dir
			}
			r, err := Trace(t.Context(), c.plan, dir, "/bin/sh", "-c", script)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Calls) != c.calls || r.Killed != c.killed || r.Stdout != c.stdout || !strings.Contains(r.Stderr, c.stderr) {
				t.Errorf("the result is %+v, want %+v", r, c)
			}
			if wanted := c.plan.At > 0 && c.calls > 0; r.Happened != wanted {
				t.Errorf("it happened: %v, want %v", r.Happened, wanted)
			}
			found, err := filepath.Glob(filepath.Join(dir, "?"))
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, name := range found {
				names = append(names, filepath.Base(name))
			}
			if made := strings.Join(names, " "); made != c.made {
				t.Errorf("made %q, want %q", made, c.made)
			}
		})
	}
}
