// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs"
)

// maxTags bounds the tags that are remembered; more are checked, but do not
// count as damaged when their image is.
const maxTags = 1 << 20

// checkRef checks a tag or a referrer by its name. Where it leads to is checked
// when that is known.
func (f *fsck) checkRef(ref composefs.Ref) {
	file := "streams/refs/" + ref.Name
	if name, ok := strings.CutPrefix(ref.Name, referrerPrefix); ok {
		f.checkReferrer(file, name, ref.Target)
		return
	}
	if !strings.HasPrefix(ref.Name, tagPrefix) {
		return // not ours
	}
	f.counts.Tags++
	tag := DecodeTag(strings.TrimPrefix(ref.Name, tagPrefix))
	if name, err := EncodeTag(tag); err != nil || name != ref.Name {
		message := "it is not how a tag is written"
		if err != nil {
			message = err.Error()
		}
		f.c.Report(composefs.Finding{Kind: InvalidRefName, Path: file, Stream: ref.Target, Message: message})
		f.counts.TagsDamaged++
		return
	}
	text, ok := strings.CutPrefix(ref.Target, manifestPrefix)
	manifest, err := ParseDigest(text)
	if !ok || err != nil {
		f.c.Report(composefs.Finding{
			Kind: RefResolveFailed, Path: file, Stream: ref.Target,
			Message: fmt.Sprintf("it leads to stream %q, which is no manifest", ref.Target),
		})
		f.counts.TagsDamaged++
		return
	}
	if len(f.tags) < maxTags {
		f.tags = append(f.tags, tagTarget{file, manifest})
	}
}

// checkReferrer checks a ref by which an image keeps an artifact about it.
func (f *fsck) checkReferrer(file, name, target string) {
	dir, base := path.Split(name)
	artifact, subject := DecodeTag(base), DecodeTag(strings.TrimSuffix(dir, "/"))
	if target != manifestPrefix+artifact {
		f.c.Report(composefs.Finding{
			Kind: RefResolveFailed, Severity: composefs.Warning, Path: file, Stream: target,
			Message: fmt.Sprintf("it leads to stream %q, its name says artifact %q", target, artifact),
		})
		return
	}
	if d, err := ParseDigest(subject); err != nil || !f.c.HasStreamLink(ManifestStream(d)) {
		f.c.Report(composefs.Finding{
			Kind: ReferrerDangling, Severity: composefs.Warning, Path: file, Stream: target,
			Message: fmt.Sprintf("the image %q that it is about is not there", subject),
		})
	}
}

// checkTags counts the tags of damaged images, and lets those that lead to no
// manifest be repaired.
func (f *fsck) checkTags() {
	for _, tag := range f.tags {
		if _, ok := f.c.StreamLink(ManifestStream(tag.manifest)); !ok {
			f.counts.TagsDamaged++
			f.commitAgain(tag.manifest)
		} else if f.bad[tag.manifest] {
			f.counts.TagsDamaged++
		}
	}
}

// commitAgain lets the config and the manifest of an image be written anew.
func (f *fsck) commitAgain(manifest Digest) {
	if f.commits[manifest] || !f.o.Repair {
		return
	}
	f.commits[manifest] = true
	f.c.AddRepair(composefs.StageCommit, "streams/"+ManifestStream(manifest), "wrote config and manifest anew from their content",
		func(ctx context.Context) error { return f.recommit(ctx, manifest) })
}
