// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// filledRepo is a closed repository with three refs, three streams and an image,
// beside which somebody keeps files of his own.
func filledRepo(tb testing.TB, v verity, o InitOptions) string {
	tb.Helper()
	path := newRepoPath(tb, v, o)
	r := check(open(tb.Context(), path, OpenOptions{}, v))(tb)
	file := putObject(tb, r, "file")
	image := putImage(tb, r, erofs.V1, file)
	layer := putStream(tb, r, "layer", nil, file)
	config := putStream(tb, r, "config", named{{Name: ImageRefPrefix, ID: image}, {Name: "layer", ID: layer}})
	putStream(tb, r, "manifest", named{{Name: "config", ID: config}})
	must(tb, r.SetStreamRef("oci/example.com%2Fos:latest", "manifest"))
	must(tb, r.SetStreamRef("some/where/else", "layer"))
	must(tb, r.SetImageRef("image", image))
	must(tb, r.Close())
	must(tb, os.MkdirAll(path+"/bootc/storage", 0o755))
	must(tb, os.WriteFile(path+"/bootc/storage/file", nil, 0o644))
	must(tb, os.WriteFile(path+"/notes", nil, 0o644))
	must(tb, os.Mkdir(path+"/links", 0o755))
	must(tb, os.Symlink("../notes", path+"/links/notes"))
	return path
}

// everything is contents and the text of meta.json, if it is a file.
func everything(tb testing.TB, root string) map[string]string {
	tb.Helper()
	out := contents(tb, root)
	if info, err := os.Lstat(root + "/meta.json"); err == nil && info.Mode().IsRegular() {
		out["meta.json"] = string(check(os.ReadFile(root + "/meta.json"))(tb))
	}
	return out
}

// isLink reports whether a name in a repository is below streams/ or images/.
func isLink(name string) bool {
	return strings.HasPrefix(name, "streams/") || strings.HasPrefix(name, "images/")
}

