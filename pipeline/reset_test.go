// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/bootc"
	"github.com/cfs-pull/cfs-pull/composefs/mount"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/loopfs"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

// resetOptions make a repository with images of format 2.
func (s *bootcSystem) resetOptions() pipeline.ResetOptions {
	return pipeline.ResetOptions{
		InitOptions: composefs.InitOptions{
			AllowMissingVerity: true, Formats: composefs.FormatConfig{Default: erofs.V2}, LockTimeout: -1,
		},
		Bootc: s.bootc(),
	}
}

// A reset does not keep a system from booting, unless that is insisted on.
func TestResetSparesDeployments(t *testing.T) {
	const image = "layers"
	tests := map[string]struct {
		arrange func(*testing.T, *bootcSystem)
		want    error // nil: what is there is removed
		number  int   // of deployments, with a NeededError
	}{
		"no deployments": {arrange: func(*testing.T, *bootcSystem) {}},
		"a deployment": {
			arrange: func(t *testing.T, s *bootcSystem) { s.deploy(t, image, s.origin(image)) }, number: 1,
		},
		"deployments that do not say what they were made of": {
			arrange: func(t *testing.T, s *bootcSystem) { s.deploy(t, image, oldOrigin); s.deploy(t, "selinux", "") }, number: 2,
		},
		"a deployment whose image has no link": {
			arrange: func(t *testing.T, s *bootcSystem) {
				s.deploy(t, image, s.origin(image))
				if err := os.Remove(filepath.Join(s.repo, "images", s.images[image].BootImageID)); err != nil {
					t.Fatal(err)
				}
			},
			number: 1,
		},
		"the running system": {
			arrange: func(t *testing.T, s *bootcSystem) {
				writeFile(t, s.cmdline, "quiet composefs="+s.images[image].BootImageID+"\n")
			},
			number: 1,
		},
		"a deployment of another repository": {
			arrange: func(t *testing.T, s *bootcSystem) {
				writeFile(t, filepath.Join(s.root, "state/deploy", strings.Repeat("ab", 64), "etc/x"), "")
			},
		},
		"what cannot be told": {
			arrange: func(t *testing.T, s *bootcSystem) { writeFile(t, filepath.Join(s.root, "state/deploy/backup/x"), "") },
			want:    bootc.ErrState,
		},
	}
	for name, tt := range tests {
		for _, force := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/force %t", name, force), func(t *testing.T) {
				t.Parallel()
				s := newBootcSystem(t)
				tt.arrange(t, s)
				before := s.tags(t)
				o := s.resetOptions()
				o.Force = force
				removed, err := pipeline.Reset(t.Context(), s.repo, o)
				if force || (tt.want == nil && tt.number == 0) {
					if err != nil {
						t.Fatal(err)
					}
					if removed.Refs < len(vectorImages) || removed.Streams == 0 || removed.Images == 0 || !removed.Objects {
						t.Errorf("removed %+v", removed)
					}
					return
				}
				needed, ok := errors.AsType[*pipeline.NeededError](err)
				if ok != (tt.number > 0) || ok && len(needed.Deployed) != tt.number || tt.want != nil && !errors.Is(err, tt.want) {
					t.Errorf("error %v", err)
				}
				if !strings.Contains(fmt.Sprint(err), "nothing was removed") {
					t.Errorf("the message does not say that nothing was removed: %v", err)
				}
				if after := s.tags(t); len(after) != len(before) {
					t.Errorf("tags %v, before %v", after, before)
				}
			})
		}
	}
}

// An image that is mounted keeps its links, without which gc would remove its
// files. Mounts of other repositories do not matter.
func TestResetSparesMounted(t *testing.T) {
	testutil.RequireRoot(t)
	s, other := newBootcSystem(t), newBootcSystem(t)
	repo, err := composefs.Open(t.Context(), s.repo, composefs.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	id, err := fsverity.ParseDigest(s.images["layers"].BootImageID)
	if err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	if err := errors.Join(mount.Image(repo, id, target, mount.Options{}), repo.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = pipeline.Reset(t.Context(), s.repo, s.resetOptions())
	_, otherErr := pipeline.Reset(t.Context(), other.repo, other.resetOptions())
	loopfs.Unmount(t, target)
	if needed, ok := errors.AsType[*pipeline.NeededError](err); !ok || !slices.Equal(needed.Mounted, []fsverity.Digest{id}) {
		t.Errorf("error %v", err)
	}
	if otherErr != nil {
		t.Errorf("another repository: %v", otherErr)
	}
	if _, err := pipeline.Reset(t.Context(), s.repo, s.resetOptions()); err != nil {
		t.Errorf("after unmounting: %v", err)
	}
}

// A reset waits for whole operations and for others that use the repository,
// and leaves neither lock behind.
func TestResetTakesLocks(t *testing.T) {
	s := newBootcSystem(t)
	for _, path := range []string{filepath.Join(s.repo, "bootc", ".cfs-pull.lock"), s.repo} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
			t.Fatal(err)
		}
		if _, err := pipeline.Reset(t.Context(), s.repo, s.resetOptions()); !errors.Is(err, composefs.ErrLocked) {
			t.Errorf("%s is locked: %v", path, err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := pipeline.Reset(t.Context(), s.repo, s.resetOptions()); err != nil {
			t.Fatal(err)
		}
	}
}

// Where there is no repository there is nothing to reset.
func TestResetCreates(t *testing.T) {
	o := pipeline.ResetOptions{InitOptions: composefs.InitOptions{AllowMissingVerity: true}}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "foreign", "file"), "text")
	for _, name := range []string{"new", "foreign"} {
		path := filepath.Join(dir, name)
		if removed, err := pipeline.Reset(t.Context(), path, o); err != nil || removed != nil {
			t.Errorf("%s: removed %+v, error %v", name, removed, err)
		}
		if _, err := os.Stat(filepath.Join(path, "meta.json")); err != nil {
			t.Error(err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(dir, "foreign", "file")); err != nil || string(text) != "text" {
		t.Errorf("the foreign file is %q, %v", text, err)
	}

	writeFile(t, filepath.Join(dir, "music", "streams", "file"), "text")
	if _, err := pipeline.Reset(t.Context(), filepath.Join(dir, "music"), o); !errors.Is(err, composefs.ErrNotRepository) {
		t.Errorf("other streams: %v", err)
	}
	for _, name := range []string{"meta.json", "bootc"} {
		if _, err := os.Stat(filepath.Join(dir, "music", name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s was made: %v", name, err)
		}
	}
}
