// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/cstor"
	"github.com/cfs-pull/cfs-pull/internal/selinux"
	"github.com/cfs-pull/cfs-pull/pipeline/fetch"
)

// Unified brings an image into a containers-storage that the system owns, and
// imports it from there into a composefs repository, so that podman runs it
// from the one and the system boots it from the other, and its files are on
// disk once. The Result is never nil; it holds what is known when an error is
// returned.
func Unified(ctx context.Context, o Options) (*Result, error) {
	p := newPull(o)
	p.result.Mode = "unified"
	return p.result, p.unified(ctx)
}

func (p *pull) unified(ctx context.Context) (err error) {
	if err := p.checkNames(); err != nil {
		return err
	}
	policy, err := p.loadPolicy()
	if err != nil {
		return atStage(StageLabel, err)
	}
	p.methods = p.LocalCopy.methods(policy)
	u := &stage1{pull: p, policy: policy}
	defer func() { err = errors.Join(err, u.close()) }()
	err = p.run(ctx, u.obtain)
	if u.store == nil || ctx.Err() != nil || err != nil && !p.result.Tagged {
		return err
	}
	// At last, when all is there that gets labels.
	return errors.Join(err, atStage(StageLabel, u.label(ctx, cstor.LabelOptions{NewFiles: u.result.Changed})))
}

// loadPolicy is the SELinux policy of the system that store and repository
// belong to, or nil.
func (p *pull) loadPolicy() (*selinux.Policy, error) {
	policy, err := selinux.LoadEnabled(selinux.Root(p.PolicyRoot))
	if err != nil {
		return nil, fmt.Errorf("read SELinux policy of %s: %w", p.PolicyRoot, err)
	}
	return policy, nil
}

// methods are the ways for the files of a store where there is such an SELinux
// policy, or none.
func (l LocalCopy) methods(policy *selinux.Policy) composefs.Methods {
	m := composefs.Methods{Reflink: true, Hardlink: policy == nil}
	switch l {
	case CopyIfNeeded:
		m.Copy = true
	case CopyAlways:
		return composefs.Methods{Copy: true}
	case HardlinkToo:
		m.Hardlink = true
	}
	if !m.Hardlink {
		m.NoHardlink = "the system has an SELinux policy, and store and repository need different labels"
	}
	return m
}

// stage1 is the part of a unified pull that brings the image into the store.
type stage1 struct {
	*pull
	policy *selinux.Policy
	store  *cstor.Store // nil until it is needed
}

// open opens the store, making it first. It comes after the repository, so that
// none is made beside one that cannot be used.
func (u *stage1) open(ctx context.Context) (err error) {
	if u.store != nil {
		return nil
	}
	if u.store, err = cstor.Ensure(ctx, u.Store); err != nil {
		return atStage(StageOpen, err)
	}
	u.result.Storage = &Storage{Root: u.store.GraphRoot(), Names: []string{}}
	if !u.store.Created() {
		return nil
	}
	// What is created below inherits the labels.
	return atStage(StageLabel, u.label(ctx, cstor.LabelOptions{NoStamp: true}))
}

func (u *stage1) close() error {
	if u.store == nil {
		return nil
	}
	return u.store.Close()
}

// label gives the store's files their SELinux labels.
func (u *stage1) label(ctx context.Context, o cstor.LabelOptions) error {
	if u.NoLabel {
		return nil
	}
	done, err := cstor.Label(ctx, u.store.GraphRoot(), u.policy, o)
	if err == nil && !o.NoStamp {
		u.result.Storage.Labeled = done.Status != cstor.LabelNoPolicy
	}
	return err
}

// obtain brings the image into the store and makes it the source of the pull.
func (u *stage1) obtain(ctx context.Context) error {
	if err := u.open(ctx); err != nil {
		return err
	}
	source, err := u.bring(ctx)
	if err != nil {
		if is[*StageError](err) {
			return err
		}
		if err = atStage(StageFetch, err); is[*StageError](err) {
			err = &StageError{Stage: StageFetch, Err: errors.Unwrap(err), intoStore: true}
		}
		return err
	}
	u.result.Storage.ImageID = source.image.ID
	u.result.Storage.Names = append([]string{}, source.image.Names...)
	return u.found(source)
}

// bring makes sure that the image is in the store.
func (u *stage1) bring(ctx context.Context) (*storeSource, error) {
	if u.reference.Transport == fetch.TransportContainersStorage {
		return u.fromStore(ctx)
	}
	present, pull, err := u.decide()
	if err != nil {
		return nil, err
	}
	if !pull {
		return u.stored(present, origin{reference: u.reference.String()})
	}
	image, err := u.fetchManifest(ctx)
	if err != nil && present != nil && u.Policy == cstor.PolicyNewer && fetch.IsRetryable(err) {
		u.warn("the image that is present is used, because asking for a newer one failed: %v", err)
		return u.stored(present, origin{reference: u.reference.String()})
	}
	if err != nil {
		return nil, err
	}
	source, err := u.fetch(ctx, &fetchSource{Image: image, limits: u.Limits})
	if err != nil {
		return nil, errors.Join(err, image.Close())
	}
	return source, nil
}