func TestReset(t *testing.T) {
	kernel := testVerity(t)
	insecure := InitOptions{AllowMissingVerity: true}
	v2 := InitOptions{AllowMissingVerity: true, Formats: FormatConfig{Default: erofs.V2}}
	all := ResetResult{Refs: 3, Streams: 3, Images: 1, Objects: true}
	unprotected := all
	unprotected.Unprotected = true
	replaceMeta := func(text string) func(testing.TB, string) {
		return func(tb testing.TB, path string) {
			must(tb, os.Remove(path+"/meta.json"))
			must(tb, os.WriteFile(path+"/meta.json", []byte(text), 0o644))
		}
	}
	removeMeta := func(tb testing.TB, path string) { must(tb, os.Remove(path+"/meta.json")) }
	tests := []struct {
		name   string
		kernel verity
		before InitOptions
		change func(testing.TB, string)
		reset  ResetOptions
		secure bool
		want   ResetResult
	}{
		{name: "another format", kernel: noVerity(), before: insecure, reset: ResetOptions{InitOptions: v2}, want: all},
		{name: "the same settings", kernel: noVerity(), before: insecure, reset: ResetOptions{InitOptions: insecure}, want: all},
		{name: "secure stays secure", kernel: kernel, secure: true, want: all},
		{name: "insecure with fs-verity becomes secure", kernel: kernel, before: insecure, secure: true, want: all},
		{
			name: "secure becomes insecure", kernel: kernel,
			reset: ResetOptions{InitOptions: insecure, Force: true}, want: all,
		},
		{
			name: "SHA-256", kernel: noVerity(), before: InitOptions{AllowMissingVerity: true, Algorithm: fsverity.SHA256},
			reset: ResetOptions{InitOptions: InitOptions{AllowMissingVerity: true, Algorithm: fsverity.SHA256}}, want: all,
		},
		{
			name: "another algorithm without objects", kernel: noVerity(), before: InitOptions{AllowMissingVerity: true, Algorithm: fsverity.SHA256},
			change: func(tb testing.TB, path string) { must(tb, os.RemoveAll(path+"/objects")) },
			reset:  ResetOptions{InitOptions: insecure}, want: ResetResult{Refs: 3, Streams: 3, Images: 1},
		},
		{name: "old format", kernel: noVerity(), before: insecure, change: removeMeta, reset: ResetOptions{InitOptions: v2}, want: all},
		{name: "old format with fs-verity", kernel: kernel, before: insecure, change: removeMeta, secure: true, want: all},
		{name: "empty meta.json", kernel: noVerity(), before: insecure, change: replaceMeta(""), reset: ResetOptions{InitOptions: v2}, want: all},
		{
			name: "meta.json of zeros", kernel: noVerity(), before: insecure, change: replaceMeta(strings.Repeat("\x00", 250)),
			reset: ResetOptions{InitOptions: insecure}, want: all,
		},
		{
			name: "no links", kernel: noVerity(), before: insecure,
			change: func(tb testing.TB, path string) {
				must(tb, errors.Join(os.RemoveAll(path+"/streams"), os.RemoveAll(path+"/images")))
			},
			reset: ResetOptions{InitOptions: insecure}, want: ResetResult{Objects: true},
		},
	}
	for _, tt := range tests {
		for _, tmpfile := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/tmpfile=%t", tt.name, tmpfile), func(t *testing.T) {
				path := filledRepo(t, tt.kernel, tt.before)
				if tt.change != nil {
					tt.change(t, path)
				}
				must(t, os.Chmod(path, 0o711))
				want := contents(t, path)
				maps.DeleteFunc(want, func(name, _ string) bool { return isLink(name) })
				o := tt.reset
				must(t, o.complete())
				want["meta.json"] = string(check(NewMeta(o.Algorithm, o.Formats).Encode())(t))

				got := check(resetWith(t.Context(), path, o, tt.kernel, tmpfile))(t)
				if diff := cmp.Diff(&tt.want, got); diff != "" {
					t.Errorf("result (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(want, everything(t, path)); diff != "" {
					t.Errorf("after the reset (-want +got):\n%s", diff)
				}
				for _, dir := range []string{"streams", "images"} {
					if _, err := os.Lstat(filepath.Join(path, dir)); !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("%s: %v", dir, err)
					}
				}
				if info := check(os.Stat(path))(t); info.Mode().Perm() != 0o711 {
					t.Errorf("the directory has mode %s now", info.Mode())
				}
				if !granted(t, foreign(t, path), unix.LOCK_EX) {
					t.Error("a lock is left")
				}
				r := openRepo(t, path, tt.kernel, OpenOptions{})
				if r.Secure() != tt.secure || r.Algorithm() != o.Algorithm {
					t.Errorf("secure %t, %s", r.Secure(), r.Algorithm())
				}
				collect(t, r, GCOptions{})
				for _, name := range files(t, path) {
					if strings.HasPrefix(name, "objects/") {
						t.Errorf("garbage collection left %s", name)
					}
				}
			})
		}
	}
}

// resetWith is reset with or without files that have no name.
func resetWith(ctx context.Context, path string, o ResetOptions, v verity, tmpfile bool) (_ *ResetResult, err error) {
	if tmpfile {
		return reset(ctx, path, o, v)
	}
	if err := o.complete(); err != nil {
		return nil, err
	}
	r, err := openLocked(ctx, path, -1, v)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	r.noTmpfile.Store(true)
	return r.reset(ctx, o)
}

