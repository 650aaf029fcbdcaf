// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// tmpMeta begins the names of an unfinished meta.json in the root, where the
// file system does not have files without a name.
const tmpMeta = ".tmp-meta.json-"

// InitOptions describes a new repository. The zero value is what bootc makes:
// SHA-512, EROFS format 1, fs-verity required.
type InitOptions struct {
	// Algorithm; 0 stands for SHA-512.
	Algorithm fsverity.Algorithm
	// Formats; the zero value stands for {Default: V1}. Format 0 alone is
	// {Default: V0, Extra: {V0}}.
	Formats FormatConfig
	// AllowMissingVerity makes a repository that does not require fs-verity.
	AllowMissingVerity bool
	// LockTimeout is how long to wait for the shared lock; 0 stands for
	// [DefaultLockTimeout], a negative value for not at all.
	LockTimeout time.Duration
}

// Init creates a repository at path; the directory above it must exist. created
// is false when an equal one is there already, whether it requires fs-verity
// or not; a different one is [ErrDifferentMeta]. Nothing is replaced.
func Init(ctx context.Context, path string, o InitOptions) (created bool, err error) {
	return create(ctx, path, o, kernelVerity())
}

func create(ctx context.Context, path string, o InitOptions, v verity) (created bool, err error) {
	if err := o.complete(); err != nil {
		return false, fmt.Errorf("create repository %s: %w", path, err)
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return false, fmt.Errorf("create repository: %w", err)
	}
	r, err := openLocked(ctx, path, o.LockTimeout, v)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	return r.initMeta(o)
}

// complete puts the defaults in and checks what was given.
func (o *InitOptions) complete() error {
	if o.Algorithm == 0 {
		o.Algorithm = fsverity.SHA512
	}
	if o.Formats.Default == 0 && o.Formats.Extra == nil {
		o.Formats.Default = erofs.V1
	}
	if !o.Algorithm.Valid() {
		return fmt.Errorf("algorithm %d is not known", o.Algorithm)
	}
	for _, v := range o.Formats.Versions() {
		if !v.Valid() {
			return fmt.Errorf("EROFS format %d is not known", v)
		}
	}
	return nil
}

// protection is the algorithm of the fs-verity that meta.json gets; 0 for none.
func (o *InitOptions) protection() fsverity.Algorithm {
	if o.AllowMissingVerity {
		return 0
	}
	return o.Algorithm
}

func (r *Repo) initMeta(o InitOptions) (created bool, err error) {
	want := NewMeta(o.Algorithm, o.Formats)
	same, err := r.compareMeta(want)
	if !errors.Is(err, ErrNotRepository) {
		return false, errors.Join(err, same)
	}
	text, err := want.Encode()
	if err != nil {
		return false, err
	}
	// An existing directory may be open to others. It is not touched before
	// it is clear that it can be a repository.
	err = r.linkMeta(text, o.protection(), func() error {
		if err := r.root.Chmod(0o700); err != nil {
			return fmt.Errorf("close directory to others: %w", err)
		}
		return nil
	})
	if errors.Is(err, fs.ErrExist) { // another process was faster
		same, err := r.compareMeta(want)
		return false, errors.Join(err, same)
	}
	if errors.Is(err, ErrVerityUnavailable) {
		return false, err // it names the repository
	}
	if err != nil {
		return false, fmt.Errorf("create repository %s: %w", r.path, err)
	}
	return true, r.syncCreation()
}

// compareMeta compares with the meta.json that is there. different is the
// result of the comparison, err says that there was none.
func (r *Repo) compareMeta(want Meta) (different, err error) {
	f, err := r.openMeta()
	if err != nil {
		return nil, err
	}
	defer f.Close() // read-only
	have, err := readMeta(f)
	if err != nil {
		return nil, fmt.Errorf("repository %s: %w", r.path, err)
	}
	if !have.Equal(want) {
		return fmt.Errorf("create repository %s: %w: it has %s and EROFS formats %v, wanted are %s and %v", r.path, ErrDifferentMeta,
			have.Algorithm, have.EffectiveFormats().Versions(), want.Algorithm, want.EffectiveFormats().Versions()), nil
	}
	return nil, nil
}

