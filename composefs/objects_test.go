// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// variants are the ways a file system can be.
var variants = map[string]func(testing.TB) *Repo{
	"no verity": insecureRepo,
	"secure":    secureRepo,
	"verity not required": func(tb testing.TB) *Repo {
		v := testVerity(tb)
		return openRepo(tb, newRepoPath(tb, v, InitOptions{AllowMissingVerity: true}), v, OpenOptions{})
	},
	"no files without a name": func(tb testing.TB) *Repo {
		r := insecureRepo(tb)
		r.noTmpfile.Store(true)
		return r
	},
	"secure, no files without a name": func(tb testing.TB) *Repo {
		r := secureRepo(tb)
		r.noTmpfile.Store(true)
		return r
	},
	"no privilege to link descriptors": func(tb testing.TB) *Repo {
		r := insecureRepo(tb)
		r.noEmptyPath.Store(true)
		return r
	},
}

func eachVariant(t *testing.T, f func(*testing.T, *Repo)) {
	t.Helper()
	for name, newRepo := range variants {
		t.Run(name, func(t *testing.T) { f(t, newRepo(t)) })
	}
}

// put stores content through a Temp.
func put(tb testing.TB, r *Repo, content string) (fsverity.Digest, Outcome, error) {
	tb.Helper()
	tmp := check(r.CreateTemp())(tb)
	if _, err := tmp.File().WriteString(content); err != nil {
		tb.Fatal(err)
	}
	id := fsverity.Sum(r.Algorithm(), []byte(content))
	o, err := r.Commit(tmp, id)
	return id, o, err
}

func TestObjects(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *Repo) {
		want := []string{"meta.json"}
		for i, content := range []string{"", "a", "hello world", strings.Repeat("0123456789abcdef", 10000)} {
			id := fsverity.Sum(r.Algorithm(), []byte(content))
			if ok, err := r.HasObject(id, -1); ok || err != nil {
				t.Errorf("has %t, %v", ok, err)
			}
			if _, err := r.OpenObject(id); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("open: %v", err)
			}
			first := func() (fsverity.Digest, Outcome, error) { return r.Put([]byte(content)) }
			second := func() (fsverity.Digest, Outcome, error) { return put(t, r, content) }
			if i%2 == 1 {
				first, second = second, first
			}
			if got, o, err := first(); got != id || o != Stored || err != nil {
				t.Fatalf("store: %s, %s, %v", got, o, err)
			}
			if got, o, err := second(); got != id || o != Present || err != nil {
				t.Errorf("store again: %s, %s, %v", got, o, err)
			}
			for size, want := range map[int64]bool{-1: true, int64(len(content)): true, int64(len(content)) + 1: false} {
				if ok, err := r.HasObject(id, size); ok != want || err != nil {
					t.Errorf("has %d bytes: %t, %v", size, ok, err)
				}
			}
			if got := readObject(t, r, id); got != content {
				t.Errorf("read %d bytes, want %d", len(got), len(content))
			}
			info := check(os.Lstat(objectPath(r, id)))(t)
			if info.Mode() != 0o644 {
				t.Errorf("mode %s", info.Mode())
			}
			if info := check(os.Lstat(filepath.Dir(objectPath(r, id))))(t); info.Mode() != fs.ModeDir|0o755 {
				t.Errorf("mode of the directory %s", info.Mode())
			}
			want = append(want, "objects/"+id.ObjectPath())
		}
		got := files(t, r.Path())
		if len(got) != len(want) {
			t.Errorf("files %v, want %v", got, want)
		}
		_, _, err := r.Put([]byte("more"))
		must(t, err)
		if f, err := r.OpenObject(fsverity.Sum(fsverity.SHA256, nil)); !errors.Is(err, ErrIntegrity) {
			t.Errorf("digest of another algorithm: %v, %v", f, err)
		}
		if _, err := r.PutID(fsverity.Digest{}, nil); !errors.Is(err, ErrIntegrity) {
			t.Errorf("no digest: %v", err)
		}
	})
}

