// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/rooted"
)

// ErrResetUnfinished: a reset has removed something and could not go on. The
// repository is as before, with fewer refs and links; running the reset again
// finishes it.
var ErrResetUnfinished = errors.New("the reset is not finished; run it again")

// ErrObjectAlgorithm: the objects of a repository are named by digests of
// another algorithm than it is to have.
var ErrObjectAlgorithm = errors.New("the objects have digests of another algorithm")

// ErrForeign: what is to be removed has something in it that is no part of a
// repository.
var ErrForeign = errors.New("something else lies among the links")

// ResetOptions say what a repository becomes.
type ResetOptions struct {
	// InitOptions are those of a new repository, defaults included.
	// LockTimeout is for the exclusive lock, too.
	InitOptions
	// Force makes AllowMissingVerity count for a repository that requires
	// fs-verity, which is [ErrSecure] otherwise.
	Force bool
	// Confirm, if set, is called when all that is to be removed is known and
	// nothing has been removed. Its error ends the reset.
	Confirm func(ResetPlan) error
}

// ResetPlan is what a reset is about to do.
type ResetPlan struct {
	// Algorithm is that of the new repository and of the objects.
	Algorithm fsverity.Algorithm
	// Streams and Images are what is removed beside refs: first-level names,
	// sorted.
	Streams, Images []string
}

// ResetResult is what a reset removed, and what it left.
type ResetResult struct {
	Refs, Streams, Images int
	// Objects says that there are objects, which all are garbage now.
	Objects bool
	// Unprotected says that fs-verity is required now and that objects lack
	// it. They count as broken: storing them again, or the repair of a check,
	// gives it to them.
	Unprotected bool
}

// Empty reports whether nothing was removed.
func (s ResetResult) Empty() bool { return s.Refs+s.Streams+s.Images == 0 }

// Reset removes streams/ and images/ of the repository at dir and gives it a
// new meta.json; objects stay, and so does what belongs to others. That is how
// settings can be changed that are fixed otherwise. A repository of the old
// format, or one whose meta.json is damaged, becomes a current one.
//
// It takes the exclusive lock, so no other handle of this process may be open
// ([ErrInUse]). Everything is looked at, and the new meta.json is prepared,
// before anything is removed. Refs go first, then links, each durably before
// the next begins, so that no ref ever leads to a missing link and no stream
// names a missing image; then the new meta.json takes the place of the old one
// in one step. What stops a reset in between leaves the old repository with
// fewer refs and links; the error is [ErrResetUnfinished], and the result says
// what was removed.
//
// Nothing is touched when there is neither meta.json nor objects
// ([ErrNotRepository]), when the repository cannot be written to
// ([ErrReadOnly]), when something other than links and their directories lies
// in streams/ or images/ ([ErrForeign]), or when the objects are those of
// another algorithm ([ErrObjectAlgorithm]): their names would be no names of
// objects, which a check reports and garbage collection stops at.
//
// A meta.json of a newer release, or with features that are not known here, is
// [ErrMeta] or [ErrReadOnly]: such a repository may have links elsewhere, and
// would be left with these but without the features that tell others of them.
func Reset(ctx context.Context, dir string, o ResetOptions) (*ResetResult, error) {
	return reset(ctx, dir, o, kernelVerity())
}

func reset(ctx context.Context, dir string, o ResetOptions, v verity) (_ *ResetResult, err error) {
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("reset repository %s: %w", dir, err)
	}
	r, err := openLocked(ctx, dir, o.LockTimeout, v)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }() // it ends the lock
	return r.reset(ctx, o)
}

// reset resets a repository of which only the shared lock is held.
func (r *Repo) reset(ctx context.Context, o ResetOptions) (*ResetResult, error) {
	fail := func(err error) error { return fmt.Errorf("reset repository %s: %w", r.path, err) }
	// Nobody is made to wait for a directory that is something else.
	if err := looksLikeRepository(r.rootfd()); err != nil {
		return nil, fail(err)
	}
	if err := locks.convertExclusive(ctx, r.lock, o.LockTimeout); err != nil {
		return nil, err
	}
	s := resetter{repo: r, options: o}
	if err := s.run(ctx); err != nil {
		if !s.result.Empty() {
			err = fmt.Errorf("%w: %w", ErrResetUnfinished, err)
		}
		return &s.result, fail(err)
	}
	return &s.result, nil
}

// resetter is a reset under way.
type resetter struct {
	repo            *Repo
	options         ResetOptions
	current         bool // there is a meta.json that can be read
	streams, images *linkTree
	result          ResetResult
}

