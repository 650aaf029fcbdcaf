// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/internal/rooted"
	"github.com/cfs-pull/cfs-pull/internal/tarraw"
)

// UnusableLayerError is a layer whose original tar archive cannot be put
// together from what the store has of it.
type UnusableLayerError struct {
	DiffDir string
	Reason  string
}

func (e *UnusableLayerError) Error() string {
	return fmt.Sprintf("the tar archive of layer %s cannot be rebuilt: %s", e.DiffDir, e.Reason)
}

// OpenLayer opens a layer of a store as its tar archive: the headers from the
// tar-split metadata, the contents of files from the files below the layer's
// directory. A layer that was not stored from a whole archive is an
// [*UnusableLayerError], at once or, when the parts do not add up to the
// recorded size, at the end. A layer that was removed meanwhile is
// [fs.ErrNotExist].
//
// Nothing that is read is authenticated: who uses it has to compute the digest
// of the archive. No file outside the directory is ever opened, whatever
// links someone has put into it: names are resolved with the directory as the
// root, as the storage library does when it unpacks a layer, and the file itself
// must not be a link.
func OpenLayer(l *Layer) (oci.LayerReader, error) {
	r, err := openLayer(l)
	if err != nil {
		return nil, err
	}
	return r, nil
}

func openLayer(l *Layer) (*layerReader, error) {
	switch {
	case l.Partial != "":
		return nil, &UnusableLayerError{l.DiffDir, l.Partial}
	case l.TarSplitPath == "":
		return nil, &UnusableLayerError{l.DiffDir, "the store has no tar-split metadata of it"}
	}
	split, err := openTarSplit(l.TarSplitPath)
	if err != nil {
		return nil, fmt.Errorf("open layer: %w", err)
	}
	var fd int
	err = ignoringEINTR(func() (err error) {
		fd, err = unix.Open(l.DiffDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, errors.Join(&fs.PathError{Op: "open layer", Path: l.DiffDir, Err: err}, split.Close())
	}
	r := &layerReader{layer: *l, split: split, dir: os.NewFile(uintptr(fd), l.DiffDir)}
	if r.control, err = r.dir.SyscallConn(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// layerReader is an [oci.LayerReader] of a layer in a store.
type layerReader struct {
	layer   Layer
	split   *tarSplit
	dir     *os.File        // the layer's directory
	control syscall.RawConn // of dir: late calls of open may race with Close
	segment []byte          // what is left of a segment
	next    splitEntry
	pending bool     // next is a file that nobody has asked for
	body    *os.File // its content, being read as bytes
	left    int64    // bytes of body
	total   int64    // bytes of the archive so far
	err     error
}

// Read reads bytes of the archive up to the next file.
func (r *layerReader) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if r.err != nil {
			if n > 0 {
				return n, nil
			}
			return 0, r.err
		}
		switch {
		case len(r.segment) > 0:
			m := copy(p[n:], r.segment)
			r.segment = r.segment[m:]
			n += m
		case r.body != nil:
			m, err := r.readBody(p[n:])
			n += m
			r.err = err
		case !r.pending:
			r.err = r.advance()
		case n > 0 && r.next.size > tarraw.InlineMax:
			// Whoever parses the header may ask for the file.
			return n, nil
		default:
			r.err = r.openBody()
		}
	}
	return n, nil
}

// advance goes to the next entry.
func (r *layerReader) advance() error {
	e, err := r.split.next()
	switch {
	case err == io.EOF:
		if want := r.layer.UncompressedSize; want > 0 && want != r.total {
			return r.doNotAddUp()
		}
		return io.EOF
	case err != nil:
		return err
	}
	size := int64(len(e.segment))
	if e.segment == nil {
		size = e.size
	}
	r.total += size
	if want := r.layer.UncompressedSize; r.total < 0 || want > 0 && r.total > want {
		return r.doNotAddUp()
	}
	r.segment = e.segment
	if e.segment == nil && e.size > 0 {
		r.next, r.pending = e, true
	}
	return nil
}

// doNotAddUp is the error for a layer with a sparse file, for instance: the
// storage library records the size of what it unpacks to.
func (r *layerReader) doNotAddUp() error {
	return &UnusableLayerError{r.layer.DiffDir, fmt.Sprintf("the store's record of it, %s, describes another number of bytes than the %d of the archive",
		r.layer.TarSplitPath, r.layer.UncompressedSize)}
}

// NextFile gives out the file that comes next, if it has the size.
func (r *layerReader) NextFile(size uint64) *oci.LayerFile {
	if !r.pending || r.body != nil || len(r.segment) > 0 || uint64(r.next.size) != size {
		return nil
	}
	r.pending = false
	name := r.next.name
	return &oci.LayerFile{Open: func() (*os.File, error) { return r.open(name) }}
}

// open opens a file of the layer.
func (r *layerReader) open(name string) (*os.File, error) {
	path := filepath.Join(r.layer.DiffDir, name) // for messages
	// Not blocking, because it may be a FIFO by now. Reading leaves no trace
	// in the access times, which would be written to disk.
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY
	var fd int
	var err error
	closed := r.control.Control(func(dir uintptr) {
		fd, err = rooted.Open(int(dir), name, flags|unix.O_NOATIME, 0, rooted.InRoot|rooted.OneMount)
		if errors.Is(err, unix.EPERM) { // only the owner may leave none
			fd, err = rooted.Open(int(dir), name, flags, 0, rooted.InRoot|rooted.OneMount)
		}
	})
	if closed != nil {
		return nil, closed
	}
	if err == nil {
		return os.NewFile(uintptr(fd), path), nil
	}
	err = &fs.PathError{Op: "open", Path: path, Err: err}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("%w: a file of the layer is missing: %w", oci.ErrIntegrity, err)
	case errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("%w: a file of the layer has been replaced by a link: %w", oci.ErrIntegrity, err)
	case errors.Is(err, unix.EXDEV):
		return nil, fmt.Errorf("%w: a file of the layer is hidden by a mount: %w", oci.ErrIntegrity, err)
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("%w: a file of the layer has been replaced by a device: %w", oci.ErrIntegrity, err)
	}
	return nil, err
}

// openBody begins to read the pending file as bytes.
func (r *layerReader) openBody() error {
	f, err := r.openSized(r.next)
	if err != nil {
		return err
	}
	r.body, r.left, r.pending = f, r.next.size, false
	return nil
}

// openSized opens a file that must be regular and have the size of its entry.
func (r *layerReader) openSized(e splitEntry) (*os.File, error) {
	f, err := r.open(e.name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%w: %s is not a regular file any more", oci.ErrIntegrity, f.Name())
	case info.Size() != e.size:
		err = fmt.Errorf("%w: %s has %d bytes, not %d", oci.ErrIntegrity, f.Name(), info.Size(), e.size)
	}
	if err != nil {
		f.Close() // read-only
		return nil, err
	}
	return f, nil
}

func (r *layerReader) readBody(p []byte) (int, error) {
	n, err := r.body.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	if err == nil && r.left > 0 {
		return n, nil
	}
	name := r.body.Name()
	r.body.Close() // read-only
	r.body = nil
	if err == io.EOF {
		err = fmt.Errorf("%w: %s has become shorter", oci.ErrIntegrity, name)
	}
	return n, err
}

// Explain finds the file that is not what the archive had in its place.
func (r *layerReader) Explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	again, openErr := openLayer(&r.layer)
	if openErr != nil {
		return fmt.Errorf("%w (looking for the reason: %w)", err, openErr)
	}
	defer again.Close() // read-only
	if reason := again.findChanged(ctx); reason != nil {
		return fmt.Errorf("%w (found because: %w)", reason, err)
	}
	return err
}

