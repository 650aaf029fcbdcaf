// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Command cfs-pull pulls bootable OCI images into a composefs repository.
//
// This package is flags, rendering and exit codes; the work is done in package
// pipeline and below.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/cstor"
)

func main() {
	if cstor.Reexec() {
		return
	}
	limitHeap()
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// heapGrowth is by how many percent the heap may grow before it is collected.
// Half of Go's usual takes a quarter off the memory of a pull, on a host that
// has other work, and no time that can be measured: most of what is allocated
// lives until the end.
const heapGrowth = 50

func limitHeap() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(heapGrowth)
	}
}

// signalError is the cause of a context that a signal ended.
type signalError struct{ signal unix.Signal }

func (e signalError) Error() string { return "interrupted by " + unix.SignalName(e.signal) }

// run is main with its surroundings as arguments. It returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := withSignals(context.Background())
	defer stop()
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	f := classify(err)
	fmt.Fprintf(stderr, "cfs-pull: %v\n", err)
	if f.remedy != "" {
		fmt.Fprintf(stderr, "cfs-pull: %s\n", f.remedy)
	}
	return f.code
}

// withSignals returns a context that the first SIGINT or SIGTERM ends; the
// second one ends the process.
func withSignals(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	go func() {
		select {
		case s := <-signals:
			signal.Stop(signals)
			cancel(signalError{s.(unix.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}

// usageError is a mistake in flags or arguments.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// usageArgs accepts n arguments; what says what they are.
func usageArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usagef("want %s, got %d; see %s --help", what, len(args), cmd.CommandPath())
		}
		return nil
	}
}

func newRootCommand() *cobra.Command {
	cmd := newPullCommand()
	cmd.SilenceUsage = true
	cmd.SilenceErrors = true
	cmd.CompletionOptions.HiddenDefaultCmd = true
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	cmd.AddCommand(
		newCatCommand(),
		newComputeIDCommand(),
		newCopyCommand(),
		newDumpCommand(),
		newFsckCommand(),
		newGCCommand(),
		newImagesCommand(),
		newInitCommand(),
		newInspectCommand(),
		newLabelCommand(),
		newLsCommand(),
		newMountCommand(),
		newStatusCommand(),
		newTagCommand(),
		newUmountCommand(),
		newUntagCommand(),
		newVersionCommand(),
	)
	return cmd
}
