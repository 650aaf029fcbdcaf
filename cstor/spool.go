// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// spool is a blob on its way through a temporary file without a name: one
// goroutine writes, another one reads what has been written, and waits for more.
type spool struct {
	file *os.File

	checked int64 // bytes to write before the free space is looked at again

	mu      sync.Mutex
	more    sync.Cond // broadcast when what follows changes
	written int64
	done    bool
	err     error // of the writer; valid when done
}

const (
	// spoolReserve is what must stay free on the file system, in bytes: the
	// library cannot even clean up on one that is full.
	spoolReserve = 16 << 20
	// spoolStep is how many bytes are written between two looks at that.
	spoolStep = 1 << 20
)

// errSpoolFull is a blob that a temporary file has no room for. It is then
// fetched when it can go into the store as it arrives.
var errSpoolFull = errors.New("no space for a temporary file")

// newSpool makes a spool on the file system of dir.
func newSpool(dir string) (*spool, error) {
	file, err := unnamedFile(dir)
	if err != nil {
		return nil, fmt.Errorf("create temporary file in %s: %w", dir, err)
	}
	s := &spool{file: file}
	s.more.L = &s.mu
	return s, nil
}

// unnamedFile is an open file without a name in dir.
func unnamedFile(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), dir), nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return nil, err
	}
	f, err := os.CreateTemp(dir, ".cfs-pull-*")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// fill copies r to the spool, to its end, and ends the spool.
func (s *spool) fill(r io.Reader) {
	_, err := io.Copy(spoolWriter{s}, r)
	s.finish(err)
}

// finish says that there will be no more bytes.
func (s *spool) finish(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.done {
		s.done, s.err = true, err
		s.more.Broadcast()
	}
}

type spoolWriter struct{ *spool }

func (w spoolWriter) Write(p []byte) (int, error) {
	if err := w.checkRoom(int64(len(p))); err != nil {
		return 0, err
	}
	n, err := w.file.Write(p)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = w.giveUp()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.written += int64(n)
	w.more.Broadcast()
	return n, err
}

// checkRoom fails when n more bytes would leave too little space.
func (w spoolWriter) checkRoom(n int64) error {
	w.checked -= n
	if w.checked > 0 {
		return nil
	}
	w.checked = spoolStep
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(w.file.Fd()), &st); err != nil {
		return fmt.Errorf("read free space of %s: %w", w.file.Name(), err)
	}
	if st.Bavail*uint64(st.Bsize) < uint64(spoolReserve+n) {
		return w.giveUp()
	}
	return nil
}

// giveUp frees the space at once: others wait for it.
func (w spoolWriter) giveUp() error {
	return errors.Join(errSpoolFull, w.file.Truncate(0))
}

// available waits until there are bytes behind offset and returns how many, or
// the end of the spool.
func (s *spool) available(offset int64) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.written == offset && !s.done {
		s.more.Wait()
	}
	switch {
	case s.done && s.err != nil:
		return 0, s.err // at once: what was written will be of no use
	case s.written == offset:
		return 0, io.EOF
	}
	return s.written - offset, nil
}

// close gives the file back. The writer must have ended.
func (s *spool) close() error { return s.file.Close() }

// spoolReader reads a spool from its beginning. It ends when its context does.
type spoolReader struct {
	*spool
	offset int64
	stop   func() bool
}

func (s *spool) reader(ctx context.Context) *spoolReader {
	return &spoolReader{spool: s, stop: context.AfterFunc(ctx, func() { s.finish(context.Cause(ctx)) })}
}

// Read implements io.Reader.
func (r *spoolReader) Read(p []byte) (int, error) {
	have, err := r.available(r.offset)
	if err != nil {
		return 0, err
	}
	n, err := r.file.ReadAt(p[:min(int64(len(p)), have)], r.offset)
	r.offset += int64(n)
	if err == io.EOF { // the writer has given up and truncated the file
		err = r.failure()
	}
	return n, err
}

// failure waits for the end of a spool that has failed.
func (s *spool) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.done {
		s.more.Wait()
	}
	if s.err == nil {
		return io.ErrUnexpectedEOF
	}
	return s.err
}

// Close implements io.Closer. It leaves the spool open.
func (r *spoolReader) Close() error {
	r.stop()
	return nil
}
