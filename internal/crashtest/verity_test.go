// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package crashtest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/microvm"
)

const (
	// insideVariable is set in the virtual machine, to the number of crash
	// images on /dev/vda.
	insideVariable = "CFS_PULL_CRASH_IMAGES"

	verityDiskMiB = 64
)

// verityPull is a pull into a repository that requires fs-verity.
func verityPull() []string {
	args := pullArgs("repo", imageOne, "--init", "--tag", "os")
	for i, a := range args {
		args[i] = strings.Replace(a, "oci:../", "oci:/", 1)
	}
	return args
}

// TestVerityCut cuts the power during a pull into a repository that requires
// fs-verity. A virtual machine pulls and its disk records; another one looks at
// what cuts leave.
func TestVerityCut(t *testing.T) {
	if os.Getenv(insideVariable) != "" {
		lookInside(t)
		return
	}
	microvm.Require(t)
	t.Parallel()
	n := count(t, "CFS_PULL_CUTS", 50)/25 + 1
	dir := t.TempDir()
	if err := makeImages(filepath.Join(dir, "images")); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"/bin/cfs-pull": program(t), "/images": filepath.Join(dir, "images"),
		"/bin/crashtest.test": microvm.GoTestBinary(t, "./internal/crashtest", "-tags=containers_image_openpgp", "-ldflags=-s -w"),
	}
	disk, base, log := microvm.Ext4(t, verityDiskMiB), filepath.Join(dir, "base"), filepath.Join(dir, "log")
	if out, err := exec.CommandContext(t.Context(), "cp", "--sparse=always", disk, base).CombinedOutput(); err != nil {
		t.Fatalf("copy the disk: %v: %s", err, out)
	}
	mustBoot(t, microvm.Config{
		Files: files, Disks: []microvm.Disk{{Path: disk, WriteLog: log}},
		Script: "set -e\nmount -t ext4 /dev/vda /mnt\nmkdir /mnt/state\ncd /mnt/state\n" +
			"cfs-pull " + strings.Join(verityPull(), " ") + "\necho done >/mnt/marker\nsync\n",
	})
	images := filepath.Join(dir, "crash")
	writeCrashImages(t, base, log, images, n)
	r := mustBoot(t, microvm.Config{
		Files: files, Disks: []microvm.Disk{{Path: images}}, Modules: []string{"loop"},
		Script: fmt.Sprintf("%s=%d crashtest.test -test.v -test.run '^TestVerityCut$'", insideVariable, n),
	})
	if !strings.Contains(r.Output, fmt.Sprintf("looked at %d crash images", n)) {
		t.Errorf("the machine did not look at %d crash images:\n%s", n, r)
	}
	tally("pull/init with fs-verity", "ext4 crash images", n)
}

func mustBoot(t *testing.T, c microvm.Config) microvm.Result {
	t.Helper()
	c.Timeout = 20 * time.Minute // takes half a minute where the host is idle
	r, err := microvm.Run(t.Context(), c)
	if err != nil || r.ExitCode != 0 {
		t.Fatalf("virtual machine: %v\n%s", err, r)
	}
	return r
}

