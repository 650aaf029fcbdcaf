// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Methods are the ways in which a file elsewhere may become an object. They are
// tried in this order, after a look whether the object is there already.
type Methods struct {
	Reflink  bool
	Hardlink bool
	Copy     bool
	// NoHardlink says why Hardlink is not set, for errors.
	NoHardlink string
}

// allow reports whether a method other than copying may be used.
func (m Methods) allow(method Outcome) bool {
	return method == Reflinked && m.Reflink || method == Hardlinked && m.Hardlink
}

// ErrChanged reports a file elsewhere that is not what it should be.
var ErrChanged = errors.New("file was changed")

// Donor is a file elsewhere, open for reading, whose content is to become an
// object.
type Donor struct {
	file  *os.File
	size  int64
	state fileState
}

// fileState is what changes when a file does.
type fileState struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

func stateOf(f *os.File) (fileState, uint32, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(int(f.Fd()), &st) }); err != nil {
		return fileState{}, 0, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return fileState{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}, st.Mode, nil
}

// NewDonor notes the state of a file before it is read. It must be regular and
// have size bytes, or the error is [ErrChanged]. The Donor takes f over.
func NewDonor(f *os.File, size int64) (*Donor, error) {
	state, mode, err := stateOf(f)
	switch {
	case err != nil:
	case mode&unix.S_IFMT != unix.S_IFREG:
		err = fmt.Errorf("%w: %s is not a regular file", ErrChanged, f.Name())
	case state.size != size:
		err = fmt.Errorf("%w: %s has %d bytes, not %d", ErrChanged, f.Name(), state.size, size)
	}
	if err != nil {
		f.Close() // read-only
		return nil, err
	}
	return &Donor{file: f, size: size, state: state}, nil
}

// Read reads the content, as io.Reader does.
func (d *Donor) Read(p []byte) (int, error) { return d.file.Read(p) }

// Close closes the file.
func (d *Donor) Close() error { return d.file.Close() }

// Name is the file's path, for messages.
func (d *Donor) Name() string { return d.file.Name() }

// unchanged makes sure that what was read is what is there still.
func (d *Donor) unchanged() error {
	now, _, err := stateOf(d.file)
	if err == nil && now != d.state {
		err = fmt.Errorf("%w while it was read: %s", ErrChanged, d.file.Name())
	}
	return err
}

// Adopter makes objects of files elsewhere, for instance those of a
// containers-storage, by the cheapest of the methods that it may use and that
// the file systems have. It is safe for concurrent use.
type Adopter struct {
	repo    *Repo
	methods Methods

	mu     sync.Mutex
	failed map[sharing]error
}

// sharing is a method between a device and the repository's.
type sharing struct {
	dev    uint64
	method Outcome
}

// NewAdopter makes an Adopter for the repository.
func (r *Repo) NewAdopter(m Methods) *Adopter {
	return &Adopter{repo: r, methods: m, failed: map[sharing]error{}}
}

// OnlyCopies reports whether it is known that only copying is left for d.
func (a *Adopter) OnlyCopies(d *Donor) bool {
	for _, method := range [...]Outcome{Reflinked, Hardlinked} {
		if a.methods.allow(method) && a.failure(d, method) == nil {
			return false
		}
	}
	return a.methods.Copy
}

// failure is why a method does not work for any file of d's device, or nil.
func (a *Adopter) failure(d *Donor, method Outcome) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failed[sharing{d.state.dev, method}]
}

// Adopt makes an object of d, whose content the caller has read and found to
// have the digest id. data is that content, if it is in memory, and otherwise
// nil. A file that is not as it was when d was made is [ErrChanged], and no object
// then. Where no method works that may be used the
// error is a [*NotSharedError].
func (a *Adopter) Adopt(d *Donor, id fsverity.Digest, data []byte) (Outcome, error) {
	r := a.repo
	if err := r.enterWrite(); err != nil {
		return 0, err
	}
	defer r.leave()
	var content io.ReaderAt = d.file
	if data != nil {
		content = bytes.NewReader(data)
	}
	ok, err := r.canAdopt(id, content, d.size)
	if err != nil {
		return 0, err
	}
	if ok {
		return Present, nil
	}
	var attempts []error
	for _, method := range [...]Outcome{Reflinked, Hardlinked} {
		if !a.methods.allow(method) {
			continue
		}
		o, err := a.share(d, method, id)
		if err == nil || !isShareError(err) {
			return o, err
		}
		attempts = append(attempts, err)
	}
	if a.methods.Copy {
		return a.copy(d, id, data)
	}
	return 0, a.notShared(d, attempts)
}