// Objects that were stored without fs-verity are broken in a repository that
// requires it. A pull stores them again, a repair gives it to them.
func TestResetToSecure(t *testing.T) {
	kernel := testVerity(t)
	path := newRepoPath(t, noVerity(), InitOptions{AllowMissingVerity: true})
	r := check(open(t.Context(), path, OpenOptions{}, noVerity()))(t)
	pulled, repaired := putObject(t, r, "pulled"), putObject(t, r, "repaired")
	must(t, r.Close())

	got := check(reset(t.Context(), path, ResetOptions{}, kernel))(t)
	if !got.Unprotected || !got.Objects {
		t.Errorf("result %+v", got)
	}
	r = openRepo(t, path, kernel, OpenOptions{})
	if !r.Enforcing() {
		t.Fatal("fs-verity is not required")
	}
	for _, id := range []fsverity.Digest{pulled, repaired} {
		if ok := check(r.HasObject(id, -1))(t); ok {
			t.Errorf("object %s counts without fs-verity", id)
		}
	}
	if _, o, err := r.Put([]byte("the content of object pulled")); err != nil || o != Stored {
		t.Errorf("pulled again: %s, %v", o, err)
	}
	must(t, r.seal(repaired))
	for _, id := range []fsverity.Digest{pulled, repaired} {
		if ok := check(r.HasObject(id, -1))(t); !ok {
			t.Errorf("object %s is still broken", id)
		}
	}
}

