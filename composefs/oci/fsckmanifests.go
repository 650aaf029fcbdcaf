// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// checkedDocument is a manifest or config that was read.
type checkedDocument struct {
	stream fsverity.Digest
	raw    []byte
	refs   map[string]fsverity.Digest
}

// errTold marks what has a finding already.
var errTold = errors.New("reported")

// readChecked reads a document. The error is errTold when the cause has been
// reported: streams and objects were checked before.
func (f *fsck) readChecked(id fsverity.Digest, ct splitstream.ContentType) (*checkedDocument, error) {
	if !f.c.Exists(id) {
		return nil, fmt.Errorf("object %s is missing", id)
	}
	t, err := f.c.ReadTables(id, 2)
	if err != nil {
		return nil, errTold
	}
	if t.Type != ct {
		return nil, fmt.Errorf("object %s is a stream of type %s", id, t.Type)
	}
	doc := &checkedDocument{stream: id, refs: map[string]fsverity.Digest{}}
	for _, ref := range t.Named {
		doc.refs[ref.Name] = ref.ID
	}
	if len(t.Objects) != 1 {
		return nil, fmt.Errorf("it refers to %d objects or more, want 1", len(t.Objects))
	}
	if f.c.Damaged(t.Objects[0]) {
		return doc, errTold
	}
	if doc.raw, err = f.c.ReadContent(t.Objects[0], MaxDocument); err != nil {
		return doc, err
	}
	return doc, nil
}

// checkManifest checks a manifest and what it leads to.
func (f *fsck) checkManifest(ctx context.Context, d Digest) {
	f.counts.Manifests++
	if !f.manifestOK(ctx, d) {
		f.setBad(d)
	}
}

// setBad notes that a manifest leads to something that is damaged.
func (f *fsck) setBad(manifest Digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bad[manifest] = true
}

func (f *fsck) manifestOK(ctx context.Context, d Digest) bool {
	name := ManifestStream(d)
	bad := func(kind composefs.Kind, format string, args ...any) bool {
		f.c.Report(composefs.Finding{Kind: kind, Path: "streams/" + name, Stream: name, Message: fmt.Sprintf(format, args...)})
		return false
	}
	id, ok := f.c.StreamLink(name)
	if !ok {
		f.commitAgain(d)
		if !f.c.HasStreamLink(name) {
			return bad(ManifestReadFailed, "there is no such stream")
		}
		return false // its link has been reported
	}
	sound := !f.c.Damaged(id)
	if !sound {
		f.commitAgain(d)
	}
	doc, err := f.readChecked(id, splitstream.Manifest)
	if err == nil && DigestOf(doc.raw) != d {
		f.commitAgain(d)
		return bad(ManifestDigestMismatch, "its content has digest %s", DigestOf(doc.raw))
	}
	if err != nil {
		f.commitAgain(d)
		if !errors.Is(err, errTold) {
			bad(ManifestReadFailed, "%v", err)
		}
		return false
	}
	// Whether this program would pull it is another question.
	var m struct {
		Manifest
		ArtifactType string `json:"artifactType"`
	}
	if err := json.Unmarshal(doc.raw, &m); err != nil {
		return bad(ManifestParseFailed, "%v", err)
	}
	configDigest, err := ParseDigest(m.Config.Digest)
	if err != nil {
		return bad(ManifestParseFailed, "config: %v", err)
	}
	config, ok := doc.refs[configRef+configDigest.String()]
	if !ok {
		f.commitAgain(d)
		return bad(ConfigRefMissing, "it does not name the stream of its config %s", configDigest)
	}
	container := m.Config.MediaType == mediaTypeOCIConfig || m.Config.MediaType == mediaTypeDockerConfig
	checked := f.config(ctx, config, configDigest, container, d)
	f.checkConfigLink("streams/"+name, configDigest, config, checked.ok, d)
	if !container {
		return f.artifactLayers(&m.Manifest, doc, bad) && checked.ok
	}
	if checked.ok && checked.layers != len(m.Layers) {
		return bad(ConfigParseFailed, "the config lists %d layers, the manifest %d", checked.layers, len(m.Layers))
	}
	return checked.ok && sound
}

