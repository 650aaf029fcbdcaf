// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	graphdriver "go.podman.io/storage/drivers"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/cstor/unpack"
	"github.com/cfs-pull/cfs-pull/internal/tarraw"
)

const (
	// stageQueue is how many files of a layer are on their way at once, each
	// with an open descriptor.
	stageQueue = 64
	// stageInline is how many bytes of headers are passed on at once.
	stageInline = 64 << 10
	// stageBuffer is what is read of a file at once, and what is copied.
	stageBuffer = 256 << 10
	// emptyLayerMode is what the overlay driver gives a lowest layer's
	// directory that has no entry in the archive.
	emptyLayerMode = 0o555
)

// stager copies one layer into a directory of its own.
//
// Three things run side by side: the archive is framed, from the tar-split
// metadata, and directories, links and devices are made; files are cloned by
// the workers of an unpack.Unpacker; and the archive is hashed in its order,
// with the contents of the files that were made, not of those that they were
// made from: so the digest vouches for what is kept.
type stager struct {
	*copier
	layer  *stored
	source Layer
	size   int64 // of the archive, when it has been hashed
}

// piece is a part of an archive: some bytes, then the content of a file.
type piece struct {
	inline []byte
	file   chan stagedFile // nil for none
	size   int64
}

// stagedFile is a file that was made, or why not.
type stagedFile struct {
	file *os.File
	err  error
}

// stage makes the layer below dir, which must not exist.
func (s *stager) stage(ctx context.Context, dir string) (_ *graphdriver.DriverWithDifferOutput, err error) {
	target := filepath.Join(dir, "diff")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Mkdir(target, emptyLayerMode); err != nil {
		return nil, err
	}
	if err := os.Chmod(target, emptyLayerMode); err != nil { // whatever the umask is
		return nil, err
	}
	out, err := os.Open(target)
	if err != nil {
		return nil, err
	}
	defer out.Close()

	archive, err := openLayer(&s.source)
	if err != nil {
		return nil, err
	}
	defer archive.Close() // read-only
	split, err := newSplitCopy(dir, archive.split)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			split.file.Close() // a temporary file
		}
	}()

	result, sum, err := s.unpack(ctx, archive, out)
	if err != nil {
		return nil, err
	}
	if sum != s.layer.diffID {
		return nil, archive.Explain(ctx, s.mismatch(s.layer, s.source, sum))
	}
	if err := split.finish(); err != nil {
		return nil, err
	}
	if err := s.setRoot(out, result); err != nil {
		return nil, err
	}
	return s.output(target, out, split.file, result)
}

// output is what the library is told of the layer.
func (s *stager) output(target string, out, split *os.File, result *unpack.Result) (*graphdriver.DriverWithDifferOutput, error) {
	info, err := out.Stat()
	if err != nil {
		return nil, err
	}
	mode := info.Mode()
	o := &graphdriver.DriverWithDifferOutput{
		Target: target, TarSplit: split, Size: s.size,
		UIDs: result.UIDs, GIDs: result.GIDs, RootDirMode: &mode,
		UncompressedDigest: digest.Digest(s.layer.diffID.String()),
		// As the library does for an archive that was not compressed.
		CompressedDigest: digest.Digest(s.layer.diffID.String()),
	}
	if compressed, size := blobOf(&s.source, s.layer); size > 0 {
		o.CompressedDigest = compressed
	}
	return o, nil
}

// setRoot gives the layer's directory what it has in the other store, if the
// archive does not say: there it was taken from the layer below.
func (s *stager) setRoot(out *os.File, result *unpack.Result) error {
	if result.Root {
		return nil
	}
	var stat unix.Stat_t
	if err := unix.Stat(s.source.DiffDir, &stat); err != nil {
		return &fs.PathError{Op: "stat", Path: s.source.DiffDir, Err: err}
	}
	if err := unix.Fchown(int(out.Fd()), int(stat.Uid), int(stat.Gid)); err != nil {
		return &fs.PathError{Op: "chown", Path: out.Name(), Err: err}
	}
	if err := unix.Fchmod(int(out.Fd()), stat.Mode&0o7777); err != nil {
		return &fs.PathError{Op: "chmod", Path: out.Name(), Err: err}
	}
	return nil
}