// writeCrashImages writes n crash images, one behind the other.
func writeCrashImages(t *testing.T, basePath, logPath, to string, n int) {
	t.Helper()
	base, err := os.Open(basePath)
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	log, err := os.Open(logPath)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	entries, err := ReadWriteLog(log)
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	const size = verityDiskMiB << 20
	if err := out.Truncate(int64(n) * size); err != nil {
		t.Fatal(err)
	}
	flushes := 0
	for _, e := range entries {
		if e.Flush {
			flushes++
		}
	}
	t.Logf("%d crash images; %d entries, %d flushes", n, len(entries), flushes)
	piece, zeros := make([]byte, 1<<20), make([]byte, 1<<20)
	for i, c := range Cuts(entries, n, shift(), rand.New(rand.NewPCG(2, uint64(1000*shift())))) {
		if i == n-1 { // the end, where everything must be there
			c = Cut{Flushed: len(entries), Issued: len(entries)}
		}
		disk, err := c.After(base, size, entries)
		if err != nil {
			t.Fatal(err)
		}
		for at := int64(0); at < size; at += int64(len(piece)) {
			if _, err := disk.ReadAt(piece, at); err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(piece, zeros) {
				continue
			}
			if _, err := out.WriteAt(piece, int64(i)*size+at); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// lookInside is TestVerityCut in the second virtual machine.
func lookInside(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv(insideVariable))
	if err != nil {
		t.Fatal(err)
	}
	w := &World{Program: "/bin/cfs-pull", Scenario: Scenario{Name: "pull with fs-verity", Command: verityPull()}}
	tagged := 0
	for i := range n {
		shell := func(args ...string) {
			t.Helper()
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("crash image %d: %q: %v: %s", i, args, err, out)
			}
		}
		shell("losetup", "-o", strconv.Itoa(i*verityDiskMiB<<20), "/dev/loop0", "/dev/vda")
		shell("mount", "-t", "ext4", "/dev/loop0", "/mnt")
		if judgeVerity(t, w, i) {
			tagged++
		}
		shell("umount", "/mnt")
		shell("losetup", "-d", "/dev/loop0")
	}
	if tagged == 0 {
		t.Error("no crash image had the tag; the last one must")
	}
	fmt.Printf("looked at %d crash images, %d had the tag\n", n, tagged)
}

// judgeVerity looks at the mounted crash image, and says whether it had the
// tag.
func judgeVerity(t *testing.T, w *World, number int) (tagged bool) {
	t.Helper()
	const state = "/mnt/state"
	if err := os.MkdirAll(state, 0o755); err != nil {
		t.Fatal(err)
	}
	marker, _ := os.ReadFile("/mnt/marker")
	repo := filepath.Join(state, "repo")
	left, err := Inspect(repo)
	if err != nil {
		t.Fatal(err)
	}
	_, tagged = left.Refs["streams/refs/oci/os"]
	if broken := left.BrokenLinks(); len(broken) > 0 {
		t.Errorf("crash image %d: %q", number, broken)
	}
	if string(marker) == "done\n" && !tagged {
		t.Errorf("crash image %d: the pull had ended, but the tag is not there", number)
	}
	// What a tag leads to must have fs-verity; so must all objects that a
	// link leads to, and these are all that there are once a link is there.
	if len(left.Refs) > 0 {
		checkVerity(t, repo, left.Objects, number)
	}
	if _, err := w.run(t.Context(), state, w.Scenario.Command); err != nil {
		t.Errorf("crash image %d: the next run: %v", number, err)
		return tagged
	}
	healed, err := Inspect(repo)
	if err != nil {
		t.Fatal(err)
	}
	if broken := healed.BrokenLinks(); len(broken) > 0 || !slices.Contains(healed.tags(), "os") {
		t.Errorf("crash image %d: after the next run: %q, tags %v", number, broken, healed.tags())
	}
	checkVerity(t, repo, healed.Objects, number)
	found, err := w.fsck(t.Context(), state)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found.Findings {
		if f.Kind != leakedTemporary {
			t.Errorf("crash image %d: fsck finds %+v", number, f)
		}
	}
	return tagged
}

// checkVerity makes sure that the kernel measures the names of objects.
func checkVerity(t *testing.T, repo string, objects []string, number int) {
	t.Helper()
	for _, id := range objects {
		f, err := os.Open(filepath.Join(repo, "objects", id[:2], id[2:]))
		if err != nil {
			t.Fatal(err)
		}
		got, err := fsverity.Measure(f, fsverity.SHA512)
		f.Close()
		if err != nil || got.String() != id {
			t.Errorf("crash image %d: object %s measures %s, %v", number, id, got, err)
		}
	}
}
