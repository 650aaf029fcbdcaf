// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fsverity

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// verityDir is a directory whose file system has fs-verity. The tests that ask
// for it skip where TMPDIR is on another file system, and internal/microvm runs
// them where it has; there CFS_PULL_REQUIRE_VERITY makes skipping a failure.
func verityDir(t *testing.T) string {
	t.Helper()
	path := t.TempDir()
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	err = Probe(dir, SHA512)
	if err == nil {
		return path
	}
	if !errors.Is(err, ErrNotSupported) || os.Getenv("CFS_PULL_REQUIRE_VERITY") != "" {
		t.Fatal(err)
	}
	t.Skipf("%v: set TMPDIR to a directory on ext4 made with -O verity or on btrfs", err)
	return ""
}

// verityFile makes a file that holds data, opened read-only.
func verityFile(t *testing.T, dir string, data []byte) *os.File {
	t.Helper()
	f, err := os.CreateTemp(dir, "file")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := os.Open(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestVerityHelloWorld(t *testing.T) {
	dir := verityDir(t)
	for alg, want := range map[Algorithm]string{
		SHA256: "1e2eaa4202d750a41174ee454970b92c1bc2f925b1e35076d8c7d5f56362ba64",
		SHA512: "18430270729d162d4e469daca123ae61893db4b0583d8f7081e3bf4f92b88ba514e7982f10733fb6aa895195c5ae8fd2eb2c47a8be05513ce5a0c51a6f570409",
	} {
		f := verityFile(t, dir, []byte("hello world"))
		if d, err := Measure(f, alg); !errors.Is(err, ErrNotEnabled) || !d.IsZero() {
			t.Errorf("%s: Measure before Enable = %s, %v, want %v", alg, d, err, ErrNotEnabled)
		}
		if err := Enable(f, alg); err != nil {
			t.Fatalf("%s: Enable: %v", alg, err)
		}
		if d, err := Measure(f, alg); err != nil || d.String() != want {
			t.Errorf("%s: Measure = %s, %v, want %s", alg, d, err, want)
		}
		if err := Enable(f, alg); !errors.Is(err, ErrAlreadyEnabled) {
			t.Errorf("%s: second Enable = %v, want %v", alg, err, ErrAlreadyEnabled)
		}
		other := SHA256 + SHA512 - alg
		if d, err := Measure(f, other); !errors.Is(err, ErrOtherAlgorithm) || !d.IsZero() {
			t.Errorf("Measure of a %s file as %s = %s, %v, want %v", alg, other, d, err, ErrOtherAlgorithm)
		}
		if err := Enable(f, other); !errors.Is(err, ErrAlreadyEnabled) {
			t.Errorf("Enable of a %s file as %s = %v, want %v", alg, other, err, ErrAlreadyEnabled)
		}
		if w, err := os.OpenFile(f.Name(), os.O_WRONLY, 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: open for writing after Enable: %v, %v, want %v", alg, w, err, unix.EPERM)
		}
		if got, err := os.ReadFile(f.Name()); err != nil || string(got) != "hello world" {
			t.Errorf("%s: content after Enable = %q, %v", alg, got, err)
		}
	}
}

// TestVerityBoundaries compares Sum with the kernel at every change of the
// tree's shape.
func TestVerityBoundaries(t *testing.T) {
	dir := verityDir(t)
	for _, alg := range []Algorithm{SHA256, SHA512} {
		done := map[int]bool{}
		for _, n := range boundarySizes(alg) {
			if n > 1<<20 && n%BlockSize != 1 || n > 17<<20 || done[n] {
				continue // the kernel takes long where it is emulated
			}
			done[n] = true
			data := bytes.Repeat([]byte("some content of a file, not a divisor of 4096\n"), n/40+1)[:n]
			f := verityFile(t, dir, data)
			want := Sum(alg, data)
			if err := Enable(f, alg); err != nil {
				t.Fatalf("Enable(%s) of %d bytes: %v", alg, n, err)
			}
			if got, err := Measure(f, alg); err != nil || got != want {
				t.Errorf("%s of %d bytes: the kernel measures %s, %v, Sum is %s", alg, n, got, err, want)
			}
			os.Remove(f.Name())
		}
		if len(done) < 20 {
			t.Errorf("%s: tried %d sizes only", alg, len(done))
		}
	}
}

func TestVerityBusy(t *testing.T) {
	dir := verityDir(t)
	openWriter := func(f *os.File) *os.File {
		w, err := os.OpenFile(f.Name(), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}

	f := verityFile(t, dir, []byte("written for ever"))
	w := openWriter(f)
	if err := Enable(f, SHA512); !errors.Is(err, ErrBusy) || !errors.Is(err, unix.ETXTBSY) {
		t.Errorf("Enable of a file open for writing = %v, want %v", err, ErrBusy)
	}
	w.Close()
	if err := Enable(f, SHA512); err != nil {
		t.Errorf("Enable after the writer's close: %v", err)
	}

	// On a busy machine the writer may go away later than Enable waits.
	for try := 1; ; try++ {
		f := verityFile(t, dir, []byte("written for a moment"))
		w := openWriter(f)
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			time.Sleep(20 * time.Millisecond)
			w.Close()
		}()
		err := Enable(f, SHA512)
		<-closed
		if err == nil {
			break
		}
		if try == 5 || !errors.Is(err, ErrBusy) {
			t.Fatalf("Enable while a writer goes away: %v", err)
		}
	}
}

// TestVerityRace enables one file from several goroutines: one wins, and the
// others are told so.
func TestVerityRace(t *testing.T) {
	dir := verityDir(t)
	data := bytes.Repeat([]byte{1, 2, 3}, 100_000)
	name := verityFile(t, dir, data).Name()
	errs := make([]error, 4)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			f, err := os.Open(name)
			if err != nil {
				errs[i] = err
				return
			}
			defer f.Close()
			errs[i] = Enable(f, SHA512)
			if errs[i] == nil || errors.Is(errs[i], ErrAlreadyEnabled) {
				if got, err := Measure(f, SHA512); err != nil || got != Sum(SHA512, data) {
					errs[i] = fmt.Errorf("measured %s, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, ErrAlreadyEnabled) && !errors.Is(err, ErrBusy):
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d Enable calls succeeded, want 1: %v", won, len(errs), errs)
	}
}

func TestVerityOfDirectory(t *testing.T) {
	dir, err := os.Open(verityDir(t))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := Enable(dir, SHA512); err == nil || errors.Is(err, ErrNotSupported) {
		t.Errorf("Enable of a directory = %v, want an error that is not %v", err, ErrNotSupported)
	}
	if err := Probe(dir, SHA256); err != nil {
		t.Errorf("Probe(SHA256): %v", err)
	}
	if left, err := os.ReadDir(filepath.Clean(dir.Name())); err != nil || len(left) != 0 {
		t.Errorf("after Probe the directory has %v, %v, want nothing", left, err)
	}
}
