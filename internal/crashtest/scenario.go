// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package crashtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/repodump"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

// Scenario is a command on a state of a repository.
type Scenario struct {
	// Name says what the command does, for instance "pull"; several scenarios
	// of a name differ by what follows a slash.
	Name string
	// Before are the commands that make the state, in an empty directory. The
	// repository that Command changes is "repo" there.
	Before [][]string
	// Age, if set, is called on the state at last, to make it as an older
	// program would have left it.
	Age func(ctx context.Context, dir string) error
	// Command is what is disturbed.
	Command []string
	// Cut says that the power is cut during the command, too.
	Cut bool
	// Tags are refs below streams/refs/oci that are there after Command.
	Tags []string
}

// pullArgs are the arguments of a pull that depends on nothing but them.
func pullArgs(repo, image string, more ...string) []string {
	return append([]string{
		"--direct", "--repo", repo, "--insecure-policy", "--no-creds", "--min-free", "0", "--os", "linux", "--arch", "amd64",
		"--progress", "none", "oci:../images/" + image + ":latest",
	}, more...)
}

// unifiedArgs are the arguments of a pull through a containers-storage.
func unifiedArgs(image string, more ...string) []string {
	args := pullArgs("repo", image, "--storage", "store", "--run-root", "run", "--name", "localhost/os:latest",
		"--no-label", "--local-copy", "hardlink")
	args[0] = "--unified"
	return append(args, more...)
}

func initArgs(repo string, more ...string) []string {
	return append([]string{"init", "--repo", repo, "--allow-missing-verity"}, more...)
}

// Scenarios are the commands that change a repository.
func Scenarios() []Scenario {
	return []Scenario{
		{
			Name:    "pull/init",
			Command: pullArgs("repo", imageOne, "--init", "--allow-missing-verity", "--tag", "os"),
			Cut:     true, Tags: []string{"os"},
		},
		{
			Name:    "pull/update",
			Before:  [][]string{initArgs("repo"), pullArgs("repo", imageOne, "--tag", "os")},
			Command: pullArgs("repo", imageTwo, "--tag", "os"),
			Cut:     true, Tags: []string{"os"},
		},
		{
			// Config and manifest of an image that is there are written anew.
			Name:    "pull/boot",
			Before:  [][]string{initArgs("repo"), pullArgs("repo", imageOne, "--no-boot", "--tag", "os")},
			Command: pullArgs("repo", imageOne, "--tag", "os"), Tags: []string{"os"},
		},
		{
			Name:    "pull/unified",
			Before:  [][]string{initArgs("repo")},
			Command: unifiedArgs(imageOne, "--tag", "os"),
			Cut:     true, Tags: []string{"os"},
		},
		{
			Name:    "tag",
			Before:  [][]string{initArgs("repo"), pullArgs("repo", imageOne, "--tag", "os"), pullArgs("repo", imageTwo, "--tag", "new")},
			Command: []string{"tag", "--repo", "repo", "new", "os"}, Tags: []string{"os"},
		},
		{
			Name: "copy/update",
			Before: [][]string{
				initArgs("repo"), pullArgs("repo", imageOne, "--tag", "os"), initArgs("from"), pullArgs("from", imageTwo, "--tag", "os"),
			},
			Command: []string{"copy", "--repo", "repo", "--from", "from", "os"},
			Cut:     true, Tags: []string{"os"},
		},
		{
			Name: "copy/algorithm",
			Before: [][]string{
				initArgs("repo", "--algorithm", "fsverity-sha256-12"), initArgs("from"), pullArgs("from", imageOne, "--tag", "os"),
			},
			Command: []string{"copy", "--repo", "repo", "--from", "from", "os"}, Tags: []string{"os"},
		},
		{
			Name: "gc",
			Before: [][]string{
				initArgs("repo"), pullArgs("repo", imageOne, "--tag", "os"), pullArgs("repo", imageTwo, "--tag", "os"),
			},
			Age:     dropOtherTags,
			Command: []string{"gc", "--repo", "repo"},
			Cut:     true, Tags: []string{"os"},
		},
		{
			// What is left of the links is complete; then nothing is.
			Name: "reset",
			Before: [][]string{
				initArgs("repo"), pullArgs("repo", imageOne, "--tag", "os"), pullArgs("repo", imageTwo, "--tag", "new"),
			},
			Command: initArgs("repo", "--reset-metadata", "--erofs", "v2"),
			Cut:     true,
		},
		{
			Name: "upgrade/gc",
			Before: [][]string{
				initArgs("repo"), pullArgs("repo", imageOne, "--tag", "other"), pullArgs("repo", imageTwo, "--tag", "os"),
			},
			Age:     makeOld,
			Command: []string{"gc", "--repo", "repo"},
			Cut:     true, Tags: []string{"os", "other"},
		},
		{
			Name:    "upgrade/pull",
			Before:  [][]string{initArgs("repo"), pullArgs("repo", imageOne, "--tag", "other")},
			Age:     makeOld,
			Command: pullArgs("repo", imageTwo, "--tag", "os"), Tags: []string{"os", "other"},
		},
	}
}