// What is refused changes nothing.
func TestResetRefuses(t *testing.T) {
	kernel := testVerity(t)
	insecure := ResetOptions{InitOptions: InitOptions{AllowMissingVerity: true}}
	outside := t.TempDir()
	must(t, os.Symlink("x", outside+"/link"))
	put := func(name, text string) func(testing.TB, string) {
		return func(tb testing.TB, path string) {
			must(tb, os.WriteFile(filepath.Join(path, name), []byte(text), 0o644))
		}
	}
	replace := func(name, target string) func(testing.TB, string) {
		return func(tb testing.TB, path string) {
			must(tb, os.RemoveAll(filepath.Join(path, name)))
			must(tb, os.Symlink(target, filepath.Join(path, name)))
		}
	}
	denied := errors.New("denied")
	tests := []struct {
		name   string
		kernel verity
		before InitOptions
		change func(testing.TB, string)
		reset  ResetOptions
		want   error
		says   string
	}{
		{name: "newer version", change: put("meta.json", `{"version":2,"algorithm":"fsverity-sha512-12"}`), want: ErrNewer},
		{
			name: "incompatible features", want: ErrNewer,
			change: put("meta.json", `{"version":1,"algorithm":"fsverity-sha512-12","features":{"incompatible":["shards"]}}`),
		},
		{
			name: "unknown features for writers", want: ErrReadOnly, says: "unknown features pins",
			change: put("meta.json", `{"version":1,"algorithm":"fsverity-sha512-12","features":{"read-only-compatible":["pins"]}}`),
		},
		{name: "unknown algorithm", change: put("meta.json", `{"version":1,"algorithm":"fsverity-blake3-12"}`), want: ErrMeta},
		{name: "other JSON", change: put("meta.json", `[]`), want: ErrMeta},
		{name: "meta.json is a link", change: replace("meta.json", "notes"), want: unix.ELOOP},
		{
			name: "meta.json is a directory", want: ErrMeta,
			change: func(tb testing.TB, path string) {
				must(tb, errors.Join(os.Remove(path+"/meta.json"), os.Mkdir(path+"/meta.json", 0o755)))
			},
		},
		{name: "secure becomes insecure", kernel: kernel, want: ErrSecure},
		{
			name: "secure with a damaged meta.json becomes insecure", kernel: kernel, want: ErrSecure,
			change: func(tb testing.TB, path string) {
				must(tb, os.Remove(path+"/meta.json"))
				put("meta.json", "")(tb, path)
				f := check(os.Open(path + "/meta.json"))(tb)
				defer f.Close()
				must(tb, kernel.enable(f, fsverity.SHA256))
			},
		},
		{
			name: "secure of the old format becomes insecure", kernel: kernel, want: ErrSecure,
			change: func(tb testing.TB, path string) { must(tb, os.Remove(path+"/meta.json")) },
		},
		{name: "no fs-verity", reset: ResetOptions{}, before: InitOptions{AllowMissingVerity: true}, want: ErrVerityUnavailable},
		{
			name: "another algorithm", want: ErrObjectAlgorithm, says: "they are of fsverity-sha256-12, wanted is fsverity-sha512-12",
			before: InitOptions{AllowMissingVerity: true, Algorithm: fsverity.SHA256},
		},
		{
			name: "another algorithm, old format", want: ErrObjectAlgorithm,
			before: InitOptions{AllowMissingVerity: true, Algorithm: fsverity.SHA256},
			change: func(tb testing.TB, path string) { must(tb, os.Remove(path+"/meta.json")) },
		},
		{
			name: "objects of two algorithms", want: ErrIntegrity, says: "it has objects of",
			change: func(tb testing.TB, path string) {
				for i := range 256 {
					dir := fmt.Sprintf("%s/objects/%02x", path, i)
					must(tb, os.MkdirAll(dir, 0o755))
					entries := check(os.ReadDir(dir))(tb)
					if len(entries) == 0 {
						must(tb, os.WriteFile(dir+"/"+strings.Repeat("0", 62), nil, 0o644))
					}
				}
			},
		},
		{name: "streams leads out", change: replace("streams", outside), want: ErrForeign, says: "streams is not a directory of the repository itself"},
		{name: "images leads to another directory inside", change: replace("images", "links"), want: ErrForeign},
		{name: "refs leads to another directory inside", change: replace("streams/refs", "../images"), want: ErrForeign, says: "streams/refs is not a directory"},
		{
			name: "refs is a file", want: ErrForeign,
			change: func(tb testing.TB, path string) {
				must(tb, errors.Join(os.RemoveAll(path+"/images/refs"), os.WriteFile(path+"/images/refs", nil, 0o644)))
			},
		},
		{name: "a file among streams", change: put("streams/file", ""), want: ErrForeign, says: "streams/file is not a link"},
		{
			name: "a directory among images", want: ErrForeign,
			change: func(tb testing.TB, path string) { must(tb, os.Mkdir(path+"/images/dir", 0o755)) },
		},
		{name: "a file among refs", change: put("streams/refs/some/file", ""), want: ErrForeign},
		{
			name: "a FIFO among refs", want: ErrForeign,
			change: func(tb testing.TB, path string) { must(tb, unix.Mkfifo(path+"/images/refs/fifo", 0o644)) },
		},
		{
			name: "streams leads to another directory inside", want: ErrForeign,
			change: func(tb testing.TB, path string) {
				must(tb, os.Rename(path+"/streams", path+"/moved"))
				must(tb, os.Symlink("moved", path+"/streams"))
			},
		},
		{
			name: "deep refs", want: ErrBadName,
			change: func(tb testing.TB, path string) {
				must(tb, os.MkdirAll(path+"/images/refs"+strings.Repeat("/d", maxRefDepth+1), 0o755))
			},
		},
		{
			name:  "not confirmed",
			reset: ResetOptions{InitOptions: insecure.InitOptions, Confirm: func(ResetPlan) error { return denied }}, want: denied,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := tt.kernel
			if v.probe == nil {
				v = noVerity()
				tt.before.AllowMissingVerity = true
			}
			o := tt.reset
			if o.Confirm == nil && !errors.Is(tt.want, ErrVerityUnavailable) {
				o = insecure
			}
			path := filledRepo(t, v, tt.before)
			if tt.change != nil {
				tt.change(t, path)
			}
			before := everything(t, path)
			_, err := reset(t.Context(), path, o, v)
			if !errors.Is(err, tt.want) || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("error %v, want %v and %q", err, tt.want, tt.says)
			}
			if errors.Is(err, ErrResetUnfinished) {
				t.Errorf("unfinished: %v", err)
			}
			if diff := cmp.Diff(before, everything(t, path)); diff != "" {
				t.Errorf("changed (-before +after):\n%s", diff)
			}
			if !granted(t, foreign(t, path), unix.LOCK_EX) {
				t.Error("a lock is left")
			}
		})
	}
	if _, err := os.Lstat(outside + "/link"); err != nil {
		t.Error(err)
	}
}

