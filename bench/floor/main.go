// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Command floor does what no import of a containers-storage can do without: it
// reads each file below some directories once, and clones and links those of
// more than 64 bytes into a new directory, one of each size and first bytes. It
// hashes nothing. Its time is what bench/unified compares with.
package main

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/tarraw"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: floor TARGET DIR...")
		os.Exit(125)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "floor:", err)
		os.Exit(1)
	}
}

// floor is a run under way.
type floor struct {
	target int // directory
	seed   maphash.Seed
	clones sync.Map // hash of content -> nothing
}

func run(target string, dirs []string) error {
	for i := range 256 {
		if err := os.MkdirAll(fmt.Sprintf("%s/%02x", target, i), 0o755); err != nil {
			return err
		}
	}
	dir, err := os.Open(target)
	if err != nil {
		return err
	}
	defer dir.Close() // a directory
	f := &floor{target: int(dir.Fd()), seed: maphash.MakeSeed()}
	paths := make(chan string, 1024)
	failed := make(chan error, runtime.GOMAXPROCS(0)+1)
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			buf := make([]byte, 1<<20)
			for path := range paths {
				if err := f.file(path, buf); err != nil {
					select {
					case failed <- fmt.Errorf("%s: %w", path, err):
					default:
					}
				}
			}
		})
	}
	var walkErr error
	for _, dir := range dirs {
		walkErr = errors.Join(walkErr, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				paths <- path
			}
			return err
		}))
	}
	close(paths)
	workers.Wait()
	close(failed)
	return errors.Join(walkErr, <-failed)
}

// file reads a file, and clones it if it is the first of its content.
func (f *floor) file(path string, buf []byte) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	var first uint64
	for at := int64(0); at < st.Size; {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if at == 0 {
			first = maphash.Bytes(f.seed, buf[:min(n, 4096)])
		}
		at += int64(n)
	}
	if st.Size <= tarraw.InlineMax {
		return nil
	}
	key := fmt.Sprintf("%02x/%014x-%x", byte(first), first>>8, st.Size)
	if _, again := f.clones.LoadOrStore(key, nil); again {
		return nil
	}
	return f.clone(fd, key)
}

func (f *floor) clone(from int, name string) error {
	fd, err := unix.Openat(f.target, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.IoctlFileClone(fd, from); err != nil {
		return err
	}
	return unix.Linkat(fd, "", f.target, name, unix.AT_EMPTY_PATH)
}
