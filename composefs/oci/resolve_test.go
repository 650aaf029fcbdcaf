// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/composefs"
)

// commitEmpty commits an image without layers and returns its digests.
func commitEmpty(t *testing.T, repo *composefs.Repo, comment string, tags ...string) (manifest, config Digest) {
	t.Helper()
	configText := fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","comment":%q,"rootfs":{"type":"layers","diff_ids":[]}}`, comment)
	manifestText := fmt.Appendf(nil, `{"schemaVersion":2,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[]}`,
		mediaTypeOCIConfig, DigestOf(configText), len(configText))
	c, err := Commit(t.Context(), repo, &Image{Manifest: manifestText, Config: configText, Tags: tags})
	if err != nil {
		t.Fatal(err)
	}
	return c.ManifestDigest, c.ConfigDigest
}

func TestResolve(t *testing.T) {
	repo, path := newTestRepo(t)
	one, oneConfig := commitEmpty(t, repo, "one", "quay.io/example/os:1", "deadbeef01")
	two, _ := commitEmpty(t, repo, "two", "quay.io/example/os:2")
	image, _, err := repo.Put([]byte("an image"))
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.LinkImage(image); err != nil {
		t.Fatal(err)
	}
	if err := repo.SetImageRef("a/b", image); err != nil {
		t.Fatal(err)
	}
	// Tags that look like what they are not.
	refs := filepath.Join(path, "streams", "refs", "oci")
	// A ref that is named like a tag.
	other, _, err := repo.Put([]byte("another image"))
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.LinkImage(other); err != nil {
		t.Fatal(err)
	}
	if err := repo.SetImageRef("deadbeef01", other); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{one.String(), image.String(), "refs%2Fa%2Fb"} {
		if err := os.Symlink("../../"+ManifestStream(two), filepath.Join(refs, name)); err != nil {
			t.Fatal(err)
		}
	}
	for reference, want := range map[string]Subject{
		"quay.io/example/os:1":           {Tag: "quay.io/example/os:1", Manifest: one},
		"deadbeef01":                     {Tag: "deadbeef01", Manifest: one},
		one.String():                     {Manifest: one},
		"@" + one.String():               {Manifest: one},
		one.String()[:20]:                {Manifest: one},
		"@" + one.String()[:20]:          {Manifest: one},
		oneConfig.String():               {Config: oneConfig},
		oneConfig.String()[:20]:          {Config: oneConfig},
		image.String():                   {Image: image},
		image.String()[:8]:               {Image: image},
		"refs/a/b":                       {Image: image, ImageRef: "a/b"},
		"a/b":                            {Image: image, ImageRef: "a/b"},
		"refs/deadbeef01":                {Image: other, ImageRef: "deadbeef01"},
		two.String()[:len("sha256:")+10]: {Manifest: two},
	} {
		want.Reference = reference
		got, err := Resolve(repo, reference)
		if err != nil {
			t.Errorf("%s: %v", reference, err)
			continue
		}
		if *got != want {
			t.Errorf("%s is %+v, want %+v", reference, *got, want)
		}
	}
	for _, reference := range []string{"", "@", "@x", "sha256:", "sha256:abc", "sha256:ABCD", "@sha256:" + strings.Repeat("0", 65), "refs/", "refs/../x", "refs/a//b", strings.Repeat("x", 256)} {
		if _, err := Resolve(repo, reference); !errors.Is(err, ErrReference) {
			t.Errorf("%q: %v, want a malformed reference", reference, err)
		}
	}
	for _, reference := range []string{"absent", "sha256:0000", "sha256:" + strings.Repeat("0", 64), strings.Repeat("0", 128), "00000000", "refs/a", "refs/x", "a", "a/x", "../a/b", image.String()[:7], strings.Repeat("0", 64)} {
		var absent *NotFoundError
		_, err := Resolve(repo, reference)
		if !errors.As(err, &absent) && !(reference == "refs/a" && errors.Is(err, composefs.ErrIntegrity)) {
			t.Errorf("%q: %v, want nothing to be found", reference, err)
		}
	}
}

func TestResolveAmbiguous(t *testing.T) {
	repo, path := newTestRepo(t)
	one, _ := commitEmpty(t, repo, "one")
	hex := strings.TrimPrefix(one.String(), "sha256:")
	for i := range 12 {
		name := manifestPrefix + "sha256:" + hex[:6] + fmt.Sprintf("%058x", i)
		if err := os.Symlink("../objects/00/"+strings.Repeat("0", 126), filepath.Join(path, "streams", name)); err != nil {
			t.Fatal(err)
		}
	}
	var ambiguous *AmbiguousError
	if _, err := Resolve(repo, "sha256:"+hex[:6]); !errors.As(err, &ambiguous) || len(ambiguous.Candidates) != maxCandidates || ambiguous.More != 3 {
		t.Errorf("a beginning of 13 digests: %v", err)
	}
	if s, err := Resolve(repo, one.String()); err != nil || s.Manifest != one {
		t.Errorf("a digest in full: %v, %v", s, err)
	}
}

