// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/bootc"
	"github.com/cfs-pull/cfs-pull/composefs/mount"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// GCOptions say what is collected and what stays.
type GCOptions struct {
	// Repo is the repository's directory.
	Repo string
	// Sysroot is the physical root of the system whose repository that is. If
	// it has deployments of bootc, bootc's tags that no deployment needs are
	// removed. Empty means that no tag is removed. The images of deployments
	// beside the repository stay in any case.
	Sysroot            string
	AllowMissingVerity bool
	Force              bool
	LockTimeout        time.Duration

	// Keep are what stays beside what tags and deployments need: names of
	// streams or images, tags, digests of manifests. Each must exist, or the
	// error is a [*KeepError].
	Keep []string
	// KeepRecent is how old one of bootc's tags must be before it can be
	// removed: an image that was just pulled is no deployment yet. 0 stands
	// for [DefaultKeepRecent], a negative value for no time at all.
	KeepRecent time.Duration
	// DryRun finds out what would be removed and removes nothing. Only the
	// shared lock is taken, unless an upgrade is due: that is carried out.
	DryRun bool
	// DropDangling removes tags and other refs that lead to nothing, instead
	// of refusing to work.
	DropDangling bool
	// ListObjects notes each object in the result.
	ListObjects bool

	// Limits bound the images that an upgrade builds.
	Limits oci.Limits
	// Bootc says where the running system is described.
	Bootc bootc.Options
	Log   *slog.Logger
}

// DefaultKeepRecent is how old a tag of bootc must be before it can be removed.
const DefaultKeepRecent = 24 * time.Hour

// GCResult is what garbage collection did, or would do.
type GCResult struct {
	APIVersion string `json:"apiVersion"`
	// Changed is set when anything was removed, or with DryRun would be.
	Changed    bool       `json:"changed"`
	DryRun     bool       `json:"dryRun"`
	Repository Repository `json:"repository"`
	// Upgraded is set when the repository was one of an older release.
	Upgraded *Upgrade `json:"upgraded,omitempty"`
	// Deployments are those of bootc, whose images stay.
	Deployments []GCDeployment `json:"deployments"`
	// Mounted are EROFS images that stay because they are mounted.
	Mounted []fsverity.Digest `json:"mounted"`
	// TagsCreated are tags of bootc that deployments lacked.
	TagsCreated []string  `json:"tagsCreated"`
	Removed     GCRemoved `json:"removed"`
	// MissingObjects counts references of what stays to objects that are not
	// there. fsck says which.
	MissingObjects int64        `json:"missingObjects"`
	Warnings       []string     `json:"warnings"`
	Error          *ErrorResult `json:"error,omitempty"`
}

// GCRemoved is what was removed. Lists are never null.
type GCRemoved struct {
	Objects int64 `json:"objects"`
	// Bytes is the sum of their sizes, LinkedBytes that of those which still
	// take space because they have names elsewhere.
	Bytes       int64 `json:"bytes"`
	LinkedBytes int64 `json:"linkedBytes"`
	// ObjectIDs is set with GCOptions.ListObjects.
	ObjectIDs []fsverity.Digest `json:"objectIDs,omitempty"`
	// Tags are names, Refs the others that were removed, with the reason.
	Tags        []string               `json:"tags"`
	Refs        []composefs.DroppedRef `json:"refs"`
	Streams     []string               `json:"streams"`
	Images      []string               `json:"images"`
	Temporaries []string               `json:"temporaries"`
}

// GCDeployment is a deployment of bootc.
type GCDeployment struct {
	ID       fsverity.Digest `json:"id"`
	Manifest oci.Digest      `json:"manifestDigest,omitzero"`
	Image    string          `json:"image,omitempty"`
	Booted   bool            `json:"booted"`
	Staged   bool            `json:"staged"`
}

// NewGCResult is the result of a collection that has done nothing yet.
func NewGCResult() *GCResult {
	return &GCResult{
		APIVersion: APIVersion, Deployments: []GCDeployment{}, Mounted: []fsverity.Digest{}, TagsCreated: []string{}, Warnings: []string{},
		Removed: GCRemoved{
			Tags: []string{}, Refs: []composefs.DroppedRef{}, Streams: []string{}, Images: []string{}, Temporaries: []string{},
		},
	}
}