// unpack makes the files of the layer in dir and returns the digest of the
// archive with the contents that they have.
func (s *stager) unpack(ctx context.Context, archive *layerReader, dir *os.File) (*unpack.Result, oci.Digest, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	u, err := unpack.New(dir, unpack.Options{MaxEntries: s.options.Limits.MaxEntries})
	if err != nil {
		return nil, oci.Digest{}, err
	}
	queue := make(chan piece, stageQueue)
	sum := sha256.New()
	var hasher sync.WaitGroup
	hasher.Go(func() {
		if err := s.hash(ctx, queue, sum); err != nil {
			cancel(err)
		}
	})
	err = s.frame(ctx, archive, u, queue)
	var result *unpack.Result
	if err == nil {
		result, err = u.Finish()
	}
	if err != nil {
		cancel(err)
	}
	close(queue)
	u.Close() // each file in the queue is done now, in one way or the other
	hasher.Wait()
	// Whatever ended the context came first; the rest followed from it.
	if cause := context.Cause(ctx); cause != nil {
		return nil, oci.Digest{}, cause
	}
	digest, err := oci.ParseDigest(fmt.Sprintf("sha256:%x", sum.Sum(nil)))
	return result, digest, err
}

// frame cuts the archive into entries, gives them to the unpacker, and the
// pieces of the archive to the queue.
func (s *stager) frame(ctx context.Context, archive *layerReader, u *unpack.Unpacker, queue chan<- piece) error {
	var inline []byte
	tar := tarraw.NewReader(archive, func(b []byte) error {
		inline = append(inline, b...)
		if len(inline) >= stageInline {
			queue <- piece{inline: inline}
			inline = nil
		}
		return nil
	}, tarraw.Limits{})
	for {
		e, err := tar.Next()
		if err == io.EOF {
			queue <- piece{inline: inline}
			return nil
		}
		if err != nil {
			return malformedLayer(err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !e.External() {
			if err := u.Entry(ctx, e, unpack.Content{}); err != nil {
				return err
			}
			continue
		}
		if tar.Buffered() != 0 {
			return fmt.Errorf("%w: %q begins in the middle of a segment", oci.ErrMalformed, e.Name)
		}
		file := archive.NextFile(e.Size)
		if file == nil {
			return fmt.Errorf("%w: the store has no file for %q", oci.ErrMalformed, e.Name)
		}
		tar.SkipBody()
		done := make(chan stagedFile, 1)
		err = u.Entry(ctx, e, unpack.Content{
			Fill: func(dst *os.File) error { return s.fill(ctx, dst, file, int64(e.Size)) },
			Done: func(dst *os.File, err error) { done <- stagedFile{dst, err} },
		})
		if err != nil {
			return err
		}
		queue <- piece{inline: inline, file: done, size: int64(e.Size)}
		inline = nil
	}
}

// malformedLayer marks the errors of the tar framer that are about the archive
// and not about reading it.
func malformedLayer(err error) error {
	if e, ok := errors.AsType[*tarraw.Error](err); ok && e.Rule != tarraw.RuleRead {
		return fmt.Errorf("%w: %w", oci.ErrMalformed, err)
	}
	return err
}

// fill gives a file its content: blocks shared with the file of the other
// store, or a copy.
func (s *stager) fill(ctx context.Context, dst *os.File, file *oci.LayerFile, size int64) error {
	src, err := file.Open()
	if err != nil {
		return err
	}
	defer src.Close() // read-only
	info, err := src.Stat()
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%w: %s is not a regular file any more", oci.ErrIntegrity, src.Name())
	case info.Size() != size:
		return fmt.Errorf("%w: %s has %d bytes, not %d", oci.ErrIntegrity, src.Name(), info.Size(), size)
	}
	s.files.Add(1)
	if !s.cannotClone.Load() {
		err := ignoringEINTR(func() error { return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) })
		switch {
		case err == nil:
			s.cloned.Add(size)
			return nil
		case !canCopyInstead(err):
			return &fs.PathError{Op: "clone", Path: src.Name(), Err: err}
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY):
			s.cannotClone.Store(true) // nor can any other file
		}
	}
	for copied := int64(0); copied < size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.CopyN(dst, src, min(size-copied, 64<<20))
		copied += n
		if err == io.EOF {
			return fmt.Errorf("%w: %s has become shorter", oci.ErrIntegrity, src.Name())
		}
		if err != nil {
			return err
		}
	}
	s.copied.Add(size)
	return nil
}

