// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package unpack creates the files that a layer's tar archive describes, as the
// overlay driver of containers-storage has them on disk.
//
// The caller frames the archive (package tarraw) and gives the entries to an
// [Unpacker] in their order; regular files come with a function that fills the
// new file, by a clone, a copy or from memory. Directories, links and devices
// are made at once, files by a pool of workers.
//
// # What is made
//
//   - Mode, owner, modification time to the nanosecond, and all extended
//     attributes, except security.selinux: labels come from the policy of the
//     system, as with podman. An attribute that the file system does not know
//     at all is dropped and counted. So are times before 1970: they become 1970.
//   - A hard link is one; its header's owner, mode, time and attributes count.
//   - .wh.NAME becomes NAME, a character device 0:0; .wh..wh..opq becomes
//     trusted.overlay.opaque on its directory.
//   - A directory that has no entry is made with mode 0755.
//
// # Rules
//
// Layers are hostile. Every name is opened below the directory, one component
// or one resolved directory at a time, and no link is followed, not even one
// that stays inside: an entry below a link has no place in a composefs image
// either. A name may occur once, an entry may not replace a directory that an
// earlier one made, and a hard link must lead to a file of the same layer. What
// breaks a rule is an [oci.EntryError].
package unpack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/internal/rooted"
	"github.com/cfs-pull/cfs-pull/internal/tarraw"
)

// Options configure an Unpacker. The zero value works.
type Options struct {
	// Workers is the number of goroutines that make files; 0 means one a CPU.
	Workers int
	// MaxEntries is the largest number of entries; 0 means
	// [oci.DefaultMaxEntries].
	MaxEntries int
}

// Content is the body of a regular file.
type Content struct {
	// Fill writes the body into dst, which is empty and open for reading and
	// writing. It is called by a worker.
	Fill func(dst *os.File) error
	// Done is called when the file is complete, with the file, which it then
	// owns, or with the error that kept it from being so. It is called exactly
	// once for each Entry that returned nil. It may be nil.
	Done func(dst *os.File, err error)
}

// Result is what an Unpacker made.
type Result struct {
	// UIDs and GIDs are the owners that occur, sorted, without those of
	// whiteouts.
	UIDs, GIDs []uint32
	// Root says whether the archive has an entry for the directory itself.
	Root bool
	// XattrsDropped counts attributes that the file system cannot have.
	XattrsDropped int64
}

// Unpacker makes files below a directory. Its methods are for one goroutine.
type Unpacker struct {
	root    *directory
	limit   int
	entries int

	known map[string]kind
	uids  map[uint32]struct{}
	gids  map[uint32]struct{}
	times []dirTime
	open  []*directory // most recently used last
	rootd bool

	dropped atomic.Int64
	files   chan *file
	workers sync.WaitGroup

	mu      sync.Mutex
	pending map[string]*file // files that are not complete
	err     error            // the first error of a worker
}

// kind is what an earlier entry made of a name.
type kind uint8

const (
	unknown kind = iota
	isDirectory
	isImplicit // a directory that has had no entry so far
	isFile     // whatever is not a directory
	isWhiteout
)

// dirTime is a directory's time, which is set when all is in it.
type dirTime struct {
	parts []string
	mtime tree.Time
}

// maxOpen is how many directories are kept open.
const maxOpen = 16

// directory is an open directory. Workers may use it when it is not among the
// open ones any more.
type directory struct {
	path string
	fd   int
	refs atomic.Int32
}

func newDirectory(path string, fd int) *directory {
	d := &directory{path: path, fd: fd}
	d.refs.Store(1)
	return d
}

func (d *directory) ref() *directory {
	d.refs.Add(1)
	return d
}

func (d *directory) unref() {
	if d.refs.Add(-1) == 0 {
		unix.Close(d.fd)
	}
}