// GC collects garbage in a repository, upgrading it first. With a Sysroot it
// first removes the tags of bootc that no deployment needs, and creates those
// that deployments lack. Other tags are never touched. The Result is never
// nil; it holds what is known when an error is returned.
//
// EROFS images that are mounted stay, with their objects.
//
// Nothing at all is removed unless everything that is in use is known:
// deployments that cannot be read, or whose images cannot be found, are errors.
func GC(ctx context.Context, o GCOptions) (*GCResult, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.KeepRecent == 0 {
		o.KeepRecent = DefaultKeepRecent
	}
	c := &collection{GCOptions: o, result: NewGCResult(), unlock: func() error { return nil }}
	c.result.DryRun, c.result.Repository.Path = o.DryRun, o.Repo
	return c.result, c.run(ctx)
}

// collection is a collection of garbage under way.
type collection struct {
	GCOptions
	result *GCResult
	repo   *composefs.Repo
	unlock func() error // ends the operation lock

	options composefs.GCOptions
	live    map[oci.Digest]bool // manifests that deployments need
	keep    map[oci.Digest]bool // manifests that the caller wants
}

func (c *collection) run(ctx context.Context) (err error) {
	if err := c.open(ctx); err != nil {
		return atStage(StageOpen, err)
	}
	defer func() { err = errors.Join(err, c.repo.Close(), c.unlock()) }()
	c.result.Repository = Repository{
		Path: c.Repo, Algorithm: c.repo.Algorithm().String(), VerityRequired: c.repo.Secure(),
	}
	if !c.DryRun {
		// The lock ends with the handle: nothing remains to be done that
		// would need the shared one.
		if _, err := lockExclusive(ctx, c.repo, c.LockTimeout, c.Log); err != nil {
			return atStage(StageGC, err)
		}
	}
	return atStage(StageGC, c.collect(ctx))
}

// open opens the repository and upgrades it if that is due. A dry run that
// finds everything up to date leaves others alone.
func (c *collection) open(ctx context.Context) (err error) {
	open := composefs.OpenOptions{
		AllowMissingVerity: c.AllowMissingVerity, Force: c.Force, LockTimeout: c.LockTimeout,
	}
	if c.DryRun {
		if done, err := c.openCurrent(ctx, open); done || err != nil {
			return err
		}
	}
	if c.unlock, err = lockOperation(ctx, c.Repo, c.LockTimeout, c.Log); err != nil {
		return err
	}
	if c.repo, c.result.Upgraded, err = openUpgraded(ctx, c.Repo, open, c.Limits, c.Log); err != nil {
		return errors.Join(err, c.unlock())
	}
	return nil
}

// openCurrent opens a repository that needs no upgrade, or cannot have one.
func (c *collection) openCurrent(ctx context.Context, o composefs.OpenOptions) (done bool, err error) {
	repo, err := composefs.Open(ctx, c.Repo, o)
	if errors.Is(err, composefs.ErrOldFormat) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	n, err := oci.Outdated(ctx, repo)
	if err != nil {
		return false, errors.Join(err, repo.Close())
	}
	switch why := repo.Writable(); {
	case n == 0:
	case why == nil:
		return false, repo.Close()
	default:
		c.warn("%d images of an older release were not upgraded: %v", n, why)
	}
	c.repo = repo
	return true, nil
}

func (c *collection) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.result.Warnings = append(c.result.Warnings, text)
	c.Log.Warn(text)
}

// collect does the work. Nobody else can change the repository, except in a dry
// run.
func (c *collection) collect(ctx context.Context) error {
	c.live, c.keep = map[oci.Digest]bool{}, map[oci.Digest]bool{}
	c.options = composefs.GCOptions{
		DropDangling: c.DropDangling, DryRun: c.DryRun, ListObjects: c.ListObjects,
	}
	if err := c.keepNamed(); err != nil {
		return err
	}
	if err := c.keepDeployments(); err != nil {
		return err
	}
	if err := c.keepMounted(); err != nil {
		return err
	}
	removed, err := oci.CollectGarbage(ctx, c.repo, c.options)
	if removed != nil {
		c.report(removed)
	}
	return err
}