// checkConfigLink reports a config that a manifest names and whose link leads
// elsewhere, or that has none.
func (f *fsck) checkConfigLink(path string, d Digest, id fsverity.Digest, good bool, manifest Digest) {
	link := ConfigStream(d)
	if f.c.HasStreamLink(link) || !f.c.Exists(id) {
		if f.linkedElsewhere(path, link, configRef+d.String(), id) {
			f.commitAgain(manifest)
		}
		return
	}
	f.c.ReportNotLinked(path, configRef+d.String(), id)
	if good {
		f.c.AddRepair(composefs.StageLink, "streams/"+link, "linked the config", func(context.Context) error {
			return f.repo.LinkStream(link, id)
		})
	}
}

// linkedElsewhere reports a stream that another one names and whose link leads
// elsewhere: garbage collection of other programs does not walk it.
func (f *fsck) linkedElsewhere(path, link, name string, id fsverity.Digest) bool {
	linked, ok := f.c.StreamLink(link)
	if !ok || linked == id || !f.c.Exists(id) {
		return false
	}
	f.c.ReportNotLinked(path, name, id)
	return true
}

// artifactLayers checks the layers of an artifact.
func (f *fsck) artifactLayers(m *Manifest, doc *checkedDocument, bad func(composefs.Kind, string, ...any) bool) bool {
	ok := true
	for _, l := range m.Layers {
		id, named := doc.refs[l.Digest]
		switch {
		case !named:
			ok = bad(ArtifactLayerRefMissing, "it does not name the stream of layer %.200q", l.Digest)
		case !f.c.Exists(id):
			ok = bad(ArtifactLayerObjectMissing, "object %s of layer %.200q is missing", id, l.Digest)
		}
	}
	return ok
}

// checkedConfig is a config stream that is being checked.
type checkedConfig struct {
	*checkedDocument
	digest   Digest
	config   *Config // nil when it could not be read, or is an artifact's
	ok       bool
	manifest Digest // the first one that names it, or zero
}

// configResult is what is kept of a checked config; several manifests may name
// it.
type configResult struct {
	ok     bool
	layers int
}

// config checks a config stream once, and has the images that it names rebuilt
// meanwhile.
func (f *fsck) config(ctx context.Context, id fsverity.Digest, d Digest, container bool, manifest Digest) configResult {
	if r, ok := f.configs[id]; ok {
		return r
	}
	c := f.checkConfig(id, d, container, manifest)
	r := configResult{ok: c.ok}
	if c.config != nil {
		r.layers = len(c.config.DiffIDs)
		f.startRebuild(ctx, c)
	}
	if len(f.configs) < maxTags {
		f.configs[id] = r
	}
	return r
}

func (f *fsck) checkConfig(id fsverity.Digest, d Digest, container bool, manifest Digest) *checkedConfig {
	c := &checkedConfig{digest: d, manifest: manifest}
	name := ConfigStream(d)
	path := "streams/" + name
	if linked, ok := f.c.StreamLink(name); !ok || linked != id {
		path = "objects/" + id.ObjectPath()
	}
	bad := func(kind composefs.Kind, format string, args ...any) bool {
		f.c.Report(composefs.Finding{Kind: kind, Path: path, Object: id, Stream: name, Message: fmt.Sprintf(format, args...)})
		return false
	}
	var err error
	c.checkedDocument, err = f.readChecked(id, splitstream.Config)
	if err == nil && DigestOf(c.raw) != d {
		err = errTold
		bad(ConfigDigestMismatch, "its content has digest %s", DigestOf(c.raw))
	}
	if err != nil {
		f.commitConfig(c)
		if !errors.Is(err, errTold) {
			bad(ConfigReadFailed, "%v", err)
		}
		return c
	}
	c.ok = !f.c.Damaged(id)
	if !c.ok {
		f.commitConfig(c)
	}
	c.config, err = ParseLoneConfig(c.raw)
	c.raw = nil // it may be large, and is not needed any more
	if err != nil && container {
		c.ok = bad(ConfigParseFailed, "%v", err)
	}
	if err != nil || !container && len(c.config.DiffIDs) == 0 {
		c.config = nil
		return c
	}
	c.ok = f.configLayers(c, path, bad) && c.ok
	c.ok = f.configImages(c, path, bad) && c.ok
	return c
}