// findChanged compares each file with the checksum that was made when it was
// unpacked. That is no proof against intent, but it names the file.
func (r *layerReader) findChanged(ctx context.Context) error {
	table := crc64.MakeTable(crc64.ISO)
	for {
		e, err := r.split.next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case e.segment != nil || e.size == 0 || !e.hasCRC:
			continue
		}
		f, err := r.openSized(e)
		if err != nil {
			return err
		}
		sum := crc64.New(table)
		_, err = io.Copy(sum, f)
		if err == nil && sum.Sum64() != e.crc {
			err = fmt.Errorf("%w: %s has other content than the layer%s", oci.ErrIntegrity, f.Name(), stubNote(f))
		}
		f.Close() // read-only
		if err != nil {
			return err
		}
	}
}

// stubNote explains a file that has only metadata.
func stubNote(f *os.File) string {
	for _, name := range []string{"trusted.overlay.metacopy", "user.overlay.metacopy"} {
		if _, err := unix.Fgetxattr(int(f.Fd()), name, nil); err == nil {
			return ": its content is in a layer below (metacopy)"
		}
	}
	return ""
}

// Close ends the reading.
func (r *layerReader) Close() error {
	if r.body != nil {
		r.body.Close() // read-only
	}
	return errors.Join(r.split.Close(), r.dir.Close())
}

// ignoringEINTR calls f until no signal interrupts it.
func ignoringEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
