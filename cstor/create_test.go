// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/loopfs"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// sysrootOptions are those of the bootc-owned store below a directory.
func sysrootOptions(tb testing.TB, sysroot string) Options {
	tb.Helper()
	o := storeOptions(tb, tb.TempDir())
	o.GraphRoot, o.Sysroot = "", sysroot
	return o
}

func TestEnsureBelowSysroot(t *testing.T) {
	sysroot := t.TempDir()
	o := sysrootOptions(t, sysroot)
	if _, err := OpenExisting(t.Context(), o); !errors.Is(err, ErrNoStore) {
		t.Errorf("open before: %v", err)
	}
	if left := tree(t, sysroot); len(left) != 1 {
		t.Errorf("opening has made %v", left)
	}
	s := openStore(t, o)
	if want := filepath.Join(check(filepath.EvalSymlinks(sysroot))(t), "composefs/bootc/storage"); s.GraphRoot() != want || !s.Created() {
		t.Errorf("store at %s, created %v", s.GraphRoot(), s.Created())
	}
	before := tree(t, sysroot)
	for path, want := range map[string]string{
		"/composefs": "drwx------", "/composefs/bootc": "drwxr-xr-x", "/composefs/bootc/storage": "drwx------", "/ostree": "drwxr-xr-x",
		"/ostree/bootc": "-> ../composefs/bootc",
	} {
		if before[path] != want {
			t.Errorf("%s is %q, want %q", path, before[path], want)
		}
	}
	again := openStore(t, o)
	if again.Created() || again.GraphRoot() != s.GraphRoot() {
		t.Errorf("second time: store at %s, created %v", again.GraphRoot(), again.Created())
	}
	if diff := cmp.Diff(before, tree(t, sysroot)); diff != "" {
		t.Errorf("the second time has changed (-before +after):\n%s", diff)
	}
	existing := check(OpenExisting(t.Context(), o))(t)
	if existing.GraphRoot() != s.GraphRoot() {
		t.Errorf("existing store at %s", existing.GraphRoot())
	}
	must(t, existing.Close())
}

// What is at ostree/bootc decides where the store is.
func TestLayouts(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(sysroot string) error
		want    string // below the sysroot; empty for an error
		warning string
	}{
		{"old directory", func(dir string) error { return os.MkdirAll(dir+"/ostree/bootc", 0o755) },
			"ostree/bootc/storage", "ostree/bootc is a directory"},
		{"other link", func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/ostree", 0o755), os.MkdirAll(dir+"/other", 0o755), os.Symlink("../other", dir+"/ostree/bootc"))
		}, "other/storage", ""},
		{"absolute link stays inside", func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/ostree", 0o755), os.MkdirAll(dir+"/etc", 0o755), os.Symlink("/etc", dir+"/ostree/bootc"))
		}, "etc/storage", ""},
		{"link out stays inside", func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/ostree", 0o755), os.Symlink("../../../../../composefs", dir+"/ostree/bootc"))
		}, "composefs/storage", ""},
		{"linked store", func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/composefs/bootc", 0o755), os.MkdirAll(dir+"/big", 0o755),
				os.Symlink("../../big", dir+"/composefs/bootc/storage"))
		}, "big", ""},
		{"only composefs", func(dir string) error { return os.MkdirAll(dir+"/composefs", 0o700) }, "composefs/bootc/storage", ""},
		{"ostree is a file", func(dir string) error { return os.WriteFile(dir+"/ostree", nil, 0o600) }, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			testutil.RequireRoot(t)
			sysroot := check(filepath.EvalSymlinks(t.TempDir()))(t)
			must(t, test.prepare(sysroot))
			o := sysrootOptions(t, sysroot)
			var log bytes.Buffer
			o.Log = slog.New(slog.NewTextHandler(&log, nil))
			s, err := Ensure(t.Context(), o)
			if test.want == "" {
				if err == nil {
					t.Fatalf("store at %s", s.GraphRoot())
				}
				return
			}
			must(t, err)
			defer s.Close()
			if got := strings.TrimPrefix(s.GraphRoot(), sysroot+"/"); got != test.want {
				t.Errorf("store at %s, want %s", got, test.want)
			}
			if strings.Contains(log.String(), "WARN") != (test.warning != "") || !strings.Contains(log.String(), test.warning) {
				t.Errorf("log %s", &log)
			}
			existing := check(OpenExisting(t.Context(), o))(t)
			if existing.GraphRoot() != s.GraphRoot() {
				t.Errorf("existing store at %s", existing.GraphRoot())
			}
			must(t, existing.Close())
		})
	}
}

