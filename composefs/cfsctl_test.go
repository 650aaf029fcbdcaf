// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// randomRepository fills a repository with objects, streams that refer to
// earlier ones, images and refs, and returns names to keep.
func randomRepository(tb testing.TB, r *Repo, rnd *rand.Rand) (keep []string) {
	tb.Helper()
	var objects, linked []fsverity.Digest
	for i := range 5 + rnd.IntN(20) {
		objects = append(objects, putObject(tb, r, fmt.Sprint(i)))
	}
	some := func() (out []fsverity.Digest) {
		for range rnd.IntN(4) {
			out = append(out, objects[rnd.IntN(len(objects))])
		}
		return out
	}
	var images []fsverity.Digest
	files := map[fsverity.Digest][]fsverity.Digest{}
	for range rnd.IntN(4) {
		of := some()
		id := putImage(tb, r, erofs.Version(1+rnd.IntN(2)), of...)
		images, files[id] = append(images, id), of
		switch rnd.IntN(4) {
		case 0:
			must(tb, r.SetImageRef(fmt.Sprintf("dir%d/image%d", rnd.IntN(2), rnd.IntN(3)), id))
		case 1:
			keep = append(keep, id.String())
		}
	}
	for i := range 3 + rnd.IntN(10) {
		var refs named
		of := some()
		for n := range rnd.IntN(3) {
			switch {
			case rnd.IntN(3) == 0 && len(images) > 0:
				// The files of an image are those of its layers.
				id := images[rnd.IntN(len(images))]
				refs, of = append(refs, splitstream.NamedRef{Name: fmt.Sprint(ImageRefPrefix, n), ID: id}), append(of, files[id]...)
			case len(linked) > 0:
				refs = append(refs, splitstream.NamedRef{Name: fmt.Sprint("stream", n), ID: linked[rnd.IntN(len(linked))]})
			}
		}
		name := fmt.Sprint("stream", i)
		linked = append(linked, putStream(tb, r, name, refs, of...))
		switch rnd.IntN(5) {
		case 0:
			must(tb, r.SetStreamRef(fmt.Sprintf("oci/tag%d", rnd.IntN(4)), name))
		case 1:
			keep = append(keep, name)
		}
	}
	return keep
}

// contents is what there is in a repository, links with their targets.
func contents(tb testing.TB, root string) map[string]string {
	tb.Helper()
	out := map[string]string{}
	for _, name := range files(tb, root) {
		target, _ := os.Readlink(filepath.Join(root, name))
		out[name] = target
	}
	return out
}

// Our collection leaves what that of composefs-rs leaves, and its fsck has
// nothing to say.
func TestCfsctlCollectsTheSame(t *testing.T) {
	cfsctl := testutil.RequireCfsctl(t)
	run := func(t *testing.T, repo string, args ...string) {
		t.Helper()
		out, err := exec.Command(cfsctl, append([]string{"--insecure", "--repo", repo}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("cfsctl %v: %v\n%s", args, err, out)
		}
	}
	for seed := range uint64(25) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := insecureRepo(t)
			keep := randomRepository(t, r, rand.New(rand.NewPCG(seed, 0)))
			theirs := filepath.Join(t.TempDir(), "repo")
			must(t, os.CopyFS(theirs, os.DirFS(r.Path())))
			args := []string{"gc"}
			for _, name := range keep {
				args = append(args, "--root", name)
			}
			run(t, theirs, args...)
			got := collect(t, r, GCOptions{Keep: keep})
			if diff := cmp.Diff(contents(t, theirs), contents(t, r.Path())); diff != "" {
				t.Errorf("after removing %+v (-cfsctl +ours):\n%s", got, diff)
			}
			run(t, r.Path(), "fsck")
		})
	}
}

// The repositories that cfsctl left, and what it makes of ours.
func TestCfsctlCollectsVectors(t *testing.T) {
	cfsctl := testutil.RequireCfsctl(t)
	for _, kind := range []string{"sha512-1", "sha256-1", "sha512-2"} {
		r := openRepo(t, unpack(t, kind), kernelVerity(), OpenOptions{AllowMissingVerity: true})
		refs := check(r.StreamRefs("oci"))(t)
		must(t, r.RemoveStreamRef(refs[0].Name))
		must(t, r.RemoveStreamRef(refs[3].Name))
		theirs := filepath.Join(t.TempDir(), "repo")
		must(t, os.CopyFS(theirs, os.DirFS(r.Path())))
		for _, args := range [][]string{{"gc"}, {"fsck"}, {"oci", "fsck"}} {
			out, err := exec.Command(cfsctl, append([]string{"--insecure", "--repo", theirs}, args...)...).CombinedOutput()
			if err != nil {
				t.Fatalf("cfsctl %v: %v\n%s", args, err, out)
			}
		}
		collect(t, r, GCOptions{})
		if diff := cmp.Diff(contents(t, theirs), contents(t, r.Path())); diff != "" {
			t.Errorf("%s (-cfsctl +ours):\n%s", kind, diff)
		}
	}
}
