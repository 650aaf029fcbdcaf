// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/pipeline"
)

// progress shows the events of a pull.
type progress interface {
	event(pipeline.Event)
	close() // clears what is not to stay on the screen
}

// newProgress chooses how to show progress: a bar on a terminal, lines
// elsewhere.
func newProgress(kind string, quiet bool, out io.Writer) (progress, error) {
	switch kind {
	case "auto", "bar", "plain", "none":
	default:
		return nil, usagef("--progress %s: want auto, bar, plain or none", kind)
	}
	if kind == "auto" {
		kind = "plain"
		if isTerminal(out) {
			kind = "bar"
		}
	}
	switch {
	case quiet || kind == "none":
		return noProgress{}, nil
	case kind == "bar":
		return newBarProgress(out), nil
	}
	return &plainProgress{out: out}, nil
}

func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

type noProgress struct{}

func (noProgress) event(pipeline.Event) {}
func (noProgress) close()               {}

// shortDigest is how a layer is shown.
func shortDigest(d string) string {
	_, hex, ok := strings.Cut(d, ":")
	if !ok {
		hex = d
	}
	return hex[:min(len(hex), 12)]
}

var taskText = map[pipeline.Task]string{
	pipeline.TaskPulling:   "Pulling layers",
	pipeline.TaskImporting: "Merging layers",
	pipeline.TaskBootImage: "Building images",
}

// plainInterval is the time between two lines about the same task.
const plainInterval = 5 * time.Second

// plainProgress writes a line for each step.
type plainProgress struct {
	out  io.Writer
	last time.Time
}

func (p *plainProgress) event(e pipeline.Event) {
	switch {
	case e.Layer != "" && e.State == pipeline.Done:
		fmt.Fprintf(p.out, "layer %s: done (%s)\n", shortDigest(e.Layer), formatBytes(e.Total))
	case e.Layer != "" && e.State == pipeline.Skipped:
		fmt.Fprintf(p.out, "layer %s: already present\n", shortDigest(e.Layer))
	case e.Layer != "":
	case e.State == pipeline.Started && e.Total > 0:
		fmt.Fprintf(p.out, "%s: %s, %s of it present\n", taskText[e.Task], formatBytes(e.Total), formatBytes(e.Cached))
		p.last = time.Now()
	case e.State == pipeline.Started:
		fmt.Fprintf(p.out, "%s\n", taskText[e.Task])
	case e.State == pipeline.Progress && time.Since(p.last) >= plainInterval:
		p.last = time.Now()
		fmt.Fprintf(p.out, "%s: %s of %s\n", taskText[e.Task], formatBytes(e.Bytes), formatBytes(e.Total))
	}
}

func (p *plainProgress) close() {}

// barProgress draws one bar for the layers.
type barProgress struct {
	bars *mpb.Progress
	bar  *mpb.Bar
}

func newBarProgress(out io.Writer) *barProgress {
	return &barProgress{bars: mpb.New(mpb.WithOutput(out), mpb.WithWidth(30), mpb.WithRefreshRate(200*time.Millisecond))}
}

func (p *barProgress) event(e pipeline.Event) {
	if e.Layer != "" || e.Task != pipeline.TaskPulling {
		return
	}
	if p.bar == nil {
		p.bar = p.bars.AddBar(e.Total, mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name(taskText[e.Task])),
			mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f "), decor.AverageSpeed(decor.SizeB1024(0), "% .1f")))
	}
	p.bar.SetCurrent(e.Bytes)
	if e.State == pipeline.Done {
		p.bar.SetTotal(-1, true)
	}
}

func (p *barProgress) close() {
	if p.bar != nil {
		p.bar.Abort(true)
	}
	p.bars.Wait()
}
