// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/rooted"
	"github.com/cfs-pull/cfs-pull/internal/selinux"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// labelContexts has rules of the kinds that the policies of distributions have
// for a store: the overlay subtree differs from what is above it, some rules
// are for one type of file, one says that there is no label.
const labelContexts = `
/.*                                                  system_u:object_r:default_t:s0
/var/lib(/.*)?                                       system_u:object_r:var_lib_t:s0
/var/lib/containers(/.*)?                            system_u:object_r:container_var_lib_t:s0
/var/lib/containers/storage/overlay(/.*)?            system_u:object_r:container_ro_file_t:s0
/var/lib/containers/storage/overlay-layers(/.*)?     system_u:object_r:container_ro_file_t:s0
/var/lib/containers/storage/overlay/l/.*       -l    system_u:object_r:container_link_t:s0
/var/lib/containers/storage/overlay/.*         -p    system_u:object_r:container_fifo_t:s0
/var/lib/containers/storage/overlay/.*         -c    system_u:object_r:container_device_t:s0
/var/lib/containers/storage/overlay/.*         -b    system_u:object_r:container_block_t:s0
/var/lib/containers/storage/overlay/.*         -s    system_u:object_r:container_socket_t:s0
/var/lib/containers/storage/volumes/[^/]*/.*         system_u:object_r:container_file_t:s0
/var/lib/containers/storage/overlay-containers/.*    <<none>>
`

const (
	labelRO  = "system_u:object_r:container_ro_file_t:s0"
	labelLib = "system_u:object_r:container_var_lib_t:s0"
)

func labelPolicy(t testing.TB, contexts string) *selinux.Policy {
	t.Helper()
	policy, err := selinux.Parse(selinux.Sources{FileContexts: []byte(contexts)})
	if err != nil {
		t.Fatal(err)
	}
	return policy
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(content), 0o600))
}

// makeLabelTree makes a directory that looks like a store to a labeller, with
// every type of file, in dir. outside is where its links lead to.
func makeLabelTree(t testing.TB, dir, outside string) {
	t.Helper()
	const layer = "overlay/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for name, content := range map[string]string{
		"storage.lock": "", "overlay-images/images.json": "[]", "overlay-layers/layers.json": "[]", "overlay-containers/x/y": "",
		"overlay/.has-mount-program": "false", "volumes/v/_data/file": "v", "libpod/bolt.db": "b",
		layer + "/link": "ABC", layer + "/diff/usr/bin/tool": "tool", layer + "/diff/etc/new\nline": "n",
		layer + "/diff/etc/\xff\xfe": "bytes", layer + "/diff/secret": "mode 0",
	} {
		writeFile(t, filepath.Join(dir, name), content)
	}
	diff := filepath.Join(dir, layer, "diff")
	must(t, os.MkdirAll(filepath.Join(dir, "overlay/l"), 0o755))
	must(t, os.Symlink("../0123/diff", filepath.Join(dir, "overlay/l/ABC")))
	must(t, os.Symlink(filepath.Join(outside, "file"), filepath.Join(diff, "to-file")))
	must(t, os.Symlink(outside, filepath.Join(diff, "to-dir")))
	must(t, os.Symlink("absent", filepath.Join(diff, "dangling")))
	must(t, os.Chmod(filepath.Join(diff, "secret"), 0))
	must(t, os.Chmod(filepath.Join(diff, "usr/bin/tool"), 0o4755|os.ModeSetuid))
	must(t, os.Link(filepath.Join(diff, "usr/bin/tool"), filepath.Join(diff, "usr/bin/tool2")))
	must(t, unix.Mkfifo(filepath.Join(diff, "fifo"), 0o644))
	must(t, unix.Mknod(filepath.Join(diff, "gone"), unix.S_IFCHR, 0))
	must(t, unix.Mknod(filepath.Join(diff, "block"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 99))))
	must(t, unix.Mknod(filepath.Join(diff, "socket"), unix.S_IFSOCK|0o600, 0))
	must(t, os.Mkdir(filepath.Join(diff, "closed"), 0))
}

// labelsBelow returns the label of everything below dir, by path.
func labelsBelow(t testing.TB, dir string) map[string]string {
	t.Helper()
	labels := map[string]string{}
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		value := make([]byte, maxLabel)
		n, err := unix.Lgetxattr(path, labelXattr, value)
		labels[name], err = parseLabel(value, n, err)
		return err
	}))
	return labels
}

// changeTimes returns when each inode below dir was last changed in any way.
func changeTimes(t testing.TB, dir string) map[string]unix.Timespec {
	t.Helper()
	times := map[string]unix.Timespec{}
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var stat unix.Stat_t
		if err := unix.Lstat(path, &stat); err != nil {
			return err
		}
		times[path] = stat.Ctim
		return nil
	}))
	return times
}

