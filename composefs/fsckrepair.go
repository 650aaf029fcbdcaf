// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// RepairStage orders repairs: what links lead to is made, and is on disk,
// before links are.
type RepairStage uint8

// The stages.
const (
	stageSeal RepairStage = iota
	StageBuild
	stageDrop
	StageLink
	StageCommit
	stageClean
)

// maxFixes bounds the repairs of one round.
const maxFixes = 1 << 16

// fix is a repair that is possible.
type fix struct {
	stage RepairStage
	path  string
	done  string // what has been done when it is done
	run   func(context.Context) error
}

// errNothingToDo is what a repair returns that turns out not to be needed.
var errNothingToDo = errors.New("nothing to repair")

// Repaired is a repair that was tried.
type Repaired struct {
	Path  string `json:"path"`
	Done  string `json:"done,omitempty"`
	Error string `json:"error,omitempty"` // why it was not done
}

func (c *Checker) fix(stage RepairStage, path, done string, run func(context.Context) error) {
	if !c.o.Repair {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.fixes) < maxFixes {
		c.fixes = append(c.fixes, fix{stage, printable(path), done, run})
	}
}

// AddRepair notes a repair of the caller's for [Checker.Repair]; done says what
// has been done when run has returned nil. Without CheckOptions.Repair it does
// nothing.
func (c *Checker) AddRepair(stage RepairStage, path, done string, run func(context.Context) error) {
	c.fix(stage, path, done, run)
}

// Repair makes the repairs that were found possible, and returns what it did.
// A repair that fails does not keep the others from being made; only when
// nothing can be written at all there is an error. The caller holds the
// exclusive lock since before Run.
func (c *Checker) Repair(ctx context.Context) ([]Repaired, error) {
	if err := c.repo.Writable(); err != nil {
		return nil, err
	}
	slices.SortStableFunc(c.fixes, func(a, b fix) int {
		return cmp.Or(cmp.Compare(a.stage, b.stage), strings.Compare(a.path, b.path))
	})
	var out []Repaired
	flushed := false
	for _, f := range c.fixes {
		if ctx.Err() != nil {
			break
		}
		if f.stage >= StageLink && !flushed {
			if err := c.repo.SyncFS(); err != nil {
				return out, err
			}
			flushed = true
		}
		switch err := f.run(ctx); {
		case errors.Is(err, errNothingToDo):
		case err != nil:
			out = append(out, Repaired{Path: f.path, Error: printable(err.Error())})
		default:
			out = append(out, Repaired{Path: f.path, Done: f.done})
		}
	}
	c.fixes = nil
	if c.repo.Unflushed() {
		if err := c.repo.SyncFS(); err != nil {
			return out, err
		}
	}
	if err := c.repo.SyncLinks(); err != nil {
		return out, err
	}
	if ctx.Err() != nil {
		return out, context.Cause(ctx)
	}
	return out, nil
}

// dropFix lets a damaged object be removed, if that is wanted: as long as it is
// there, a pull may take it for good.
func (c *Checker) dropFix(id fsverity.Digest, path string) {
	if c.o.DropDamaged {
		c.fix(stageDrop, path, "removed a damaged object", func(ctx context.Context) error { return c.dropObject(ctx, id) })
	}
}