// dropOtherTags removes all tags but those of the image that is tagged "os".
func dropOtherTags(ctx context.Context, dir string) error {
	tags := filepath.Join(dir, "repo", "streams", "refs", "oci")
	keep, err := os.Readlink(filepath.Join(tags, "os"))
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(tags)
	if err != nil {
		return err
	}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(tags, e.Name()))
		if err == nil && target != keep {
			err = os.Remove(filepath.Join(tags, e.Name()))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// makeOld makes a repository as releases before 0.7 of composefs-rs left it:
// no meta.json, no EROFS images, configs that name none.
func makeOld(ctx context.Context, dir string) error {
	path := filepath.Join(dir, "repo")
	repo, err := composefs.Open(ctx, path, composefs.OpenOptions{})
	if err != nil {
		return err
	}
	tags, err := oci.Tags(repo)
	if err == nil {
		for _, tag := range tags {
			if err = forgetImages(repo, tag.Manifest); err != nil {
				break
			}
		}
	}
	if err := errors.Join(err, repo.Close()); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(filepath.Join(path, "images")), os.Remove(filepath.Join(path, "meta.json")))
}

// forgetImages writes the config and the manifest of an image without EROFS
// images.
func forgetImages(repo *composefs.Repo, manifest oci.Digest) error {
	m, err := oci.OpenManifest(repo, manifest)
	if err != nil {
		return err
	}
	parsed, err := oci.ParseManifest(m.Raw)
	if err != nil {
		return err
	}
	digest, err := oci.ParseDigest(parsed.Config.Digest)
	if err != nil {
		return err
	}
	config, err := oci.OpenConfig(repo, digest)
	if err != nil {
		return err
	}
	maps.DeleteFunc(config.Refs, func(name string, _ fsverity.Digest) bool { return strings.HasPrefix(name, "composefs.image") })
	id, err := writeStream(repo, splitstream.Config, config)
	if err != nil {
		return err
	}
	m.Refs["config:"+digest.String()] = id
	manifestID, err := writeStream(repo, splitstream.Manifest, m)
	if err != nil {
		return err
	}
	return errors.Join(repo.LinkStream(oci.ConfigStream(digest), id), repo.LinkStream(oci.ManifestStream(manifest), manifestID))
}

// writeStream writes the stream of a document anew.
func writeStream(repo *composefs.Repo, ct splitstream.ContentType, d *oci.Document) (fsverity.Digest, error) {
	return repo.WriteStream(ct, func(w *splitstream.Writer) error {
		for _, name := range slices.Sorted(maps.Keys(d.Refs)) {
			if err := w.AddStreamRef(name, d.Refs[name]); err != nil {
				return err
			}
		}
		return w.External(d.Object, uint64(len(d.Raw)))
	})
}

// World is what scenarios run in: the program, the images, and the state that
// one scenario begins with.
type World struct {
	// Program is cfs-pull.
	Program string
	// Dir is on the file system to test.
	Dir string

	Scenario Scenario
	// Found counts what fsck finds after disturbances, by kind, if it is not
	// nil.
	Found map[string]int

	before  *Inspection
	after   *Inspection
	want    *repodump.Repository
	objects []string // after a garbage collection
}

