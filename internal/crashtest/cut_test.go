// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package crashtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/loopfs"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// diskSize is what each file system takes to be made, in bytes.
var diskSize = map[loopfs.Kind]int64{loopfs.XFS: 300 << 20, loopfs.Btrfs: 128 << 20, loopfs.Ext4: 64 << 20}

// TestCut cuts the power during commands. Every crash image must mount, have
// nothing but complete images behind its tags, and let the command succeed.
func TestCut(t *testing.T) {
	testutil.RequireRoot(t)
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skipf("no FUSE here: %v", err)
	} else {
		f.Close()
	}
	var scenarios []Scenario
	for _, s := range Scenarios() {
		if s.Cut {
			scenarios = append(scenarios, s)
		}
	}
	cuts := count(t, "CFS_PULL_CUTS", 60)
	bin := program(t)
	total := len(scenarios) * len(loopfs.Kinds())
	i := 0
	for _, s := range scenarios {
		for _, kind := range loopfs.Kinds() {
			n := (cuts + total - 1 - i) / total
			i++
			t.Run(s.Name+"/"+string(kind), func(t *testing.T) { cutScenario(t, bin, s, kind, n) })
		}
	}
}

// bench is a file system on a disk whose power can be cut.
type bench struct {
	kind   loopfs.Kind
	base   *os.File
	size   int64
	server *Server
	mount  string
}

// newBench makes a file system that has the state of a world.
func newBench(t *testing.T, kind loopfs.Kind, w *World) *bench {
	t.Helper()
	dir := memory(t)
	b := &bench{kind: kind, size: diskSize[kind], mount: filepath.Join(dir, "mnt")}
	image, served := filepath.Join(dir, "image"), filepath.Join(dir, "served")
	for _, d := range []string{b.mount, served} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	loopfs.Format(t, kind, image, b.size)
	if err := loopfs.Attach(kind, image, b.mount); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("cp", "-a", "--reflink=auto", w.base(), filepath.Join(w.Dir, "images"), b.mount).CombinedOutput()
	loopfs.Unmount(t, b.mount)
	if err != nil {
		t.Fatalf("copy the state: %v: %s", err, out)
	}
	if b.base, err = os.Open(image); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.base.Close() })
	if b.server, err = Serve(served, b.size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.server.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// record runs the command on a disk that notes what it is told, and says after
// which entry the command had ended.
func (b *bench) record(t *testing.T, w *World) (entries []Entry, ended int) {
	t.Helper()
	disk := NewDisk(b.base, b.size, true)
	b.server.Insert(disk)
	if err := loopfs.Attach(b.kind, b.server.Path, b.mount); err != nil {
		t.Fatal(err)
	}
	_, err := w.run(t.Context(), filepath.Join(b.mount, "base"), w.Scenario.Command)
	ended = len(disk.Entries())
	syncErr := syncFS(b.mount)
	loopfs.Unmount(t, b.mount)
	if err := errors.Join(err, syncErr); err != nil {
		t.Fatal(err)
	}
	return disk.Entries(), ended
}

// syncFS is syncfs(2) of a mount.
func syncFS(mount string) error {
	f, err := os.Open(mount)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

func cutScenario(t *testing.T, bin string, s Scenario, kind loopfs.Kind, cuts int) {
	t.Parallel()
	if interrupted.Load() {
		t.Skip("interrupted")
	}
	w, err := NewWorld(t.Context(), bin, memory(t), s)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	b := newBench(t, kind, w)
	entries, ended := b.record(t, w)
	flushes, bytes := 0, 0
	for _, e := range entries {
		bytes += len(e.Data)
		if e.Flush {
			flushes++
		}
	}
	kept := map[string]int{}
	done := 0
	for i, c := range Cuts(entries, cuts, shift(), rand.New(rand.NewPCG(uint64(len(entries)), uint64(1000*shift())))) {
		if interrupted.Load() {
			break
		}
		done++
		kept[c.Keep.String()]++
		disk, err := c.After(b.base, b.size, entries)
		if err != nil {
			t.Fatal(err)
		}
		w.Found = nil
		if long && i%4 == 0 {
			w.Found = found
		}
		if err := b.judge(t, w, disk, c.Issued >= ended); err != nil {
			t.Errorf("cut at %+v of %d entries (the command had ended at %d): %v", c, len(entries), ended, err)
		}
	}
	t.Logf("%d crash images %v; %d entries, %d flushes, %d bytes; fsck found: %v", done, kept, len(entries), flushes, bytes, found)
	tally(s.Name, string(kind)+" crash images", done)
}

// judge mounts what a power cut left and looks at it.
func (b *bench) judge(t *testing.T, w *World, disk *Disk, complete bool) error {
	t.Helper()
	b.server.Insert(disk)
	if err := loopfs.Attach(b.kind, b.server.Path, b.mount); err != nil {
		return fmt.Errorf("the crash image does not mount: %w", err)
	}
	defer loopfs.Unmount(t, b.mount)
	return w.Judge(t.Context(), filepath.Join(b.mount, "base"), complete)
}