// A digest that is not the content's does not become an object where the
// kernel can tell.
func TestWrongDigest(t *testing.T) {
	for _, name := range []string{"secure", "verity not required", "secure, no files without a name"} {
		t.Run(name, func(t *testing.T) {
			r := variants[name](t)
			wrong := fsverity.Sum(r.Algorithm(), []byte("other"))
			if _, err := r.PutID(wrong, []byte("content")); !errors.Is(err, ErrIntegrity) {
				t.Errorf("put: %v", err)
			}
			tmp := check(r.CreateTemp())(t)
			tmp.File().WriteString("content")
			if _, err := r.Commit(tmp, wrong); !errors.Is(err, ErrIntegrity) {
				t.Errorf("commit: %v", err)
			}
			if got := files(t, r.Path()); len(got) != 1 {
				t.Errorf("left behind: %v", got)
			}
		})
	}
	t.Run("empty", func(t *testing.T) {
		r := insecureRepo(t)
		if _, err := r.Commit(check(r.CreateTemp())(t), fsverity.Sum(r.Algorithm(), []byte("x"))); !errors.Is(err, ErrIntegrity) {
			t.Errorf("commit of nothing: %v", err)
		}
	})
}

func TestVerityFailsLate(t *testing.T) {
	v := testVerity(t)
	path := newRepoPath(t, v, InitOptions{})
	v.enable = noVerity().enable
	r := openRepo(t, path, v, OpenOptions{})
	if _, _, err := r.Put([]byte("x")); !errors.Is(err, ErrVerityUnavailable) {
		t.Errorf("put: %v", err)
	}
	v.enable = func(*os.File, fsverity.Algorithm) error { return unix.EIO }
	r = openRepo(t, newRepoPath(t, v, InitOptions{AllowMissingVerity: true}), v, OpenOptions{})
	if _, _, err := r.Put([]byte("x")); !errors.Is(err, unix.EIO) {
		t.Errorf("put: %v", err)
	}
	if got := files(t, r.Path()); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
}

// What a crash, a disk or an attacker may leave in an object's place is
// replaced, not adopted.
func TestBrokenObjects(t *testing.T) {
	const content = "the right content of this object"
	breakages := map[string]struct {
		f      func(tb testing.TB, r *Repo, path string)
		secure bool // only found out where fs-verity is required
	}{
		"empty":           {f: func(tb testing.TB, _ *Repo, path string) { must(tb, os.WriteFile(path, nil, 0o644)) }},
		"short":           {f: func(tb testing.TB, _ *Repo, path string) { must(tb, os.WriteFile(path, []byte("the right"), 0o644)) }},
		"long":            {f: func(tb testing.TB, _ *Repo, path string) { must(tb, os.WriteFile(path, []byte(content+"x"), 0o644)) }},
		"link":            {f: func(tb testing.TB, _ *Repo, path string) { must(tb, os.Symlink("/etc/hostname", path)) }},
		"link to nothing": {f: func(tb testing.TB, _ *Repo, path string) { must(tb, os.Symlink("nothing", path)) }},
		"fifo":            {f: func(tb testing.TB, _ *Repo, path string) { must(tb, unix.Mkfifo(path, 0o644)) }},
		"without verity": {secure: true, f: func(tb testing.TB, _ *Repo, path string) {
			must(tb, os.WriteFile(path, []byte(content), 0o644))
		}},
		"other content": {secure: true, f: func(tb testing.TB, r *Repo, path string) {
			must(tb, os.WriteFile(path, []byte(strings.ToUpper(content)), 0o644))
			f := check(os.Open(path))(tb)
			defer f.Close()
			must(tb, r.verity.enable(f, r.Algorithm()))
		}},
		"other algorithm": {secure: true, f: func(tb testing.TB, r *Repo, path string) {
			must(tb, os.WriteFile(path, []byte(content), 0o644))
			f := check(os.Open(path))(tb)
			defer f.Close()
			must(tb, r.verity.enable(f, fsverity.SHA256))
		}},
	}
	eachVariant(t, func(t *testing.T, r *Repo) {
		id := fsverity.Sum(r.Algorithm(), []byte(content))
		path := objectPath(r, id)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		for name, b := range breakages {
			if b.secure && !r.Enforcing() {
				continue
			}
			for _, store := range []func() (fsverity.Digest, Outcome, error){
				func() (fsverity.Digest, Outcome, error) { return r.Put([]byte(content)) },
				func() (fsverity.Digest, Outcome, error) { return put(t, r, content) },
			} {
				if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
				b.f(t, r, path)
				if ok, err := r.HasObject(id, int64(len(content))); ok || err != nil {
					t.Errorf("%s: has %t, %v", name, ok, err)
				}
				if name != "short" && name != "long" || r.Enforcing() { // the size is not known when opening
					if f, err := r.OpenObject(id); !errors.Is(err, ErrIntegrity) {
						t.Errorf("%s: open: %v, %v", name, f, err)
					}
				}
				if _, o, err := store(); o != Stored || err != nil {
					t.Errorf("%s: store: %s, %v", name, o, err)
				}
				if got := readObject(t, r, id); got != content {
					t.Errorf("%s: read %q", name, got)
				}
				if !r.Unflushed() {
					t.Errorf("%s: what was stored counts as flushed", name)
				}
				must(t, r.SyncFS())
				if _, o, err := store(); o != Present || err != nil || r.Unflushed() {
					t.Errorf("%s: store again: %s, %v, unflushed %t", name, o, err, r.Unflushed())
				}
				if got := files(t, r.Path()); len(got) != 2 {
					t.Errorf("%s: files %v", name, got)
				}
			}
		}
		// A directory cannot be replaced by a file; nothing is left behind.
		must(t, os.Remove(path))
		must(t, os.Mkdir(path, 0o755))
		if _, _, err := r.Put([]byte(content)); err == nil {
			t.Error("stored over a directory")
		}
		if got := files(t, r.Path()); len(got) != 1 {
			t.Errorf("files %v", got)
		}
	})
}

