// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"slices"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/cstor"
	"github.com/cfs-pull/cfs-pull/pipeline/fetch"
)

// hostImage is an image in the host's containers-storage.
type hostImage struct {
	store *cstor.Store
	image *cstor.Image
}

// openHost finds the image that the reference names in the host's store. An
// image or a store that is not there is a [*fetch.NotFoundError].
func (p *pull) openHost(ctx context.Context) (*hostImage, error) {
	store, err := cstor.OpenExisting(ctx, cstor.Options{
		GraphRoot: p.HostStore, RunRoot: p.Store.RunRoot, LockTimeout: p.Store.LockTimeout, Log: p.Log,
	})
	if err != nil {
		return nil, p.notFound(err)
	}
	image, err := store.Lookup(p.reference.Name)
	if err != nil {
		return nil, errors.Join(p.notFound(err), store.Close())
	}
	return &hostImage{store, image}, nil
}

// notFound is err as the error of a reference that leads nowhere, if it is that.
func (p *pull) notFound(err error) error {
	if is[*cstor.NotFoundError](err) || errors.Is(err, cstor.ErrNoStore) {
		return &fetch.NotFoundError{Reference: p.reference.String(), Err: err}
	}
	return err
}

// openHostStore makes an image in the host's store the source of the pull. Its
// files are shared where that is possible and copied where it is not.
// A hard link would make a file of another store one that nobody can write to,
// so it has to be asked for.
func (p *pull) openHostStore(ctx context.Context) error {
	p.methods = composefs.Methods{
		Reflink: true, Copy: true, Hardlink: p.LocalCopy == HardlinkToo,
		NoHardlink: "it was not asked for",
	}
	switch p.LocalCopy {
	case ZeroCopy:
		p.methods.Copy = false
	case CopyAlways:
		p.methods.Reflink = false
	}
	host, err := p.openHost(ctx)
	if err != nil {
		return err
	}
	source, err := p.storeSource(host.store, host.image, origin{reference: p.reference.String()})
	if err != nil {
		return errors.Join(err, host.store.Close())
	}
	source.closeStore = true
	return p.found(source)
}

// fromStore finds the image of a reference into a containers-storage in the
// store of the system, or copies it there from that of the host.
func (u *stage1) fromStore(ctx context.Context) (*storeSource, error) {
	owned, err := u.ownedImage()
	if err != nil {
		return nil, err
	}
	if u.SourceStore == SourceOwned {
		if owned == nil {
			return nil, u.notFound(&cstor.NotFoundError{GraphRoot: u.store.GraphRoot(), Name: u.reference.Name})
		}
		return u.stored(owned, origin{reference: u.reference.String()})
	}
	host, err := u.openHost(ctx)
	if is[*fetch.NotFoundError](err) && owned != nil {
		return u.stored(owned, origin{reference: u.reference.String()})
	}
	if err != nil {
		return nil, err
	}
	source, err := u.newer(ctx, owned, host)
	return source, errors.Join(err, host.store.Close())
}

// ownedImage is the image in the system's store, or nil.
func (u *stage1) ownedImage() (*cstor.Image, error) {
	if u.SourceStore == SourceHost {
		return nil, nil
	}
	image, err := u.store.Lookup(u.reference.Name)
	if is[*cstor.NotFoundError](err) {
		return nil, nil
	}
	return image, err
}

// newer is the image that was built later, copied into the system's store if
// it is the host's.
func (u *stage1) newer(ctx context.Context, owned *cstor.Image, host *hostImage) (*storeSource, error) {
	if owned != nil && owned.ManifestDigest != host.image.ManifestDigest {
		which := "the host's, which is newer"
		if !host.image.Created.After(owned.Created) {
			which = "the system's, which is not older"
		}
		u.warn("%s names one image in %s and another in %s; using %s", u.reference.Name, u.store.GraphRoot(), host.store.GraphRoot(), which)
	}
	if owned != nil && !host.image.Created.After(owned.Created) {
		return u.stored(owned, origin{reference: u.reference.String()})
	}
	copied, err := u.copyFromHost(ctx, host)
	if err != nil {
		return nil, &StageError{Stage: StageHostCopy, Err: err}
	}
	return u.stored(copied, origin{reference: u.reference.String()})
}

// copyFromHost copies an image from the host's store into the system's. What
// the host's podman has accepted is trusted: no signature policy applies
//
func (u *stage1) copyFromHost(ctx context.Context, host *hostImage) (*cstor.Image, error) {
	names, err := u.copiedNames(host.image)
	if err != nil {
		return nil, err
	}
	copied, err := u.store.CopyNamed(ctx, host.store, u.reference.Name, u.storeOptions(names))
	u.events.notFetched()
	if copied != nil {
		u.result.Changed = u.result.Changed || copied.Changed
		u.result.Storage.Copied = &copied.Copy
	}
	if err != nil {
		return nil, err
	}
	u.events.task(TaskPulling, Done)
	u.Log.Info("image was copied from the host's containers-storage", "id", copied.ImageID, "layers", copied.Layers,
		"present", copied.LayersPresent, "bytesCloned", copied.Copy.BytesCloned, "bytesCopied", copied.Copy.BytesCopied)
	return u.store.Lookup(copied.ImageID)
}

// copiedNames are the names that a copy of the host's image gets: the one it was
// asked for by, or all that it has when that is no name of it, such as an id.
func (u *stage1) copiedNames(image *cstor.Image) ([]string, error) {
	if u.StoreName != "" {
		name, err := cstor.NormalizeName(u.StoreName)
		if err != nil {
			return nil, &fetch.UsageError{Subject: u.StoreName, Err: err}
		}
		return []string{name}, nil
	}
	if name, err := cstor.NormalizeName(u.reference.Name); err == nil && slices.Contains(image.Names, name) {
		return []string{name}, nil
	}
	if len(image.Names) > 0 {
		return image.Names, nil
	}
	return []string{cstor.NameForDigest(image.ManifestDigest)}, nil // without one it would be pruned
}