func (s *resetter) run(ctx context.Context) error {
	if err := s.look(); err != nil {
		return err
	}
	text, err := NewMeta(s.options.Algorithm, s.options.Formats).Encode()
	if err != nil {
		return err
	}
	f, tmp, err := s.repo.prepareMeta(text, s.options.protection())
	if err != nil {
		return err
	}
	defer s.repo.dropMeta(f, tmp)
	if err := s.remove(ctx); err != nil {
		return err
	}
	return s.repo.replaceMeta(int(f.Fd()), tmp)
}

// look finds out what is there and whether it may be removed.
func (s *resetter) look() error {
	secure, err := s.readMeta()
	if err != nil {
		return err
	}
	if err := s.repo.checkWritable(OpenOptions{}); err != nil {
		return err
	}
	sample, err := s.repo.sampleObjects()
	if err != nil {
		return err
	}
	if sample.alg != 0 && sample.alg != s.options.Algorithm {
		return fmt.Errorf("%w: they are of %s, wanted is %s", ErrObjectAlgorithm, sample.alg, s.options.Algorithm)
	}
	if !s.current && sample.protected > 0 && sample.plain == 0 {
		secure = true // as an upgrade would find
	}
	if secure && s.options.AllowMissingVerity && !s.options.Force {
		return ErrSecure
	}
	s.result.Objects = sample.alg != 0
	s.result.Unprotected = sample.plain > 0 && !s.options.AllowMissingVerity
	if s.streams, err = s.repo.readLinkTree(streamsDir); err != nil {
		return err
	}
	if s.images, err = s.repo.readLinkTree(imagesDir); err != nil {
		return err
	}
	if s.options.Confirm == nil {
		return nil
	}
	return s.options.Confirm(ResetPlan{Algorithm: s.options.Algorithm, Streams: s.streams.names(), Images: s.images.names()})
}

// readMeta reads the meta.json that is to be replaced, if there is one, and
// says whether it has fs-verity. One that is not JSON at all, as a crash may
// have left it, says nothing that could forbid the reset.
func (s *resetter) readMeta() (secure bool, err error) {
	f, err := s.repo.openMeta()
	if errors.Is(err, ErrOldFormat) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close() // read-only
	text, err := readMetaText(f)
	if err != nil {
		return false, err
	}
	alg := s.options.Algorithm
	meta, err := ParseMeta(text)
	switch {
	case err == nil:
		s.repo.meta, s.current, alg = meta, true, meta.Algorithm
	case json.Valid(text):
		return false, err
	}
	switch _, err := s.repo.verity.measure(f, alg); {
	case err == nil, errors.Is(err, fsverity.ErrOtherAlgorithm):
		return true, nil
	case errors.Is(err, fsverity.ErrNotEnabled), errors.Is(err, fsverity.ErrNotSupported):
		return false, nil
	default:
		return false, err
	}
}

// remove removes refs, links and directories. Streams go before images, which
// they name.
func (s *resetter) remove(ctx context.Context) error {
	steps := []struct {
		top   *linkTree
		refs  bool
		count *int
	}{
		{s.streams, true, &s.result.Refs},
		{s.images, true, &s.result.Refs},
		{s.streams, false, &s.result.Streams},
		{s.images, false, &s.result.Images},
	}
	for _, step := range steps {
		err := s.repo.eachLinkDir(s.repo.rootfd(), step.top, func(fd int, t *linkTree) error {
			if isRefs := t != step.top; isRefs != step.refs {
				return nil
			}
			return s.repo.unlinkAll(ctx, fd, t, step.count)
		})
		if err != nil {
			return err
		}
	}
	for _, top := range []*linkTree{s.streams, s.images} {
		if top == nil {
			continue
		}
		if err := s.repo.eachLinkDir(s.repo.rootfd(), top, s.repo.removeSubdirs); err != nil {
			return err
		}
		if err := s.repo.removeLinkDir(s.repo.rootfd(), top); err != nil {
			return err
		}
	}
	return nil
}

// replaceMeta gives a prepared file the name meta.json, which another one may
// have. The file, with its fs-verity, is on disk before; the name is after.
func (r *Repo) replaceMeta(fd int, tmp string) error {
	if tmp == "" {
		tmp = randomName(tmpMeta)
		if err := r.linkFile(fd, r.rootfd(), "", r.rootfd(), tmp); err != nil {
			return r.pathError("link", tmp, err)
		}
	}
	err := retry(func() error { return unix.Syncfs(r.rootfd()) })
	if err == nil {
		err = unix.Renameat(r.rootfd(), tmp, r.rootfd(), "meta.json")
	}
	if err != nil {
		unix.Unlinkat(r.rootfd(), tmp, 0) // the other error says more
		return r.pathError("replace", "meta.json", err)
	}
	if err := r.root.Sync(); err != nil {
		return fmt.Errorf("sync repository: %w", err)
	}
	return nil
}

