// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tempPrefix begins the names of files and directories that are not complete.
// No boot loader takes them for entries, and the next export removes those
// that a crash left.
const tempPrefix = ".cfs-pull-tmp-"

// writeFile is a file being written.
type writeFile interface {
	io.Writer
	Sync() error
	Close() error
}

// fileOps are the operations on the directory that Export writes to. Names are
// relative to it. Tests put faults between them.
type fileOps interface {
	Lstat(name string) (fs.FileInfo, error)
	Open(name string) (io.ReadCloser, error)
	ReadDir(name string) ([]fs.DirEntry, error)
	Mkdir(name string) error
	Create(name string, mode fs.FileMode) (writeFile, error) // must not exist
	Rename(from, to string) error
	RemoveAll(name string) error
	Sync(name string) error // of a file's content or a directory's names
}

// rootOps are the operations below an os.Root: symbolic links, which the
// directory's owner may have made, lead nowhere outside of it.
type rootOps struct{ root *os.Root }

func (r rootOps) Lstat(name string) (fs.FileInfo, error)  { return r.root.Lstat(name) }
func (r rootOps) Open(name string) (io.ReadCloser, error) { return r.root.Open(name) }
func (r rootOps) Mkdir(name string) error                 { return r.root.Mkdir(name, 0o755) }
func (r rootOps) Rename(from, to string) error            { return r.root.Rename(from, to) }
func (r rootOps) RemoveAll(name string) error             { return r.root.RemoveAll(name) }

func (r rootOps) Create(name string, mode fs.FileMode) (writeFile, error) {
	return r.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
}

func (r rootOps) ReadDir(name string) ([]fs.DirEntry, error) {
	d, err := r.root.Open(name)
	if err != nil {
		return nil, err
	}
	entries, err := d.ReadDir(-1)
	return entries, errors.Join(err, d.Close())
}

func (r rootOps) Sync(name string) error {
	d, err := r.root.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	// Some file systems cannot sync a directory; they say so in these ways.
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// lockDir locks the directory against other exports, waiting at most until the
// limit. Closing the file unlocks it.
func lockDir(ctx context.Context, root *os.Root, limit time.Duration) (*os.File, error) {
	d, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(limit)
	for {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return d, nil
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EWOULDBLOCK) && time.Now().After(deadline) {
			err = fmt.Errorf("another export holds it for more than %s: %w", limit, err)
		} else if errors.Is(err, unix.EWOULDBLOCK) {
			select {
			case <-ctx.Done():
				err = ctx.Err()
			case <-time.After(50 * time.Millisecond):
				continue
			}
		}
		return nil, errors.Join(fmt.Errorf("lock: %w", err), d.Close())
	}
}

// target writes below one directory so that every name appears complete or
// not at all.
type target struct {
	fileOps
	clean map[string]bool // directories without leftovers
}

func tempName() string { return fmt.Sprintf("%s%016x", tempPrefix, rand.Uint64()) }

// prepare makes directory dir and its parents, durably, and removes leftovers
// from it.
func (t *target) prepare(dir string) error {
	if t.clean[dir] {
		return nil
	}
	if dir != "." {
		if err := t.prepareParent(dir); err != nil {
			return err
		}
	}
	entries, err := t.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			if err := t.RemoveAll(path.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	t.clean[dir] = true
	return nil
}

func (t *target) prepareParent(dir string) error {
	parent := path.Dir(dir)
	if parent != "." {
		if err := t.prepareParent(parent); err != nil {
			return err
		}
	}
	if err := t.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Synced even if it exists: an earlier run may have been cut off between
	// the two.
	return t.Sync(parent)
}

// regularSize is the size of the regular file of that name, or -1 if there is
// none.
func (t *target) regularSize(name string) (int64, error) {
	info, err := t.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	if !info.Mode().IsRegular() {
		return -1, nil
	}
	return info.Size(), nil
}

// read copies the file of that name, which must be regular.
func (t *target) read(ctx context.Context, name string, w io.Writer, size int64) (err error) {
	f, err := t.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return copyExactly(ctx, w, f, size)
}

var errDiffers = errors.New("content differs")

// comparer is a Writer that fails once what is written is not what r has.
type comparer struct {
	r   io.Reader
	buf []byte
}

func (c *comparer) Write(p []byte) (int, error) {
	if len(c.buf) < len(p) {
		c.buf = make([]byte, len(p))
	}
	q := c.buf[:len(p)]
	if _, err := io.ReadFull(c.r, q); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errDiffers
		}
		return 0, err
	}
	if !bytes.Equal(p, q) {
		return 0, errDiffers
	}
	return len(p), nil
}

// source is a file to be written.
type source struct {
	size int64
	mode fs.FileMode
	// copy writes the content; it may be called more than once.
	copy func(ctx context.Context, w io.Writer) error
}

func textSource(text string) source {
	return source{size: int64(len(text)), mode: 0o644, copy: func(_ context.Context, w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}}
}

// same reports whether the file of that name has the source's content.
func (t *target) same(ctx context.Context, name string, src source) (same bool, err error) {
	size, err := t.regularSize(name)
	if err != nil || size != src.size {
		return false, err
	}
	f, err := t.Open(name)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	err = src.copy(ctx, &comparer{r: f})
	if errors.Is(err, errDiffers) {
		return false, nil
	}
	return err == nil, err
}

// fill creates the file and makes its content durable, though not its name.
func (t *target) fill(ctx context.Context, name string, src source) error {
	f, err := t.Create(name, src.mode)
	if err != nil {
		return err
	}
	if err := src.copy(ctx, f); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// put makes the source the content of the file dir/name: through a temporary
// file beside it, synced, renamed, and the directory synced. A file that has
// the content is left alone; changed says whether it was not.
func (t *target) put(ctx context.Context, dir, name string, src source) (changed bool, err error) {
	if err := t.prepare(dir); err != nil {
		return false, err
	}
	full := path.Join(dir, name)
	same, err := t.same(ctx, full, src)
	if err != nil {
		return false, err
	}
	if same {
		return false, t.settle(dir, name)
	}
	temp := path.Join(dir, tempName())
	defer func() {
		if err != nil {
			// The first error counts; a leftover is removed by the next run.
			_ = t.RemoveAll(temp)
		}
	}()
	if err := t.fill(ctx, temp, src); err != nil {
		return false, err
	}
	if err := t.Rename(temp, full); err != nil {
		return false, err
	}
	return true, t.Sync(dir)
}

// settle makes files that were found durable, together with their names. Who
// wrote them may have been cut off, or not have cared.
func (t *target) settle(dir string, names ...string) error {
	for _, name := range names {
		if err := t.Sync(path.Join(dir, name)); err != nil {
			return err
		}
	}
	return t.Sync(dir)
}

// namedSource is a file of a kernel directory.
type namedSource struct {
	name string
	source
}

// putDir makes a directory with these files appear at once. The name must be
// free.
func (t *target) putDir(ctx context.Context, parent, name string, files []namedSource) (err error) {
	temp := path.Join(parent, tempName())
	if err := t.Mkdir(temp); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = t.RemoveAll(temp)
		}
	}()
	for _, f := range files {
		if err := t.fill(ctx, path.Join(temp, f.name), f.source); err != nil {
			return fmt.Errorf("write %s: %w", f.name, err)
		}
	}
	if err := t.Sync(temp); err != nil {
		return err
	}
	if err := t.Rename(temp, path.Join(parent, name)); err != nil {
		return err
	}
	return t.Sync(parent)
}