// keepNamed finds what the caller wants kept.
func (c *collection) keepNamed() error {
	for _, name := range c.Keep {
		if c.isEntry(name) {
			c.options.Keep = append(c.options.Keep, name)
			if d, err := oci.ParseDigest(strings.TrimPrefix(name, "oci-manifest-")); err == nil {
				c.keep[d] = true
			}
			continue
		}
		subject, err := oci.Resolve(c.repo, name)
		if err != nil {
			return &KeepError{Reference: name, Err: err}
		}
		switch {
		case !subject.Manifest.IsZero():
			c.keep[subject.Manifest] = true
			name = oci.ManifestStream(subject.Manifest)
		case !subject.Config.IsZero():
			name = oci.ConfigStream(subject.Config)
		default:
			name = subject.Image.String()
		}
		if !c.isEntry(name) {
			return &KeepError{Reference: name, Err: errors.New("it leads to nothing")}
		}
		c.options.Keep = append(c.options.Keep, name)
	}
	return nil
}

// keepMounted keeps the files of what is mounted. It is not said which tag that
// was, so nothing but the EROFS image and what that refers to stays.
func (c *collection) keepMounted() error {
	ids, err := mount.Mounted(c.repo)
	if err != nil {
		return fmt.Errorf("find out what is mounted: %w; nothing was removed", err)
	}
	for _, id := range ids {
		_, err := c.repo.ImageID(id.String())
		if errors.Is(err, fs.ErrNotExist) {
			continue // of another repository, or lost already
		}
		if err != nil {
			return fmt.Errorf("mounted image %s: %w", id, err)
		}
		c.Log.Info("kept a mounted image", "image", id.String())
		c.result.Mounted = append(c.result.Mounted, id)
		c.options.Keep = append(c.options.Keep, id.String())
	}
	return nil
}

// isEntry reports whether there is a stream or an image of that name.
func (c *collection) isEntry(name string) bool {
	_, err := c.repo.StreamID(name)
	if err != nil {
		_, err = c.repo.ImageID(name)
	}
	return err == nil
}

// report notes what was removed.
func (c *collection) report(g *composefs.GCResult) {
	r := &c.result.Removed
	r.Objects, r.Bytes, r.LinkedBytes, r.ObjectIDs = g.Objects, g.Bytes, g.LinkedBytes, g.ObjectIDs
	for _, ref := range g.Refs {
		if tag, ok := strings.CutPrefix(ref.Path, "streams/refs/oci/"); ok && ref.Reason == composefs.DropAsked {
			r.Tags = append(r.Tags, oci.DecodeTag(tag))
		} else {
			r.Refs = append(r.Refs, ref)
		}
	}
	r.Streams = append(r.Streams, g.Streams...)
	r.Images = append(r.Images, g.Images...)
	r.Temporaries = append(r.Temporaries, g.Temporaries...)
	c.result.Changed = !g.Empty()
	c.result.MissingObjects = g.Missing
	if g.Missing > 0 {
		c.warn("%d references lead to objects that are not there; fsck says which", g.Missing)
	}
}

// stateRoot is the directory that bootc's state is looked for in.
func (c *collection) stateRoot() string {
	if c.Sysroot != "" {
		return c.Sysroot
	}
	return above(c.Repo)
}

// above is the directory that a repository lies in, also where its path is a
// link.
func above(repo string) string { return filepath.Clean(repo) + "/.." }

// keepDeployments finds what deployments need, and which tags they do not.
func (c *collection) keepDeployments() error {
	state, err := bootc.ReadState(c.stateRoot(), c.repo.Algorithm(), c.Bootc)
	if err != nil {
		return fmt.Errorf("%w; nothing was removed", err)
	}
	owners, err := c.findOwners(state.Deployments)
	if err != nil {
		return err
	}
	deployed, unknown := 0, 0
	for _, d := range state.Deployments {
		known, err := c.keepDeployment(d, owners[d.ID])
		if err != nil {
			return err
		}
		if d.Deployed {
			deployed++
		}
		if !known {
			unknown++
		}
	}
	if c.Sysroot == "" || !state.Managed || deployed == 0 || unknown > 0 {
		return nil
	}
	return c.dropTags()
}