// decide says whether to ask the source, and which image is present. A path is
// always asked: its name is made of what it leads to.
func (u *stage1) decide() (present *cstor.Image, pull bool, err error) {
	if u.Policy == cstor.PolicyAlways {
		return nil, true, nil
	}
	name := u.StoreName
	if name == "" && u.reference.Transport == fetch.TransportRegistry {
		name = u.reference.Name
	}
	if name == "" {
		if u.Policy == cstor.PolicyNever {
			return nil, false, &fetch.UsageError{
				Subject: u.Reference, Err: errors.New("an image that is not fetched needs a name in the store"),
				Hint: "give it with --name, or leave out --policy never",
			}
		}
		return nil, true, nil
	}
	if name, err = cstor.NormalizeName(name); err != nil {
		return nil, false, &fetch.UsageError{Subject: name, Err: err}
	}
	return u.store.Decide(u.Policy, name)
}

// fetch pulls the image into the store.
func (u *stage1) fetch(ctx context.Context, from *fetchSource) (*storeSource, error) {
	name, err := u.storeName(from.Image)
	if err != nil {
		return nil, err
	}
	pulled, err := u.store.Pull(ctx, cstor.Source{
		Reference: from.Reference.String(), Manifest: from.Manifest, Index: from.Index,
		Config: from.Config, Layer: from.Layer, Retry: fetch.IsRetryable,
	}, u.storeOptions([]string{name}))
	u.result.Changed = u.result.Changed || pulled.Changed
	u.result.Stats.Bytes.Fetched = pulled.BytesFetched
	if err != nil {
		return nil, err
	}
	u.events.task(TaskPulling, Done)
	u.Log.Info("image is in containers-storage", "id", pulled.ImageID, "fetched", pulled.Fetched,
		"layers", pulled.Layers, "present", pulled.LayersPresent)
	// By the id: names can be given to other images meanwhile.
	image, err := u.store.Lookup(pulled.ImageID)
	if err != nil {
		return nil, err
	}
	source, err := u.stored(image, from.origin())
	if err != nil {
		return nil, err
	}
	source.blobs, source.mayCopy = from, u.methods.Copy
	return source, nil
}

// storeName is the name that the image gets.
func (u *stage1) storeName(image *fetch.Image) (string, error) {
	name := u.StoreName
	if name == "" && image.Reference.Transport == fetch.TransportRegistry {
		name = image.Reference.Name
	}
	if name == "" {
		return cstor.NameForDigest(oci.DigestOf(image.Manifest)), nil
	}
	normal, err := cstor.NormalizeName(name)
	if err != nil {
		return "", &fetch.UsageError{Subject: name, Err: err}
	}
	return normal, nil
}

// storeOptions are those of a pull or a copy into the store.
func (u *stage1) storeOptions(names []string) cstor.PullOptions {
	copies := 1
	if u.copiesFrom(u.store.GraphRoot()) && sameDevice(u.store.GraphRoot(), u.Repo) {
		copies = 2
	}
	return cstor.PullOptions{
		Names: names, ParallelLayers: u.ParallelLayers, Limits: u.Limits,
		MinFree: u.MinFree, SkipSpaceCheck: u.SkipSpaceCheck, ExpectedCopies: copies,
		Events: u.storeEvent,
	}
}

// storeEvent passes the progress of the store's pull on.
func (u *stage1) storeEvent(e cstor.Event) {
	layer := Event{Task: TaskPulling, Layer: e.Layer, Total: e.Size}
	switch e.Kind {
	case cstor.EventTotals:
		u.events.start(TaskPulling, e.Total, e.Cached)
		return
	case cstor.EventFetched:
		u.events.advance(TaskPulling, e.Layer, int(e.Bytes), e.Size)
		return
	case cstor.EventStarted:
		layer.State = Started
	case cstor.EventSkipped:
		layer.State, layer.Bytes, layer.Cached = Skipped, e.Size, e.Size
	case cstor.EventStored:
		layer.State, layer.Bytes = Done, e.Size
	}
	u.events.layer(layer)
}

// stored makes the source of an image in the store.
func (u *stage1) stored(image *cstor.Image, from origin) (*storeSource, error) {
	return u.storeSource(u.store, image, from)
}

// storeSource makes the source of an image in a store.
func (p *pull) storeSource(store *cstor.Store, image *cstor.Image, from origin) (*storeSource, error) {
	layers, err := store.Layers(image)
	if err != nil {
		return nil, err
	}
	from.transport, from.manifest = string(p.reference.Transport), image.Manifest
	return &storeSource{
		from: from, store: store, image: image, layers: layers, copies: p.copiesFrom(image.GraphRoot),
	}, nil
}

// copiesFrom reports whether files of a store will have to be copied.
func (p *pull) copiesFrom(graphRoot string) bool {
	if !p.methods.Copy || p.repo == nil {
		return false
	}
	shares := p.methods.Hardlink || p.methods.Reflink && p.repo.ProbeReflink() == nil
	return !shares || !sameDevice(graphRoot, p.Repo)
}

func sameDevice(a, b string) bool {
	var stA, stB unix.Stat_t
	return unix.Stat(a, &stA) == nil && unix.Stat(b, &stB) == nil && stA.Dev == stB.Dev
}