// An object of verity in a repository that does not require it must match.
func TestOptionalVerityMustMatch(t *testing.T) {
	r := variants["verity not required"](t)
	id := fsverity.Sum(r.Algorithm(), []byte("content"))
	must(t, os.MkdirAll(filepath.Dir(objectPath(r, id)), 0o755))
	must(t, os.WriteFile(objectPath(r, id), []byte("CONTENT"), 0o644))
	if f, err := r.OpenObject(id); err != nil {
		t.Errorf("without fs-verity: %v", err)
	} else {
		defer f.Close()
		must(t, r.verity.enable(f, r.Algorithm()))
	}
	if _, err := r.OpenObject(id); !errors.Is(err, ErrIntegrity) {
		t.Errorf("with the fs-verity of something else: %v", err)
	}
}

// Nothing outside the repository is reached through directories and links.
func TestEscape(t *testing.T) {
	r := insecureRepo(t)
	outside := t.TempDir()
	id := fsverity.Sum(r.Algorithm(), []byte("secret"))
	hh, rest, _ := strings.Cut(id.ObjectPath(), "/")
	must(t, os.WriteFile(filepath.Join(outside, rest), []byte("secret"), 0o644))
	must(t, os.Mkdir(r.Path()+"/objects", 0o755))
	must(t, os.Symlink(outside, r.Path()+"/objects/"+hh))
	must(t, os.Symlink(outside, r.Path()+"/streams"))
	must(t, os.Symlink("../../../../../../../../"+outside, r.Path()+"/images"))
	before := files(t, outside)

	_, hasErr := r.HasObject(id, -1)
	_, openErr := r.OpenObject(id)
	_, putErr := r.PutID(id, []byte("secret"))
	_, idErr := r.StreamID("x")
	_, refsErr := r.StreamRefs("")
	_, namesErr := r.StreamNames()
	for i, err := range []error{hasErr, openErr, putErr, idErr, refsErr, namesErr, r.LinkStream("x", id), r.LinkImage(id)} {
		if !errors.Is(err, unix.EXDEV) {
			t.Errorf("access %d: %v, want %v", i, err, unix.EXDEV)
		}
	}
	if diff := cmp.Diff(before, files(t, outside)); diff != "" {
		t.Errorf("outside (-before +after):\n%s", diff)
	}
}

// rounds is how often a test that races does it: less in an emulated machine.
func rounds() int {
	if testing.Short() {
		return 30
	}
	return 100
}

