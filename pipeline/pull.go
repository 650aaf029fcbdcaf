// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/pipeline/fetch"
)

// pull is a pull under way.
type pull struct {
	Options
	result *Result
	events *eventSink

	reference fetch.Reference
	repo      *composefs.Repo
	unlock    func() error      // ends the operation lock
	methods   composefs.Methods // for files of a store
	source    imageSource
	manifest  *oci.Manifest
	config    *oci.Config
	imported  []*layer  // layers that this pull brings into the repository
	image     oci.Image // what will be committed
	done      *oci.Committed
}

func newPull(o Options) *pull {
	return &pull{Options: o.withDefaults(), result: NewResult(o.Reference), events: newEventSink(o.Events)}
}

// run pulls from the source that obtain finds and sets. obtain may bring the
// image there first.
func (p *pull) run(ctx context.Context, obtain func(context.Context) error) (err error) {
	if err := p.open(ctx); err != nil {
		return atStage(StageOpen, err)
	}
	defer func() { err = errors.Join(err, p.repo.Close(), p.unlock()) }()
	begin := time.Now()
	if err := obtain(ctx); err != nil {
		return atStage(StageFetch, err)
	}
	defer func() { err = errors.Join(err, p.closeSource()) }()
	if err := p.readConfig(ctx); err != nil {
		return atStage(StageFetch, err)
	}
	p.result.Stats.Seconds.Fetch = time.Since(begin).Seconds()

	begin = time.Now()
	root, err := p.importLayers(ctx)
	p.result.Stats.Seconds.Import = time.Since(begin).Seconds()
	if err == nil || ctx.Err() == nil {
		root, err = p.checkSource(ctx, obtain, root, err)
	}
	if err != nil {
		return atStage(stageOfImport(err), err)
	}
	return p.finish(ctx, root)
}

// checkSource makes sure that the image is still where it was imported from.
// Where it was removed meanwhile it is brought there and imported once more
// . root and err are the outcome of the import.
func (p *pull) checkSource(ctx context.Context, obtain func(context.Context) error, root *tree.Node, err error) (*tree.Node, error) {
	gone := p.source.check()
	if gone == nil {
		return root, err
	}
	p.warn("the image was removed while it was imported (%v); trying once more", gone)
	if err := p.closeSource(); err != nil {
		return nil, err
	}
	if err := obtain(ctx); err != nil {
		return nil, err
	}
	if err := p.readConfig(ctx); err != nil {
		return nil, atStage(StageFetch, err)
	}
	root, err = p.importLayers(ctx)
	if ctx.Err() != nil {
		return root, err
	}
	// Files that are missing are no damage when the image is gone.
	if gone := p.source.check(); gone != nil {
		return nil, fmt.Errorf("image %s was removed again while it was imported: %w", p.Reference, gone)
	}
	return root, err
}

// finish builds the images, and makes all visible.
func (p *pull) finish(ctx context.Context, root *tree.Node) error {
	begin := time.Now()
	entries, bootErr := p.buildImages(ctx, root)
	p.result.Stats.Seconds.Boot = time.Since(begin).Seconds()
	if bootErr != nil && !keepsImport(bootErr) {
		return errors.Join(bootErr, p.keepLayers())
	}
	// An image that cannot be booted is still a complete image.
	if err := p.commit(ctx); err != nil {
		return errors.Join(atStage(StageTag, err), p.keepLayers())
	}
	if bootErr == nil && p.ExportBoot != "" {
		bootErr = atStage(StageBootEntries, p.exportBoot(ctx, entries))
	}
	if bootErr != nil && p.UntagOnError {
		if err := p.untag(); err != nil {
			return errors.Join(bootErr, err)
		}
	}
	return bootErr
}

// checkNames refuses a reference or a tag that makes no sense.
func (p *pull) checkNames() (err error) {
	if p.Tag != "" {
		if _, err := oci.EncodeTag(p.Tag); err != nil {
			return &fetch.UsageError{Subject: p.Tag, Err: err}
		}
	}
	p.reference, err = fetch.ParseReference(p.Reference, p.Fetch.Transport)
	return err
}

// keepsImport reports whether an error concerns only the booting of an image,
// so that the image itself is kept and tagged.
func keepsImport(err error) bool {
	stage, ok := errors.AsType[*StageError](err)
	return ok && stage.Stage == StageBootEntries
}

// open takes the operation lock and opens the repository, making it first if asked for, and makes sure that
// objects can be stored in it.
func (p *pull) open(ctx context.Context) (err error) {
	open := composefs.OpenOptions{
		AllowMissingVerity: p.AllowMissingVerity, Force: p.Force, LockTimeout: p.LockTimeout,
	}
	created := false
	p.unlock, err = lockOperation(ctx, p.Repo, p.LockTimeout, p.Log)
	if p.Init && errors.Is(err, composefs.ErrNotRepository) {
		created, err = Init(ctx, p.Repo, composefs.InitOptions{
			Formats: p.Formats, AllowMissingVerity: p.AllowMissingVerity, LockTimeout: p.LockTimeout,
		})
		if err != nil {
			return err
		}
		p.unlock, err = lockOperation(ctx, p.Repo, p.LockTimeout, p.Log)
	}
	if err != nil {
		return err
	}
	repo, upgraded, err := openUpgraded(ctx, p.Repo, open, p.Limits, p.Log)
	if err == nil {
		if err = repo.CheckVerity(); err != nil {
			err = errors.Join(err, repo.Close())
		}
	}
	if err != nil {
		return errors.Join(err, p.unlock())
	}
	p.opened(repo, created)
	p.result.Upgraded, p.result.Changed = upgraded, upgraded != nil
	return nil
}

