// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.podman.io/storage"
	"go.podman.io/storage/pkg/archive"
	"go.podman.io/storage/pkg/reexec"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/internal/rooted"
)

// Reexec runs this process as a helper of the storage library if that is what
// it was started for, and reports whether it was. It must be the first
// statement of main, and of TestMain of each package that writes to a store:
//
//	if cstor.Reexec() {
//		return
//	}
func Reexec() bool { return reexec.Init() }

// library is the storage library's handle of a store. It is opened only for
// writing: opening makes directories, locks and test mounts.
type library struct {
	mu    sync.Mutex
	store storage.Store

	broken atomic.Pointer[error] // why it must not be called any more
}

// call runs f, which calls the library. The library panics when it cannot open
// or take one of its locks, for instance on a full file system or without
// descriptors. Its mutexes stay locked then, so nothing may call it again in
// this process; what is on disk is as after a crash.
func (l *library) call(root string, f func() error) (err error) {
	defer func() {
		switch cause := recover().(type) {
		case nil:
		case error:
			if _, bug := cause.(runtime.Error); bug {
				panic(cause)
			}
			err = fmt.Errorf("lock containers-storage %s: %w", root, withErrno(cause))
			l.broken.Store(&err)
		default:
			panic(cause)
		}
	}()
	if broken := l.broken.Load(); broken != nil {
		return *broken
	}
	return f()
}

// open opens the library's handle on first use.
func (l *library) open(root string, o Options) (storage.Store, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.store != nil {
		return l.store, nil
	}
	if err := checkMountProgram(root); err != nil {
		return nil, err
	}
	removeProbes(root, o)
	forgetRefusal(o)
	options := storage.StoreOptions{
		GraphRoot:       root,
		RunRoot:         o.RunRoot,
		GraphDriverName: driverDir,
		GraphDriverOptions: []string{
			// Nothing is mounted, so nothing stays mounted when we are killed.
			driverDir + ".skip_mount_home=true",
			// A layer's record is written after its data are on disk: a crash
			// must not leave a layer that looks complete.
			driverDir + ".sync=filesystem",
		},
		PullOptions: map[string]string{"enable_partial_images": "false"},
	}
	for _, additional := range o.AdditionalImageStores {
		options.GraphDriverOptions = append(options.GraphDriverOptions, driverDir+".imagestore="+additional)
	}
	store, err := getStore(options)
	if err != nil {
		return nil, fmt.Errorf("open containers-storage %s: %w", root, withErrno(err))
	}
	l.store = store
	return store, nil
}

// close forgets the handle. It does not shut the store down: that would unmount
// the driver's directory under podman's running containers. A call of the
// library that guard has left behind keeps the handle; this must not wait for
// it.
func (l *library) close() {
	if !l.mu.TryLock() {
		return
	}
	defer l.mu.Unlock()
	if l.store == nil {
		return
	}
	environment.Lock() // guards the library's table of stores, too
	defer environment.Unlock()
	l.store.Free()
	l.store = nil
}

// The library tries out an overlay in directories with these names and digits
// after them, for a moment whenever a store is used with a new run root.
var probeNames = []string{"compat", "metacopy-check", "opaque-bug-check", "volatile-check"}

// probeAge is the age from which on such a directory is taken for one that a
// killed process has left.
const probeAge = 10 * time.Minute

// removeProbes removes what killed processes have left in a store; the library
// only complains about it.
func removeProbes(root string, o Options) {
	entries, err := os.ReadDir(filepath.Join(root, driverDir))
	if err != nil {
		return // there is no store yet
	}
	for _, e := range entries {
		isProbe := slices.ContainsFunc(probeNames, func(name string) bool {
			digits, ok := strings.CutPrefix(e.Name(), name)
			return ok && digits != "" && strings.Trim(digits, "0123456789") == ""
		})
		info, err := e.Info()
		if !isProbe || err != nil || !info.IsDir() || time.Since(info.ModTime()) < probeAge {
			continue
		}
		path := filepath.Join(root, driverDir, e.Name())
		if err := removeMounted(path); err != nil {
			o.Log.Warn("what a killed process has left cannot be removed", "path", path, "error", err)
		}
	}
}

// forgetRefusal makes the library try again whether the kernel has overlayfs. It
// takes every error of its trial for a no, also that of a disk or a limit, and
// notes it in the run root for all until the next boot.
func forgetRefusal(o Options) {
	path := filepath.Join(o.RunRoot, driverDir, "overlay-false")
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		o.Log.Warn("what is noted about overlayfs cannot be removed", "path", path, "error", err)
	}
}

// checkMountProgram refuses a store that was made for fuse-overlayfs, whose
// layers are different.
func checkMountProgram(root string) error {
	flag, err := rooted.ReadFile(root, mountProgram, maxFlagFile)
	if err == nil && strings.TrimSpace(string(flag)) == "true" {
		return fmt.Errorf("open containers-storage %s: %w: it is used with a mount program such as fuse-overlayfs (%s)",
			root, ErrUnsupported, filepath.Join(root, mountProgram))
	}
	return nil
}

// environment serialises getStore, which changes the environment for a moment.
var environment sync.Mutex

// getStore is storage.GetStore without what it takes from its surroundings
// . It reads storage.conf, STORAGE_DRIVER and STORAGE_OPTS even though
// all options are given, and would set up a store that cannot be mounted with
// fuse-overlayfs, if $PATH has it. The library's answers are kept for the life
// of the process; so is that there is no pigz or zstd to decompress with.
//
// Nothing else of this process may look at $PATH meanwhile; it is called before
// a pull starts any goroutine.
func getStore(options storage.StoreOptions) (storage.Store, error) {
	environment.Lock()
	defer environment.Unlock()
	restore := isolate(map[string]string{"CONTAINERS_STORAGE_CONF": os.DevNull, "PATH": ""},
		"STORAGE_DRIVER", "STORAGE_OPTS")
	defer restore()
	for _, c := range []oci.Compression{oci.Gzip, oci.Zstd} {
		r, err := archive.DecompressStream(bytes.NewReader(emptyStream(c)))
		if err != nil {
			return nil, err
		}
		if err := r.Close(); err != nil {
			return nil, err
		}
	}
	return storage.GetStore(options)
}

// isolate sets and unsets environment variables, and returns what undoes that.
func isolate(set map[string]string, unset ...string) (restore func()) {
	var undo []func()
	remember := func(name string) {
		if old, ok := os.LookupEnv(name); ok {
			undo = append(undo, func() { os.Setenv(name, old) })
		} else {
			undo = append(undo, func() { os.Unsetenv(name) })
		}
	}
	for name, value := range set {
		remember(name)
		os.Setenv(name, value)
	}
	for _, name := range unset {
		remember(name)
		os.Unsetenv(name)
	}
	return func() {
		for _, f := range undo {
			f()
		}
	}
}

// withErrno makes errors.Is find the errno of an error that came as text from
// the library's child process.
func withErrno(err error) error {
	if err == nil {
		return nil
	}
	for _, errno := range passedErrnos {
		if !errors.Is(err, errno) && strings.Contains(err.Error(), errno.Error()) {
			return &errnoError{err, errno}
		}
	}
	return err
}
