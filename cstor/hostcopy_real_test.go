// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/loopfs"
	"github.com/cfs-pull/cfs-pull/internal/realimage"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// TestCopyRealImage copies a real image between two stores on one file system
// with reflinks, and compares every file with what skopeo has unpacked. It does
// so in turns with skopeo, and reports the times, of the wall and of processors,
// and the space:
//
//	CFS_PULL_COMPARE=3 go test -run TestCopyRealImage -v ./cstor
func TestCopyRealImage(t *testing.T) {
	testutil.RequireRoot(t)
	rounds, err := strconv.Atoi(os.Getenv("CFS_PULL_COMPARE"))
	if err != nil || rounds < 1 {
		t.Skip("takes minutes: set CFS_PULL_COMPARE to the number of rounds")
	}
	base := loopfs.Mount(t, loopfs.XFS)
	from := copyOptions(t, filepath.Join(base, "host"))
	const name = "localhost/os:real"
	check(runTool(t, "skopeo", "copy", "-q", "oci:"+realimage.Layout(t)+":"+realimage.TagGzip,
		"containers-storage:[overlay@"+from.GraphRoot+"+"+from.RunRoot+"]"+name))(t)
	host := check(OpenExisting(t.Context(), from))(t)
	defer host.Close()

	run := func(what string, f func()) {
		before, start := usage(t, base), time.Now()
		cpu := processors()
		f()
		must(t, syncfs(base))
		wall := time.Since(start)
		t.Logf("%-8s %6.2f s, %6.2f s of processors, %6.1f MiB more on disk",
			what, wall.Seconds(), (processors() - cpu).Seconds(), float64(usage(t, base)-before)/(1<<20))
	}
	for i := range rounds {
		to := emptyStore(t, filepath.Join(base, "owned"))
		check(to.writer(t.Context()))(t)
		var r *PullResult
		run("cfs-pull", func() { r = check(to.CopyNamed(t.Context(), host, name, PullOptions{MinFree: -1}))(t) })
		if r.Copy.BytesCopied != 0 || r.Copy.BytesCloned == 0 {
			t.Errorf("files came in this way: %+v", r.Copy)
		}
		if i == 0 {
			t.Logf("%d files, %.1f MiB shared", r.Copy.Files, float64(r.Copy.BytesCloned)/(1<<20))
			sameImages(t, host, to, r.ImageID)
		}
		must(t, to.Close())
		must(t, os.RemoveAll(to.graphRoot))
		other := copyOptions(t, filepath.Join(base, "skopeo"))
		run("skopeo", func() {
			check(runTool(t, "skopeo", "copy", "-q", "containers-storage:[overlay@"+from.GraphRoot+"+"+from.RunRoot+"]"+name,
				"containers-storage:[overlay@"+other.GraphRoot+"+"+other.RunRoot+"]"+name))(t)
		})
		_ = unix.Unmount(filepath.Join(other.GraphRoot, driverDir), unix.MNT_DETACH)
		must(t, os.RemoveAll(other.GraphRoot))
	}
}

// processors is the time that this process and its children have used.
func processors() time.Duration {
	var total time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		if unix.Getrusage(who, &r) == nil {
			total += time.Duration(r.Utime.Nano() + r.Stime.Nano())
		}
	}
	return total
}
