// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"context"
	"errors"
	"fmt"

	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// imageInScope notes an EROFS image that a limited check has to look at.
func (c *Checker) imageInScope(id fsverity.Digest) {
	if c.images == nil {
		return
	}
	c.mu.Lock()
	c.images[id] = struct{}{}
	c.mu.Unlock()
	c.inScope(id)
}

// checkImages checks the EROFS images that have a link, or those that the
// streams of a limited check name.
func (c *Checker) checkImages(ctx context.Context) error {
	x := c.links[imagesDir]
	var todo []*linkEntry
	if c.images == nil {
		for i := range x.entries {
			todo = append(todo, &x.entries[i])
		}
	} else {
		for id := range c.images {
			if e := x.entry(id.String()); e != nil {
				c.reportEntry(e)
				todo = append(todo, e)
			}
		}
	}
	return parallel(ctx, c.workers, len(todo), func(i int) {
		e := todo[i]
		if e.id.IsZero() || e.dead {
			return
		}
		c.Counts.ImagesChecked.Add(1)
		intact, complete := c.checkImage(ctx, e.id)
		if !intact {
			c.damage(e.id, ImageInvalid)
		}
		if !intact || !complete {
			c.Counts.ImagesDamaged.Add(1)
		}
	})
}

// checkImage checks one image, which has a link: whether it is intact, and
// complete with its objects.
func (c *Checker) checkImage(ctx context.Context, id fsverity.Digest) (intact, complete bool) {
	bad := func(kind Kind, object fsverity.Digest, format string, args ...any) (bool, bool) {
		c.Report(Finding{Kind: kind, Path: imagesDir + "/" + id.String(), Object: object, Image: id, Message: fmt.Sprintf(format, args...)})
		return false, false
	}
	f, err := c.repo.openUnchecked(id)
	if err != nil {
		return bad(ImageOpenFailed, id, "%v", err)
	}
	defer f.Close() // read-only
	info, err := f.Stat()
	if err != nil {
		return bad(ImageOpenFailed, id, "%v", err)
	}
	release, err := c.reserve(ctx, min(info.Size(), erofs.DefaultSize))
	if err != nil {
		return true, true // the check ends
	}
	defer release()
	image, err := erofs.Open(f, info.Size())
	switch {
	case errors.Is(err, erofs.ErrCorrupt):
		return bad(ImageInvalid, id, "%v", err)
	case err != nil:
		return bad(ImageReadFailed, id, "%v", err)
	}
	complete = true
	foreign, missing := false, map[fsverity.Digest]struct{}{}
	err = image.Check(func(object fsverity.Digest) {
		if object.Algorithm() != c.repo.meta.Algorithm {
			foreign = true
			return
		}
		c.inScope(object)
		switch exists, err := c.exists(object); {
		case err != nil:
			_, complete = bad(StatFailed, object, "%v", err)
		case !exists:
			remember(missing, object, struct{}{})
		}
	})
	switch {
	case err != nil:
		return bad(ImageInvalid, id, "%v", err)
	case foreign:
		return bad(ImageInvalid, id, "it names objects that cannot be in this repository")
	}
	for object := range missing {
		_, complete = bad(ImageMissingObject, object, "object %s is missing", object)
		c.damage(object, MissingObjectRef)
	}
	return true, complete
}
