// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/ocilayout"
	"github.com/cfs-pull/cfs-pull/internal/testregistry"
)

// openTerminal returns both ends of a new terminal of 80 columns.
func openTerminal(t *testing.T) (control, terminal *os.File) {
	t.Helper()
	control, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals: %v", err)
	}
	t.Cleanup(func() { control.Close() })
	fd := int(control.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return control, terminal
}

// screen is what a terminal shows after some output of ours, whose only
// movements are "one line up" and "clear what follows".
func screen(t *testing.T, output string) []string {
	t.Helper()
	lines := []string{""}
	row := 0
	put := func(text string) {
		lines[row] += text
	}
	escape := regexp.MustCompile(`^\x1b\[(\d*)([A-Z])`)
	for output != "" {
		if move := escape.FindStringSubmatch(output); move != nil {
			output = output[len(move[0]):]
			switch move[2] {
			case "A":
				n, _ := strconv.Atoi(move[1]) // no number stands for 1
				row -= max(n, 1)
				if row < 0 {
					t.Fatal("the cursor went above the first line")
				}
			case "J":
				lines = lines[:row+1]
				lines[row] = ""
			default:
				t.Fatalf("unexpected escape sequence %q", move[0])
			}
			continue
		}
		switch output[0] {
		case '\r':
		case '\n':
			if row++; row == len(lines) {
				lines = append(lines, "")
			}
		case 0x1b:
			t.Fatalf("unexpected escape sequence %q", output[:min(len(output), 10)])
		default:
			put(output[:1])
		}
		output = output[1:]
	}
	return lines
}

// On a terminal there is one bar, which is gone before an error is printed and
// at the end; warnings stay.
func TestBar(t *testing.T) {
	layout := makeLayout(t, random(), ocilayout.Gzip, 200<<10, 3<<20)
	blobs := layerDigests(t, layout)
	registry := testregistry.New(t, testregistry.Options{})
	registry.PutLayout(t, "os", layout)
	after := int64(1 << 20)
	registry.Inject(testregistry.Fault{Kind: testregistry.Blob, Target: blobs[1], Times: 1, StallAfter: &after})

	control, terminal := openTerminal(t)
	cmd := exec.CommandContext(t.Context(), "cfs-pull", "--repo", makeRepo(t, t.TempDir()), "--insecure-policy",
		"--registries-conf", registry.InsecureConf(t), "--os", "linux", "--arch", "amd64", "--min-free", "0", "--no-boot",
		registry.Host()+"/os:latest")
	cmd.Env = append(os.Environ(), "TERM=xterm")
	var stdout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, terminal
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	terminal.Close()
	messages := &waitingReader{from: control}
	messages.waitFor(t, "Pulling layers")
	messages.waitFor(t, "MiB of 3.2 MiB")
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	// Reading from a terminal whose other end is closed is an error.
	_, _ = io.Copy(&messages.seen, control)
	if code := exitCode(t, cmd.Wait()); code != 130 {
		t.Errorf("exit status %d", code)
	}
	if stdout.Len() > 0 {
		t.Errorf("stdout has %q", stdout.String())
	}
	shown := screen(t, messages.seen.String())
	var got []string
	for _, line := range shown {
		if line != "" {
			got = append(got, line)
		}
	}
	if len(got) != 3 || !strings.HasPrefix(got[0], "cfs-pull: warning: the image has no label") ||
		got[1] != "cfs-pull: interrupted by SIGINT" || !strings.HasPrefix(got[2], "cfs-pull: what is complete was kept") {
		t.Errorf("the terminal shows\n%s", strings.Join(shown, "\n"))
	}
}
