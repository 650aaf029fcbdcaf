// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// OpenOptions says how a repository is opened. The zero value opens it for
// writing, with the protection it was created with.
type OpenOptions struct {
	// AllowMissingVerity accepts objects without fs-verity. For a repository
	// that requires it this is [ErrSecure] unless Force is set.
	AllowMissingVerity bool
	// Force makes AllowMissingVerity count for a repository that requires
	// fs-verity. The repository itself stays as it is.
	Force bool
	// ReadOnly refuses writes through this handle.
	ReadOnly bool
	// Upgrade makes a current repository of one of the old format, which has
	// objects but no meta.json, instead of failing with [ErrOldFormat]. See
	// [Repo.Upgraded]. It does nothing with ReadOnly.
	Upgrade bool
	// LockTimeout is how long to wait for the shared lock; 0 stands for
	// [DefaultLockTimeout], a negative value for not at all.
	LockTimeout time.Duration
}

// verity is the kernel's part of fs-verity. Tests put another in its place,
// because most kernels they run on have none.
type verity struct {
	enable  func(*os.File, fsverity.Algorithm) error
	measure func(*os.File, fsverity.Algorithm) (fsverity.Digest, error)
	probe   func(*os.File, fsverity.Algorithm) error
}

func kernelVerity() verity { return verity{fsverity.Enable, fsverity.Measure, fsverity.Probe} }

// Repo is an open repository. It is safe for concurrent use. While it is open
// the process holds the shared lock, so garbage collection by others waits.
type Repo struct {
	path    string
	root    *os.File
	lock    *processLock
	verity  verity
	meta    Meta
	emptyID fsverity.Digest

	secure   bool  // meta.json has fs-verity
	enforce  bool  // objects must have it
	readOnly error // why nothing can be written; nil when it can
	upgraded bool  // meta.json was written by this handle

	dirs   objectDirs
	proven provenObjects

	// What this file system turned out not to have.
	noVerity    atomic.Bool // only noted when it is not required
	noTmpfile   atomic.Bool
	noEmptyPath atomic.Bool

	unflushed atomic.Bool // objects were stored since the last SyncFS

	linkMu sync.Mutex // serialises look-then-replace of links

	touchMu sync.Mutex
	touched map[string]struct{} // directories to fsync

	useMu  sync.Mutex
	useEnd sync.Cond
	calls  int // running calls
	users  int // open Temps and Streams
	closed bool
}

// Open opens the repository at path and takes the shared lock. Errors that a
// caller may want to tell apart: [ErrNotRepository], [ErrOldFormat], [ErrMeta],
// [ErrSecure], [*LockError].
func Open(ctx context.Context, path string, o OpenOptions) (*Repo, error) {
	return open(ctx, path, o, kernelVerity())
}

