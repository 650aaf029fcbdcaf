// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// tmpLink begins the names of unfinished links in the root.
const tmpLink = ".symlink-"

// The two kinds of named things; each is a directory of the repository.
const (
	streamsDir = "streams"
	imagesDir  = "images"
)

// objectTarget is the target of a first-level link.
func objectTarget(id fsverity.Digest) string { return "../objects/" + id.ObjectPath() }

// parseTarget reads the target of a first-level link as other readers do: it
// begins with "../" and ends in the two last components of an object's path.
func (r *Repo) parseTarget(target string) (fsverity.Digest, error) {
	n := 2*r.meta.Algorithm.Size() + 1
	if len(target) < n || !strings.HasPrefix(target, "../") {
		return fsverity.Digest{}, fmt.Errorf("%w: link target %q is not an object", ErrIntegrity, target)
	}
	id, err := fsverity.ParseObjectPath(target[len(target)-n:])
	if err != nil {
		return fsverity.Digest{}, fmt.Errorf("%w: link target %q is not an object: %w", ErrIntegrity, target, err)
	}
	return id, nil
}

// readLink reads dir/name, a link. Errors are those of the system.
func (r *Repo) readLink(dir, name string) (string, error) {
	fd, err := r.openDir(dir)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return r.readLinkAt(fd, dir, name)
}

// readLinkAt is readLink where dir is open.
func (r *Repo) readLinkAt(fd int, dir, name string) (string, error) {
	target, err := readlinkat(fd, name)
	if errors.Is(err, unix.EINVAL) {
		return "", fmt.Errorf("%w: %s/%s/%s is not a link", ErrIntegrity, r.path, dir, name)
	}
	if err != nil {
		return "", r.pathError("readlink", dir+"/"+name, err)
	}
	return target, nil
}

// entryID is the object that a first-level link leads to by its target.
func (r *Repo) entryID(dir, name string) (fsverity.Digest, error) {
	if err := checkEntry(name); err != nil {
		return fsverity.Digest{}, err
	}
	fd, err := r.openDir(dir)
	if err != nil {
		return fsverity.Digest{}, err
	}
	defer unix.Close(fd)
	return r.readEntry(fd, dir, name)
}

// readEntry is entryID where dir is open and has an entry of that name.
func (r *Repo) readEntry(fd int, dir, name string) (fsverity.Digest, error) {
	target, err := r.readLinkAt(fd, dir, name)
	if err != nil {
		return fsverity.Digest{}, err
	}
	id, err := r.parseTarget(target)
	if err != nil {
		return fsverity.Digest{}, fmt.Errorf("%s/%s/%s: %w", r.path, dir, name, err)
	}
	return id, nil
}