func TestNearNames(t *testing.T) {
	names := []string{"localhost/os:latest", "localhost/os:stable", "quay.io/fedora/bootc:42", "x", "OS"}
	for name, want := range map[string][]string{
		"os":                           {`"localhost/os:latest"`, `"localhost/os:stable"`, `"OS"`},
		"localhost/os:latets":          {`"localhost/os:latest"`},
		"quay.io/fedora/bootc:41":      {`"quay.io/fedora/bootc:42"`},
		"Quay.io/Fedora/bootc":         {`"quay.io/fedora/bootc:42"`},
		"docker://localhost/os:latest": {`"localhost/os:latest"`},
		"elsewhere":                    nil,
	} {
		if diff := cmp.Diff(want, nearNames(name, names)); diff != "" {
			t.Errorf("near %s (-want +got):\n%s", name, diff)
		}
	}
	var many []string
	for i := range 20 {
		many = append(many, fmt.Sprintf("tag%02d", i))
	}
	if got := nearNames("tag", many); len(got) != maxNear {
		t.Errorf("%d names are proposed: %v", len(got), got)
	}
}

func TestEditDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"a", "", 1}, {"", "abc", 3}, {"abc", "abc", 0}, {"abc", "axc", 1}, {"abc", "bc", 1}, {"kitten", "sitting", 3},
		{"abcd", "", maxNearEdits + 1}, {"latest", "latets", 2},
	} {
		if got := editDistance(c.a, c.b); got != c.want {
			t.Errorf("editDistance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func TestTags(t *testing.T) {
	repo, path := newTestRepo(t)
	one, config := commitEmpty(t, repo, "one", "a/b%c")
	two, _ := commitEmpty(t, repo, "two")
	if was, err := SetTag(repo, "new", one); err != nil || !was.IsZero() {
		t.Errorf("a new tag: %v, %v", was, err)
	}
	if was, err := SetTag(repo, "new", two); err != nil || was != one {
		t.Errorf("a tag that moves: %v, %v", was, err)
	}
	if _, err := SetTag(repo, BootcTag(one), two); !errors.Is(err, ErrBootcTag) {
		t.Errorf("a tag of bootc that leads elsewhere: %v", err)
	}
	if _, err := SetTag(repo, BootcTag(one), one); err != nil {
		t.Error(err)
	}
	if _, err := SetTag(repo, "config", config); err == nil {
		t.Error("a config was tagged")
	}
	for _, tag := range []string{"", "@x", ".", "a\x00b"} {
		if _, err := SetTag(repo, tag, one); !errors.Is(err, ErrReference) {
			t.Errorf("tag %q: %v", tag, err)
		}
	}
	refs := filepath.Join(path, "streams", "refs", "oci")
	for name, target := range map[string]string{"dangling": "../../nowhere", "lower%2fcase": "../../" + ManifestStream(one), "other": "../../oci-layer-" + one.String()} {
		if err := os.Symlink(target, filepath.Join(refs, name)); err != nil {
			t.Fatal(err)
		}
	}
	tags, err := Tags(repo)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, tag := range tags {
		got[tag.Name] = tag.Manifest.String()
		if (tag.Err == nil) == tag.Manifest.IsZero() {
			t.Errorf("tag %+v", tag)
		}
	}
	want := map[string]string{"a/b%c": one.String(), "new": two.String(), BootcTag(one): one.String(), "dangling": "", "lower%2fcase": "", "other": ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	for _, tag := range []string{"new", "dangling"} {
		if _, err := RemoveTag(repo, tag); err != nil {
			t.Errorf("remove %s: %v", tag, err)
		}
		var absent *NotFoundError
		if _, err := RemoveTag(repo, tag); !errors.As(err, &absent) {
			t.Errorf("remove %s again: %v", tag, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(refs, "a%2Fb%25c")); errors.Is(err, fs.ErrNotExist) {
		t.Error("another tag was removed")
	}
}

func TestReferrers(t *testing.T) {
	repo, _ := newTestRepo(t)
	one, _ := commitEmpty(t, repo, "one")
	two, _ := commitEmpty(t, repo, "two")
	if got, err := Referrers(repo, one); err != nil || len(got) != 0 {
		t.Errorf("referrers of an image that has none: %v, %v", got, err)
	}
	for ref, stream := range map[string]Digest{
		referrerPrefix + one.String() + "/" + two.String(): two,
		referrerPrefix + one.String() + "/other":           two, // name and target disagree
	} {
		if err := repo.SetStreamRef(ref, ManifestStream(stream)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Referrers(repo, one); err != nil || len(got) != 1 || got[0] != two {
		t.Errorf("referrers: %v, %v", got, err)
	}
}