func TestLabel(t *testing.T) {
	testutil.RequireRoot(t)
	dir, outside := t.TempDir(), t.TempDir()
	writeFile(t, filepath.Join(outside, "file"), "outside")
	makeLabelTree(t, dir, outside)
	policy := labelPolicy(t, labelContexts)

	check, err := CheckLabels(t.Context(), dir, policy)
	must(t, err)
	if check.Wrong == 0 || check.Stamped || check.StampIsWrong() || len(check.Examples) != maxLabelExamples {
		t.Errorf("check of an unlabelled store: %+v", check)
	}

	result, err := Label(t.Context(), dir, policy, LabelOptions{})
	must(t, err)
	labels := labelsBelow(t, dir)
	want := LabelResult{Status: LabelDone, Visited: int64(len(labels)) - 1, NoContext: 2}
	// The second name of a hard link finds the label there.
	want.Changed = want.Visited + 1 - want.NoContext - 1
	if diff := cmp.Diff(want, *result); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	const diff = "overlay/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef/diff/"
	for path, want := range map[string]string{
		".": labelLib, LabelStamp: labelLib, "storage.lock": labelLib, "overlay-images/images.json": labelLib,
		"overlay": labelRO, "overlay/l": labelRO, "overlay/l/ABC": "system_u:object_r:container_link_t:s0",
		"overlay-layers/layers.json": labelRO, "overlay-containers": labelLib, "overlay-containers/x": "",
		"overlay-containers/x/y": "", "volumes/v/_data/file": "system_u:object_r:container_file_t:s0", diff + "usr/bin/tool": labelRO,
		diff + "secret": labelRO, diff + "closed": labelRO, diff + "to-dir": labelRO, diff + "to-file": labelRO, diff + "dangling": labelRO,
		diff + "fifo": "system_u:object_r:container_fifo_t:s0", diff + "gone": "system_u:object_r:container_device_t:s0",
		diff + "block": "system_u:object_r:container_block_t:s0", diff + "socket": "system_u:object_r:container_socket_t:s0",
		diff + "etc/new\nline": labelRO, diff + "etc/\xff\xfe": labelRO,
	} {
		if got, ok := labels[path]; !ok || got != want {
			t.Errorf("%q has label %q, want %q", path, got, want)
		}
	}
	for path, label := range labelsBelow(t, outside) {
		if label != "" {
			t.Errorf("%q outside of the store got label %q", path, label)
		}
	}

	// Nothing is written again, whether the stamp is believed or not.
	before := changeTimes(t, dir)
	for _, test := range []struct {
		o    LabelOptions
		want LabelResult
	}{
		{LabelOptions{}, LabelResult{Status: LabelStamped}},
		{LabelOptions{Force: true}, LabelResult{Status: LabelDone, Visited: int64(len(labels)), NoContext: 2}},
	} {
		result, err := Label(t.Context(), dir, policy, test.o)
		must(t, err)
		if diff := cmp.Diff(test.want, *result); diff != "" {
			t.Errorf("second run with %+v (-want +got):\n%s", test.o, diff)
		}
	}
	if diff := cmp.Diff(before, changeTimes(t, dir)); diff != "" {
		t.Errorf("a second run changed something (-before +after):\n%s", diff)
	}

	// New files have inherited their labels only where the kernel has SELinux.
	writeFile(t, filepath.Join(dir, "overlay/x/diff/pulled"), "new")
	byKernel, err := kernelLabels()
	must(t, err)
	result, err = Label(t.Context(), dir, policy, LabelOptions{NewFiles: true})
	must(t, err)
	if want := (LabelResult{Status: LabelDone, Visited: int64(len(labels)) + 3, NoContext: 2, Changed: 4}); !byKernel && *result != want {
		t.Errorf("after a pull: %+v, want %+v", *result, want)
	}
	if byKernel && result.Status != LabelStamped {
		t.Errorf("after a pull, with SELinux: %+v", *result)
	}
	must(t, os.RemoveAll(filepath.Join(dir, "overlay/x")))

	// A file that was added, or got another label, is what a check is for.
	writeFile(t, filepath.Join(dir, diff, "added"), "new")
	must(t, unix.Lsetxattr(filepath.Join(dir, diff, "to-file"), labelXattr, []byte("system_u:object_r:usr_t:s0"), 0))
	check, err = CheckLabels(t.Context(), dir, policy)
	must(t, err)
	slices.SortFunc(check.Examples, func(a, b LabelMismatch) int { return strings.Compare(a.Path, b.Path) })
	wantCheck := &LabelCheck{
		Policy: true, Stamped: true, Visited: int64(len(labels)) + 1, Wrong: 2,
		Examples: []LabelMismatch{
			{Path: diff + "added", Want: labelRO},
			{Path: diff + "to-file", Have: "system_u:object_r:usr_t:s0", Want: labelRO},
		},
	}
	if diff := cmp.Diff(wantCheck, check); diff != "" || !check.StampIsWrong() {
		t.Errorf("check (-want +got):\n%s", diff)
	}
	result, err = Label(t.Context(), dir, policy, LabelOptions{Force: true})
	must(t, err)
	if result.Changed != 3 { // the two, and the new stamp
		t.Errorf("forced run changed %d labels, want 3", result.Changed)
	}
	if check, err := CheckLabels(t.Context(), dir, policy); err != nil || check.Wrong != 0 || !check.Stamped {
		t.Errorf("check after the forced run: %+v, %v", check, err)
	}
}

