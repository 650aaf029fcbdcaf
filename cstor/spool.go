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

	mu      sync.Mutex
	more    sync.Cond // broadcast when what follows changes
	written int64
	done    bool
	err     error // of the writer; valid when done
}

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
	n, err := w.file.Write(p)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.written += int64(n)
	w.more.Broadcast()
	return n, err
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
	return n, err
}

// Close implements io.Closer. It leaves the spool open.
func (r *spoolReader) Close() error {
	r.stop()
	return nil
}