// createLink makes dir/name a link to target; fs.ErrExist when the name is
// taken. Missing directories are created.
func (r *Repo) createLink(dir, name, target string) error {
	fd, err := r.makeDirs(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Symlinkat(target, fd, name); err != nil {
		return r.pathError("symlink", dir+"/"+name, err)
	}
	r.touch(dir)
	return nil
}

// setLink makes dir/name a link to target, in one step when the name is taken.
// Anything that is not a link is not replaced.
func (r *Repo) setLink(dir, name, target string) error {
	err := r.createLink(dir, name, target)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	have, err := r.readLink(dir, name)
	if err == nil && have == target {
		r.touch(dir) // whoever made it may not have synced it
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return r.replaceLink(dir, name, target)
}

// replaceLink puts a link aside, in the root, and renames it over dir/name.
func (r *Repo) replaceLink(dir, name, target string) error {
	fd, err := r.openDir(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	tmp := randomName(tmpLink)
	if err := unix.Symlinkat(target, r.rootfd(), tmp); err != nil {
		return r.pathError("symlink", tmp, err)
	}
	if err := unix.Renameat(r.rootfd(), tmp, fd, name); err != nil {
		unix.Unlinkat(r.rootfd(), tmp, 0) // the rename's error says more
		return r.pathError("rename", dir+"/"+name, err)
	}
	r.touch(dir)
	return nil
}

// Ref is a name below refs/ and the first-level entry that it keeps.
type Ref struct {
	Name   string // without "refs/", components separated by slashes
	Target string // the entry's name in streams/ or images/
}

func refPath(dir, ref string) (string, string) {
	parent, name := path.Split(ref)
	return strings.TrimSuffix(dir+"/refs/"+parent, "/"), name
}

// setRef makes a ref lead to a first-level entry, which must exist.
func (r *Repo) setRef(dir, ref, entry string) error {
	depth, err := checkRef(ref)
	if err != nil {
		return err
	}
	if _, err := r.entryID(dir, entry); err != nil {
		return fmt.Errorf("set ref %s: %w", ref, err)
	}
	parent, name := refPath(dir, ref)
	if err := r.setLink(parent, name, strings.Repeat("../", depth)+entry); err != nil {
		return err
	}
	return r.renew(parent, name)
}

// renewAfter is how old a ref's time must be before it is set anew, so that
// setting what is set already mostly writes nothing.
const renewAfter = time.Hour

// renew sets the time of an old link to now: who looks for refs that nobody
// wants any more spares those of today.
func (r *Repo) renew(dir, name string) error {
	fd, err := r.openDir(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	err = retry(func() error { return unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	if err == nil && time.Since(time.Unix(st.Mtim.Unix())) > renewAfter {
		err = retry(func() error { return unix.UtimesNanoAt(fd, name, nil, unix.AT_SYMLINK_NOFOLLOW) })
	}
	if err != nil && !errors.Is(err, unix.ENOENT) { // others may have removed it
		return r.pathError("set time of", dir+"/"+name, err)
	}
	return nil
}

// ref reads where a ref leads to. Only the last component of its target
// counts, as for other readers.
func (r *Repo) ref(dir, ref string) (string, error) {
	if _, err := checkRef(ref); err != nil {
		return "", err
	}
	parent, name := refPath(dir, ref)
	target, err := r.readLink(parent, name)
	if err != nil {
		return "", err
	}
	entry := path.Base(target)
	if err := checkEntry(entry); err != nil {
		return "", fmt.Errorf("%w: ref %s leads to %q: %w", ErrIntegrity, ref, target, err)
	}
	return entry, nil
}

// removeRef removes a ref. Directories stay.
func (r *Repo) removeRef(dir, ref string) error {
	if _, err := r.ref(dir, ref); err != nil && !errors.Is(err, ErrIntegrity) {
		return err
	}
	parent, name := refPath(dir, ref)
	if _, err := r.readLink(parent, name); err != nil { // never remove a file
		return err
	}
	fd, err := r.openDir(parent)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Unlinkat(fd, name, 0); err != nil {
		return r.pathError("unlink", parent+"/"+name, err)
	}
	r.touch(parent)
	return nil
}

// listRefs lists the refs in the directory prefix below refs/ ("" for all),
// sorted by name.
func (r *Repo) listRefs(dir, prefix string) ([]Ref, error) {
	depth := 0
	base := dir + "/refs"
	if prefix = strings.TrimSuffix(prefix, "/"); prefix != "" {
		var err error
		if depth, err = checkRef(prefix); err != nil {
			return nil, err
		}
		base += "/" + prefix
	}
	var out []Ref
	if err := r.walkRefs(base, prefix, depth, &out); err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b Ref) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func (r *Repo) walkRefs(dir, prefix string, depth int, out *[]Ref) error {
	if depth > maxRefDepth {
		return fmt.Errorf("list %s/%s: %w: deeper than %d directories", r.path, dir, ErrBadName, maxRefDepth)
	}
	entries, err := r.readDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if prefix != "" {
			name = prefix + "/" + name
		}
		switch e.Type() {
		case fs.ModeDir:
			err = r.walkRefs(dir+"/"+e.Name(), name, depth+1, out)
		case fs.ModeSymlink:
			err = r.addRef(dir, e.Name(), name, out)
		default:
			err = fmt.Errorf("%w: %s/%s/%s is neither a directory nor a link", ErrIntegrity, r.path, dir, e.Name())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *Repo) addRef(dir, entry, name string, out *[]Ref) error {
	target, err := r.readLink(dir, entry)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed since the directory was read
	}
	if err != nil {
		return err
	}
	*out = append(*out, Ref{Name: name, Target: path.Base(target)})
	return nil
}

// readDir reads a directory of the repository, sorted by name.
func (r *Repo) readDir(dir string) ([]fs.DirEntry, error) {
	f, err := r.openReadDir(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close() // a directory
	entries, err := f.ReadDir(-1)
	if err != nil {
		return nil, fmt.Errorf("list %s/%s: %w", r.path, dir, err)
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

// listEntries lists the first-level names of a kind, sorted.
func (r *Repo) listEntries(dir string) ([]string, error) {
	entries, err := r.readDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.Name() != "refs" {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