// New returns an Unpacker that makes files in dir, which should be empty and
// stays open. Close ends its workers.
func New(dir *os.File, o Options) (*Unpacker, error) {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.MaxEntries <= 0 {
		o.MaxEntries = oci.DefaultMaxEntries
	}
	fd, err := rooted.Open(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY, 0, rooted.NoLinks)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir.Name(), Err: err}
	}
	u := &Unpacker{
		root: newDirectory("", fd), limit: o.MaxEntries,
		known: map[string]kind{}, uids: map[uint32]struct{}{}, gids: map[uint32]struct{}{},
		files: make(chan *file, o.Workers), pending: map[string]*file{},
	}
	for range o.Workers {
		u.workers.Go(u.work)
	}
	return u, nil
}

// Close waits for the workers and gives everything back. It may be called
// twice.
func (u *Unpacker) Close() {
	if u.root == nil {
		return
	}
	close(u.files)
	u.workers.Wait()
	for _, d := range u.open {
		d.unref()
	}
	u.root.unref()
	u.root, u.open = nil, nil
}

// Finish waits for the files and sets the times of directories.
func (u *Unpacker) Finish() (*Result, error) {
	for {
		u.mu.Lock()
		var next *file
		for _, f := range u.pending {
			next = f
			break
		}
		err := u.err
		u.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if next == nil {
			break
		}
		<-next.complete
	}
	for _, d := range u.times {
		if err := u.setDirTime(d); err != nil {
			return nil, &fs.PathError{Op: "set time of", Path: strings.Join(d.parts, "/"), Err: err}
		}
	}
	return &Result{
		UIDs: slices.Sorted(maps.Keys(u.uids)), GIDs: slices.Sorted(maps.Keys(u.gids)),
		Root: u.rootd, XattrsDropped: u.dropped.Load(),
	}, nil
}

func (u *Unpacker) setDirTime(d dirTime) error {
	if len(d.parts) == 0 {
		return setTime(u.root.fd, ".", d.mtime)
	}
	parent, err := u.openDir(d.parts[:len(d.parts)-1])
	if err != nil {
		return err
	}
	return setTime(parent.fd, d.parts[len(d.parts)-1], d.mtime)
}

// Entry makes the next entry of the archive. Only regular files have content;
// those of at most [tarraw.InlineMax] bytes need none. The entry is not kept,
// and may be incomplete when Entry returns: see Content.
//
// An entry that breaks a rule is an [oci.EntryError]. After an error the
// Unpacker is of no more use.
func (u *Unpacker) Entry(ctx context.Context, e *tarraw.Entry, c Content) error {
	if u.entries++; u.entries > u.limit {
		return fmt.Errorf("%w: the layer has more than %d entries", oci.ErrTooLarge, u.limit)
	}
	if u.entries%1024 == 0 && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := u.workerError(); err != nil {
		return err
	}
	err := u.entry(e, c)
	if rule, ok := errors.AsType[rule](err); ok {
		return &oci.EntryError{Entry: e.Name, Rule: string(rule)}
	}
	if err != nil {
		return entryFailed(e, err)
	}
	return nil
}

// rule is a rule that an entry breaks.
type rule string

func (r rule) Error() string { return string(r) }

func entryFailed(e *tarraw.Entry, err error) error {
	if _, ok := errors.AsType[*oci.EntryError](err); ok {
		return err
	}
	name := e.Name
	const most = 256 // names are foreign
	if len(name) > most {
		name = name[:most] + "..."
	}
	return fmt.Errorf("unpack %q: %w", name, err)
}

func (u *Unpacker) workerError() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.err
}