func TestEnsureRemovesWhatIsLeft(t *testing.T) {
	o := storeOptions(t, t.TempDir())
	testutil.RequireRoot(t)
	stale := filepath.Join(o.GraphRoot+temporarySuffix, "overlay/some/thing")
	must(t, os.MkdirAll(stale, 0o755))
	// A process was killed while the library tried out an overlay.
	for _, dir := range []string{stale, filepath.Join(o.GraphRoot+temporarySuffix, "overlay")} {
		must(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	}
	s := openStore(t, o)
	if !s.Created() {
		t.Error("not created")
	}
	if _, err := os.Lstat(o.GraphRoot + temporarySuffix); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old temporary store: %v", err)
	}
	for _, line := range readMounts(t, o) {
		if strings.Contains(line, o.GraphRoot) {
			t.Errorf("still mounted: %s", line)
		}
	}
	if _, err := os.Lstat(filepath.Join(o.GraphRoot, "overlay/some")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was in it: %v", err)
	}
}

// A directory that is there is filled when it is empty, and left alone when it
// has something else in it.
func TestEnsureInDirectory(t *testing.T) {
	testutil.RequireRoot(t)
	o := storeOptions(t, t.TempDir())
	must(t, os.MkdirAll(filepath.Join(o.GraphRoot, "lost+found"), 0o755))
	if s := openStore(t, o); !s.Created() {
		t.Error("not created")
	}
	o = storeOptions(t, t.TempDir())
	must(t, os.MkdirAll(filepath.Join(o.GraphRoot, "precious"), 0o755))
	before := tree(t, o.GraphRoot)
	if _, err := Ensure(t.Context(), o); !errors.Is(err, ErrNoStore) || !strings.Contains(err.Error(), "precious") {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff(before, tree(t, o.GraphRoot)); diff != "" {
		t.Errorf("changed (-before +after):\n%s", diff)
	}
}

func TestEnsureFails(t *testing.T) {
	testutil.RequireRoot(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errBroken)
	o := storeOptions(t, t.TempDir())
	if _, err := Ensure(ctx, o); !errors.Is(err, errBroken) {
		t.Errorf("cancelled: %v", err)
	}
	if entries := check(os.ReadDir(filepath.Dir(o.GraphRoot)))(t); len(entries) != 0 {
		t.Errorf("left: %v", entries)
	}
	// Full from the beginning.
	dir := loopfs.MountSize(t, loopfs.Ext4, 16<<20)
	o = storeOptions(t, dir)
	for _, size := range []string{"1M", "4k"} { // until there is no space
		_ = exec.Command("dd", "if=/dev/zero", "of="+filepath.Join(dir, "fill-"+size), "bs="+size).Run()
	}
	if _, err := Ensure(t.Context(), o); err == nil {
		t.Error("no error on a full file system")
	}
	for _, e := range check(os.ReadDir(dir))(t) {
		if strings.HasPrefix(e.Name(), "root") {
			t.Errorf("left: %s", e.Name())
		}
	}
}

// Of two processes that create the store and pull into it at once, both
// succeed.
func TestTwoProcesses(t *testing.T) {
	testutil.RequireRoot(t)
	o := storeOptions(t, t.TempDir())
	ref := layeredImage(t)
	env := []string{"CSTOR_ROOT=" + o.GraphRoot, "CSTOR_RUN=" + o.RunRoot, "CSTOR_REF=" + ref, "CSTOR_TMP=" + t.TempDir()}
	var commands []*exec.Cmd
	var outputs []*bytes.Buffer
	for range 3 {
		cmd, errs := startHelper(t, "pull", env...)
		commands, outputs = append(commands, cmd), append(outputs, errs)
	}
	for i, cmd := range commands {
		if err := cmd.Wait(); err != nil {
			t.Errorf("process %d: %v\n%s", i, err, outputs[i])
		}
	}
	s := openStore(t, o)
	if s.Created() {
		t.Error("nobody has created the store")
	}
	images := check(s.Images())(t)
	if len(images) != 1 || len(ids(t, s, layersFile)) != 3 {
		t.Errorf("%d images, layers %v", len(images), ids(t, s, layersFile))
	}
	checkStore(t, s)
}

// Neither the environment nor the home directory decide anything.
func TestEnvironment(t *testing.T) {
	testutil.RequireRoot(t)
	decoy := t.TempDir()
	conf := filepath.Join(decoy, "storage.conf")
	must(t, os.WriteFile(conf, []byte("[storage]\ndriver = \"vfs\"\ngraphroot = \""+decoy+"/g\"\nrunroot = \""+decoy+"/r\"\n"+
		"[storage.options]\nadditionalimagestores = [\""+decoy+"/absent\"]\nmount_program = \"/absent\"\nforce_mask = \"700\"\n"), 0o600))
	must(t, os.MkdirAll(filepath.Join(decoy, ".config/containers"), 0o755))
	must(t, os.Link(conf, filepath.Join(decoy, ".config/containers/storage.conf")))
	bin := filepath.Join(decoy, "bin")
	must(t, os.Mkdir(bin, 0o755))
	for _, name := range []string{"pigz", "zstd", "fuse-overlayfs", "podman", "mkcomposefs"} {
		script := "#!/bin/sh\ntouch " + decoy + "/ran-" + name + "\nexit 1\n"
		must(t, os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755))
	}
	o := storeOptions(t, t.TempDir())
	// In another process: what the library reads once, it keeps.
	cmd, errs := startHelper(t, "pull", "CSTOR_ROOT="+o.GraphRoot, "CSTOR_RUN="+o.RunRoot,
		"CSTOR_REF="+vector(t, "sizes")+" "+vector(t, "sizes-zstd"), "CSTOR_TMP="+t.TempDir(),
		"STORAGE_DRIVER=vfs", "STORAGE_OPTS=vfs.nonsense=1", "CONTAINERS_STORAGE_CONF="+conf, "HOME="+decoy, "XDG_CONFIG_HOME="+decoy+"/.config",
		"PATH="+bin+":"+os.Getenv("PATH"), "REGISTRY_AUTH_FILE=/absent", "CONTAINERS_CONF=/absent", "XDG_RUNTIME_DIR="+decoy)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, errs)
	}
	s := openStore(t, o)
	if images := check(s.Images())(t); len(images) != 2 {
		t.Errorf("%d images", len(images))
	}
	var left []string
	for _, e := range check(os.ReadDir(decoy))(t) {
		left = append(left, e.Name())
	}
	if want := []string{".config", "bin", "storage.conf"}; !slices.Equal(left, want) {
		t.Errorf("the decoy holds %v, want %v", left, want)
	}
	for _, e := range check(os.ReadDir(o.GraphRoot))(t) {
		if strings.HasPrefix(e.Name(), "vfs") {
			t.Errorf("the store has %s", e.Name())
		}
	}
}