func TestResetElsewhere(t *testing.T) {
	o := ResetOptions{InitOptions: InitOptions{AllowMissingVerity: true}}
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/streams/refs", 0o755))
	must(t, os.Symlink("x", dir+"/streams/link"))
	before := contents(t, dir)
	other := foreign(t, dir)
	must(t, unix.Flock(int(other.Fd()), unix.LOCK_SH)) // it need not be waited for
	o.LockTimeout = -1
	if _, err := reset(t.Context(), dir, o, noVerity()); !errors.Is(err, ErrNotRepository) {
		t.Errorf("a directory: %v", err)
	}
	if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
		t.Errorf("changed (-before +after):\n%s", diff)
	}
	if _, err := reset(t.Context(), dir+"/absent", o, noVerity()); !errors.Is(err, ErrNotRepository) {
		t.Errorf("nothing: %v", err)
	}
	o.Algorithm = 9
	if _, err := reset(t.Context(), dir, o, noVerity()); err == nil || !strings.Contains(err.Error(), "algorithm 9") {
		t.Errorf("no algorithm: %v", err)
	}
}

// What is mounted in a repository is not removed from.
func TestResetMount(t *testing.T) {
	testutil.RequireRoot(t)
	o := ResetOptions{InitOptions: InitOptions{AllowMissingVerity: true}}
	path := filledRepo(t, noVerity(), o.InitOptions)
	must(t, unix.Mount("reset", path+"/images/refs", "tmpfs", 0, "size=64k"))
	defer func() { must(t, unix.Unmount(path+"/images/refs", 0)) }()
	must(t, os.Symlink("../x", path+"/images/refs/link"))
	before := everything(t, path)
	if _, err := reset(t.Context(), path, o, noVerity()); !errors.Is(err, ErrForeign) || !errors.Is(err, unix.EXDEV) {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff(before, everything(t, path)); diff != "" {
		t.Errorf("changed (-before +after):\n%s", diff)
	}
}

func TestResetPlan(t *testing.T) {
	path := filledRepo(t, noVerity(), InitOptions{AllowMissingVerity: true})
	image := strings.TrimPrefix(check(filepath.Glob(path + "/images/[0-9a-f]*"))(t)[0], path+"/images/")
	var got ResetPlan
	o := ResetOptions{InitOptions: InitOptions{AllowMissingVerity: true}, Confirm: func(p ResetPlan) error { got = p; return nil }}
	check(reset(t.Context(), path, o, noVerity()))(t)
	want := ResetPlan{Algorithm: fsverity.SHA512, Streams: []string{"config", "layer", "manifest"}, Images: []string{image}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
}

func TestResetLocks(t *testing.T) {
	o := ResetOptions{InitOptions: InitOptions{AllowMissingVerity: true, LockTimeout: -1}}
	path := filledRepo(t, noVerity(), o.InitOptions)
	before := everything(t, path)
	refused := func(want error) {
		t.Helper()
		if _, err := reset(t.Context(), path, o, noVerity()); !errors.Is(err, want) {
			t.Errorf("error %v, want %v", err, want)
		}
		if diff := cmp.Diff(before, everything(t, path)); diff != "" {
			t.Errorf("changed (-before +after):\n%s", diff)
		}
	}
	r := check(open(t.Context(), path, OpenOptions{}, noVerity()))(t)
	refused(ErrInUse)
	must(t, r.Close())

	reader := foreign(t, path)
	must(t, unix.Flock(int(reader.Fd()), unix.LOCK_SH))
	refused(ErrLocked)
	must(t, unix.Flock(int(reader.Fd()), unix.LOCK_UN))

	held := false
	o.Confirm = func(ResetPlan) error {
		held = !granted(t, reader, unix.LOCK_SH)
		return nil
	}
	check(reset(t.Context(), path, o, noVerity()))(t)
	if !held {
		t.Error("the lock was not exclusive")
	}
}

// stopping is a context that looks at the repository each time it is asked, and
// ends after some times.
type stopping struct {
	context.Context
	look func()
	left int
}

var errStopped = errors.New("stopped")

func (s *stopping) Err() error {
	s.look()
	if s.left--; s.left < 0 {
		return errStopped
	}
	return nil
}

// A reset that stops anywhere leaves no ref that leads to nothing and no stream
// that names an image without a link, and the next one finishes it.
func TestResetInterrupted(t *testing.T) {
	o := ResetOptions{InitOptions: InitOptions{AllowMissingVerity: true, Formats: FormatConfig{Default: erofs.V2}}}
	whole := filledRepo(t, noVerity(), InitOptions{AllowMissingVerity: true})
	oldMeta := everything(t, whole)["meta.json"]
	const links = 7
	for n := range links + 1 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			path := filledRepo(t, noVerity(), InitOptions{AllowMissingVerity: true})
			asked := 0
			ctx := &stopping{Context: t.Context(), left: n, look: func() {
				asked++
				consistent(t, path, oldMeta)
			}}
			got, err := resetWith(ctx, path, o, noVerity(), n%2 == 0)
			if n == links {
				must(t, err)
				if asked != links {
					t.Errorf("asked %d times", asked)
				}
				return
			}
			if wantUnfinished := n > 0; err == nil || errors.Is(err, ErrResetUnfinished) != wantUnfinished {
				t.Fatalf("error %v", err)
			}
			if sum := got.Refs + got.Streams + got.Images; sum != n {
				t.Errorf("result %+v after %d links", got, n)
			}
			consistent(t, path, oldMeta)
			for _, name := range files(t, path) {
				if strings.HasPrefix(name, ".") {
					t.Errorf("left %s", name)
				}
			}
			again := check(reset(t.Context(), path, o, noVerity()))(t)
			if sum := again.Refs + again.Streams + again.Images; sum != links-n {
				t.Errorf("the second reset removed %+v", again)
			}
			if r := openRepo(t, path, noVerity(), OpenOptions{}); r.Versions()[0] != erofs.V2 {
				t.Errorf("formats %v", r.Versions())
			}
		})
	}
}

