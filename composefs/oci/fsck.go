// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// The kinds of findings about images. Where cfsctl knows the same case the name
// is the same.
const (
	ManifestReadFailed     composefs.Kind = "manifest-read-failed"
	ManifestDigestMismatch composefs.Kind = "manifest-digest-mismatch"
	ManifestParseFailed    composefs.Kind = "manifest-parse-failed"
	ConfigRefMissing       composefs.Kind = "config-ref-missing"
	ConfigReadFailed       composefs.Kind = "config-read-failed"
	ConfigDigestMismatch   composefs.Kind = "config-digest-mismatch"
	ConfigParseFailed      composefs.Kind = "config-parse-failed"

	LayerRefMissing     composefs.Kind = "layer-ref-missing"
	LayerStreamMissing  composefs.Kind = "layer-stream-missing"
	LayerObjectMissing  composefs.Kind = "layer-object-missing"
	LayerDigestMismatch composefs.Kind = "layer-digest-mismatch" // the reassembled layer
	LayerPaddingLost    composefs.Kind = "layer-padding-lost"
	BlobDigestMismatch  composefs.Kind = "blob-digest-mismatch"

	ArtifactLayerRefMissing    composefs.Kind = "artifact-layer-ref-missing"
	ArtifactLayerObjectMissing composefs.Kind = "artifact-layer-object-missing"
	SealImageMissing           composefs.Kind = "seal-image-missing"

	ImageNotLinked       composefs.Kind = "image-not-linked" // it cannot be mounted
	ImageKeyUnknown      composefs.Kind = "image-key-unknown"
	ImageRebuildMismatch composefs.Kind = "image-rebuild-mismatch"
	ImageRebuildFailed   composefs.Kind = "image-rebuild-failed"

	RefResolveFailed composefs.Kind = "ref-resolve-failed"
	InvalidRefName   composefs.Kind = "invalid-ref-name"
	ReferrerDangling composefs.Kind = "referrer-dangling"
)

const (
	blobPrefix = "oci-blob-"

	// sealLabel is the label by which an image names its EROFS image.
	sealLabel = "containers.composefs.fsverity"

	// rebuildWorkers bounds how many images are rebuilt at a time: each has
	// the tree of a whole file system in memory.
	rebuildWorkers = 2

	// maxRounds bounds how often a repair is followed by another one: what is
	// repaired can show what else is wrong.
	maxRounds = 8
)

// FsckOptions say what Fsck checks and whether it repairs. The zero value
// checks everything and changes nothing.
type FsckOptions struct {
	// Quick leaves out reading the content of objects and rebuilding EROFS
	// images.
	Quick bool
	// Image limits the check to what one image reaches: a reference as for
	// [Resolve], to a manifest.
	Image string
	// Repair derives anew what can be derived from what is there. It takes
	// the exclusive lock.
	Repair bool
	// DropDamaged lets Repair remove objects whose content is wrong and that
	// cannot be derived, so that the next pull fetches them.
	DropDamaged bool
	// LockTimeout is how long to wait for the exclusive lock; see
	// [composefs.Repo.LockExclusive].
	LockTimeout time.Duration
	// Workers is how many goroutines check; 0 stands for one a CPU.
	Workers int
	// MaxFindings is how many findings are kept; 0 stands for
	// [composefs.DefaultMaxFindings].
	MaxFindings int
	// Limits bound the rebuild of EROFS images.
	Limits Limits
}

// FsckReport is the result of Fsck. With a repair it is about the repository
// as it was left.
type FsckReport struct {
	OK       bool                   `json:"ok"` // no finding is an error
	Quick    bool                   `json:"quick"`
	Image    string                 `json:"image,omitempty"` // what the check was limited to
	Counts   FsckCounts             `json:"counts"`
	Errors   int                    `json:"errors"`
	Warnings int                    `json:"warnings"`
	ByKind   map[composefs.Kind]int `json:"byKind"`
	// Findings are sorted, errors first. Omitted are those above the limit.
	Findings []composefs.Finding  `json:"findings"`
	Omitted  int                  `json:"findingsOmitted"`
	Repaired []composefs.Repaired `json:"repaired"`
}

// FsckCounts is what was looked at.
type FsckCounts struct {
	Objects        int64 `json:"objects"`
	ObjectsDamaged int64 `json:"objectsDamaged"`
	BytesRead      int64 `json:"bytesRead"` // of objects, for their content
	Streams        int64 `json:"streams"`
	StreamsDamaged int64 `json:"streamsDamaged"`
	Images         int64 `json:"images"` // EROFS images
	ImagesDamaged  int64 `json:"imagesDamaged"`
	ImagesRebuilt  int64 `json:"imagesRebuilt"` // compared with their layers
	Manifests      int64 `json:"manifests"`
	// ManifestsDamaged counts those with an error in what they lead to.
	ManifestsDamaged int64 `json:"manifestsDamaged"`
	Refs             int64 `json:"refs"`
	Tags             int64 `json:"tags"`
	TagsDamaged      int64 `json:"tagsDamaged"`
}