// findOwners finds the manifests whose configs name the images of deployments,
// for those deployments that do not say what they were made of. All manifests
// are looked at, not only those with tags.
func (c *collection) findOwners(deployments []bootc.Deployment) (map[fsverity.Digest][]oci.Digest, error) {
	owners := map[fsverity.Digest][]oci.Digest{}
	for _, d := range deployments {
		if d.Manifest.IsZero() {
			owners[d.ID] = nil
		}
	}
	if len(owners) == 0 {
		return owners, nil
	}
	return owners, oci.EachImage(c.repo, func(manifest oci.Digest, config *oci.Document) {
		for _, id := range config.Images() {
			if found, wanted := owners[id]; wanted {
				owners[id] = append(found, manifest)
			}
		}
	})
}

// keepDeployment keeps the image of a deployment. known is false when its tag
// cannot be told.
func (c *collection) keepDeployment(d bootc.Deployment, owners []oci.Digest) (known bool, err error) {
	_, err = c.repo.ImageID(d.ID.String())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("deployment %s: %w", d.ID, err)
	}
	hasImage := err == nil
	if !d.Deployed && !hasImage {
		c.Log.Info("passed over a deployment of another system", "deployment", d.ID.String())
		return true, nil
	}
	if !d.Manifest.IsZero() {
		owners = []oci.Digest{d.Manifest}
	}
	described := GCDeployment{ID: d.ID, Image: d.Image, Booted: d.Booted, Staged: d.Staged}
	if len(owners) > 0 {
		described.Manifest = owners[0]
	}
	c.result.Deployments = append(c.result.Deployments, described)
	if hasImage {
		c.options.Keep = append(c.options.Keep, d.ID.String())
	}
	hasManifest := false
	for _, m := range owners {
		ok, err := c.keepManifest(m)
		if err != nil {
			return false, fmt.Errorf("deployment %s: %w", d.ID, err)
		}
		hasManifest = hasManifest || ok
	}
	switch {
	case hasManifest && !hasImage:
		c.warn("deployment %s: the repository does not have its EROFS image", d.ID)
	case hasImage && !hasManifest:
		c.warn("deployment %s: the repository has its EROFS image, but not the image it was made of; no tags are removed", d.ID)
	case !hasImage:
		return false, fmt.Errorf("%w: deployment %s: the repository has neither its EROFS image nor its manifest, so it may be the wrong one; nothing was removed",
			bootc.ErrState, d.ID)
	}
	return hasManifest, nil
}

// keepManifest keeps the image that a deployment was made of, by its tag. It is
// false when the repository does not have it.
func (c *collection) keepManifest(manifest oci.Digest) (bool, error) {
	c.live[manifest] = true
	stream := oci.ManifestStream(manifest)
	if _, err := c.repo.StreamID(stream); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	tag := oci.BootcTag(manifest)
	ref, err := oci.EncodeTag(tag)
	if err != nil {
		return false, err
	}
	if target, err := c.repo.StreamRef(ref); err == nil && target == stream {
		return true, nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	c.result.TagsCreated = append(c.result.TagsCreated, tag)
	if c.DryRun {
		c.options.Keep = append(c.options.Keep, stream)
		return true, nil
	}
	c.Log.Info("created the tag that a deployment lacked", "tag", tag)
	if err := c.repo.SetStreamRef(ref, stream); err != nil {
		return false, err
	}
	return true, c.repo.SyncLinks()
}

// dropTags chooses the tags of bootc that no deployment needs.
func (c *collection) dropTags() error {
	tags, err := oci.Tags(c.repo)
	if err != nil {
		return err
	}
	for _, t := range tags {
		// Only what bootc itself would have written is bootc's.
		if t.Err != nil || t.Name != oci.BootcTag(t.Manifest) || c.live[t.Manifest] || c.keep[t.Manifest] {
			continue
		}
		ref, err := oci.EncodeTag(t.Name)
		if err != nil {
			return err
		}
		since, err := c.repo.StreamRefTime(ref)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if age := time.Since(since); age < c.KeepRecent {
			c.Log.Info("kept a tag that no deployment needs yet", "tag", t.Name, "since", since.Format(time.RFC3339))
			continue
		}
		c.options.Drop = append(c.options.Drop, ref)
	}
	return nil
}