func TestConcurrentPut(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *Repo) {
		const writers = 8
		objects := rounds()
		var stored atomic.Int64
		var wg sync.WaitGroup
		for g := range writers {
			wg.Go(func() {
				for i := range objects {
					content := fmt.Sprintf("object %d", i)
					var o Outcome
					var err error
					if (g+i)%2 == 0 {
						_, o, err = r.Put([]byte(content))
					} else {
						_, o, err = put(t, r, content)
					}
					if err != nil {
						t.Error(err)
						return
					}
					if o == Stored {
						stored.Add(1)
					}
				}
			})
		}
		wg.Wait()
		if stored.Load() != int64(objects) {
			t.Errorf("stored %d times, want %d", stored.Load(), objects)
		}
		if got := files(t, r.Path()); len(got) != objects+1 {
			t.Errorf("%d files, want %d", len(got), objects+1)
		}
	})
}

// Children of a fork have the descriptors of files that are being written
// until the kernel closes them during exec. The stand-in for the kernel
// notices with a lease, and does not try again by itself.
func TestStoreWhileForking(t *testing.T) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					if err := exec.Command("/bin/true").Run(); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	defer wg.Wait()
	defer close(done)

	t.Run("small", func(t *testing.T) { // no child ever has them
		r := secureRepo(t)
		for i := range rounds() {
			_, _, err := r.Put(fmt.Appendf(nil, "object %d", i))
			must(t, err)
		}
	})
	t.Run("slow", func(t *testing.T) { // like fsverity.Enable, with time to try again
		v := testVerity(t)
		once := v.enable
		v.enable = func(f *os.File, alg fsverity.Algorithm) error {
			for delay := time.Millisecond; ; delay *= 2 {
				if err := once(f, alg); !errors.Is(err, fsverity.ErrBusy) || delay > 4*time.Second {
					return err
				}
				time.Sleep(delay)
			}
		}
		r := openRepo(t, newRepoPath(t, v, InitOptions{}), v, OpenOptions{})
		for i := range rounds() {
			_, _, err := put(t, r, fmt.Sprint("object ", i))
			must(t, err)
		}
	})
}

// Directories that another program removed, as re-initialising does, are made
// again.
func TestDirectoriesRemoved(t *testing.T) {
	for _, tmpfile := range []bool{true, false} {
		r := insecureRepo(t)
		r.noTmpfile.Store(!tmpfile)
		for i := range 3 {
			for _, content := range []string{"a", "b"} {
				if _, o, err := r.Put([]byte(content)); o != Stored || err != nil {
					t.Errorf("round %d: %s, %v", i, o, err)
				}
			}
			if _, o, err := put(t, r, "c"); o != Stored || err != nil {
				t.Errorf("round %d: %s, %v", i, o, err)
			}
			must(t, os.RemoveAll(r.Path()+"/objects"))
			// What was stored is gone, so that no link may lead to it, and
			// none that does is a success.
			if err := r.SyncFS(); !errors.Is(err, ErrObjectsRemoved) {
				t.Errorf("round %d: %v", i, err)
			}
			if err := r.SyncLinks(); !errors.Is(err, ErrObjectsRemoved) {
				t.Errorf("round %d: links: %v", i, err)
			}
		}
	}
	// A directory without objects is no loss.
	r := insecureRepo(t)
	if _, _, err := r.Put([]byte("a")); err != nil {
		t.Fatal(err)
	}
	other := fsverity.Sum(r.Algorithm(), []byte("b"))
	must(t, os.Mkdir(filepath.Dir(objectPath(r, other)), 0o755))
	if ok, err := r.HasObject(other, -1); ok || err != nil {
		t.Fatal(ok, err)
	}
	must(t, os.Remove(filepath.Dir(objectPath(r, other))))
	if _, o, err := r.Put([]byte("b")); o != Stored || err != nil {
		t.Errorf("store: %s, %v", o, err)
	}
	must(t, r.SyncFS())
}