// Fsck checks a repository. What is wrong with it is in the report; an error
// says why the check or the repair could not be finished. It needs only the
// shared lock that an open repository has, unless it repairs.
func Fsck(ctx context.Context, repo *composefs.Repo, o FsckOptions) (_ *FsckReport, err error) {
	if o.DropDamaged && !o.Repair {
		return nil, errors.New("check repository: damaged objects are only dropped by a repair")
	}
	if o.Repair {
		unlock, err := repo.LockExclusive(ctx, o.LockTimeout)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, unlock()) }()
	}
	f := &fsck{repo: repo, o: o, computed: map[computedKey]fsverity.Digest{}}
	if o.Image != "" {
		subject, err := Resolve(repo, o.Image)
		if err != nil {
			return nil, err
		}
		if subject.Manifest.IsZero() {
			return nil, fmt.Errorf("%w: %s does not name the manifest of an image", ErrReference, quote(o.Image))
		}
		f.only = subject.Manifest
	}
	var repaired []composefs.Repaired
	for range maxRounds {
		if err := f.round(ctx); err != nil {
			return nil, fmt.Errorf("check repository %s: %w", repo.Path(), err)
		}
		if !o.Repair {
			break
		}
		done, err := f.c.Repair(ctx)
		repaired = appendNew(repaired, done)
		if err != nil {
			return nil, fmt.Errorf("repair repository %s: %w", repo.Path(), err)
		}
		if !slices.ContainsFunc(done, func(r composefs.Repaired) bool { return r.Error == "" }) {
			break
		}
	}
	return f.report(repaired), nil
}

// appendNew appends repairs; one that failed before is not told again.
func appendNew(all, more []composefs.Repaired) []composefs.Repaired {
	for _, r := range more {
		if !slices.Contains(all, r) {
			all = append(all, r)
		}
	}
	return all
}

// fsck is a check under way.
type fsck struct {
	repo *composefs.Repo
	o    FsckOptions
	only Digest // the manifest of a limited check

	c      *composefs.Checker // of this round
	counts FsckCounts
	tags   []tagTarget
	bad    map[Digest]bool // manifests

	configs  map[fsverity.Digest]configResult
	commits  map[Digest]bool // manifests that are to be written anew
	rebuilds *errgroup.Group

	mu       sync.Mutex                      // guards bad and what follows
	computed map[computedKey]fsverity.Digest // images, also of rounds before
}

// tagTarget is a tag and where it leads to.
type tagTarget struct {
	path     string
	manifest Digest
}

