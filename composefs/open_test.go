// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

func TestInit(t *testing.T) {
	v := testVerity(t)
	path := newRepoPath(t, v, InitOptions{})
	if info := check(os.Stat(path))(t); info.Mode() != fs.ModeDir|0o700 {
		t.Errorf("mode of the root %s", info.Mode())
	}
	if info := check(os.Stat(path + "/meta.json"))(t); info.Mode() != 0o644 || info.Size() != 219 {
		t.Errorf("meta.json has mode %s and %d bytes", info.Mode(), info.Size())
	}
	if diff := cmp.Diff([]string{"meta.json"}, files(t, path)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	r := openRepo(t, path, v, OpenOptions{})
	if !r.Secure() || !r.Enforcing() || r.Algorithm() != fsverity.SHA512 || fmt.Sprint(r.Versions()) != "[V1]" || r.Writable() != nil || r.Path() != path {
		t.Errorf("secure %t, enforcing %t, %s, %v, %v, %s", r.Secure(), r.Enforcing(), r.Algorithm(), r.Versions(), r.Writable(), r.Path())
	}

	for _, o := range []InitOptions{{}, {AllowMissingVerity: true}} {
		if created, err := create(t.Context(), path, o, v); created || err != nil {
			t.Errorf("create again: %t, %v", created, err)
		}
	}
	for _, o := range []InitOptions{{Algorithm: fsverity.SHA256}, {Formats: FormatConfig{Default: erofs.V2}}} {
		if created, err := create(t.Context(), path, o, v); created || !errors.Is(err, ErrDifferentMeta) {
			t.Errorf("create with %+v: %t, %v", o, created, err)
		}
	}
	for _, o := range []InitOptions{{Algorithm: 7}, {Formats: FormatConfig{Default: 9}}, {Formats: FormatConfig{Default: erofs.V1, Extra: []erofs.Version{3}}}} {
		if created, err := create(t.Context(), filepath.Join(t.TempDir(), "bad"), o, v); created || err == nil {
			t.Errorf("create with %+v: %t, %v", o, created, err)
		}
	}
}

func TestInitFormats(t *testing.T) {
	for want, c := range map[string]FormatConfig{
		"[V1]":    {},
		"[V0]":    {Default: erofs.V0, Extra: []erofs.Version{erofs.V0}},
		"[V2]":    {Default: erofs.V2},
		"[V1 V2]": {Default: erofs.V1, Extra: []erofs.Version{erofs.V2}},
	} {
		r := openRepo(t, newRepoPath(t, noVerity(), InitOptions{Formats: c, AllowMissingVerity: true}), noVerity(), OpenOptions{})
		if got := fmt.Sprint(r.Versions()); got != want {
			t.Errorf("%+v: formats %s, want %s", c, got, want)
		}
		if r.Secure() {
			t.Error("secure without fs-verity")
		}
	}
}

// A repository that cannot keep its promise is not made at all.
func TestInitWithoutVerity(t *testing.T) {
	path := filepath.Join(t.TempDir(), "repo")
	created, err := create(t.Context(), path, InitOptions{}, noVerity())
	if created || !errors.Is(err, ErrVerityUnavailable) {
		t.Fatalf("created %t, %v", created, err)
	}
	if got := files(t, path); got != nil {
		t.Errorf("left behind: %v", got)
	}
	must(t, os.Chmod(path, 0o755))
	if _, err := create(t.Context(), path, InitOptions{}, noVerity()); !errors.Is(err, ErrVerityUnavailable) {
		t.Errorf("second try: %v", err)
	}
	if info := check(os.Stat(path))(t); info.Mode().Perm() != 0o755 {
		t.Errorf("a directory that cannot be a repository got the mode %s", info.Mode())
	}
	if created, err := create(t.Context(), path, InitOptions{AllowMissingVerity: true}, noVerity()); !created || err != nil {
		t.Errorf("the directory cannot be used afterwards: %t, %v", created, err)
	}
	if info := check(os.Stat(path))(t); info.Mode().Perm() != 0o700 {
		t.Errorf("the repository has the mode %s", info.Mode())
	}
}

func TestInitRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "repo")
	var mu sync.Mutex
	var wg sync.WaitGroup
	count := 0
	for range 8 {
		wg.Go(func() {
			created, err := create(t.Context(), path, InitOptions{AllowMissingVerity: true}, noVerity())
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			if created {
				count++
			}
		})
	}
	wg.Wait()
	if count != 1 {
		t.Errorf("created %d times", count)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	mk := func(name string) string {
		must(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
		return filepath.Join(dir, name)
	}
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	mk("old/objects")
	bad := mk("bad")
	must(t, os.WriteFile(bad+"/meta.json", []byte("{}"), 0o600))
	link := mk("link")
	must(t, os.Symlink("../bad/meta.json", link+"/meta.json"))
	fifo := mk("dir")
	must(t, os.Mkdir(fifo+"/meta.json", 0o755))
	big := mk("big")
	must(t, os.WriteFile(big+"/meta.json", []byte(strings.Repeat(" ", maxMetaSize+1)), 0o600))

	for path, want := range map[string]error{
		"absent": ErrNotRepository, "file": ErrNotRepository, ".": ErrNotRepository,
		"old": ErrOldFormat, "bad": ErrMeta, "dir": ErrMeta, "big": ErrMeta, "link": nil,
	} {
		r, err := open(t.Context(), filepath.Join(dir, path), OpenOptions{}, noVerity())
		if err == nil {
			must(t, r.Close())
			t.Errorf("%s was opened", path)
		}
		if want != nil && !errors.Is(err, want) {
			t.Errorf("%s: error %v, want %v", path, err, want)
		}
	}
	if _, err := create(t.Context(), dir+"/old", InitOptions{}, noVerity()); !errors.Is(err, ErrOldFormat) {
		t.Errorf("create over the old format: %v", err)
	}
	if _, err := create(t.Context(), dir+"/a/b/c", InitOptions{}, noVerity()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("create below nothing: %v", err)
	}
	locks.mu.Lock()
	defer locks.mu.Unlock()
	if len(locks.held) != 0 {
		t.Errorf("locks are left: %v", locks.held)
	}
}

func TestAllowMissingVerity(t *testing.T) {
	v := testVerity(t)
	path := newRepoPath(t, v, InitOptions{})
	if r, err := open(t.Context(), path, OpenOptions{AllowMissingVerity: true}, v); !errors.Is(err, ErrSecure) {
		t.Fatalf("opened %v, %v; want %v", r, err, ErrSecure)
	}
	r := openRepo(t, path, v, OpenOptions{AllowMissingVerity: true, Force: true})
	if !r.Secure() || r.Enforcing() {
		t.Errorf("secure %t, enforcing %t", r.Secure(), r.Enforcing())
	}
	plain := newRepoPath(t, v, InitOptions{AllowMissingVerity: true})
	if r := openRepo(t, plain, v, OpenOptions{AllowMissingVerity: true}); r.Secure() {
		t.Error("secure without fs-verity on meta.json")
	}
}

// meta.json with the fs-verity of another algorithm is neither secure nor not.
func TestMetaWithOtherAlgorithm(t *testing.T) {
	v := testVerity(t)
	path := newRepoPath(t, v, InitOptions{AllowMissingVerity: true})
	f := check(os.Open(path + "/meta.json"))(t)
	defer f.Close()
	must(t, v.enable(f, fsverity.SHA256))
	if _, err := open(t.Context(), path, OpenOptions{}, v); !errors.Is(err, fsverity.ErrOtherAlgorithm) {
		t.Errorf("error %v, want %v", err, fsverity.ErrOtherAlgorithm)
	}
}

func TestReadOnly(t *testing.T) {
	path := newRepoPath(t, noVerity(), InitOptions{AllowMissingVerity: true})
	rw := check(open(t.Context(), path, OpenOptions{}, noVerity()))(t)
	id, _, err := rw.Put([]byte("content"))
	must(t, err)
	must(t, rw.Close())

	option := openRepo(t, path, noVerity(), OpenOptions{ReadOnly: true})
	meta := check(os.ReadFile(path + "/meta.json"))(t)
	must(t, os.WriteFile(path+"/meta.json", []byte(strings.Replace(string(meta), `"v1_erofs"`, `"v1_erofs", "new-index"`, 1)), 0o644))
	feature := openRepo(t, path, noVerity(), OpenOptions{})
	if err := feature.Writable(); err == nil || !strings.Contains(err.Error(), "new-index") {
		t.Errorf("the feature is not named: %v", err)
	}
	for name, r := range map[string]*Repo{"option": option, "feature": feature} {
		if got := readObject(t, r, id); got != "content" {
			t.Errorf("%s: read %q", name, got)
		}
		_, putErr := r.PutID(id, []byte("content"))
		_, tempErr := r.CreateTemp()
		_, streamErr := r.WriteStream(0, nil)
		_, onceErr := r.LinkStreamOnce("x", id, 0)
		_, exErr := r.LockExclusive(t.Context(), 0)
		for i, err := range []error{
			putErr, tempErr, streamErr, onceErr, exErr, r.LinkStream("x", id), r.LinkImage(id),
			r.SetStreamRef("x", "y"), r.RemoveStreamRef("x"), r.SetImageRef("x", id), r.RemoveImageRef("x"),
		} {
			if !errors.Is(err, ErrReadOnly) {
				t.Errorf("%s: write %d: %v", name, i, err)
			}
		}
	}
	if got := files(t, path); len(got) != 2 {
		t.Errorf("files %v", got)
	}
}

func TestCheckVerity(t *testing.T) {
	v := testVerity(t)
	path := newRepoPath(t, v, InitOptions{})
	must(t, openRepo(t, path, v, OpenOptions{}).CheckVerity())

	v.probe = noVerity().probe
	err := openRepo(t, path, v, OpenOptions{}).CheckVerity()
	if !errors.Is(err, ErrVerityUnavailable) || !errors.Is(err, fsverity.ErrNotSupported) {
		t.Errorf("error %v, want %v", err, ErrVerityUnavailable)
	}
	must(t, insecureRepo(t).CheckVerity())
}

func TestClose(t *testing.T) {
	r := check(open(t.Context(), newRepoPath(t, noVerity(), InitOptions{AllowMissingVerity: true}), OpenOptions{}, noVerity()))(t)
	id, err := r.WriteStream(0, fillNothing)
	must(t, err)
	tmp := check(r.CreateTemp())(t)
	s := check(r.OpenStream(id, 0))(t)
	if err := r.Close(); !errors.Is(err, ErrInUse) {
		t.Errorf("close with a file and a stream open: %v", err)
	}
	must(t, r.Close())
	must(t, s.Close())
	must(t, s.Close())
	tmp.Discard()
	if _, _, err := r.Put([]byte("x")); !errors.Is(err, ErrClosed) {
		t.Errorf("put after close: %v", err)
	}
	if _, err := r.Commit(tmp, id); !errors.Is(err, ErrClosed) {
		t.Errorf("commit after close: %v", err)
	}
	if err := r.SyncFS(); !errors.Is(err, ErrClosed) {
		t.Errorf("sync after close: %v", err)
	}
}

// Close must not pull descriptors away from calls that run.
func TestCloseWhileBusy(t *testing.T) {
	path := newRepoPath(t, noVerity(), InitOptions{AllowMissingVerity: true})
	for range 20 {
		r := check(open(t.Context(), path, OpenOptions{}, noVerity()))(t)
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				for i := range 1000 {
					if _, _, err := r.Put(fmt.Appendf(nil, "%d %d", g, i)); err != nil {
						if !errors.Is(err, ErrClosed) {
							t.Error(err)
						}
						return
					}
				}
			})
		}
		time.Sleep(time.Millisecond)
		must(t, r.Close())
		wg.Wait()
	}
}