func (u *Unpacker) entry(e *tarraw.Entry, c Content) error {
	parts, broken := oci.SplitPath(e.Name)
	if broken != "" {
		return rule(broken)
	}
	if len(parts) == 0 {
		return u.rootEntry(e)
	}
	name := parts[len(parts)-1]
	if strings.HasPrefix(name, oci.WhiteoutPrefix) {
		return u.whiteout(e, parts)
	}
	u.uids[e.UID] = struct{}{}
	u.gids[e.GID] = struct{}{}
	if e.Type == tarraw.TypeHardlink {
		return u.hardLink(e, parts)
	}
	node, broken := oci.NewNode(e)
	if broken != "" {
		return rule(broken)
	}
	path := strings.Join(parts, "/")
	switch was := u.known[path]; {
	case was == isImplicit && node.Kind == tree.Directory:
	case was == isWhiteout:
		if err := u.removeWhiteout(parts); err != nil {
			return err
		}
	case was == isImplicit:
		return rule("it replaces a directory of the same layer")
	case was != unknown:
		return rule("the name occurs twice in the layer")
	}
	parent, err := u.parent(parts)
	if err != nil {
		return err
	}
	switch node.Kind {
	case tree.Directory:
		return u.directory(parent, parts, node)
	case tree.Regular:
		u.known[path] = isFile
		return u.file(parent, name, path, node, c)
	case tree.Symlink:
		u.known[path] = isFile
		if err := unix.Symlinkat(node.Target, parent.fd, name); err != nil {
			return err
		}
	default:
		u.known[path] = isFile
		if err := unix.Mknodat(parent.fd, name, deviceMode[node.Kind]|node.Mode, int(node.Rdev)); err != nil {
			return err
		}
	}
	return u.setMetadata(parent, name, node)
}

var deviceMode = map[tree.Kind]uint32{tree.CharDevice: unix.S_IFCHR, tree.BlockDevice: unix.S_IFBLK, tree.FIFO: unix.S_IFIFO}

// rootEntry applies the entry of the directory itself.
func (u *Unpacker) rootEntry(e *tarraw.Entry) error {
	if e.Type != tarraw.TypeDirectory {
		return rule("the root of the file system must be a directory")
	}
	if u.rootd {
		return rule("the name occurs twice in the layer")
	}
	node, broken := oci.NewNode(e)
	if broken != "" {
		return rule(broken)
	}
	u.rootd = true
	u.uids[e.UID] = struct{}{}
	u.gids[e.GID] = struct{}{}
	u.times = append(u.times, dirTime{nil, node.Mtime})
	return u.setOpen(u.root.fd, node)
}

// parent returns the directory that the last of parts is in, and makes it if
// it is missing.
func (u *Unpacker) parent(parts []string) (*directory, error) {
	parts = parts[:len(parts)-1]
	dir, err := u.openDir(parts)
	if !errors.Is(err, unix.ENOENT) {
		return dir, u.explainParent(parts, err)
	}
	// What a worker has yet to make is a file, and no parent.
	path := strings.Join(parts, "/")
	if u.known[path] != unknown {
		return nil, u.explainParent(parts, unix.ENOTDIR)
	}
	above, err := u.parent(parts)
	if err != nil {
		return nil, err
	}
	name := parts[len(parts)-1]
	if err := unix.Mkdirat(above.fd, name, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Fchmodat(above.fd, name, 0o755, 0); err != nil { // whatever the umask is
		return nil, err
	}
	u.known[path] = isImplicit
	return u.openDir(parts)
}

func (u *Unpacker) explainParent(parts []string, err error) error {
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return rule(fmt.Sprintf("its parent %.300q is not a directory", strings.Join(parts, "/")))
	}
	return err
}

// openDir opens a directory that exists. The result is valid until the next
// call.
func (u *Unpacker) openDir(parts []string) (*directory, error) {
	if len(parts) == 0 {
		return u.root, nil
	}
	path := strings.Join(parts, "/")
	for i := len(u.open) - 1; i >= 0; i-- {
		if d := u.open[i]; d.path == path {
			u.open = append(slices.Delete(u.open, i, i+1), d)
			return d, nil
		}
	}
	fd, err := rooted.OpenLong(u.root.fd, path, unix.O_RDONLY|unix.O_DIRECTORY, 0, rooted.NoLinks)
	if err != nil {
		return nil, err
	}
	return u.keepOpen(newDirectory(path, fd)), nil
}