func open(ctx context.Context, path string, o OpenOptions, v verity) (*Repo, error) {
	r, err := openLocked(ctx, path, o.LockTimeout, v)
	if err != nil {
		return nil, err
	}
	err = r.load(o)
	if o.Upgrade && !o.ReadOnly && errors.Is(err, ErrOldFormat) {
		if err = r.upgrade(o); err == nil {
			err = r.load(o)
		}
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// openLocked opens a directory that may be a repository, or become one, and
// takes the shared lock. Nothing in it was looked at.
func openLocked(ctx context.Context, path string, lockTimeout time.Duration, v verity) (*Repo, error) {
	root, err := openRoot(path)
	if err != nil {
		return nil, err
	}
	lock, err := locks.acquire(ctx, root, path, lockTimeout)
	if err != nil {
		root.Close() // a directory
		return nil, err
	}
	return newRepo(path, root, lock, v), nil
}

func newRepo(path string, root *os.File, lock *processLock, v verity) *Repo {
	r := &Repo{path: path, root: root, lock: lock, verity: v, touched: make(map[string]struct{})}
	r.useEnd.L = &r.useMu
	r.dirs.init()
	return r
}

func openRoot(path string) (*os.File, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		err = &fs.PathError{Op: "open repository", Path: path, Err: err}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			err = fmt.Errorf("%w: %w", ErrNotRepository, err)
		}
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// load reads meta.json and decides what is allowed.
func (r *Repo) load(o OpenOptions) error {
	f, err := r.openMeta()
	if err != nil {
		return err
	}
	defer f.Close() // read-only
	if r.meta, err = readMeta(f); err != nil {
		return fmt.Errorf("repository %s: %w", r.path, err)
	}
	r.emptyID = fsverity.Sum(r.meta.Algorithm, nil)

	switch _, err := r.verity.measure(f, r.meta.Algorithm); {
	case err == nil:
		r.secure = true
	case errors.Is(err, fsverity.ErrNotEnabled), errors.Is(err, fsverity.ErrNotSupported):
	default:
		return fmt.Errorf("repository %s: %w", r.path, err)
	}
	if r.secure && o.AllowMissingVerity && !o.Force {
		return fmt.Errorf("open repository %s: %w", r.path, ErrSecure)
	}
	r.enforce = r.secure && !o.AllowMissingVerity
	r.readOnly = r.checkWritable(o)
	return nil
}

// openMeta opens meta.json, or says what the directory is without it.
func (r *Repo) openMeta() (*os.File, error) {
	fd, err := openBeneath(r.rootfd(), "meta.json", unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err == nil {
		return os.NewFile(uintptr(fd), r.path+"/meta.json"), nil
	}
	if !errors.Is(err, unix.ENOENT) {
		return nil, r.pathError("open", "meta.json", err)
	}
	var st unix.Stat_t
	switch err := unix.Fstatat(r.rootfd(), "objects", &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil:
		return nil, fmt.Errorf("open repository %s: %w", r.path, ErrOldFormat)
	case errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("open repository %s: %w: it has neither meta.json nor objects", r.path, ErrNotRepository)
	default:
		return nil, r.pathError("stat", "objects", err)
	}
}

func readMeta(f *os.File) (Meta, error) {
	text, err := readMetaText(f)
	if err != nil {
		return Meta{}, err
	}
	return ParseMeta(text)
}

func readMetaText(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read metadata: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxMetaSize {
		return nil, fmt.Errorf("%w: meta.json is not a regular file of at most %d bytes", ErrMeta, maxMetaSize)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxMetaSize))
	if err != nil {
		return nil, fmt.Errorf("read metadata: %w", err)
	}
	return text, nil
}

func (r *Repo) checkWritable(o OpenOptions) error {
	fail := func(why string) error { return fmt.Errorf("write to repository %s: %w: %s", r.path, ErrReadOnly, why) }
	if o.ReadOnly {
		return fail("it was opened for reading")
	}
	if unknown := r.meta.unknownReadOnly(); len(unknown) > 0 {
		return fail("unknown features " + strings.Join(unknown, ", ") + "; a newer version of this program is needed")
	}
	why, err := r.cannotWrite()
	if err != nil {
		return err
	}
	if why != "" {
		return fail(why)
	}
	return nil
}

// cannotWrite says why the system does not let this process write; empty when
// it does.
func (r *Repo) cannotWrite() (why string, err error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(r.rootfd(), &st); err != nil {
		return "", fmt.Errorf("stat file system of %s: %w", r.path, err)
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return "its file system is mounted read-only", nil
	}
	if err := unix.Faccessat(r.rootfd(), ".", unix.W_OK, unix.AT_EACCESS); err != nil {
		return err.Error(), nil
	}
	return "", nil
}

// Close ends the use of the repository and, with the last handle of the
// process, drops the lock. It waits for running calls. It is an error that is
// [ErrInUse] when temporary files or streams are still open; the handle is
// closed all the same.
func (r *Repo) Close() error {
	r.useMu.Lock()
	if r.closed {
		r.useMu.Unlock()
		return nil
	}
	r.closed = true
	for r.calls > 0 {
		r.useEnd.Wait()
	}
	users := r.users
	r.useMu.Unlock()

	var inUse error
	if users > 0 {
		inUse = fmt.Errorf("close repository %s: %w by %d files or streams", r.path, ErrInUse, users)
	}
	r.dirs.close()
	return errors.Join(inUse, r.root.Close(), locks.release(r.lock))
}

// enter begins a call; leave ends it. Between them the descriptors stay valid.
// A call must not begin another one: Close may be waiting.
func (r *Repo) enter() error {
	r.useMu.Lock()
	defer r.useMu.Unlock()
	if r.closed {
		return fmt.Errorf("repository %s: %w", r.path, ErrClosed)
	}
	r.calls++
	return nil
}

func (r *Repo) leave() {
	r.useMu.Lock()
	r.calls--
	if r.closed && r.calls == 0 {
		r.useEnd.Broadcast()
	}
	r.useMu.Unlock()
}

// enterWrite is enter for calls that change the repository.
func (r *Repo) enterWrite() error {
	if err := r.Writable(); err != nil {
		return err
	}
	return r.enter()
}

// addUser counts open files and streams.
func (r *Repo) addUser(n int) {
	r.useMu.Lock()
	r.users += n
	r.useMu.Unlock()
}

func (r *Repo) rootfd() int {
	fd := int(r.root.Fd())
	runtime.KeepAlive(r)
	return fd
}

// Path is the path the repository was opened by.
func (r *Repo) Path() string { return r.path }

// Same reports whether two handles are of one repository, whatever paths they
// were opened by.
func (r *Repo) Same(o *Repo) bool { return r.lock == o.lock }

// Algorithm is that of all digests in the repository.
func (r *Repo) Algorithm() fsverity.Algorithm { return r.meta.Algorithm }

// Meta is the content of meta.json.
func (r *Repo) Meta() Meta { return r.meta }

// Secure reports whether the repository requires fs-verity.
func (r *Repo) Secure() bool { return r.secure }

// Enforcing reports whether this handle requires it: it does for a secure
// repository unless OpenOptions.Force said otherwise.
func (r *Repo) Enforcing() bool { return r.enforce }

// Upgraded reports whether this handle wrote the meta.json that was missing:
// see OpenOptions.Upgrade.
func (r *Repo) Upgraded() bool { return r.upgraded }

// Versions lists the EROFS formats images are generated in, the default first.
func (r *Repo) Versions() []erofs.Version { return r.meta.EffectiveFormats().Versions() }

// Writable is nil when the repository can be written to, and otherwise an
// error that is [ErrReadOnly] and says why not.
func (r *Repo) Writable() error {
	if r.readOnly == nil && locks.isLost(r.lock) {
		return fmt.Errorf("write to repository %s: %w: its lock was lost", r.path, ErrReadOnly)
	}
	return r.readOnly
}

// LockExclusive turns the shared lock into the exclusive one that garbage
// collection needs. It fails with [ErrInUse] while other handles of this
// process are open, and with a [*LockError] after timeout (0: the default).
// Whatever was read before may have changed. The function returned goes back
// to the shared lock; after a failure the shared lock is held again too.
func (r *Repo) LockExclusive(ctx context.Context, timeout time.Duration) (unlock func() error, err error) {
	if err := r.enterWrite(); err != nil {
		return nil, err
	}
	defer r.leave()
	if err := locks.convertExclusive(ctx, r.lock, timeout); err != nil {
		return nil, err
	}
	return func() error { return locks.backToShared(r.lock) }, nil
}

// CheckVerity is nil when objects can be given the protection that this handle
// requires. It tries on a file of its own and leaves nothing behind. Otherwise
// the error is [ErrVerityUnavailable]. Call it before a download.
func (r *Repo) CheckVerity() error {
	if !r.enforce {
		return nil
	}
	if err := r.enterWrite(); err != nil {
		return err
	}
	defer r.leave()
	fd, err := r.makeDirs("objects")
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), r.path+"/objects")
	defer dir.Close() // a directory
	if err := r.verity.probe(dir, r.meta.Algorithm); err != nil {
		return r.verityError(err)
	}
	return nil
}

// verityError marks a failure that only another file system or kernel cures.
func (r *Repo) verityError(err error) error {
	if errors.Is(err, fsverity.ErrNotSupported) {
		return fmt.Errorf("repository %s: %w: %w", r.path, ErrVerityUnavailable, err)
	}
	return err
}