// Mounts and open files are after Close what they were before.
func TestNothingStaysOpen(t *testing.T) {
	testutil.RequireRoot(t)
	ref := layeredImage(t)
	o := storeOptions(t, t.TempDir())
	src := openSource(t, ref, fetchOptions(t))
	mounts, files := readMounts(t, o), openFiles(t)
	s := check(Ensure(t.Context(), o))(t)
	check(s.Pull(t.Context(), src, PullOptions{MinFree: -1}))(t)
	if diff := cmp.Diff(mounts, readMounts(t, o)); diff != "" {
		t.Errorf("mounts while the store is open (-before +after):\n%s", diff)
	}
	must(t, s.Close())
	// The library leaves a pipe to its child to the finalizer of os.File.
	runtime.GC()
	for deadline := time.Now().Add(time.Minute); !cmp.Equal(files, openFiles(t)) && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
		runtime.GC()
	}
	if diff := cmp.Diff(files, openFiles(t)); diff != "" {
		t.Errorf("open files (-before +after):\n%s", diff)
	}
}

// readMounts reads the lines of the mount table that have to do with a store.
// Other tests mount and unmount file systems of their own meanwhile.
func readMounts(tb testing.TB, o Options) []string {
	tb.Helper()
	var lines []string
	for line := range strings.Lines(string(check(os.ReadFile("/proc/self/mountinfo"))(tb))) {
		if strings.Contains(line, o.GraphRoot) || strings.Contains(line, o.RunRoot) || strings.Contains(line, "/containers/storage") {
			lines = append(lines, line)
		}
	}
	return lines
}