// share tries one method, unless it is known to work for no file of the
// device.
func (a *Adopter) share(d *Donor, method Outcome, id fsverity.Digest) (o Outcome, err error) {
	if err := a.failure(d, method); err != nil {
		return 0, err
	}
	if method == Reflinked {
		o, err = a.repo.cloneFile(d.file, id, d.size, d.unchanged)
	} else {
		o, err = a.repo.adoptFile(d.file, d.state.dev, id, d.size, d.unchanged)
	}
	if e, ok := errors.AsType[*ShareError](err); ok && e.Everywhere {
		a.mu.Lock()
		a.failed[sharing{d.state.dev, method}] = e
		a.mu.Unlock()
	}
	return o, err
}

func isShareError(err error) bool {
	_, ok := errors.AsType[*ShareError](err)
	return ok
}

// copy writes the object's bytes.
func (a *Adopter) copy(d *Donor, id fsverity.Digest, data []byte) (Outcome, error) {
	if data != nil {
		return a.repo.putID(id, data)
	}
	if _, err := d.file.Seek(0, io.SeekStart); err != nil {
		return 0, fmt.Errorf("copy %s: %w", d.Name(), err)
	}
	return a.repo.fill(id, d.size, func(fd int) error {
		hasher := fsverity.NewHasher(id.Algorithm())
		buf := make([]byte, 256<<10)
		for {
			n, err := d.file.Read(buf)
			_, _ = hasher.Write(buf[:n])
			if werr := writeAll(fd, buf[:n]); werr != nil {
				return fmt.Errorf("write object %s to repository %s: %w", id, a.repo.path, werr)
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				return fmt.Errorf("copy %s: %w", d.Name(), err)
			}
		}
		if hasher.Sum() != id {
			return fmt.Errorf("%w while it was read: %s", ErrChanged, d.Name())
		}
		return nil
	})
}

// Place is where a file or a repository is.
type Place struct {
	Path         string
	Major, Minor uint32 // of the device
	FileSystem   string // as in mount(8)
}

func (p Place) String() string {
	return fmt.Sprintf("%s (device %d:%d, %s)", p.Path, p.Major, p.Minor, p.FileSystem)
}

func placeOf(f *os.File, path string) Place {
	p := Place{Path: path, FileSystem: "unknown"}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err == nil {
		p.Major, p.Minor = unix.Major(st.Dev), unix.Minor(st.Dev)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err == nil {
		p.FileSystem = fileSystemName(&fs)
	}
	return p
}

// NotSharedError reports a file that cannot become an object without being
// copied, which is not allowed.
type NotSharedError struct {
	Source, Target Place
	// Attempts are the errors of the methods that were tried, each a
	// [*ShareError].
	Attempts []error
	// NoHardlink is why hard links were not tried, if they were not.
	NoHardlink string
}

func (e *NotSharedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "zero-copy is not possible from %s to %s", e.Source, e.Target)
	separator := ": "
	for _, err := range e.Attempts {
		b.WriteString(separator + err.Error())
		separator = "; "
	}
	if e.NoHardlink != "" {
		b.WriteString(separator + "hard link not tried: " + e.NoHardlink)
	}
	return b.String()
}

// Unwrap returns the errors of the methods.
func (e *NotSharedError) Unwrap() []error { return e.Attempts }

// notShared describes the end of the ladder.
func (a *Adopter) notShared(d *Donor, attempts []error) error {
	e := &NotSharedError{
		Source: placeOf(d.file, d.Name()), Target: placeOf(a.repo.root, a.repo.path),
	}
	if !a.methods.Hardlink {
		e.NoHardlink = a.methods.NoHardlink
	}
	for _, err := range attempts {
		if share, ok := errors.AsType[*ShareError](err); ok {
			err = share // the rest repeats the names
		}
		e.Attempts = append(e.Attempts, err)
	}
	return e
}
