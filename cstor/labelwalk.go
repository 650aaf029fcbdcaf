// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/rooted"
	"github.com/cfs-pull/cfs-pull/internal/selinux"
)

const (
	// minLabelWorkers: the disk, not the processor, is what a walk waits for
	// when its inodes are not in memory.
	minLabelWorkers = 4
	// labelBatch is how many entries of a directory are in memory at once.
	labelBatch = 1024
	// overlayHome is the directory that the overlay driver binds onto itself.
	overlayHome = "overlay"
)

// labelVisit is called for each name that the policy has a label for, by
// several goroutines.
type labelVisit func(f labelFile) error

// labelWalk walks a store and looks up the label of each name.
//
// A directory is opened by its path below the root, by the kernel's rules
// against links and mounts, and only while it is read: however deep and wide
// the tree of a hostile layer is, each worker has one descriptor. The files in
// it are addressed by one name below that descriptor, with calls that do not
// follow links.
type labelWalk struct {
	root    *os.File
	overlay *os.File // set if it is a mount that is walked on its own
	policy  *selinux.Policy
	visit   labelVisit
	workers int

	visited, noContext, mounts atomic.Int64

	mu      sync.Mutex
	wake    sync.Cond
	todo    []labelDir // a stack, so that it stays short
	running int
	err     error
}

// labelDir is a directory that is to be walked.
type labelDir struct {
	base *os.File // what path is below
	path string
	name string // path from the store's root, for messages; empty for the root
	look string // path that the policy knows it by
}

// labelFile is a name on the walk.
type labelFile struct {
	dir     labelDir
	fd      int    // of the directory
	proc    string // path that leads to the directory by the descriptor
	name    string // in the directory; empty for the directory itself
	context string // the label by the policy
	buf     []byte // maxLabel bytes to read the label into
}

func newLabelWalk(root *os.File, policy *selinux.Policy, workers int, visit labelVisit) *labelWalk {
	if workers <= 0 {
		workers = max(minLabelWorkers, runtime.GOMAXPROCS(0))
	}
	w := &labelWalk{root: root, policy: policy, visit: visit, workers: workers}
	w.wake.L = &w.mu
	return w
}

// run walks everything. The first error ends it.
func (w *labelWalk) run(ctx context.Context) error {
	w.todo = []labelDir{{base: w.root, path: ".", look: referenceBase(w.policy)}}
	var err error
	if w.overlay, err = w.openOverlay(); err != nil {
		return err
	}
	if w.overlay != nil {
		defer w.overlay.Close()
		look := w.todo[0].look + "/" + overlayHome
		if alias, ok := w.policy.Alias(look); ok {
			look = alias
		}
		w.todo = append(w.todo, labelDir{base: w.overlay, path: ".", name: overlayHome, look: look})
	}
	stop := context.AfterFunc(ctx, func() { w.fail(context.Cause(ctx)) })
	defer stop()
	var workers sync.WaitGroup
	for range w.workers {
		workers.Go(w.work)
	}
	workers.Wait()
	if w.err != nil {
		return w.err
	}
	return w.policy.Err()
}

// openOverlay opens the home of the overlay driver if that is a mount of the
// same file system: the driver binds it onto itself. The walk does not enter
// mounts, and this one it must.
func (w *labelWalk) openOverlay() (*os.File, error) {
	root := int(w.root.Fd())
	fd, err := rooted.Open(root, overlayHome, unix.O_RDONLY|unix.O_DIRECTORY, 0, rooted.NoLinks|rooted.OneMount)
	if !errors.Is(err, unix.EXDEV) {
		if err == nil {
			unix.Close(fd)
		}
		return nil, nil // the walk finds it, or says what is wrong with it
	}
	name := w.root.Name() + "/" + overlayHome
	if fd, err = rooted.Open(root, overlayHome, unix.O_RDONLY|unix.O_DIRECTORY, 0, rooted.NoLinks); err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	var above, below unix.Stat_t
	if err = unix.Fstat(root, &above); err == nil {
		err = unix.Fstat(fd, &below)
	}
	if err != nil || above.Dev != below.Dev {
		f.Close()
		if err != nil {
			err = &fs.PathError{Op: "stat", Path: name, Err: err}
		}
		return nil, err
	}
	return f, nil
}

func (w *labelWalk) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	w.wake.Broadcast()
}

// work takes directories from the stack until there are none left.
func (w *labelWalk) work() {
	buf := make([]byte, maxLabel)
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for len(w.todo) == 0 && w.running > 0 && w.err == nil {
			w.wake.Wait()
		}
		if len(w.todo) == 0 || w.err != nil {
			w.wake.Broadcast()
			return
		}
		dir := w.todo[len(w.todo)-1]
		w.todo = w.todo[:len(w.todo)-1]
		w.running++
		w.mu.Unlock()
		err := w.directory(dir, buf)
		w.mu.Lock()
		w.running--
		if err != nil && w.err == nil {
			w.err = err
		}
	}
}

func (w *labelWalk) stopped() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err != nil
}

func (w *labelWalk) push(dirs []labelDir) {
	if len(dirs) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.todo = append(w.todo, dirs...)
	w.wake.Broadcast()
}