// linkTree is streams/ or images/, or a directory in its refs/.
type linkTree struct {
	path  string // in the repository
	links []string
	dirs  []*linkTree // of streams/ and images/, this is refs/ at most
}

// names are the links; nil has none.
func (t *linkTree) names() []string {
	if t == nil {
		return nil
	}
	return t.links
}

// openLinkDir opens a directory whose entries are to be removed. up is the one
// it is in. It must be itself, not a link to a directory elsewhere in the
// repository, and not a mount.
func (r *Repo) openLinkDir(up int, t *linkTree) (int, error) {
	fd, err := rooted.Open(up, path.Base(t.path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0, rooted.NoLinks|rooted.OneMount)
	if err == nil {
		return fd, nil
	}
	why := r.pathError("open", t.path, err)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EXDEV) {
		why = fmt.Errorf("%w: %s is not a directory of the repository itself: %w", ErrForeign, t.path, why)
	}
	return -1, why
}

// readLinkTree reads streams/ or images/; nil when it is missing. What is in
// there and does not belong there is [ErrForeign].
func (r *Repo) readLinkTree(dir string) (*linkTree, error) {
	t := &linkTree{path: dir}
	err := r.fillLinkTree(r.rootfd(), t, -1)
	if errors.Is(err, fs.ErrNotExist) && len(t.dirs) == 0 { // it is not one of those that is missing
		return nil, nil
	}
	return t, err
}

// fillLinkTree reads a directory; depth is its distance from refs/.
func (r *Repo) fillLinkTree(up int, t *linkTree, depth int) error {
	if depth > maxRefDepth {
		return fmt.Errorf("list %s/%s: %w: deeper than %d directories", r.path, t.path, ErrBadName, maxRefDepth)
	}
	fd, err := r.openLinkDir(up, t)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = eachDirent(fd, func(name []byte, kind uint8) error {
		// At the first level, refs is the only directory.
		wantDir := depth >= 0 || string(name) == "refs"
		wantLink := depth >= 0 || string(name) != "refs"
		switch {
		case kind == unix.DT_LNK && wantLink:
			t.links = append(t.links, string(name))
		case kind == unix.DT_DIR && wantDir:
			t.dirs = append(t.dirs, &linkTree{path: t.path + "/" + string(name)})
		case wantLink && !wantDir:
			return fmt.Errorf("%w: %s is not a link", ErrForeign, printable(t.path+"/"+string(name)))
		case wantLink:
			return fmt.Errorf("%w: %s is neither a directory nor a link", ErrForeign, printable(t.path+"/"+string(name)))
		default:
			return fmt.Errorf("%w: %s is not a directory", ErrForeign, printable(t.path+"/"+string(name)))
		}
		return nil
	})
	if errors.Is(err, ErrForeign) {
		return err
	}
	if err != nil {
		return fmt.Errorf("list %s/%s: %w", r.path, t.path, err)
	}
	slices.Sort(t.links)
	for _, d := range t.dirs {
		if err := r.fillLinkTree(fd, d, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// eachLinkDir calls f for the directories in t, which is in up, and for t at
// last.
func (r *Repo) eachLinkDir(up int, t *linkTree, f func(fd int, t *linkTree) error) error {
	if t == nil {
		return nil
	}
	fd, err := r.openLinkDir(up, t)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, d := range t.dirs {
		if err := r.eachLinkDir(fd, d, f); err != nil {
			return err
		}
	}
	return f(fd, t)
}

// unlinkAll removes the links in a directory, durably, and counts them.
func (r *Repo) unlinkAll(ctx context.Context, fd int, t *linkTree, count *int) error {
	for _, name := range t.links {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := unix.Unlinkat(fd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return r.pathError("unlink", t.path+"/"+name, err)
		}
		*count++
	}
	if len(t.links) == 0 {
		return nil
	}
	if err := retry(func() error { return unix.Fsync(fd) }); err != nil {
		return r.pathError("fsync", t.path, err)
	}
	return nil
}

// removeSubdirs removes the directories in t, which are empty.
func (r *Repo) removeSubdirs(fd int, t *linkTree) error {
	for _, d := range t.dirs {
		if err := r.removeLinkDir(fd, d); err != nil {
			return err
		}
	}
	return nil
}

func (r *Repo) removeLinkDir(up int, t *linkTree) error {
	err := unix.Unlinkat(up, path.Base(t.path), unix.AT_REMOVEDIR)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return r.pathError("rmdir", t.path, err)
	}
	return nil
}