// consistent looks at a repository in the middle of a reset.
func consistent(t *testing.T, path, meta string) {
	t.Helper()
	if links := danglingLinks(t, path); len(links) > 0 {
		t.Errorf("lead to nothing: %v", links)
	}
	if got := everything(t, path)["meta.json"]; got != meta {
		t.Errorf("meta.json is %q", got)
	}
	_, streamErr := os.Lstat(path + "/streams/config")
	images := check(filepath.Glob(path + "/images/[0-9a-f]*"))(t)
	if streamErr == nil && len(images) == 0 {
		t.Error("a stream names an image that has no link any more")
	}
}

// cfsctl finds nothing wrong with what we reset, and has the same left.
func TestCfsctlResetsTheSame(t *testing.T) {
	cfsctl := testutil.RequireCfsctl(t)
	run := func(repo string, args ...string) {
		t.Helper()
		out, err := exec.Command(cfsctl, append([]string{"--insecure", "--repo", repo}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("cfsctl %v: %v\n%s", args, err, out)
		}
	}
	ours := filledRepo(t, noVerity(), InitOptions{AllowMissingVerity: true})
	theirs := filepath.Join(t.TempDir(), "repo")
	must(t, os.CopyFS(theirs, os.DirFS(ours)))
	run(theirs, "init", "--insecure", "--reset-metadata", "--erofs-version", "2")
	o := ResetOptions{InitOptions: InitOptions{AllowMissingVerity: true, Formats: FormatConfig{Default: erofs.V2}}}
	check(reset(t.Context(), ours, o, noVerity()))(t)
	if diff := cmp.Diff(everything(t, theirs), everything(t, ours)); diff != "" {
		t.Errorf("(-cfsctl +ours):\n%s", diff)
	}
	run(ours, "fsck")
	run(ours, "gc")
	if slices.ContainsFunc(files(t, ours), func(name string) bool { return strings.HasPrefix(name, "objects/") }) {
		t.Error("cfsctl's garbage collection left objects")
	}
}
