// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"go.podman.io/image/v5/pkg/compression"
	"golang.org/x/sys/unix"
)

const (
	// maxArchiveSize bounds the unpacked form of a compressed archive in bytes.
	maxArchiveSize = 256 << 30
	// maxArchiveFiles bounds the members of an archive. An image has hundreds.
	maxArchiveFiles = 100_000
	// maxArchiveName bounds a name in an archive; longer ones are no blobs.
	maxArchiveName = 512
)

// archiveStore is a fileStore in a tar file. The file is indexed once and then
// read in place.
type archiveStore struct {
	f     *os.File
	files map[string]span
	links map[string]string // symbolic links, cleaned targets
}

type span struct{ offset, size int64 }

// openArchive indexes the tar file at path. When it is compressed, it is first
// unpacked to a file without a name.
func openArchive(ctx context.Context, path string, o *Options) (*archiveStore, error) {
	f, _, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	plain, err := decompressArchive(ctx, f, o)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("unpack archive %s: %w", path, err)
	}
	if plain != f {
		f.Close()
	}
	a := &archiveStore{f: plain, files: map[string]span{}, links: map[string]string{}}
	if err := a.index(ctx); err != nil {
		plain.Close()
		return nil, fmt.Errorf("read archive %s: %w", path, err)
	}
	return a, nil
}

// decompressArchive returns f itself when it is not compressed.
func decompressArchive(ctx context.Context, f *os.File, o *Options) (_ *os.File, err error) {
	stream, compressed, err := compression.AutoDecompress(f)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	if !compressed {
		_, err := f.Seek(0, io.SeekStart)
		return f, err
	}
	temp, err := unnamedFile(o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			temp.Close()
		}
	}()
	limited := &io.LimitedReader{R: ctxReader{ctx, stream}, N: maxArchiveSize + 1}
	if _, err := io.Copy(temp, limited); err != nil {
		return nil, err
	}
	if limited.N <= 0 {
		return nil, fmt.Errorf("larger than the limit of %d bytes", int64(maxArchiveSize))
	}
	_, err = temp.Seek(0, io.SeekStart)
	return temp, err
}

// unnamedFile makes an empty file that goes away with its descriptor.
func unnamedFile(o *Options) (*os.File, error) {
	if o.UnpackDir != "" {
		fd, err := unix.Open(o.UnpackDir, unix.O_TMPFILE|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err == nil {
			return os.NewFile(uintptr(fd), o.UnpackDir), nil
		}
		o.logger().Info("cannot unpack here", "directory", o.UnpackDir, "error", err)
	}
	temp, err := os.CreateTemp(o.TempDir, "cfs-pull-archive-")
	if errors.Is(err, fs.ErrNotExist) { // not of the image
		return nil, &UsageError{
			Subject: cmp.Or(o.TempDir, os.TempDir()),
			Err:     errors.New("the directory for temporary files does not exist"),
			Hint:    "another one can be named with TMPDIR",
		}
	}
	if err != nil {
		return nil, err
	}
	if err := os.Remove(temp.Name()); err != nil {
		temp.Close()
		return nil, err
	}
	return temp, nil
}

// ctxReader fails once its context is done.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// index notes where the files are. As when unpacking, the last one of a name
// counts.
func (a *archiveStore) index(ctx context.Context) error {
	info, err := a.f.Stat()
	if err != nil {
		return err
	}
	// The reader seeks over content, and takes no byte more than it has to, so
	// the position of the file is the position in the archive.
	r := tar.NewReader(a.f)
	for n := 0; ; n++ {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if n >= maxArchiveFiles {
			return fmt.Errorf("more than %d members", maxArchiveFiles)
		}
		name := path.Clean(h.Name)
		if len(name) > maxArchiveName {
			continue
		}
		delete(a.files, name)
		delete(a.links, name)
		switch {
		case h.Typeflag == tar.TypeSymlink && len(h.Linkname) <= maxArchiveName:
			a.links[name] = path.Join(path.Dir(name), h.Linkname)
		case h.Typeflag == tar.TypeReg && !isSparse(h):
			offset, err := a.f.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			if h.Size > info.Size()-offset {
				return fmt.Errorf("member %q: %w", name, io.ErrUnexpectedEOF)
			}
			a.files[name] = span{offset, h.Size}
		}
	}
}

// isSparse says whether the content of a member in the archive is not its
// content as a file.
func isSparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if len(key) > 10 && key[:10] == "GNU.sparse" {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

func (a *archiveStore) open(name string) (io.ReadCloser, int64, error) {
	name = path.Clean(name)
	s, ok := a.files[name]
	if !ok {
		// docker save links a layer that an image has twice. One step is enough.
		if target, linked := a.links[name]; linked {
			s, ok = a.files[target]
		}
	}
	if !ok {
		return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(io.NewSectionReader(a.f, s.offset, s.size)), s.size, nil
}

func (a *archiveStore) Close() error {
	err := a.f.Close()
	if errors.Is(err, fs.ErrClosed) {
		return nil
	}
	return err
}