// checkConfigs checks the configs that no manifest has led to. Of these nobody
// says whether they are of a container image; those with layers are.
func (f *fsck) checkConfigs(ctx context.Context) {
	for _, d := range f.named(configPrefix) {
		if id, ok := f.c.StreamLink(ConfigStream(d)); ok && ctx.Err() == nil {
			f.config(ctx, id, d, false, Digest{})
		}
	}
}

// configLayers checks that the streams of all layers are there and linked.
func (f *fsck) configLayers(c *checkedConfig, path string, bad func(composefs.Kind, string, ...any) bool) bool {
	ok := true
	seen := map[Digest]bool{}
	for _, d := range c.config.DiffIDs {
		if seen[d] {
			continue
		}
		seen[d] = true
		id, named := c.refs[d.String()]
		if !named {
			ok = bad(LayerRefMissing, "it does not name the stream of layer %s", d)
			f.commitConfig(c)
			continue
		}
		if !f.c.Exists(id) {
			ok = bad(LayerObjectMissing, "object %s, the stream of layer %s, is missing", id, d)
			f.commitConfig(c)
			continue
		}
		if !f.c.HasStreamLink(LayerStream(d)) {
			ok = bad(LayerStreamMissing, "there is no streams/%s", LayerStream(d))
			f.c.AddRepair(composefs.StageLink, "streams/"+LayerStream(d), "linked the layer", func(ctx context.Context) error {
				return f.linkLayer(ctx, d, id)
			})
			continue
		}
		if f.linkedElsewhere(path, LayerStream(d), d.String(), id) {
			f.commitConfig(c)
		}
		if f.c.Damaged(id) {
			ok = false // which has been reported
		}
	}
	return ok
}

func (f *fsck) commitConfig(c *checkedConfig) {
	if !c.manifest.IsZero() {
		f.commitAgain(c.manifest)
	}
}

// configImages checks that the EROFS images that a config names are there and
// linked.
func (f *fsck) configImages(c *checkedConfig, path string, bad func(composefs.Kind, string, ...any) bool) bool {
	ok := true
	seen := map[fsverity.Digest]bool{}
	for _, ref := range imageRefs(c.images()) {
		if _, known := ParseImageKey(ref.name); !known {
			f.c.Report(composefs.Finding{
				Kind: ImageKeyUnknown, Severity: composefs.Warning, Path: path, Image: ref.id, Stream: ConfigStream(c.digest),
				Message: fmt.Sprintf("it names an EROFS image as %.200q, which is not known here", ref.name),
			})
		}
		if seen[ref.id] {
			continue
		}
		seen[ref.id] = true
		switch exists, linked := f.c.Exists(ref.id), f.c.ImageLink(ref.id); {
		case !exists && !f.c.HasImageLink(ref.id):
			f.c.Report(composefs.Finding{
				Kind: composefs.MissingNamedRef, Path: path, Object: ref.id, Image: ref.id, Stream: ConfigStream(c.digest),
				Message: fmt.Sprintf("it names %s as %s, which is missing", ref.id, ref.name),
			})
			ok = false
		case !exists, !linked && f.c.HasImageLink(ref.id):
			ok = false // its link has been reported
		case !linked:
			f.c.Report(composefs.Finding{
				Kind: ImageNotLinked, Path: path, Object: ref.id, Image: ref.id, Stream: ConfigStream(c.digest), Repairable: true,
				Message: fmt.Sprintf("there is no link images/%s to the image that it names as %s: it cannot be mounted", ref.id, ref.name),
			})
			f.c.AddRepair(composefs.StageLink, "images/"+ref.id.String(), "linked the EROFS image",
				func(context.Context) error { return f.repo.LinkImage(ref.id) })
			ok = false
		case f.c.Damaged(ref.id):
			ok = false // which has been reported
		}
	}
	if text, sealed := c.config.Labels[sealLabel]; sealed {
		id, err := fsverity.ParseDigest(text)
		if err != nil || !f.c.ImageLink(id) {
			ok = bad(SealImageMissing, "its label %s says EROFS image %.200q, which is not there", sealLabel, text)
		}
	}
	return ok
}

// images are the EROFS images that a config names.
func (d *checkedDocument) images() map[string]fsverity.Digest {
	return (&Document{Refs: d.refs}).Images()
}