// round checks everything once.
func (f *fsck) round(ctx context.Context) error {
	if f.c == nil {
		f.c = composefs.NewChecker(f.repo, composefs.CheckOptions{
			Quick: f.o.Quick, Workers: f.o.Workers, MaxFindings: f.o.MaxFindings,
			Rule: streamRule, Ref: f.checkRef, Streams: f.firstStreams(),
			Repair: f.o.Repair, DropDamaged: f.o.DropDamaged,
		})
	} else {
		f.c = f.c.Next()
	}
	f.counts, f.tags = FsckCounts{}, nil
	f.bad, f.configs, f.commits = map[Digest]bool{}, map[fsverity.Digest]configResult{}, map[Digest]bool{}
	if err := f.c.Run(ctx); err != nil {
		return err
	}
	f.checkNames()
	rebuilds, rebuildCtx := errgroup.WithContext(ctx)
	rebuilds.SetLimit(f.workers())
	f.rebuilds = rebuilds
	for _, d := range f.manifests() {
		if rebuildCtx.Err() != nil {
			break
		}
		f.checkManifest(rebuildCtx, d)
	}
	if f.only.IsZero() {
		f.checkConfigs(rebuildCtx)
	}
	if err := rebuilds.Wait(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	f.counts.ManifestsDamaged = int64(len(f.bad))
	f.checkTags()
	return nil
}

// firstStreams are the streams that a limited check begins with; nil for all.
func (f *fsck) firstStreams() []string {
	if f.only.IsZero() {
		return nil
	}
	names := []string{ManifestStream(f.only)}
	// What the names promise is part of the image, even if the streams do not
	// lead there.
	if id, err := f.repo.StreamID(names[0]); err == nil {
		if t, err := f.repo.StreamTables(id); err == nil {
			for _, ref := range t.Named {
				if text, ok := strings.CutPrefix(ref.Name, configRef); ok {
					names = append(names, configPrefix+text)
				} else {
					names = append(names, layerPrefix+ref.Name)
				}
			}
		}
	}
	return names
}

// streamRule is what the name of a stream promises.
func streamRule(name string) composefs.StreamRule {
	switch {
	case strings.HasPrefix(name, manifestPrefix):
		return composefs.StreamRule{Types: []splitstream.ContentType{splitstream.Manifest}, OwnRefs: true}
	case strings.HasPrefix(name, configPrefix):
		return composefs.StreamRule{Types: []splitstream.ContentType{splitstream.Config}, OwnRefs: true}
	}
	rule := composefs.StreamRule{}
	text, layer := strings.CutPrefix(name, layerPrefix)
	if layer {
		// An artifact's layer may be anything.
		rule.Types = []splitstream.ContentType{splitstream.Layer, splitstream.Blob}
		rule.Mismatch, rule.Padding = LayerDigestMismatch, LayerPaddingLost
	} else if text, layer = strings.CutPrefix(name, blobPrefix); layer {
		rule.Types = []splitstream.ContentType{splitstream.Blob}
		rule.Mismatch = BlobDigestMismatch
	} else {
		return rule
	}
	if d, err := ParseDigest(text); err == nil {
		rule.SHA256 = &d.sum
	}
	return rule
}

// checkNames reports streams whose names begin like those of images and do not
// end in a digest.
func (f *fsck) checkNames() {
	if !f.only.IsZero() {
		return
	}
	for _, name := range f.c.StreamNames() {
		for _, prefix := range []string{manifestPrefix, configPrefix, layerPrefix, blobPrefix} {
			if text, ok := strings.CutPrefix(name, prefix); ok {
				if _, err := ParseDigest(text); err != nil {
					f.c.Report(composefs.Finding{
						Kind: composefs.EntryInvalidName, Severity: composefs.Warning, Path: "streams/" + name, Stream: name,
						Message: fmt.Sprintf("no image can name it: %v", err), Help: "remove it if you do not know it",
					})
				}
			}
		}
	}
}

// manifests are those to check.
func (f *fsck) manifests() []Digest {
	if !f.only.IsZero() {
		return []Digest{f.only}
	}
	return f.named(manifestPrefix)
}

// named are the digests of the streams with a prefix.
func (f *fsck) named(prefix string) []Digest {
	var all []Digest
	for _, name := range f.c.StreamNames() {
		if text, ok := strings.CutPrefix(name, prefix); ok {
			if d, err := ParseDigest(text); err == nil {
				all = append(all, d)
			}
		}
	}
	return all
}

// report makes the report of the last round.
func (f *fsck) report(repaired []composefs.Repaired) *FsckReport {
	n := &f.c.Counts
	c := f.counts
	c.Objects, c.ObjectsDamaged, c.BytesRead = n.ObjectsChecked.Load(), n.ObjectsDamaged.Load(), n.BytesRead.Load()
	c.Streams, c.StreamsDamaged = n.StreamsChecked.Load(), n.StreamsDamaged.Load()
	c.Images, c.ImagesDamaged = n.ImagesChecked.Load(), n.ImagesDamaged.Load()
	c.Refs = n.RefsChecked.Load()
	findings, byKind := f.c.Findings()
	for i := range findings {
		if findings[i].Help == "" {
			findings[i].Help = helpByKind[findings[i].Kind]
		}
	}
	all, bad := f.c.Total()
	return &FsckReport{
		OK: bad == 0, Quick: f.o.Quick, Image: f.o.Image, Counts: c,
		Errors: bad, Warnings: all - bad, ByKind: byKind,
		Findings: append([]composefs.Finding{}, findings...), Omitted: all - len(findings),
		Repaired: append([]composefs.Repaired{}, repaired...),
	}
}

// workers is how many images are rebuilt at a time.
func (f *fsck) workers() int {
	n := f.o.Workers
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	return min(n, rebuildWorkers)
}

const helpAgain = "pull the image again"

// What would help.
var helpByKind = map[composefs.Kind]string{
	ManifestReadFailed:         helpAgain,
	ManifestDigestMismatch:     "remove the object and pull the image again",
	ManifestParseFailed:        "no program can use the image; remove its tag",
	ConfigRefMissing:           helpAgain,
	ConfigReadFailed:           helpAgain,
	ConfigDigestMismatch:       "remove the object and pull the image again",
	ConfigParseFailed:          "no program can use the image; remove its tag",
	LayerRefMissing:            helpAgain,
	LayerStreamMissing:         helpAgain,
	LayerObjectMissing:         helpAgain,
	LayerDigestMismatch:        "remove the layer's link and pull the image again",
	LayerPaddingLost:           "the image can be used; only exporting the layer gives other bytes than were pulled",
	BlobDigestMismatch:         helpAgain,
	ArtifactLayerRefMissing:    "pull the artifact again",
	ArtifactLayerObjectMissing: "pull the artifact again",
	SealImageMissing:           helpAgain,
	ImageNotLinked:             helpAgain,
	ImageKeyUnknown:            "use a newer version of this program",
	ImageRebuildMismatch:       "do not boot it before you know why: the image may have been made by another version of a program, or by somebody else",
	ImageRebuildFailed:         helpAgain,
	RefResolveFailed:           "set the tag anew or remove it",
	InvalidRefName:             "remove the ref",
	ReferrerDangling:           "garbage collection removes it",
}