// NewWorld makes the state of a scenario in an empty directory, and finds out
// what the command makes of it when nothing goes wrong.
func NewWorld(ctx context.Context, program, dir string, s Scenario) (*World, error) {
	w := &World{Program: program, Dir: dir, Scenario: s}
	if err := makeImages(filepath.Join(dir, "images")); err != nil {
		return nil, err
	}
	base := w.base()
	if err := os.Mkdir(base, 0o755); err != nil {
		return nil, err
	}
	for _, args := range s.Before {
		if _, err := w.run(ctx, base, args); err != nil {
			return nil, err
		}
	}
	if s.Age != nil {
		if err := s.Age(ctx, base); err != nil {
			return nil, fmt.Errorf("age the repository: %w", err)
		}
	}
	var err error
	if w.before, err = Inspect(filepath.Join(base, "repo")); err != nil {
		return nil, err
	}
	return w, w.findReference(ctx)
}

func (w *World) base() string { return filepath.Join(w.Dir, "base") }

// findReference runs the command undisturbed.
func (w *World) findReference(ctx context.Context) error {
	dir, err := w.Copy(ctx, "reference")
	if err != nil {
		return err
	}
	if _, err := w.run(ctx, dir, w.Scenario.Command); err != nil {
		return err
	}
	repo := filepath.Join(dir, "repo")
	if w.after, err = Inspect(repo); err != nil {
		return err
	}
	if broken := w.after.BrokenLinks(); len(broken) > 0 {
		return fmt.Errorf("%s leaves broken links: %q", w.Scenario.Name, broken)
	}
	for _, tag := range w.Scenario.Tags {
		if w.after.Refs["streams/refs/oci/"+tag] == "" {
			return fmt.Errorf("%s leaves no tag %q", w.Scenario.Name, tag)
		}
	}
	if w.want, err = repodump.Dump(repo); err != nil {
		return err
	}
	if w.objects, err = w.collect(ctx, dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// collect runs the garbage collection and returns the objects that it leaves.
// Nothing temporary may be left, and no link broken.
func (w *World) collect(ctx context.Context, dir string) ([]string, error) {
	if _, err := pipeline.GC(ctx, pipeline.GCOptions{Repo: filepath.Join(dir, "repo")}); err != nil {
		return nil, fmt.Errorf("gc: %w", err)
	}
	left, err := Inspect(filepath.Join(dir, "repo"))
	if err != nil {
		return nil, err
	}
	if wrong := append(left.BrokenLinks(), left.Leftovers...); len(wrong) > 0 {
		return nil, fmt.Errorf("gc leaves %q", wrong)
	}
	slices.Sort(left.Objects)
	return left.Objects, nil
}

// run runs cfs-pull and returns its standard output.
func (w *World) run(ctx context.Context, dir string, args []string) (string, error) {
	cmd := exec.CommandContext(ctx, w.Program, args...)
	cmd.Dir = dir
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("cfs-pull %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Copy makes a copy of the state to disturb.
func (w *World) Copy(ctx context.Context, name string) (string, error) {
	dir := filepath.Join(w.Dir, name)
	if err := unmountBelow(dir); err != nil {
		return "", err
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if out, err := exec.CommandContext(ctx, "cp", "-a", "--reflink=auto", w.base(), dir).CombinedOutput(); err != nil {
		return "", fmt.Errorf("copy the state: %w: %s", err, out)
	}
	return dir, nil
}

// Judge looks at what a disturbed command left, and at what the next one makes
// of it. Complete says that the command had come to its end. The error lists
// everything that is wrong.
func (w *World) Judge(ctx context.Context, dir string, complete bool) error {
	if err := w.judgeLeft(dir, complete); err != nil {
		return fmt.Errorf("after the disturbance: %w", err)
	}
	if w.Found != nil {
		found, err := w.fsck(ctx, dir)
		if err != nil {
			return err
		}
		for kind, n := range found.ByKind {
			w.Found[string(kind)] += n
		}
	}
	if _, err := w.run(ctx, dir, w.Scenario.Command); err != nil {
		return fmt.Errorf("the next run: %w", err)
	}
	if err := w.judgeHealed(ctx, dir); err != nil {
		return fmt.Errorf("after the next run: %w", err)
	}
	return nil
}

// fsck checks the repository, in this process because starting another takes
// longer than the check. Findings are no error.
func (w *World) fsck(ctx context.Context, dir string) (_ *oci.FsckReport, err error) {
	repo, err := composefs.Open(ctx, filepath.Join(dir, "repo"), composefs.OpenOptions{ReadOnly: true})
	if errors.Is(err, composefs.ErrNotRepository) || errors.Is(err, composefs.ErrOldFormat) {
		return &oci.FsckReport{}, nil // not yet, or not upgraded yet
	}
	if err != nil {
		return nil, fmt.Errorf("fsck: %w", err)
	}
	defer func() { err = errors.Join(err, repo.Close()) }()
	return oci.Fsck(ctx, repo, oci.FsckOptions{})
}

// leakedTemporary is the finding that no command but gc and fsck heals: others
// may be writing, so that a command cannot tell whether a file is its own.
const leakedTemporary = composefs.LeakedTemporary

// judgeLeft makes sure that what is tagged is complete and that each tag leads
// to what it led to before or to what it is to lead to.
func (w *World) judgeLeft(dir string, complete bool) error {
	got, err := Inspect(filepath.Join(dir, "repo"))
	if err != nil {
		return err
	}
	var wrong []string
	wrong = append(wrong, got.BrokenLinks()...)
	for ref, to := range got.Refs {
		if to != w.before.Refs[ref] && to != w.after.Refs[ref] {
			wrong = append(wrong, fmt.Sprintf("%s leads to %s", ref, to))
		}
	}
	for ref, to := range w.before.Refs {
		if _, there := got.Refs[ref]; !there && w.after.Refs[ref] == to {
			wrong = append(wrong, ref+" is gone")
		}
	}
	if complete && !maps.Equal(got.Refs, w.after.Refs) {
		wrong = append(wrong, fmt.Sprintf("the command was done, but the refs are %v", got.Refs))
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		return errors.New(strings.Join(wrong, "\n"))
	}
	return nil
}

// judgeHealed makes sure that the repository says what it says after an
// undisturbed run.
func (w *World) judgeHealed(ctx context.Context, dir string) error {
	found, err := w.fsck(ctx, dir)
	if err != nil {
		return err
	}
	for _, f := range found.Findings {
		if f.Kind != leakedTemporary {
			return fmt.Errorf("fsck finds %v", found.Findings)
		}
	}
	repo := filepath.Join(dir, "repo")
	healed, err := Inspect(repo)
	if err != nil {
		return err
	}
	if broken := healed.BrokenLinks(); len(broken) > 0 {
		return errors.New(strings.Join(broken, "\n"))
	}
	got, err := repodump.Dump(repo)
	if err != nil {
		return err
	}
	if diff := cmp.Diff(w.want, got); diff != "" {
		return fmt.Errorf("the repository differs from that of an undisturbed run (-want +got):\n%s", diff)
	}
	objects, err := w.collect(ctx, dir)
	if err != nil {
		return err
	}
	if diff := cmp.Diff(w.objects, objects); diff != "" {
		return fmt.Errorf("after gc the objects differ from those of an undisturbed run (-want +got):\n%s", diff)
	}
	return nil
}

// unmountBelow unmounts what a killed command left mounted below a directory:
// the storage library tries out overlays in a store.
func unmountBelow(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	// The last mount first, which may lie in one before it.
	lines := strings.Split(strings.TrimSpace(string(mounts)), "\n")
	for _, line := range slices.Backward(lines) {
		fields := strings.Fields(line)
		if len(fields) < 5 || !strings.HasPrefix(fields[4], dir+"/") {
			continue
		}
		if err := unix.Unmount(fields[4], unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", fields[4], err)
		}
	}
	return nil
}