// Without a policy there must be no stamp, so that a policy that comes later
// finds the store unlabelled.
func TestLabelWithoutPolicy(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "file"), "")
	before := changeTimes(t, dir)
	result, err := Label(t.Context(), dir, nil, LabelOptions{Force: true})
	if err != nil || result.Status != LabelNoPolicy {
		t.Errorf("result %+v, error %v; want no policy", result, err)
	}
	check, err := CheckLabels(t.Context(), dir, nil)
	if err != nil || check.Policy || check.Visited != 0 {
		t.Errorf("check %+v, error %v; want no policy", check, err)
	}
	if diff := cmp.Diff(before, changeTimes(t, dir)); diff != "" {
		t.Errorf("something changed (-before +after):\n%s", diff)
	}
}

// A store that is to be filled is labelled without a stamp first.
func TestLabelSkeleton(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "overlay/l"), 0o755))
	policy := labelPolicy(t, labelContexts)
	result, err := Label(t.Context(), dir, policy, LabelOptions{NoStamp: true})
	must(t, err)
	if result.Status != LabelDone || result.Changed != 3 {
		t.Errorf("result %+v, want 3 labels", result)
	}
	want := map[string]string{".": labelLib, "overlay": labelRO, "overlay/l": labelRO}
	if diff := cmp.Diff(want, labelsBelow(t, dir)); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	writeFile(t, filepath.Join(dir, "overlay/x/diff/file"), "pulled")
	result, err = Label(t.Context(), dir, policy, LabelOptions{})
	must(t, err)
	if result.Status != LabelDone || result.Changed != 4 {
		t.Errorf("after the pull: %+v, want 3 labels and the stamp's", result)
	}
}

// A stamp that is wrong must be gone before the first label is written: the
// walk may never come to its end.
func TestLabelForceFails(t *testing.T) {
	testutil.RequireRoot(t)
	chattr := testutil.RequireTool(t, "chattr", "e2fsprogs")
	dir := t.TempDir()
	file := filepath.Join(dir, "overlay/file")
	writeFile(t, file, "")
	writeFile(t, filepath.Join(dir, LabelStamp), "")
	if out, err := exec.Command(chattr, "+i", file).CombinedOutput(); err != nil {
		t.Skipf("no immutable files here: %s", out)
	}
	t.Cleanup(func() { _ = exec.Command(chattr, "-i", file).Run() })
	policy := labelPolicy(t, labelContexts)
	_, err := Label(t.Context(), dir, policy, LabelOptions{Force: true})
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), file) {
		t.Errorf("error %v, want one that names %s", err, file)
	}
	if _, err := os.Lstat(filepath.Join(dir, LabelStamp)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the stamp is still there (%v)", err)
	}
	must(t, exec.Command(chattr, "-i", file).Run())
	result, err := Label(t.Context(), dir, policy, LabelOptions{})
	if err != nil || result.Status != LabelDone {
		t.Errorf("next run: %+v, %v", result, err)
	}
}

func TestLabelErrors(t *testing.T) {
	testutil.RequireRoot(t)
	policy := labelPolicy(t, labelContexts)
	if _, err := Label(t.Context(), filepath.Join(t.TempDir(), "absent"), policy, LabelOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent store: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	writeFile(t, file, "")
	if _, err := Label(t.Context(), file, policy, LabelOptions{}); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("store that is a file: %v", err)
	}
	dir := t.TempDir()
	makeLabelTree(t, dir, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Label(ctx, dir, policy, LabelOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, LabelStamp)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("cancelled run left a stamp (%v)", err)
	}
}