func (u *Unpacker) keepOpen(d *directory) *directory {
	if len(u.open) == maxOpen {
		u.open[0].unref()
		u.open = slices.Delete(u.open, 0, 1)
	}
	u.open = append(u.open, d)
	return d
}

// directory makes a directory, or takes one that was made without an entry.
func (u *Unpacker) directory(parent *directory, parts []string, node *tree.Node) error {
	path, name := strings.Join(parts, "/"), parts[len(parts)-1]
	if u.known[path] != isImplicit {
		if err := unix.Mkdirat(parent.fd, name, 0o700); err != nil {
			return err
		}
	}
	u.known[path] = isDirectory
	dir, err := u.openDir(parts)
	if err != nil {
		return err
	}
	u.times = append(u.times, dirTime{slices.Clone(parts), node.Mtime})
	return u.setOpen(dir.fd, node)
}

// whiteout makes what hides a name of lower layers.
func (u *Unpacker) whiteout(e *tarraw.Entry, parts []string) error {
	name := parts[len(parts)-1]
	above := strings.Join(parts[:len(parts)-1], "/")
	if u.known[above] == isWhiteout {
		return nil // its directory is hidden: nothing is left to hide in it
	}
	parent, err := u.parent(parts)
	if err != nil {
		return err
	}
	if name == oci.OpaqueWhiteout {
		return unix.Fsetxattr(parent.fd, "trusted.overlay.opaque", []byte("y"), 0)
	}
	hidden := strings.TrimPrefix(name, oci.WhiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return rule("a whiteout of nothing")
	}
	path := hidden
	if above != "" {
		path = above + "/" + hidden
	}
	if was := u.known[path]; was == isWhiteout {
		return rule("the name occurs twice in the layer")
	} else if was != unknown {
		return rule(fmt.Sprintf("it hides %.300q of the same layer", path))
	}
	u.known[path] = isWhiteout
	if err := unix.Mknodat(parent.fd, hidden, unix.S_IFCHR, 0); err != nil {
		return err
	}
	return unix.Fchownat(parent.fd, hidden, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW)
}

// removeWhiteout makes room for an entry with the name that an earlier
// whiteout hides.
func (u *Unpacker) removeWhiteout(parts []string) error {
	parent, err := u.parent(parts)
	if err != nil {
		return err
	}
	return unix.Unlinkat(parent.fd, parts[len(parts)-1], 0)
}

// hardLink gives a file of this layer another name.
func (u *Unpacker) hardLink(e *tarraw.Entry, parts []string) error {
	target, broken := oci.SplitPath(e.Linkname)
	if broken != "" {
		return rule("its target: " + broken)
	}
	path, targetPath := strings.Join(parts, "/"), strings.Join(target, "/")
	switch u.known[targetPath] {
	case isFile:
	case isDirectory, isImplicit:
		return rule(fmt.Sprintf("a hard link to the directory %.300q", targetPath))
	default:
		if len(target) == 0 {
			return rule("a hard link to a directory")
		}
		return rule(fmt.Sprintf("the hard link's target %.300q is not in the layer", targetPath))
	}
	switch u.known[path] {
	case unknown:
	case isWhiteout:
		if err := u.removeWhiteout(parts); err != nil {
			return err
		}
	case isImplicit:
		return rule("it replaces a directory of the same layer")
	default:
		return rule("the name occurs twice in the layer")
	}
	if err := u.wait(targetPath); err != nil {
		return err
	}
	from, err := u.openDir(target[:len(target)-1])
	if err != nil {
		return err
	}
	from = from.ref()
	defer from.unref()
	to, err := u.parent(parts)
	if err != nil {
		return err
	}
	u.known[path] = isFile
	name := parts[len(parts)-1]
	if err := unix.Linkat(from.fd, target[len(target)-1], to.fd, name, 0); err != nil {
		return err
	}
	return u.setLinkMetadata(to, name, e)
}