// opened notes the repository and describes it in the result.
func (p *pull) opened(repo *composefs.Repo, created bool) {
	p.repo = repo
	p.result.Repository = Repository{
		Path: p.Repo, Algorithm: repo.Algorithm().String(), VerityRequired: repo.Secure(),
	}
	p.Log.Info("opened repository", "path", p.Repo, "created", created, "algorithm", repo.Algorithm().String(),
		"erofs", fmt.Sprint(repo.Versions()), "verity required", repo.Secure())
	if want := p.Formats.Versions(); p.Formats.Default != 0 && !created && !slices.Equal(want, repo.Versions()) {
		p.warn("repository %s keeps its EROFS formats %v; %v were asked for", p.Repo, repo.Versions(), want)
	}
}

// Init is [composefs.Init], except that a directory that it made does not stay
// behind empty when it fails.
func Init(ctx context.Context, path string, o composefs.InitOptions) (created bool, err error) {
	_, before := os.Lstat(path)
	created, err = composefs.Init(ctx, path, o)
	if err != nil && errors.Is(before, fs.ErrNotExist) {
		// Only an empty directory goes away like this.
		_ = unix.Rmdir(path)
	}
	return created, err
}

// closeSource closes the source, if there is one.
func (p *pull) closeSource() error {
	if p.source == nil {
		return nil
	}
	source := p.source
	p.source = nil
	return source.Close()
}

// found sets the source of the image and reads its manifest.
func (p *pull) found(source imageSource) error {
	p.source = source
	if err := p.readManifest(); err != nil {
		return errors.Join(fmt.Errorf("image %s: %w", p.Reference, err), p.closeSource())
	}
	return nil
}

func (p *pull) readManifest() (err error) {
	r, o := p.result, p.source.origin()
	r.Transport, r.IndexDigest, r.CanonicalReference = o.transport, o.indexDigest, o.reference
	p.image.Manifest = o.manifest
	r.ManifestDigest = oci.DigestOf(o.manifest)
	if p.manifest, err = oci.ParseManifest(o.manifest); err != nil {
		return err
	}
	if r.ConfigDigest, err = oci.ParseDigest(p.manifest.Config.Digest); err != nil {
		return err
	}
	p.Log.Info("resolved image", "reference", r.CanonicalReference, "index", r.IndexDigest, "manifest", r.ManifestDigest.String(),
		"credentials", cmp.Or(o.credentials, "none"))
	p.image.Tags = []string{oci.BootcTag(r.ManifestDigest)}
	if p.Tag != "" {
		p.image.Tags = append(p.image.Tags, p.Tag)
	}
	return nil
}

// readConfig reads the config, from the repository when it is there.
func (p *pull) readConfig(ctx context.Context) error {
	if known := p.knownConfig(); known != nil {
		p.image.Config = known.Raw
	} else {
		config, err := p.source.Config(ctx)
		if err != nil {
			return err // it names the image
		}
		p.image.Config = config
	}
	config, err := oci.ParseConfig(p.image.Config, len(p.manifest.Layers))
	if err != nil {
		return fmt.Errorf("image %s: %w", p.Reference, err)
	}
	p.config = config
	p.image.DiffIDs = config.DiffIDs
	p.image.Layers = map[oci.Digest]fsverity.Digest{}
	p.image.Images = map[string]fsverity.Digest{}
	p.result.describe(config)
	if config.Labels["containers.bootc"] == "" {
		p.warn("the image has no label containers.bootc=1, which bootable images should have")
	}
	return nil
}

// knownConfig is the config as the repository has it, or nil.
func (p *pull) knownConfig() *oci.Document {
	if p.repo == nil {
		return nil
	}
	known, err := oci.OpenConfig(p.repo, p.result.ConfigDigest)
	if err != nil {
		return nil
	}
	return known
}

func (p *pull) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	p.result.Warnings = append(p.result.Warnings, text)
	p.Log.Warn(text)
}

// commit makes the image visible.
func (p *pull) commit(ctx context.Context) (err error) {
	if p.done, err = oci.Commit(ctx, p.repo, &p.image); err != nil {
		return err
	}
	r := p.result
	r.ManifestVerity, r.ConfigVerity = p.done.ManifestStream, p.done.ConfigStream
	r.Changed = r.Changed || p.done.Changed
	r.Tag, r.Tagged = p.image.Tags[0], true
	p.Log.Info("committed image", "tag", r.Tag, "changed", r.Changed)
	return nil
}

// untag takes back the tags that this pull wrote.
func (p *pull) untag() error {
	if err := p.done.RevertTags(p.repo); err != nil {
		return err
	}
	tagged, err := p.hasTag(p.result.Tag)
	p.result.Tagged = tagged
	return err
}

// layerError says which layer of which image an error is about.
func (p *pull) layerError(i int, err error) error {
	if is[*fetch.IntegrityError](err) {
		return err // it says all that
	}
	text := fmt.Sprintf("layer %d of %d (%s)", i+1, len(p.config.DiffIDs), p.manifest.Layers[i].Digest)
	if is[*transferError](err) {
		return fmt.Errorf("%s: %w", text, err) // it names the image
	}
	return fmt.Errorf("image %s: %s: %w", p.Reference, text, err)
}