// canCopyInstead reports whether a clone failed because of what the files or
// their file systems are.
func canCopyInstead(err error) bool {
	for _, errno := range []unix.Errno{
		unix.EXDEV, unix.EOPNOTSUPP, unix.ENOTTY, unix.EINVAL, unix.ETXTBSY, unix.EPERM,
	} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// hash hashes the pieces in their order until the queue is closed. After an
// error it only closes the files that come.
func (s *stager) hash(ctx context.Context, queue <-chan piece, sum hash.Hash) (err error) {
	report := s.newProgress()
	progress := func(n int64) {
		s.size += n
		report(n)
	}
	buf := make([]byte, stageBuffer)
	for p := range queue {
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err == nil {
			sum.Write(p.inline)
			progress(int64(len(p.inline)))
		}
		if p.file == nil {
			continue
		}
		f := <-p.file
		if err == nil {
			err = f.err
		}
		if f.file == nil {
			continue
		}
		if err == nil {
			err = hashFile(ctx, f.file, p.size, sum, buf, progress)
		}
		// Written, and not on disk yet; the library brings it there.
		if closeErr := f.file.Close(); err == nil {
			err = closeErr
		}
	}
	return err
}

// hashFile hashes size bytes of a file from its beginning.
func hashFile(ctx context.Context, f *os.File, size int64, sum hash.Hash, buf []byte, progress func(int64)) error {
	for offset := int64(0); offset < size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := f.ReadAt(buf[:min(size-offset, int64(len(buf)))], offset)
		sum.Write(buf[:n])
		offset += int64(n)
		progress(int64(n))
		if err != nil && offset < size {
			return fmt.Errorf("read what was copied: %w", err)
		}
	}
	return nil
}

// newProgress turns bytes of the archive into events in bytes of the blob, of
// which all other events are.
func (s *stager) newProgress() func(int64) {
	if !s.layer.fetched() {
		return func(int64) {} // another layer of the image is the same
	}
	var archive, told int64
	size, total := s.layer.blob.Size, s.source.UncompressedSize
	return func(n int64) {
		archive += n
		blob := size
		if archive < total {
			blob = int64(float64(size) * float64(archive) / float64(total))
		}
		// A hundred times a layer is often enough.
		if blob-told < max(size/100, 1) && blob < size || blob == told {
			return
		}
		s.options.Events(Event{Kind: EventFetched, Layer: s.layer.blob.Digest, Size: size, Bytes: blob - told})
		told = blob
	}
}

// splitCopy is a copy of a layer's tar-split metadata, made while they are read.
type splitCopy struct {
	file   *os.File
	out    *bufio.Writer
	source *tarSplit
}

// newSplitCopy makes split write what it reads to a temporary file in dir.
func newSplitCopy(dir string, split *tarSplit) (*splitCopy, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "create temporary file", Path: dir, Err: err}
	}
	c := &splitCopy{file: os.NewFile(uintptr(fd), filepath.Join(dir, "tar-split")), source: split}
	c.out = bufio.NewWriterSize(c.file, splitBuffer)
	split.in.Reset(io.TeeReader(split.gzip, c.out))
	return c, nil
}

// finish completes the copy, when the archive has been read to its end.
func (c *splitCopy) finish() error {
	if err := c.out.Flush(); err != nil {
		return err
	}
	_, err := c.file.Seek(0, io.SeekStart)
	return err
}