// linkMeta prepares meta.json and, when last has been called too, gives it its
// name.
func (r *Repo) linkMeta(text []byte, alg fsverity.Algorithm, last func() error) error {
	f, name, err := r.prepareMeta(text, alg)
	if err != nil {
		return err
	}
	defer r.dropMeta(f, name)
	if err := last(); err != nil {
		return err
	}
	return r.linkFile(int(f.Fd()), r.rootfd(), name, r.rootfd(), "meta.json")
}

// prepareMeta writes meta.json aside and gives it fs-verity unless alg is 0.
// Its temporary name, if it has one, is returned. The caller calls dropMeta.
func (r *Repo) prepareMeta(text []byte, alg fsverity.Algorithm) (_ *os.File, tmp string, err error) {
	f, name, err := r.writeMeta(text)
	defer func() {
		if err != nil {
			r.dropMeta(f, name)
		}
	}()
	if err != nil {
		return nil, "", err
	}
	if err := f.Sync(); err != nil {
		return nil, "", fmt.Errorf("sync meta.json: %w", err)
	}
	if alg != 0 {
		if err := r.verity.enable(f, alg); err != nil {
			return nil, "", r.verityError(err)
		}
		if _, err := r.verity.measure(f, alg); err != nil {
			return nil, "", r.verityError(err)
		}
	}
	return f, name, nil
}

// dropMeta closes a prepared meta.json and removes its temporary name, which is
// gone already if it got the other one.
func (r *Repo) dropMeta(f *os.File, tmp string) {
	if f != nil {
		f.Close() // read-only
	}
	if tmp != "" {
		unix.Unlinkat(r.rootfd(), tmp, 0) // what stays is left to garbage collection
	}
}

// writeMeta writes a file in the root, whose temporary name, if it has one, is
// returned also with an error. No descriptor for writing is left; see reopen.
func (r *Repo) writeMeta(text []byte) (f *os.File, tmp string, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, tmp, err := r.createFD(r.rootfd(), tmpMeta)
	if err != nil {
		return nil, "", err
	}
	f, err = writeThenReopen(os.NewFile(uintptr(fd), r.path+"/meta.json"), func(fd int) error { return writeAll(fd, text) })
	return f, tmp, err
}

// writeThenReopen fills a file with write and returns it opened for reading. w
// is closed in any case.
func writeThenReopen(w *os.File, write func(fd int) error) (*os.File, error) {
	err := write(int(w.Fd()))
	if err == nil {
		var f *os.File
		if f, err = reopen(w); err == nil {
			return f, nil
		}
	}
	w.Close() // the error says more
	return nil, err
}

// reopen returns w's file opened for reading and closes w, so that fs-verity
// can be enabled. w stays open after an error.
//
// A child that was forked while w was open has a copy of the descriptor until
// the kernel has closed it during exec, and that long fs-verity is refused
// with ETXTBSY. Small files are therefore written under [syscall.ForkLock],
// which keeps the runtime from forking meanwhile. A file that takes long to
// fill cannot do that: waitForForks makes sure that such children have at
// least begun to execute their program, and the retries of [fsverity.Enable]
// cover the rest, as they do for forks that are not the runtime's.
func reopen(w *os.File) (*os.File, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open("/proc/self/fd/"+strconv.Itoa(int(w.Fd())), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reopen file for reading: %w", err)
	}
	f := os.NewFile(uintptr(fd), w.Name())
	if err := w.Close(); err != nil {
		return nil, errors.Join(fmt.Errorf("close file: %w", err), f.Close())
	}
	return f, nil
}

// waitForForks returns when the forks that had begun before are past vfork.
// The caller does not hold ForkLock.
func waitForForks() {
	syscall.ForkLock.RLock()
	//lint:ignore SA2001 an empty critical section is the point
	syscall.ForkLock.RUnlock()
}

// syncCreation makes a new repository survive a crash: its own directory and
// the entry in the directory above.
func (r *Repo) syncCreation() error {
	if err := r.root.Sync(); err != nil {
		return fmt.Errorf("sync repository: %w", err)
	}
	up, err := os.Open(r.path + "/..")
	if err != nil {
		return fmt.Errorf("sync directory above repository: %w", err)
	}
	defer up.Close() // read-only
	if err := up.Sync(); err != nil {
		return fmt.Errorf("sync directory above repository: %w", err)
	}
	return nil
}
