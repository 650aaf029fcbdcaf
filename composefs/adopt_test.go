// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/loopfs"
)

// newDonor makes a file in dir and reads it, as far as that matters here.
func newDonor(tb testing.TB, dir, name string, content []byte) *Donor {
	tb.Helper()
	f := donorFile(tb, filepath.Join(dir, name), content)
	return check(NewDonor(f, int64(len(content))))(tb)
}

func TestAdopt(t *testing.T) {
	everything := Methods{Reflink: true, Hardlink: true, Copy: true}
	const noLink = "labels differ"
	dirs := map[string]string{}
	for _, kind := range loopfs.Kinds() {
		dirs[string(kind)] = loopfs.MountSize(t, kind, 400<<20)
	}
	for _, c := range []struct {
		from, to string
		methods  Methods
		want     Outcome
		errors   []string // parts of a NotSharedError; nil: none
	}{
		{"xfs", "xfs", everything, Reflinked, nil},
		{"btrfs", "btrfs", everything, Reflinked, nil},
		{"ext4", "ext4", everything, Hardlinked, nil},
		{"ext4", "xfs", everything, Stored, nil},
		{"xfs", "ext4", everything, Stored, nil},
		{"xfs", "xfs", Methods{Copy: true}, Stored, nil},
		{"xfs", "xfs", Methods{Hardlink: true}, Hardlinked, nil},
		{"ext4", "ext4", Methods{Reflink: true, Copy: true}, Stored, nil},
		{"ext4", "ext4", Methods{Reflink: true, NoHardlink: noLink}, 0, []string{"reflink (FICLONE): operation not supported", "hard link not tried: " + noLink, "ext4"}},
		{"xfs", "ext4", Methods{Reflink: true, Hardlink: true}, 0, []string{"reflink (FICLONE): invalid cross-device link", "hard link (linkat): invalid cross-device link", ", xfs)", ", ext4)"}},
		{"xfs", "xfs", Methods{}, 0, []string{"zero-copy is not possible"}},
	} {
		t.Run(fmt.Sprintf("%s to %s %+v", c.from, c.to, c.methods), func(t *testing.T) {
			t.Setenv("TMPDIR", dirs[c.to])
			r := insecureRepo(t)
			dir := check(os.MkdirTemp(dirs[c.from], ""))(t)
			a := r.NewAdopter(c.methods)
			for i, inMemory := range []bool{true, false} {
				content := []byte(strings.Repeat(t.Name(), 1000+i))
				d := newDonor(t, dir, "donor"+fmt.Sprint(i), content)
				id := fsverity.Sum(r.Algorithm(), content)
				data := content
				if !inMemory {
					data = nil
				}
				o, err := a.Adopt(d, id, data)
				if c.errors != nil {
					shared, ok := errors.AsType[*NotSharedError](err)
					if !ok {
						t.Fatalf("error %v", err)
					}
					for _, part := range append(c.errors, r.Path(), d.Name(), "device") {
						if !strings.Contains(shared.Error(), part) {
							t.Errorf("%q is not in: %v", part, shared)
						}
					}
					if ok, err := r.HasObject(id, -1); ok || err != nil {
						t.Errorf("there is an object: %t, %v", ok, err)
					}
					continue
				}
				if o != c.want || err != nil {
					t.Fatalf("%s, %v, want %s", o, err, c.want)
				}
				if readObject(t, r, id) != string(content) {
					t.Error("the object has other bytes")
				}
				if o, err := a.Adopt(d, id, data); o != Present || err != nil {
					t.Errorf("again: %s, %v", o, err)
				}
				same := os.SameFile(check(os.Stat(d.Name()))(t), check(os.Stat(objectPath(r, id)))(t))
				if same != (c.want == Hardlinked) {
					t.Errorf("same file: %t", same)
				}
			}
			d := newDonor(t, dir, "last", []byte("x"))
			if got, want := a.OnlyCopies(d), c.want == Stored && c.errors == nil; got != want {
				t.Errorf("only copies: %t", got)
			}
		})
	}
}