func openFiles(t *testing.T) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, e := range check(os.ReadDir("/proc/self/fd"))(t) {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(target, "/proc/") && !strings.HasPrefix(target, "anon_inode:") {
			out[target]++
		}
	}
	return out
}

// What the library tries out in a store, and a killed process leaves, is removed
// when it is old; one that may be in use stays.
func TestOldProbesAreRemoved(t *testing.T) {
	o := storeOptions(t, t.TempDir())
	s := openStore(t, o)
	dir := filepath.Join(o.GraphRoot, driverDir)
	old := time.Now().Add(-2 * probeAge)
	for name, age := range map[string]time.Time{"compat123": old, "metacopy-check4": old, "compat5": time.Now(), "compatible": old} {
		path := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Join(path, "merged"), 0o755))
		if name == "compat123" {
			must(t, unix.Mount("none", filepath.Join(path, "merged"), "tmpfs", 0, ""))
		}
		must(t, os.Chtimes(path, age, age))
	}
	check(s.writer(t.Context()))(t)
	left := tree(t, dir)
	for name, want := range map[string]bool{"/compat123": false, "/metacopy-check4": false, "/compat5": true, "/compatible": true} {
		if _, there := left[name]; there != want {
			t.Errorf("%s is there: %v, want %v", name, there, want)
		}
	}
}

// A store that was made for fuse-overlayfs is not written to.
func TestMountProgram(t *testing.T) {
	o := storeOptions(t, t.TempDir())
	s := openStore(t, o)
	must(t, os.WriteFile(filepath.Join(o.GraphRoot, mountProgram), []byte("true"), 0o600))
	_, err := s.Pull(t.Context(), openSource(t, vector(t, "sizes"), fetchOptions(t)), PullOptions{})
	if !errors.Is(err, ErrUnsupported) {
		t.Errorf("error %v", err)
	}
}

// What the library has noted about a kernel that it could not ask does not last.
func TestRefusalIsForgotten(t *testing.T) {
	testutil.RequireRoot(t)
	o := storeOptions(t, t.TempDir())
	noted := filepath.Join(o.RunRoot, driverDir, "overlay-false")
	must(t, os.MkdirAll(filepath.Dir(noted), 0o700))
	must(t, os.WriteFile(noted, []byte("kernel does not support overlay fs: input/output error"), 0o600))
	s := check(Ensure(t.Context(), o))(t)
	must(t, s.Close())
	if _, err := os.Lstat(noted); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the note is still there: %v", err)
	}
}
