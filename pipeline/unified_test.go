// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/cstor"
	"github.com/cfs-pull/cfs-pull/internal/loopfs"
	"github.com/cfs-pull/cfs-pull/internal/repodump"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
	"github.com/cfs-pull/cfs-pull/pipeline"
	"github.com/cfs-pull/cfs-pull/pipeline/fetch"
)

func TestMain(m *testing.M) {
	if cstor.Reexec() {
		return
	}
	os.Exit(m.Run())
}

// longTests is an environment variable; where it is set, tests take all cases.
const longTests = "CFS_PULL_LONG_TESTS"

// storable are the images of the vectors that a containers-storage can hold.
var storable = []string{
	"sizes", "boot-modules", "multi-arch", "empty-layer", "selinux",
	"sizes-tar", "sizes-zstd", "sizes-multi-gzip", "dirs", "annotated", "boot-bls", "boot-uki", "bound", "tar-no-end",
}

// unifiedOptions are options for a unified pull to a repository and a store.
func unifiedOptions(t *testing.T, repo, store, reference string) pipeline.Options {
	t.Helper()
	o := pullOptions(repo, reference)
	o.Store = cstor.Options{GraphRoot: store, RunRoot: filepath.Join(t.TempDir(), "run"), LockTimeout: 20 * time.Second}
	o.PolicyRoot = t.TempDir() // no SELinux policy
	o.LocalCopy = pipeline.ZeroCopy
	o.LockTimeout = 20 * time.Second
	return o
}