// TestAdoptRemembers makes sure that what failed everywhere is not tried again.
func TestAdoptRemembers(t *testing.T) {
	on := loopfs.MountSize(t, loopfs.Ext4, 64<<20)
	t.Run("ext4", func(t *testing.T) {
		t.Setenv("TMPDIR", on)
		testAdoptRemembers(t)
	})
}

func testAdoptRemembers(t *testing.T) {
	r := insecureRepo(t)
	a := r.NewAdopter(Methods{Reflink: true, Copy: true})
	dir := t.TempDir()
	for i := range 3 {
		content := []byte(fmt.Sprint("content ", i))
		d := newDonor(t, dir, fmt.Sprint(i), content)
		if o, err := a.Adopt(d, fsverity.Sum(r.Algorithm(), content), content); o != Stored || err != nil {
			t.Fatal(o, err)
		}
		if len(a.failed) != 1 {
			t.Fatalf("%d failures are remembered", len(a.failed))
		}
		// Were it asked again, this would be the answer.
		for key := range a.failed {
			a.failed[key] = &ShareError{Method: Reflinked, Everywhere: true, Err: errors.New("remembered")}
		}
	}
	a.methods.Copy = false
	d := newDonor(t, dir, "last", []byte("last"))
	if _, err := a.Adopt(d, fsverity.Sum(r.Algorithm(), []byte("last")), nil); err == nil || !strings.Contains(err.Error(), "remembered") {
		t.Errorf("tried again: %v", err)
	}
}

// TestAdoptChanged changes a donor after it was read.
func TestAdoptChanged(t *testing.T) {
	const content, other = "content of a file", "CONTENT OF A FILE"
	on := loopfs.MountSize(t, loopfs.XFS, 300<<20)
	for name, change := range map[string]func(testing.TB, string){
		"content": func(tb testing.TB, path string) { must(tb, os.WriteFile(path, []byte(other), 0o640)) },
		"content, time set back": func(tb testing.TB, path string) {
			before := check(os.Stat(path))(tb).ModTime()
			must(tb, os.WriteFile(path, []byte(other), 0o640))
			must(tb, os.Chtimes(path, before, before))
		},
		"longer":  func(tb testing.TB, path string) { must(tb, os.Truncate(path, 100)) },
		"shorter": func(tb testing.TB, path string) { must(tb, os.Truncate(path, 1)) },
	} {
		for method, m := range map[string]Methods{"reflink": {Reflink: true}, "hardlink": {Hardlink: true}, "copy": {Copy: true}} {
			t.Run(name+" "+method, func(t *testing.T) {
				t.Setenv("TMPDIR", on)
				r := insecureRepo(t)
				d := newDonor(t, t.TempDir(), "donor", []byte(content))
				id := fsverity.Sum(r.Algorithm(), []byte(content))
				time.Sleep(10 * time.Millisecond) // more than the clock of the file system counts
				change(t, d.Name())
				if _, err := r.NewAdopter(m).Adopt(d, id, nil); !errors.Is(err, ErrChanged) && !errors.Is(err, ErrIntegrity) {
					t.Errorf("error %v", err)
				}
				if ok, err := r.HasObject(id, -1); ok || err != nil {
					t.Errorf("there is an object: %t, %v", ok, err)
				}
			})
		}
	}
}

func TestNewDonor(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	must(t, os.WriteFile(path, []byte("123"), 0o600))
	if _, err := NewDonor(check(os.Open(path))(t), 4); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), path) {
		t.Errorf("wrong size: %v", err)
	}
	if _, err := NewDonor(check(os.Open(dir))(t), 4); !errors.Is(err, ErrChanged) {
		t.Errorf("directory: %v", err)
	}
	fd := check(unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0))(t)
	d := check(NewDonor(os.NewFile(uintptr(fd), path), 3))(t)
	defer d.Close()
	if _, err := d.Read(make([]byte, 3)); !errors.Is(err, unix.EBADF) {
		t.Errorf("read: %v", err)
	}
}