func TestLinkFile(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *Repo) {
		const content = "a file of another store"
		id := fsverity.Sum(r.Algorithm(), []byte(content))
		path := filepath.Join(t.TempDir(), "donor")
		must(t, os.WriteFile(path, []byte(content), 0o640))
		f := check(os.Open(path))(t)
		defer f.Close()
		if r.Enforcing() {
			if _, err := r.LinkFile(f, fsverity.Sum(r.Algorithm(), []byte("other"))); !errors.Is(err, ErrIntegrity) {
				t.Errorf("wrong digest: %v", err)
			}
		}
		for _, want := range []Outcome{Hardlinked, Present} {
			if o, err := r.LinkFile(f, id); o != want || err != nil {
				t.Errorf("link: %s, %v; want %s", o, err, want)
			}
		}
		if !os.SameFile(check(os.Stat(path))(t), check(os.Stat(objectPath(r, id)))(t)) {
			t.Error("not the same file")
		}
		if got := readObject(t, r, id); got != content {
			t.Errorf("read %q", got)
		}
		// In the place of a broken object, too.
		must(t, os.Remove(objectPath(r, id)))
		must(t, os.WriteFile(objectPath(r, id), nil, 0o644))
		if o, err := r.LinkFile(f, id); o != Hardlinked || err != nil {
			t.Errorf("over a broken object: %s, %v", o, err)
		}
		if got := files(t, r.Path()); len(got) != 2 {
			t.Errorf("files %v", got)
		}
		dir := check(os.Open(t.TempDir()))(t)
		defer dir.Close()
		if _, err := r.LinkFile(dir, id); !errors.Is(err, ErrIntegrity) {
			t.Errorf("a directory: %v", err)
		}
	})
	t.Run("other file system", func(t *testing.T) {
		r := insecureRepo(t)
		memfd := check(unix.MemfdCreate("donor", 0))(t)
		donor := os.NewFile(uintptr(memfd), "donor")
		defer donor.Close()
		check(donor.WriteString("content"))(t)
		if _, err := r.LinkFile(donor, fsverity.Sum(r.Algorithm(), []byte("content"))); !errors.Is(err, unix.EXDEV) {
			t.Errorf("error %v, want %v", err, unix.EXDEV)
		}
	})
}

func TestTempOfAnotherRepository(t *testing.T) {
	a, b := insecureRepo(t), insecureRepo(t)
	tmp := check(a.CreateTemp())(t)
	if _, err := b.Commit(tmp, fsverity.Sum(b.Algorithm(), nil)); err == nil {
		t.Error("committed to another repository")
	}
	tmp.Discard()
}

func TestDiscardLeavesNothing(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *Repo) {
		tmp := check(r.CreateTemp())(t)
		if _, err := tmp.File().Write(bytes.Repeat([]byte("x"), 1000)); err != nil {
			t.Fatal(err)
		}
		names := files(t, r.Path())
		if r.noTmpfile.Load() && (len(names) != 2 || !strings.HasPrefix(names[1], "objects/.tmp-object-") || len(names[1]) != len("objects/.tmp-object-")+12) {
			t.Errorf("temporary names %v", names)
		}
		tmp.Discard()
		tmp.Discard()
		if got := files(t, r.Path()); len(got) != 1 {
			t.Errorf("left behind: %v", got)
		}
	})
}

// BenchmarkPut leaves hashing to the caller, as imports do.
func BenchmarkPut(b *testing.B) {
	for _, size := range []int{1 << 10, 16 << 10, 128 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			r := insecureRepo(b)
			data := make([]byte, size)
			_, _, err := r.Put([]byte("find out what the file system has"))
			must(b, err)
			raw := make([]byte, r.Algorithm().Size())
			b.SetBytes(int64(size))
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				raw[0] = byte(i)
				binary.BigEndian.PutUint32(raw[1:], uint32(i))
				id, err := fsverity.DigestFromBytes(r.Algorithm(), raw)
				must(b, err)
				if o, err := r.PutID(id, data); err != nil || o != Stored {
					b.Fatal(o, err)
				}
			}
		})
	}
}

func BenchmarkPutPresent(b *testing.B) {
	r := insecureRepo(b)
	data := make([]byte, 1<<10)
	id, _, err := r.Put(data)
	must(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if o, err := r.PutID(id, data); err != nil || o != Present {
			b.Fatal(o, err)
		}
	}
}

// BenchmarkPutFloor is the same files with nothing but the system calls that
// cannot be saved.
func BenchmarkPutFloor(b *testing.B) {
	dir := check(os.Open(b.TempDir()))(b)
	defer dir.Close()
	data := make([]byte, 1<<10)
	b.SetBytes(int64(len(data)))
	i := 0
	for b.Loop() {
		i++
		fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
		must(b, err)
		must(b, writeAll(fd, data))
		must(b, unix.Linkat(fd, "", int(dir.Fd()), fmt.Sprintf("%020d", i), unix.AT_EMPTY_PATH))
		must(b, unix.Close(fd))
	}
}
