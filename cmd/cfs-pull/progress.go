// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/pipeline"
)

// console is stderr, shared by messages and a bar: while there is a bar, a
// message goes above it.
type console struct {
	mu   sync.Mutex
	out  io.Writer
	bars *mpb.Progress
}

// Write implements io.Writer. A line is not torn when it is written at once.
func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bars != nil {
		if n, err := c.bars.Write(b); err == nil {
			return n, nil
		}
	}
	return c.out.Write(b)
}

// isTerminal reports whether a bar can be drawn: on a terminal that has a size.
func (c *console) isTerminal() bool {
	f, ok := c.out.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	return err == nil && size.Col > 0
}

func (c *console) setBars(bars *mpb.Progress) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bars = bars
}

// progress shows the events of a pull.
type progress interface {
	event(pipeline.Event)
	close() // clears what is not to stay on the screen
}

// newProgress chooses how to show progress: a bar on a terminal, lines
// elsewhere.
func newProgress(kind string, quiet bool, to *console) (progress, error) {
	switch kind {
	case "auto", "bar", "plain", "none":
	default:
		return nil, usagef("--progress %s: want auto, bar, plain or none", kind)
	}
	switch {
	case quiet || kind == "none":
		return noProgress{}, nil
	case kind == "bar", kind == "auto" && to.isTerminal():
		return &barProgress{to: to}, nil
	}
	return &plainProgress{out: to}, nil
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
	pipeline.TaskImporting: "Importing layers",
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
	case e.State == pipeline.Started && e.Cached > 0:
		fmt.Fprintf(p.out, "%s: %s, of which %s are present\n", taskText[e.Task], formatBytes(e.Total), formatBytes(e.Cached))
		p.last = time.Now()
	case e.State == pipeline.Started && e.Total > 0:
		fmt.Fprintf(p.out, "%s: %s\n", taskText[e.Task], formatBytes(e.Total))
		p.last = time.Now()
	case e.State == pipeline.Started:
		fmt.Fprintf(p.out, "%s\n", taskText[e.Task])
	case e.State == pipeline.Progress && time.Since(p.last) >= plainInterval:
		p.last = time.Now()
		fmt.Fprintf(p.out, "%s: %s of %s\n", taskText[e.Task], formatBytes(e.Bytes), formatBytes(e.Total))
	}
}

func (p *plainProgress) close() {}

// barProgress draws one bar for the bytes of all layers. It stays, full, while
// the images are built.
type barProgress struct {
	to    *console
	bars  *mpb.Progress // nil before there is something to draw
	bar   *mpb.Bar
	start time.Time
	shown atomic.Pointer[pipeline.Event] // the task of now
}

func (p *barProgress) event(e pipeline.Event) {
	if e.Layer != "" || e.State == pipeline.Skipped {
		return
	}
	if e.State != pipeline.Done {
		p.shown.Store(&e)
	}
	if e.Task != pipeline.TaskPulling {
		return
	}
	if p.bars == nil {
		p.begin(e)
	}
	p.bar.SetCurrent(e.Bytes)
}

func (p *barProgress) begin(e pipeline.Event) {
	p.start = time.Now()
	options := []mpb.ContainerOption{mpb.WithOutput(p.to.out), mpb.WithWidth(30), mpb.WithRefreshRate(200 * time.Millisecond)}
	if !p.to.isTerminal() { // it was asked for all the same
		options = append(options, mpb.WithAutoRefresh())
	}
	p.bars = mpb.New(options...)
	// Made without a total, the bar stays until close.
	p.bar = p.bars.AddBar(0,
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return taskText[p.shown.Load().Task] + " " })),
		mpb.AppendDecorators(decor.Any(p.counts)))
	p.bar.SetTotal(e.Total, false)
	p.to.setBars(p.bars)
}

// counts is what stands behind the bar.
func (p *barProgress) counts(decor.Statistics) string {
	e := p.shown.Load()
	if e.Task != pipeline.TaskPulling {
		return ""
	}
	text := " " + formatBytes(e.Bytes) + " of " + formatBytes(e.Total)
	if seconds := time.Since(p.start).Seconds(); seconds >= 1 && e.Bytes > e.Cached {
		text += ", " + formatBytes(int64(float64(e.Bytes-e.Cached)/seconds)) + "/s"
	}
	return text
}

func (p *barProgress) close() {
	if p.bars == nil {
		return
	}
	p.to.setBars(nil)
	p.bar.Abort(true)
	p.bars.Wait()
}