// DropDamaged removes an object that is damaged and that the caller is about to
// store again. It does nothing to one that is good or missing.
func (c *Checker) DropDamaged(ctx context.Context, id fsverity.Digest) error {
	err := c.dropObject(ctx, id)
	if errors.Is(err, errNothingToDo) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// dropObject removes an object that is damaged, which it looks at again: it may
// have been replaced by then.
func (c *Checker) dropObject(ctx context.Context, id fsverity.Digest) error {
	f, err := c.repo.openUnchecked(id)
	if err != nil {
		return err
	}
	defer f.Close() // read-only
	info, err := f.Stat()
	if err != nil {
		return err
	}
	sealed, err := c.measure(f, id)
	if err == nil {
		w := newObjectWorker(c)
		got, err := w.read(ctx, int(f.Fd()), info.Size(), sealed, nil)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil && (sealed || got == id) {
			return errNothingToDo
		}
	}
	path := id.ObjectPath()
	return c.repo.unlink(objectsName+"/"+path[:2], path[3:])
}

// unlink removes a name that is no directory.
func (r *Repo) unlink(dir, name string) error {
	fd, err := r.openDir(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.Unlinkat(fd, name, 0)
	if errors.Is(err, unix.ENOENT) {
		return errNothingToDo
	}
	if err != nil {
		return r.pathError("unlink", dir+"/"+name, err)
	}
	r.touch(dir)
	return nil
}

// unlinkDead removes a first-level link whose object is missing.
func (r *Repo) unlinkDead(dir, name string) error {
	id, err := r.entryID(dir, name)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := r.lookup(id, &st); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(errNothingToDo, err)
	}
	return r.unlink(dir, name)
}

// seal gives an object that lacks it fs-verity.
func (r *Repo) seal(id fsverity.Digest) error {
	f, err := r.openUnchecked(id)
	if err != nil {
		return err
	}
	defer f.Close() // read-only
	got, _, err := fsverity.SumFile(id.Algorithm(), f)
	if err != nil {
		return err
	}
	if got != id {
		return fmt.Errorf("enable fs-verity on object %s: %w: its content has digest %s", id, ErrIntegrity, got)
	}
	if err := r.enableVerity(f, id); err != nil {
		return err
	}
	r.unflushed.Store(true)
	return nil
}

// Replace makes t, which holds the bytes of digest id, the object of that name,
// also when there is one already that is damaged in a way that only reading it
// shows. It always ends t. With fs-verity the kernel confirms the digest;
// without, the caller is trusted.
func (r *Repo) Replace(t *Temp, id fsverity.Digest) error {
	defer t.Discard()
	if t.repo != r {
		return errors.New("replace object: temporary file of another repository")
	}
	if err := r.checkDigest(id); err != nil {
		return err
	}
	if err := r.enterWrite(); err != nil {
		return err
	}
	defer r.leave()
	dir, name := objectName(id)
	dirfd, err := r.fanDir(dir, true)
	if err != nil {
		return err
	}
	objects, err := r.objectsDir(true)
	if err != nil {
		return err
	}
	if r.noVerity.Load() {
		return r.replaceObject(int(t.file.Fd()), objects, t.name, dirfd, name)
	}
	f, err := reopen(t.file)
	if err != nil {
		return fmt.Errorf("replace object %s: %w", id, err)
	}
	defer f.Close() // read-only
	waitForForks()
	if err := r.enableVerity(f, id); err != nil {
		return fmt.Errorf("replace object %s: %w", id, err)
	}
	return r.replaceObject(int(f.Fd()), objects, t.name, dirfd, name)
}

// What would help.
const (
	helpRepair = "\"cfs-pull fsck --repair\" puts it right"
	helpPull   = "pull the image again"
	helpDrop   = "\"cfs-pull fsck --repair --drop-damaged\" removes it, and the next pull of the image fetches it again"
)

var helpByKind = map[Kind]string{
	MetadataUnknownFeature: "use a newer version of this program",
	ObjectInvalidName:      "remove the file if it is not yours: garbage collection of other programs stops at it",
	ObjectNotRegular:       "remove it and pull the image again",
	ObjectOpenFailed:       "look at the file system and at its messages in the kernel's log",
	ObjectDigestMismatch:   helpDrop,
	ObjectVerityFailed:     "look at the disk and at the kernel's log; " + helpDrop,
	ObjectVerityMissing:    "\"cfs-pull fsck --repair\" enables it if the content is right; so does a pull of the image",
	EntryNotSymlink:        "move it elsewhere: garbage collection of other programs stops at it",
	EntryInvalidName:       "remove it: garbage collection of other programs stops at it",
	BrokenSymlink:          "pull the image again; if it is not wanted any more, remove its tag and then the link",
	StatFailed:             "look at the file system and at its messages in the kernel's log",
	UnexpectedType:         "move it elsewhere: garbage collection of other programs stops at it",
	LinkTargetInvalid:      "remove the link and pull the image again",
	ImageLinkMismatch:      "remove the link and pull the image again",
	RefTargetInvalid:       "set the tag anew or remove it",
	StreamOpenFailed:       "remove the object and pull the image again",
	StreamReadFailed:       "remove the object and pull the image again",
	StreamTypeMismatch:     helpPull,
	StreamSizeMismatch:     "remove the object and pull the image again",
	MissingObjectRef:       helpPull,
	MissingNamedRef:        helpPull,
	NamedRefNotLinked:      helpPull,
	ImageOpenFailed:        helpPull,
	ImageReadFailed:        "look at the file system and at its messages in the kernel's log",
	ImageInvalid:           "remove the object and pull the image again",
	ImageMissingObject:     helpPull,
	StrayFile:              "remove it if you do not know it",
	ModeUnexpected:         "change it with chmod",
	OwnerUnexpected:        "change it with chown",
	LimitExceeded:          "the repository is not as any program makes it",
}

func help(f *Finding) string {
	if f.Repairable {
		return helpRepair
	}
	return helpByKind[f.Kind]
}
