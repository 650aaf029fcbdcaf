// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package crashtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// Plan says at which system call what happens to a program.
type Plan struct {
	// Calls are the names of the system calls that count; see Changing.
	Calls []string
	// Below counts only calls on files below this directory, where the call
	// names a file by descriptor or path. Empty: all.
	Below string
	// At is the call before which it happens, from 1 on. 0: never, the calls
	// are only counted.
	At int

	// One of these happens. Kill: SIGKILL, and the call is not made. Errno:
	// the call is not made and fails with it; with Sticky all later ones fail
	// like that, too. Hook: the program waits for this command to end, and
	// then the call is made.
	Kill   bool
	Errno  unix.Errno
	Sticky bool
	Hook   []string
}

// Traced is what came of a program under Trace.
type Traced struct {
	Calls    []string // the calls that counted, in order
	Happened bool     // At was reached
	HookExit int      // exit status of Hook
	Killed   bool     // by a signal
	Exit     int      // exit status; -1 when Killed

	Stdout, Stderr string
}

// Arguments that turn a test program into the tracer, and into what becomes the
// traced program.
const (
	tracerArg = "crashtest-tracer"
	tracedArg = "crashtest-traced"
)

// request is what Trace tells the tracer.
type request struct {
	Plan    Plan
	Command []string
}

// Main must be the first statement of TestMain of a package that calls Trace:
// the test program runs itself as the tracer, because a tracer waits for
// whatever child there is.
func Main() {
	if len(os.Args) != 3 {
		return
	}
	var err error
	switch os.Args[1] {
	case tracerArg:
		err = runTracer(os.Args[2])
	case tracedArg:
		err = becomeTraced(os.Args[2])
	default:
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
	os.Exit(0)
}

// resultFD is the descriptor on which the tracer hands back its result.
const resultFD = 3

// Trace runs a command in a directory and does to it what the plan says. An
// error means that the tracer did not work; how the command ended is in the
// result.
func Trace(ctx context.Context, plan Plan, dir string, command ...string) (*Traced, error) {
	text, err := json.Marshal(request{plan, command})
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	from, to, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer from.Close()
	cmd := exec.CommandContext(ctx, self, tracerArg, string(text))
	cmd.Dir = dir
	cmd.ExtraFiles = []*os.File{to}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Start()
	to.Close()
	if err != nil {
		return nil, fmt.Errorf("start tracer: %w", err)
	}
	var traced Traced
	decodeErr := json.NewDecoder(from).Decode(&traced)
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("trace %v: %w\n%s", command, errors.Join(context.Cause(ctx), err), stderr.Bytes())
	}
	if decodeErr != nil {
		return nil, fmt.Errorf("trace %v: read result: %w\n%s", command, decodeErr, stderr.Bytes())
	}
	traced.Stdout, traced.Stderr = stdout.String(), stderr.String()
	return &traced, nil
}