// directory labels a directory, then the files in it. Directories in it are
// left for later.
func (w *labelWalk) directory(dir labelDir, buf []byte) error {
	fd, err := rooted.OpenLong(int(dir.base.Fd()), dir.path, unix.O_RDONLY|unix.O_DIRECTORY, 0, rooted.NoLinks|rooted.OneMount)
	switch {
	case errors.Is(err, unix.EXDEV):
		if dir.name != overlayHome || w.overlay == nil {
			w.mounts.Add(1)
		}
		return nil
	case vanished(err):
		return nil
	case err != nil:
		return &fs.PathError{Op: "open", Path: w.fullName(dir, ""), Err: err}
	}
	proc := procFD(fd)
	f := os.NewFile(uintptr(fd), proc) // ReadDir uses the name where a file system tells no types
	defer f.Close()
	if err := w.file(labelFile{dir: dir, fd: fd, proc: proc, buf: buf}, 'd', dir.look); err != nil {
		return err
	}
	for {
		entries, err := f.ReadDir(labelBatch)
		if err != nil && err != io.EOF {
			return &fs.PathError{Op: "read directory", Path: w.fullName(dir, ""), Err: unwrapPath(err)}
		}
		if len(entries) == 0 {
			return nil
		}
		if w.stopped() {
			return nil
		}
		if err := w.entries(labelFile{dir: dir, fd: fd, proc: proc, buf: buf}, entries); err != nil {
			return err
		}
	}
}

// entries labels those files of a batch that are not directories. f is the
// directory.
func (w *labelWalk) entries(f labelFile, entries []fs.DirEntry) error {
	dir := f.dir
	var below []labelDir
	for _, e := range entries {
		name := e.Name()
		look := dir.look + "/" + name
		if alias, ok := w.policy.Alias(look); ok {
			look = alias
		}
		if e.IsDir() {
			next := labelDir{base: dir.base, path: name, name: name, look: look}
			if dir.path != "." {
				next.path = dir.path + "/" + name
			}
			if dir.name != "" {
				next.name = dir.name + "/" + name
			}
			below = append(below, next)
			continue
		}
		f.name = name
		if err := w.file(f, labelKind(e.Type()), look); err != nil {
			return err
		}
	}
	w.push(below)
	return nil
}

// file looks up the label of one name and visits it.
func (w *labelWalk) file(f labelFile, kind byte, look string) error {
	w.visited.Add(1)
	var ok bool
	if f.context, ok = w.policy.Lookup(look, kind); !ok {
		w.noContext.Add(1)
		return nil
	}
	err := w.visit(f)
	switch {
	case err == nil, vanished(err):
		return nil
	case errors.Is(err, unix.EOPNOTSUPP):
		err = errors.New("the file system has no SELinux labels")
	case errors.Is(err, unix.EINVAL):
		err = errors.New("the kernel does not know the label " + strconv.Quote(f.context) + ": its policy is another one")
	}
	return &fs.PathError{Op: "label", Path: w.fullName(f.dir, f.name), Err: err}
}

// vanished says of an error that somebody else removed or replaced what was
// listed a moment ago.
func vanished(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// unwrapPath takes off the path of an error, which is one of /proc's.
func unwrapPath(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

func (w *labelWalk) fullName(dir labelDir, name string) string {
	full := w.root.Name()
	for _, part := range []string{dir.name, name} {
		if part != "" {
			full += "/" + part
		}
	}
	return full
}

// path is the file's path below the root of the store.
func (f labelFile) path() string {
	switch {
	case f.name == "" && f.dir.name == "":
		return "."
	case f.name == "":
		return f.dir.name
	case f.dir.name == "":
		return f.name
	}
	return f.dir.name + "/" + f.name
}

// label reads the label that the file has.
func (f labelFile) label() (string, error) {
	var n int
	var err error
	if f.name == "" {
		n, err = unix.Fgetxattr(f.fd, labelXattr, f.buf)
	} else {
		n, err = unix.Lgetxattr(f.proc+"/"+f.name, labelXattr, f.buf)
	}
	return parseLabel(f.buf, n, err)
}

func (f labelFile) setLabel() error {
	if f.name == "" {
		return unix.Fsetxattr(f.fd, labelXattr, []byte(f.context), 0)
	}
	return unix.Lsetxattr(f.proc+"/"+f.name, labelXattr, []byte(f.context), 0)
}

// mounted reports whether something is mounted on the file: then its label is
// that of a file elsewhere. Directories are opened by a rule that tells.
func (f labelFile) mounted() (bool, error) {
	if f.name == "" {
		return false, nil
	}
	var stat unix.Statx_t
	if err := unix.Statx(f.fd, f.name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &stat); err != nil {
		return false, err
	}
	return stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// labelKind is how a policy names file types.
func labelKind(mode fs.FileMode) byte {
	switch {
	case mode&fs.ModeSymlink != 0:
		return 'l'
	case mode&fs.ModeCharDevice != 0:
		return 'c'
	case mode&fs.ModeDevice != 0:
		return 'b'
	case mode&fs.ModeNamedPipe != 0:
		return 'p'
	case mode&fs.ModeSocket != 0:
		return 's'
	}
	return '-'
}