// Whatever is mounted in a store belongs to somebody else: a running
// container, a volume. Only the overlay driver's own bind mount is entered.
func TestLabelMounts(t *testing.T) {
	testutil.RequireRoot(t)
	dir, foreign := t.TempDir(), t.TempDir()
	writeFile(t, filepath.Join(foreign, "file"), "")
	for _, name := range []string{"overlay/x/merged", "overlay/x/diff", "volumes/v"} {
		must(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
	}
	writeFile(t, filepath.Join(dir, "overlay/x/diff/file"), "")
	writeFile(t, filepath.Join(dir, "secret"), "")
	mount := func(source, target string) {
		t.Helper()
		target = filepath.Join(dir, target)
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			t.Skipf("no bind mounts here: %v", err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	mount(filepath.Join(dir, "overlay"), "overlay")
	mount(foreign, "overlay/x/merged")
	mount(foreign, "volumes/v")
	mount(filepath.Join(foreign, "file"), "secret")

	result, err := Label(t.Context(), dir, labelPolicy(t, labelContexts), LabelOptions{})
	must(t, err)
	if result.Mounts != 2 {
		t.Errorf("%d mounts were left out, want 2", result.Mounts)
	}
	for path, label := range labelsBelow(t, foreign) {
		if label != "" {
			t.Errorf("%s, which is mounted in the store, got label %q", path, label)
		}
	}
	if got := labelsBelow(t, filepath.Join(dir, "overlay/x/diff")); got["file"] != labelRO {
		t.Errorf("files below the bind mount of overlay have labels %v", got)
	}
	if check, err := CheckLabels(t.Context(), dir, labelPolicy(t, labelContexts)); err != nil || check.Wrong != 0 {
		t.Errorf("check: %+v, %v", check, err)
	}
}

// A layer may be deeper than any path, and have more entries in a directory
// than are read at once.
func TestLabelDeepAndWide(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	wide := filepath.Join(dir, "overlay/wide")
	must(t, os.MkdirAll(wide, 0o755))
	for i := range 2*labelBatch + 1 {
		writeFile(t, filepath.Join(wide, fmt.Sprint(i)), "")
	}
	name := strings.Repeat("d", 250)
	at, err := unix.Open(filepath.Join(dir, "overlay"), unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	const depth = 40
	for range depth {
		must(t, unix.Mkdirat(at, name, 0o755))
		next, err := rooted.Open(at, name, unix.O_RDONLY|unix.O_DIRECTORY, 0, rooted.NoLinks)
		must(t, err)
		unix.Close(at)
		at = next
	}
	defer unix.Close(at)

	result, err := Label(t.Context(), dir, labelPolicy(t, labelContexts), LabelOptions{})
	must(t, err)
	if want := int64(3 + 2*labelBatch + 1 + depth); result.Visited != want {
		t.Errorf("visited %d names, want %d", result.Visited, want)
	}
	value := make([]byte, maxLabel)
	n, err := unix.Fgetxattr(at, labelXattr, value)
	label, err := parseLabel(value, n, err)
	if err != nil || label != labelRO {
		t.Errorf("the deepest directory has label %q, %v", label, err)
	}
}

// setfiles is libselinux's idea of what to do with a tree whose root stands
// for "/".
func TestLabelAgreesWithSetfiles(t *testing.T) {
	testutil.RequireRoot(t)
	setfiles := testutil.RequireTool(t, "setfiles", "policycoreutils")
	for _, test := range []struct{ name, file string }{
		{"rules for a store", ""},
		{"policy of the distribution", "/etc/selinux/default/contexts/files/file_contexts"},
	} {
		t.Run(test.name, func(t *testing.T) {
			spec := filepath.Join(t.TempDir(), "file_contexts")
			src := selinux.Sources{FileContexts: []byte(labelContexts)}
			if test.file != "" {
				var err error
				if src.FileContexts, err = os.ReadFile(test.file); err != nil {
					t.Skip("no policy: apt-get install selinux-policy-default")
				}
				if src.Homedirs, err = os.ReadFile(test.file + ".homedirs"); err != nil {
					t.Fatal(err)
				}
				if src.SubsDist, err = os.ReadFile(test.file + ".subs_dist"); err != nil {
					t.Fatal(err)
				}
			}
			// Without the compiled form, so that the text is what counts.
			writeFile(t, spec, string(src.FileContexts))
			writeFile(t, spec+".homedirs", string(src.Homedirs))
			writeFile(t, spec+".subs_dist", string(src.SubsDist))
			policy, err := selinux.Parse(src)
			must(t, err)

			alternate := t.TempDir()
			dir := filepath.Join(alternate, labelReference)
			makeLabelTree(t, dir, t.TempDir())
			writeFile(t, filepath.Join(dir, LabelStamp), "")
			out, err := exec.Command(setfiles, "-F", "-r", alternate, spec, dir).CombinedOutput()
			if err != nil {
				t.Fatalf("setfiles: %v\n%s", err, out)
			}
			want := labelsBelow(t, dir)
			if want["overlay"] == "" {
				t.Fatalf("setfiles set no label: %s", out)
			}
			other := t.TempDir()
			makeLabelTree(t, other, t.TempDir())
			_, err = Label(t.Context(), other, policy, LabelOptions{})
			must(t, err)
			if diff := cmp.Diff(want, labelsBelow(t, other)); diff != "" {
				t.Errorf("labels differ (-setfiles +ours):\n%s", diff)
			}
		})
	}
}

// The order of R-021, as the kernel sees it.
func TestLabelOrder(t *testing.T) {
	testutil.RequireRoot(t)
	if dir := os.Getenv("CSTOR_TEST_LABEL"); dir != "" {
		_, err := Label(t.Context(), dir, labelPolicy(t, labelContexts), LabelOptions{Workers: 1})
		must(t, err)
		return
	}
	strace := testutil.RequireTool(t, "strace", "strace")
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "file"), "")
	log := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command(strace, "-f", "-y", "-qq", "-o", log, "-e", "trace=openat,openat2,lsetxattr,fsetxattr,syncfs,fsync",
		os.Args[0], "-test.run=^TestLabelOrder$")
	cmd.Env = append(os.Environ(), "CSTOR_TEST_LABEL="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("strace: %v\n%s", err, out)
	}
	trace, err := os.ReadFile(log)
	must(t, err)
	var got []string
	for line := range strings.Lines(string(trace)) {
		_, call, _ := strings.Cut(strings.TrimSpace(line), " ")
		call = strings.TrimSpace(call)
		name, arguments, _ := strings.Cut(call, "(")
		_, path, _ := strings.Cut(arguments, "<")
		path, _, _ = strings.Cut(path, ">")
		if strings.HasPrefix(name, "openat") && strings.Contains(arguments, `"file"`) {
			t.Errorf("a file was opened, which one with fs-verity need not allow: %s", call)
		}
		switch {
		case !strings.HasPrefix(path, dir) && !strings.Contains(arguments, "/proc/self/fd/"):
		case name == "openat2", name == "openat" && !strings.Contains(call, "O_CREAT"):
		case name == "openat":
			got = append(got, "create stamp")
		case name == "lsetxattr":
			got = append(got, "label file")
		default:
			got = append(got, name+" "+strings.TrimPrefix(path, dir))
		}
	}
	want := []string{
		"fsetxattr ", "label file", "syncfs ", "create stamp", "fsetxattr /" + LabelStamp, "fsync /" + LabelStamp, "fsync ",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order (-want +got):\n%s\n%s", diff, trace)
	}
}

func BenchmarkLabel(b *testing.B) {
	testutil.RequireRoot(b)
	dir := b.TempDir()
	const dirs, files = 2000, 20
	for i := range dirs {
		sub := filepath.Join(dir, fmt.Sprintf("overlay/%064x/diff/usr/share/doc/package-%d", i%40, i))
		must(b, os.MkdirAll(sub, 0o755))
		for j := range files {
			must(b, os.WriteFile(filepath.Join(sub, fmt.Sprint(j)), nil, 0o644))
		}
	}
	contexts := labelContexts
	if content, err := os.ReadFile("/etc/selinux/default/contexts/files/file_contexts"); err == nil {
		contexts = string(content) + contexts
	}
	b.Run("first", func(b *testing.B) {
		level := 0
		for b.Loop() {
			// Another level, so that each run writes all labels.
			level++
			policy := labelPolicy(b, strings.ReplaceAll(contexts, ":s0", fmt.Sprintf(":s0:c%d", level)))
			result, err := Label(b.Context(), dir, policy, LabelOptions{Force: true})
			must(b, err)
			if result.Changed < dirs*files {
				b.Fatalf("%d labels were written", result.Changed)
			}
		}
	})
	b.Run("again", func(b *testing.B) {
		policy := labelPolicy(b, contexts)
		_, err := Label(b.Context(), dir, policy, LabelOptions{Force: true})
		must(b, err)
		for b.Loop() {
			policy := labelPolicy(b, contexts)
			result, err := Label(b.Context(), dir, policy, LabelOptions{Force: true})
			must(b, err)
			if result.Changed != 0 {
				b.Fatalf("%d labels were written", result.Changed)
			}
		}
	})
}