// repoOn makes a repository on a file system.
func repoOn(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "repo")
	if _, err := composefs.Init(t.Context(), path, composefs.InitOptions{AllowMissingVerity: true}); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustPullUnified(t *testing.T, o pipeline.Options) *pipeline.Result {
	t.Helper()
	result, err := pipeline.Unified(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func mustDump(t *testing.T, repo string) *repodump.Repository {
	t.Helper()
	dump, err := repodump.Dump(repo)
	if err != nil {
		t.Fatal(err)
	}
	return dump
}

// TestUnifiedIsDirect pulls the same images in both modes, with each method
// that files can get from the store into the repository by.
func TestUnifiedIsDirect(t *testing.T) {
	vectors := ociVectors(t)
	direct := newRepo(t, composefs.InitOptions{})
	var images []string
	for _, image := range storable {
		_, err := pipeline.Direct(t.Context(), pullOptions(direct, "oci:"+filepath.Join(vectors, "layout")+":"+image))
		if is[*fetch.NotFoundError](err) {
			continue // the small set of vectors has not all
		}
		checkOutcome(t, image, err)
		images = append(images, image)
	}
	all := len(images)
	few := all
	if os.Getenv(longTests) == "" {
		few = min(all, 5)
	}
	want := map[int]*repodump.Repository{all: mustDump(t, direct)}
	if few < all {
		direct := newRepo(t, composefs.InitOptions{})
		for _, image := range images[:few] {
			_, err := pipeline.Direct(t.Context(), pullOptions(direct, "oci:"+filepath.Join(vectors, "layout")+":"+image))
			checkOutcome(t, image, err)
		}
		want[few] = mustDump(t, direct)
	}
	xfs, btrfs, ext4 := loopfs.MountSize(t, loopfs.XFS, 400<<20), loopfs.MountSize(t, loopfs.Btrfs, 400<<20), loopfs.MountSize(t, loopfs.Ext4, 200<<20)
	for name, c := range map[string]struct {
		store, repo string
		how         pipeline.LocalCopy
		images      int
		check       func(pipeline.ObjectStats) bool
	}{
		"xfs":              {xfs, xfs, pipeline.ZeroCopy, all, onlyReflinks},
		"btrfs":            {btrfs, btrfs, pipeline.ZeroCopy, few, onlyReflinks},
		"ext4":             {ext4, ext4, pipeline.ZeroCopy, few, func(s pipeline.ObjectStats) bool { return s.Reflinked == 0 && s.Copied == 0 }},
		"two file systems": {ext4, xfs, pipeline.CopyIfNeeded, few, func(s pipeline.ObjectStats) bool { return s.Reflinked == 0 && s.Hardlinked == 0 }},
	} {
		t.Run(name, func(t *testing.T) {
			storeDir, err := os.MkdirTemp(c.store, "")
			if err != nil {
				t.Fatal(err)
			}
			repoDir, err := os.MkdirTemp(c.repo, "")
			if err != nil {
				t.Fatal(err)
			}
			repo := repoOn(t, repoDir)
			var sum int64
			for _, image := range images[:c.images] {
				o := unifiedOptions(t, repo, filepath.Join(storeDir, "store"), "oci:"+filepath.Join(vectors, "layout")+":"+image)
				o.LocalCopy = c.how
				result, err := pipeline.Unified(t.Context(), o)
				checkOutcome(t, image, err)
				if s := result.Stats.Objects; !c.check(s) {
					t.Errorf("%s: objects %+v", image, s)
				}
				sum += result.Stats.Objects.Reflinked + result.Stats.Objects.Hardlinked + result.Stats.Objects.Copied
			}
			if sum == 0 {
				t.Error("no object came from the store")
			}
			if diff := cmp.Diff(want[c.images], mustDump(t, repo), cmp.FilterPath(isMeta, cmp.Ignore())); diff != "" {
				t.Errorf("the repository differs from that of a direct pull:\n%s", diff)
			}
		})
	}
}

func onlyReflinks(s pipeline.ObjectStats) bool { return s.Hardlinked == 0 && s.Copied == 0 }

// isMeta selects the metadata of a repository, which Init wrote.
func isMeta(p cmp.Path) bool { return p.String() == "Meta" }

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// layoutImage is an image of the layout whose files the store keeps.
func layoutImage(t *testing.T) string {
	return "oci:" + filepath.Join(ociVectors(t), "layout") + ":boot-modules"
}

func TestSecondUnifiedPullDoesNothing(t *testing.T) {
	on := loopfs.MountSize(t, loopfs.XFS, 300<<20)
	o := unifiedOptions(t, repoOn(t, on), filepath.Join(on, "store"), layoutImage(t))
	var events []pipeline.Event
	o.Events = func(e pipeline.Event) { events = append(events, e) }
	first := mustPullUnified(t, o)
	if !first.Changed || first.Mode != "unified" || first.Storage == nil || first.Storage.ImageID == "" || len(first.Storage.Names) != 1 {
		t.Errorf("first pull: %+v, storage %+v", first, first.Storage)
	}
	checkEvents(t, events)
	before := inodes(t, on)
	second := mustPullUnified(t, o)
	if second.Changed || second.Stats.LayersPresent != second.Stats.Layers || second.Stats.Bytes.Fetched != 0 {
		t.Errorf("second pull: %+v", second)
	}
	if diff := cmp.Diff(before, inodes(t, on), ignoreLocks); diff != "" {
		t.Errorf("the second pull changed something:\n%s", diff)
	}
	if diff := cmp.Diff(first.Storage, second.Storage); diff != "" {
		t.Errorf("the second pull reports another store:\n%s", diff)
	}

	// An object that is gone is brought back.
	repo := filepath.Join(on, "repo")
	object := mustDump(t, repo).FileObjects[0]
	if err := os.Remove(filepath.Join(repo, "objects", object[:2], object[2:])); err != nil {
		t.Fatal(err)
	}
	third := mustPullUnified(t, o)
	if third.Stats.Objects.Reflinked != 1 || third.Stats.Bytes.Fetched != 0 {
		t.Errorf("third pull: %+v", third.Stats)
	}
}

// ignoreLocks leaves out what is locked or noted by each use of a store.
var ignoreLocks = cmp.FilterPath(func(p cmp.Path) bool {
	key := p.String()
	return strings.Contains(key, ".lock") || strings.Contains(key, "/overlay-layers") || strings.Contains(key, "/overlay-images")
}, cmp.Ignore())

// checkEvents makes sure that both tasks tell their totals first, that counts
// never fall, and that they end at their totals.
func checkEvents(t *testing.T, events []pipeline.Event) {
	t.Helper()
	last := map[pipeline.Task]pipeline.Event{}
	for _, e := range events {
		if e.Layer != "" {
			if _, ok := last[e.Task]; !ok {
				t.Errorf("%+v comes before its task", e)
			}
			continue
		}
		before, ok := last[e.Task]
		if !ok && (e.State != pipeline.Started || e.Task != pipeline.TaskBootImage && e.Total == 0) {
			t.Errorf("task %s begins with %+v", e.Task, e)
		}
		if e.Bytes < before.Bytes || e.Bytes > e.Total || ok && e.Total != before.Total {
			t.Errorf("%+v after %+v", e, before)
		}
		last[e.Task] = e
	}
	for _, task := range []pipeline.Task{pipeline.TaskPulling, pipeline.TaskImporting, pipeline.TaskBootImage} {
		if e := last[task]; e.State != pipeline.Done || e.Bytes != e.Total {
			t.Errorf("task %s ends with %+v", task, e)
		}
	}
}

// TestZeroCopyIsStrict wants a failure, and nothing tagged, where files would
// have to be copied.
func TestZeroCopyIsStrict(t *testing.T) {
	xfs, ext4 := loopfs.MountSize(t, loopfs.XFS, 300<<20), loopfs.MountSize(t, loopfs.Ext4, 100<<20)
	policy := t.TempDir()
	for path, text := range map[string]string{
		"etc/selinux/config": "SELINUX=enforcing\nSELINUXTYPE=targeted\n",
		"etc/selinux/targeted/contexts/files/file_contexts": "/.* system_u:object_r:default_t:s0\n",
	} {
		path = filepath.Join(policy, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		store, repo, policy string
		text                []string
	}{
		"two file systems":          {ext4, xfs, t.TempDir(), []string{"hard link (linkat): invalid cross-device link"}},
		"no reflinks, SELinux used": {ext4, ext4, policy, []string{"SELinux"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp(c.repo, "")
			if err != nil {
				t.Fatal(err)
			}
			storeDir, err := os.MkdirTemp(c.store, "")
			if err != nil {
				t.Fatal(err)
			}
			o := unifiedOptions(t, repoOn(t, dir), filepath.Join(storeDir, "store"), layoutImage(t))
			o.PolicyRoot = c.policy
			result, err := pipeline.Unified(t.Context(), o)
			if !is[*composefs.NotSharedError](err) {
				t.Fatalf("pull: %v", err)
			}
			if stage, ok := errors.AsType[*pipeline.StageError](err); !ok || stage.Stage != pipeline.StageImport {
				t.Errorf("stage of %v", err)
			}
			for _, text := range append(c.text, "reflink (FICLONE)", "/diff/", o.Repo, "ext4", "device") {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q is not in: %v", text, err)
				}
			}
			dump := mustDump(t, o.Repo)
			if result.Tagged || len(dump.Links) > 0 || len(dump.Images) > 0 {
				t.Errorf("tagged: %t, links %v", result.Tagged, dump.Links)
			}
			// What may be done about it.
			o.LocalCopy = pipeline.CopyIfNeeded
			if again := mustPullUnified(t, o); again.Stats.Objects.Copied == 0 || again.Stats.Bytes.Fetched != 0 {
				t.Errorf("with copies: %+v", again.Stats)
			}
		})
	}
}

// TestChangedBetweenTheStages changes a file below diff/ when the image is in
// the store and not in the repository yet.
func TestChangedBetweenTheStages(t *testing.T) {
	on := loopfs.MountSize(t, loopfs.XFS, 300<<20)
	o := unifiedOptions(t, repoOn(t, on), filepath.Join(on, "store"), layoutImage(t))
	mustPullUnified(t, o)
	var victim string
	err := filepath.WalkDir(filepath.Join(on, "store", "overlay"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "vmlinuz" {
			victim = path
		}
		return err
	})
	if err != nil || victim == "" {
		t.Fatalf("no kernel in the store: %v", err)
	}
	f, err := os.OpenFile(victim, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("?"), 3); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for name, how := range map[string]pipeline.LocalCopy{"zerocopy": pipeline.ZeroCopy, "auto": pipeline.CopyIfNeeded, "copy": pipeline.CopyAlways} {
		t.Run(name, func(t *testing.T) {
			o := o
			o.Repo, o.LocalCopy = newRepo(t, composefs.InitOptions{}), how
			if how == pipeline.ZeroCopy {
				o.Repo = filepath.Join(on, "second")
				o.Init = true
			}
			result, err := pipeline.Unified(t.Context(), o)
			if !errors.Is(err, oci.ErrIntegrity) || !strings.Contains(err.Error(), victim) {
				t.Errorf("pull: %v", err)
			}
			if dump := mustDump(t, o.Repo); result.Tagged || len(dump.Links) > 0 {
				t.Errorf("tagged: %t, links %v", result.Tagged, dump.Links)
			}
		})
	}
}

// TestLayerWithoutMetadata imports an image of which the store cannot rebuild a
// layer's archive.
func TestLayerWithoutMetadata(t *testing.T) {
	on := loopfs.MountSize(t, loopfs.XFS, 300<<20)
	o := unifiedOptions(t, repoOn(t, on), filepath.Join(on, "store"), layoutImage(t))
	mustPullUnified(t, o)
	splits, err := filepath.Glob(filepath.Join(on, "store", "overlay-layers", "*.tar-split.gz"))
	if err != nil || len(splits) == 0 {
		t.Fatalf("no tar-split metadata: %v", err)
	}
	for _, split := range splits {
		if err := os.Remove(split); err != nil {
			t.Fatal(err)
		}
	}
	o.Repo, o.Init = filepath.Join(on, "second"), true
	result, err := pipeline.Unified(t.Context(), o)
	if !is[*cstor.UnusableLayerError](err) || !strings.Contains(err.Error(), "tar-split") || result.Tagged {
		t.Errorf("zero-copy: %v, tagged: %t", err, result.Tagged)
	}
	o.LocalCopy = pipeline.CopyIfNeeded
	if r := mustPullUnified(t, o); r.Stats.Objects.Copied == 0 || r.Stats.Objects.Reflinked != 0 {
		t.Errorf("with copies: %+v", r.Stats.Objects)
	}
	direct := newRepo(t, composefs.InitOptions{})
	mustPull(t, pullOptions(direct, layoutImage(t)))
	if diff := cmp.Diff(mustDump(t, direct), mustDump(t, o.Repo), cmp.FilterPath(isMeta, cmp.Ignore())); diff != "" {
		t.Errorf("the repository differs from that of a direct pull:\n%s", diff)
	}
}

// TestInterruptedUnifiedPull ends pulls at many points and lets the last one
// go on.
func TestInterruptedUnifiedPull(t *testing.T) {
	on := loopfs.MountSize(t, loopfs.XFS, 300<<20)
	store, repo := filepath.Join(on, "store"), repoOn(t, on)
	for n := 1; ; n++ {
		o := unifiedOptions(t, repo, store, layoutImage(t))
		ctx, cancel := context.WithCancel(t.Context())
		count := 0
		o.Events = func(pipeline.Event) {
			if count++; count == n {
				cancel()
			}
		}
		result, err := pipeline.Unified(ctx, o)
		cancel()
		if count < n { // it came to its end
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if err == nil {
			continue // too late to interrupt anything
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("interrupted at event %d: %v", n, err)
		}
		if dump := mustDump(t, repo); result.Tagged != (len(dump.Links) > len(dump.Streams)+len(dump.Images)) {
			t.Errorf("interrupted at event %d: tagged %t, links %v", n, result.Tagged, dump.Links)
		}
		if _, err := os.Stat(store + ".tmp"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a store half made is left: %v", err)
		}
	}
	direct := newRepo(t, composefs.InitOptions{})
	mustPull(t, pullOptions(direct, layoutImage(t)))
	if diff := cmp.Diff(mustDump(t, direct), mustDump(t, repo), cmp.FilterPath(isMeta, cmp.Ignore())); diff != "" {
		t.Errorf("the repository differs from that of a direct pull:\n%s", diff)
	}
}

// TestImageVanishes removes the image from the store while it is imported.
func TestImageVanishes(t *testing.T) {
	testutil.RequireTool(t, "podman", "podman")
	on := loopfs.MountSize(t, loopfs.XFS, 300<<20)
	for _, times := range []int{1, 2} {
		dir, err := os.MkdirTemp(on, "")
		if err != nil {
			t.Fatal(err)
		}
		o := unifiedOptions(t, repoOn(t, dir), filepath.Join(dir, "store"), layoutImage(t))
		removed := 0
		o.Events = func(e pipeline.Event) {
			if e.Task == pipeline.TaskImporting && e.Layer == "" && e.State == pipeline.Started && removed < times {
				removed++
				runPodman(t, t.TempDir(), o.Store.GraphRoot, o.Store.RunRoot, "rmi", "--all", "--force")
			}
		}
		result, err := pipeline.Unified(t.Context(), o)
		if removed != times {
			t.Errorf("removed %d times, want %d", removed, times)
		}
		if times == 1 {
			if err != nil || !result.Tagged || len(result.Warnings) == 0 {
				t.Errorf("removed once: %v, %+v", err, result)
			}
			continue
		}
		if err == nil || result.Tagged {
			t.Errorf("removed each time: %v, %+v", err, result)
		}
	}
}

// TestPolicies asks for an image that is there, and that its source lacks.
func TestPolicies(t *testing.T) {
	on := loopfs.MountSize(t, loopfs.XFS, 300<<20)
	layout := filepath.Join(t.TempDir(), "layout")
	if err := os.CopyFS(layout, os.DirFS(filepath.Join(ociVectors(t), "layout"))); err != nil {
		t.Fatal(err)
	}
	o := unifiedOptions(t, repoOn(t, on), filepath.Join(on, "store"), "oci:"+layout+":boot-modules")
	o.StoreName = "localhost/os:test"

	o.Policy = cstor.PolicyNever
	if _, err := pipeline.Unified(t.Context(), o); !is[*cstor.NotFoundError](err) {
		t.Errorf("never, absent: %v", err)
	}
	o.Policy = cstor.PolicyMissing
	first := mustPullUnified(t, o)
	if !first.Changed || len(first.Storage.Names) != 1 || first.Storage.Names[0] != o.StoreName {
		t.Errorf("missing, absent: %+v", first.Storage)
	}
	if err := os.RemoveAll(layout); err != nil {
		t.Fatal(err)
	}
	for name, policy := range map[string]cstor.Policy{"missing": cstor.PolicyMissing, "never": cstor.PolicyNever} {
		o.Policy = policy
		if r := mustPullUnified(t, o); r.Changed || r.ManifestDigest != first.ManifestDigest {
			t.Errorf("%s, present: %+v", name, r)
		}
	}
	o.Policy = cstor.PolicyAlways
	_, err := pipeline.Unified(t.Context(), o)
	stage, ok := errors.AsType[*pipeline.StageError](err)
	if !is[*fetch.NotFoundError](err) || !ok || stage.Stage != pipeline.StageFetch || !strings.Contains(err.Error(), "fetch into containers-storage failed") {
		t.Errorf("always, absent at its source: %v", err)
	}
}

// TestDirectFromStore imports an image that podman has stored, as the host's.
func TestDirectFromStore(t *testing.T) {
	testutil.RequireTool(t, "podman", "podman")
	on := loopfs.MountSize(t, loopfs.XFS, 300<<20)
	root, run := filepath.Join(on, "host"), filepath.Join(t.TempDir(), "run")
	// podman makes a name of the path, so it has to look like one.
	layout := filepath.Join(t.TempDir(), "layout")
	if err := os.Symlink(filepath.Join(ociVectors(t), "layout"), layout); err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(runPodman(t, filepath.Dir(layout), root, run, "pull", "-q", "oci:layout:boot-modules"))

	direct := newRepo(t, composefs.InitOptions{})
	mustPull(t, pullOptions(direct, layoutImage(t)))
	for name, c := range map[string]struct {
		repo  string
		how   pipeline.LocalCopy
		check func(pipeline.ObjectStats) bool
	}{
		"reflinks": {repoOn(t, on), pipeline.CopyIfNeeded, onlyReflinks},
		"copies":   {newRepo(t, composefs.InitOptions{}), pipeline.CopyIfNeeded, func(s pipeline.ObjectStats) bool { return s.Copied > 0 && s.Reflinked+s.Hardlinked == 0 }},
	} {
		t.Run(name, func(t *testing.T) {
			o := pullOptions(c.repo, "containers-storage:"+id)
			o.HostStore, o.LocalCopy = root, c.how
			o.Store.RunRoot = run
			if r := mustPull(t, o); !c.check(r.Stats.Objects) || r.Transport != "containers-storage" || r.Mode != "direct" {
				t.Errorf("result %+v", r)
			}
			if r := mustPull(t, o); r.Changed {
				t.Errorf("second pull: %+v", r)
			}
			if diff := cmp.Diff(mustDump(t, direct), mustDump(t, c.repo), cmp.FilterPath(isMeta, cmp.Ignore())); diff != "" {
				t.Errorf("the repository differs from that of a pull from the layout:\n%s", diff)
			}
		})
	}
	for name, ref := range map[string]string{"no image": "localhost/absent", "no store": id} {
		o := pullOptions(direct, "containers-storage:"+ref)
		o.HostStore = root
		if name == "no store" {
			o.HostStore = t.TempDir()
		}
		if _, err := pipeline.Direct(t.Context(), o); !is[*fetch.NotFoundError](err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// runPodman runs podman in a directory, on a store, and returns what it prints.
func runPodman(t *testing.T, dir, root, run string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "podman", append([]string{"--root", root, "--runroot", run}, args...)...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("podman %s: %v", args, err)
	}
	// It leaves its store mounted on itself.
	_ = unix.Unmount(filepath.Join(root, "overlay"), unix.MNT_DETACH)
	return string(out)
}

func TestDefaultMode(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, pipeline.ModeFile)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		text string // "-": no file
		want pipeline.Mode
		ok   bool
	}{
		{"-", pipeline.ModeDirect, true},
		{`{"mode":"unified"}`, pipeline.ModeUnified, true},
		{`{"mode":"direct","more":1}`, pipeline.ModeDirect, true},
		{`{"mode":"other"}`, "", false},
		{`{}`, "", false},
		{`nonsense`, "", false},
	} {
		if c.text != "-" {
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := pipeline.DefaultMode(root); got != c.want || (err == nil) != c.ok {
			t.Errorf("%s: %q, %v", c.text, got, err)
		}
	}
}

// TestStorageInJSON pins the names of what a unified pull reports.
func TestStorageInJSON(t *testing.T) {
	r := pipeline.NewResult("x")
	r.Storage = &pipeline.Storage{Root: "/s", ImageID: "1", Names: []string{"n"}, Labeled: true}
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	const want = `"storage":{"root":"/s","imageID":"1","names":["n"],"labeled":true}`
	if !strings.Contains(string(raw), want) {
		t.Errorf("%s is not in %s", want, raw)
	}
}

// An image of the host's store is copied into the system's, and from there into
// the repository, with nothing fetched and nothing copied where files can share
// their blocks; it is the same image as one that is pulled.
func TestUnifiedFromHostStore(t *testing.T) {
	on := loopfs.MountSize(t, loopfs.XFS, 400<<20)
	image := layoutImage(t)
	host := filepath.Join(on, "host")
	first := unifiedOptions(t, repoOn(t, t.TempDir()), host, image)
	first.StoreName, first.LocalCopy = "localhost/os:built", pipeline.CopyAlways
	want := mustPullUnified(t, first)

	repo := repoOn(t, on)
	o := unifiedOptions(t, repo, filepath.Join(on, "store"), "containers-storage:localhost/os:built")
	o.HostStore = host
	var events []pipeline.Event
	o.Events = func(e pipeline.Event) { events = append(events, e) }
	got := mustPullUnified(t, o)
	if got.ManifestDigest != want.ManifestDigest || got.Image.ID != want.Image.ID || got.BootImage.ID != want.BootImage.ID {
		t.Errorf("manifest %s, images %s and %s; want %s, %s and %s",
			got.ManifestDigest, got.Image.ID, got.BootImage.ID, want.ManifestDigest, want.Image.ID, want.BootImage.ID)
	}
	if c := got.Storage.Copied; c == nil || c.BytesCloned == 0 || c.BytesCopied != 0 || got.Stats.Bytes.Fetched != 0 || !onlyReflinks(got.Stats.Objects) {
		t.Errorf("copied %+v, then %+v", c, got.Stats)
	}
	if diff := cmp.Diff([]string{"localhost/os:built"}, got.Storage.Names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	checkEvents(t, events)
	before := inodes(t, on)
	again := mustPullUnified(t, o)
	if again.Changed || again.Storage.Copied != nil {
		t.Errorf("second pull: %+v, storage %+v", again, again.Storage)
	}
	if diff := cmp.Diff(before, inodes(t, on), ignoreLocks); diff != "" {
		t.Errorf("the second pull changed something:\n%s", diff)
	}

	// By id, it keeps its names; another file system gets copies.
	ext4 := loopfs.MountSize(t, loopfs.Ext4, 200<<20)
	o = unifiedOptions(t, repoOn(t, ext4), filepath.Join(ext4, "store"), "containers-storage:"+want.Storage.ImageID)
	o.HostStore = host
	got = mustPullUnified(t, o)
	if c := got.Storage.Copied; c == nil || c.BytesCloned != 0 || c.BytesCopied == 0 || got.ManifestDigest != want.ManifestDigest {
		t.Errorf("copied %+v with manifest %s", c, got.ManifestDigest)
	}
	if diff := cmp.Diff([]string{"localhost/os:built"}, got.Storage.Names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}

	// A file that has changed in the host's store goes no further.
	var damaged string
	err := filepath.WalkDir(filepath.Join(host, "overlay"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && damaged == "" && e.Type().IsRegular() && strings.Contains(path, "/diff/") {
			if info, err := e.Info(); err == nil && info.Size() > 1000 {
				damaged = path
			}
		}
		return err
	})
	if err == nil {
		err = os.WriteFile(damaged, []byte("shorter"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	o = unifiedOptions(t, repoOn(t, t.TempDir()), filepath.Join(on, "store2"), "containers-storage:localhost/os:built")
	o.HostStore = host
	result, err := pipeline.Unified(t.Context(), o)
	if !errors.Is(err, oci.ErrIntegrity) || !strings.Contains(err.Error(), damaged) || result.Tagged {
		t.Errorf("error %v, want one that names %s", err, damaged)
	}
}
