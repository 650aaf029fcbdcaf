// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// checked is a repository with two files, an EROFS image and a stream of
// them, a stream that names both, and refs.
type checked struct {
	*Repo
	a, b          fsverity.Digest
	image         fsverity.Digest
	layer, parent fsverity.Digest // streams
}

var (
	contentA = bytes.Repeat([]byte{'a'}, 100)
	contentB = bytes.Repeat([]byte{'b'}, 5000)
)

func newChecked(tb testing.TB, r *Repo) *checked {
	tb.Helper()
	c := &checked{Repo: r}
	c.a, _, _ = r.Put(contentA)
	c.b, _, _ = r.Put(contentB)
	c.image = writeImage(tb, r, erofs.V1, c.a, c.b)
	c.layer = check(r.WriteStream(splitstream.Layer, func(w *splitstream.Writer) error {
		_, err := w.Write([]byte("head"))
		return errors.Join(err, w.External(c.a, 100), w.External(c.b, 5000))
	}))(tb)
	c.parent = check(r.WriteStream(splitstream.Config, func(w *splitstream.Writer) error {
		return errors.Join(w.AddStreamRef("layer", c.layer), w.AddStreamRef("composefs.image.v1", c.image), w.External(c.a, 100))
	}))(tb)
	must(tb, r.LinkStream("layer", c.layer))
	must(tb, r.LinkStream("parent", c.parent))
	must(tb, r.LinkImage(c.image))
	must(tb, r.SetStreamRef("some/parent", "parent"))
	must(tb, r.SetImageRef("image", c.image))
	return c
}

func (c *checked) file(name string) string { return filepath.Join(c.path, name) }

func (c *checked) object(id fsverity.Digest) string { return c.file("objects/" + id.ObjectPath()) }

// layerRule is what the name of the stream "layer" promises.
func layerRule(name string) StreamRule {
	if name != "layer" {
		return StreamRule{}
	}
	sum := sha256.Sum256(slices.Concat([]byte("head"), contentA, contentB))
	return StreamRule{Types: []splitstream.ContentType{splitstream.Layer}, SHA256: &sum, Mismatch: "layer-mismatch", Padding: "padding-lost"}
}

// runCheck checks and returns the findings as text, with <a> and the like for
// ids.
func (c *checked) runCheck(tb testing.TB, o CheckOptions) (*Checker, []string) {
	tb.Helper()
	o.Rule = layerRule
	k := NewChecker(c.Repo, o)
	must(tb, k.Run(tb.Context()))
	return k, c.describe(k)
}

func (c *checked) describe(k *Checker) []string {
	list, _ := k.Findings()
	names := strings.NewReplacer(
		c.a.ObjectPath(), "<a>", c.b.ObjectPath(), "<b>", c.image.ObjectPath(), "<image>", c.image.String(), "<image>",
		c.layer.ObjectPath(), "<layer>", c.parent.ObjectPath(), "<parent>",
	)
	out := []string{}
	for _, f := range list {
		text := names.Replace(fmt.Sprintf("%s %s", f.Kind, f.Path))
		if f.Severity == Warning {
			text = "warning: " + text
		}
		if f.Repairable {
			text += " (repairable)"
		}
		out = append(out, text)
	}
	return out
}

// repair repairs until there is nothing left to repair, and checks again from
// the beginning.
func (c *checked) repair(tb testing.TB, o CheckOptions) []string {
	tb.Helper()
	unlock := check(c.LockExclusive(tb.Context(), 0))(tb)
	defer func() { must(tb, unlock()) }()
	o.Repair = true
	k, _ := c.runCheck(tb, o)
	for range 4 {
		done := check(k.Repair(tb.Context()))(tb)
		k = k.Next()
		must(tb, k.Run(tb.Context()))
		if len(done) == 0 {
			break
		}
	}
	o.Repair = false
	_, fresh := c.runCheck(tb, o)
	if diff := cmp.Diff(c.describe(k), fresh); diff != "" {
		tb.Errorf("the last round of the repair and a new check differ (-repair +new):\n%s", diff)
	}
	return fresh
}

// overwrite replaces a file, also one with fs-verity, by another inode.
func overwrite(tb testing.TB, path string, content []byte) {
	tb.Helper()
	must(tb, os.Remove(path))
	must(tb, os.WriteFile(path, content, 0o644))
}

func relink(tb testing.TB, path, target string) {
	tb.Helper()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		tb.Fatal(err)
	}
	must(tb, os.MkdirAll(filepath.Dir(path), 0o755))
	must(tb, os.Symlink(target, path))
}

// putBytes stores a stream whose bytes a test has made.
func putBytes(tb testing.TB, r *Repo, raw []byte) fsverity.Digest {
	tb.Helper()
	id, _, err := r.Put(raw)
	must(tb, err)
	return id
}

// damages are what can be wrong with a repository that does not require
// fs-verity, what is found, and what is left after a repair.
var damages = []struct {
	name   string
	damage func(tb testing.TB, c *checked)
	full   []string
	quick  []string // nil: like full
	left   []string
}{
	{name: "none", damage: func(testing.TB, *checked) {}},
	{
		name:   "content of a file",
		damage: func(tb testing.TB, c *checked) { overwrite(tb, c.object(c.b), bytes.Repeat([]byte{'x'}, 5000)) },
		full:   []string{"object-digest-mismatch objects/<b>"},
		quick:  []string{},
		left:   []string{"object-digest-mismatch objects/<b>"},
	},
	{
		name:   "a file was cut short",
		damage: func(tb testing.TB, c *checked) { overwrite(tb, c.object(c.b), contentB[:4096]) },
		full:   []string{"object-digest-mismatch objects/<b>"},
		quick:  []string{"stream-size-mismatch streams/layer"},
		left:   []string{"object-digest-mismatch objects/<b>"},
	},
	{
		name:   "an empty object",
		damage: func(tb testing.TB, c *checked) { overwrite(tb, c.object(c.b), nil) },
		full:   []string{"object-digest-mismatch objects/<b>"},
		left:   []string{"object-digest-mismatch objects/<b>"},
	},
	{
		name:   "a file is missing",
		damage: func(tb testing.TB, c *checked) { must(tb, os.Remove(c.object(c.b))) },
		full:   []string{"image-missing-object images/<image>", "missing-object-ref streams/layer"},
		left:   []string{"image-missing-object images/<image>", "missing-object-ref streams/layer"},
	},
	{
		name: "a FIFO as an object",
		damage: func(tb testing.TB, c *checked) {
			must(tb, os.Remove(c.object(c.b)))
			must(tb, unix.Mkfifo(c.object(c.b), 0o644))
		},
		full: []string{"object-not-regular objects/<b>"},
		left: []string{"object-not-regular objects/<b>"},
	},
	{
		name:   "a link as an object",
		damage: func(tb testing.TB, c *checked) { relink(tb, c.object(c.b), "/etc/passwd") },
		full:   []string{"object-not-regular objects/<b>"},
		left:   []string{"object-not-regular objects/<b>"},
	},
	{
		name: "names that are no objects",
		damage: func(tb testing.TB, c *checked) {
			must(tb, os.WriteFile(c.file("objects/"+c.a.ObjectPath()[:2]+"/README"), nil, 0o644))
			must(tb, os.WriteFile(c.file("objects/README"), nil, 0o644))
			must(tb, os.Mkdir(c.file("objects/0G"), 0o755))
		},
		full: []string{
			"object-invalid-name objects/" + fsverity.Sum(fsverity.SHA512, contentA).ObjectPath()[:2] + "/README",
			"warning: stray-file objects/0G", "warning: stray-file objects/README",
		},
		left: []string{
			"object-invalid-name objects/" + fsverity.Sum(fsverity.SHA512, contentA).ObjectPath()[:2] + "/README",
			"warning: stray-file objects/0G", "warning: stray-file objects/README",
		},
	},
	{
		name: "a directory of objects is a file",
		damage: func(tb testing.TB, c *checked) {
			must(tb, os.RemoveAll(c.file("objects/"+c.b.ObjectPath()[:2])))
			must(tb, os.WriteFile(c.file("objects/"+c.b.ObjectPath()[:2]), nil, 0o644))
		},
		full: []string{
			"stat-failed images/<image>", "unexpected-file-type objects/" + fsverity.Sum(fsverity.SHA512, contentB).ObjectPath()[:2],
			"stat-failed streams/layer",
		},
		left: []string{
			"stat-failed images/<image>", "unexpected-file-type objects/" + fsverity.Sum(fsverity.SHA512, contentB).ObjectPath()[:2],
			"stat-failed streams/layer",
		},
	},
	{
		name: "unfinished files",
		damage: func(tb testing.TB, c *checked) {
			relink(tb, c.file(".symlink-abcdefghijkl"), "nowhere")
			must(tb, os.WriteFile(c.file("objects/.tmp-object-ABCDEFGHIJ12"), nil, 0o644))
			must(tb, os.WriteFile(c.file(".tmp-meta.json-ABCDEFGHIJ12"), nil, 0o644))
			must(tb, os.Mkdir(c.file("bootc"), 0o700)) // somebody's
		},
		full: []string{
			"warning: leaked-temporary .symlink-abcdefghijkl (repairable)", "warning: leaked-temporary .tmp-meta.json-ABCDEFGHIJ12 (repairable)",
			"warning: leaked-temporary objects/.tmp-object-ABCDEFGHIJ12 (repairable)",
		},
	},
	{
		name: "modes",
		damage: func(tb testing.TB, c *checked) {
			must(tb, os.Chmod(c.path, 0o755))
			must(tb, os.Chmod(c.object(c.a), 0o666))
			must(tb, os.Chmod(c.file("streams"), 0o777))
		},
		full: []string{"warning: mode-unexpected .", "warning: mode-unexpected objects/<a>", "warning: mode-unexpected streams"},
		left: []string{"warning: mode-unexpected .", "warning: mode-unexpected objects/<a>", "warning: mode-unexpected streams"},
	},
	{
		name: "files among streams and images",
		damage: func(tb testing.TB, c *checked) {
			must(tb, os.WriteFile(c.file("streams/file"), nil, 0o644))
			must(tb, os.Mkdir(c.file("images/dir"), 0o755))
		},
		full: []string{"entry-not-symlink images/dir", "entry-not-symlink streams/file"},
		left: []string{"entry-not-symlink images/dir", "entry-not-symlink streams/file"},
	},
	{
		name: "names that other programs do not read",
		damage: func(tb testing.TB, c *checked) {
			relink(tb, c.file("streams/\xff"), objectTarget(c.layer))
			relink(tb, c.file("images/small"), objectTarget(c.image))
		},
		full: []string{"entry-invalid-name images/small", `entry-invalid-name streams/\xff`},
		left: []string{"entry-invalid-name images/small", `entry-invalid-name streams/\xff`},
	},
	{
		name: "a dead link that nothing needs",
		damage: func(tb testing.TB, c *checked) {
			relink(tb, c.file("streams/old"), objectTarget(fsverity.Sum(fsverity.SHA512, []byte("gone"))))
		},
		full: []string{"broken-symlink streams/old (repairable)"},
	},
	{
		name: "a dead link that a stream needs",
		damage: func(tb testing.TB, c *checked) {
			must(tb, os.Remove(c.object(c.layer)))
		},
		// Its removal would let other programs collect what it keeps.
		full: []string{"broken-symlink streams/layer", "missing-named-ref streams/parent"},
		left: []string{"broken-symlink streams/layer", "missing-named-ref streams/parent"},
	},
	{
		name:   "a dead link that a ref needs",
		damage: func(tb testing.TB, c *checked) { must(tb, os.Remove(c.object(c.parent))) },
		full:   []string{"broken-symlink streams/parent", "broken-symlink streams/refs/some/parent"},
		left:   []string{"broken-symlink streams/parent", "broken-symlink streams/refs/some/parent"},
	},
	{
		name: "links that lead elsewhere",
		damage: func(tb testing.TB, c *checked) {
			relink(tb, c.file("streams/out"), "/etc/passwd")
			relink(tb, c.file("streams/up"), "../../"+c.layer.ObjectPath())
			relink(tb, c.file("streams/self"), "self")
		},
		full: []string{"link-target-invalid streams/out", "link-target-invalid streams/self", "link-target-invalid streams/up"},
		left: []string{"link-target-invalid streams/out", "link-target-invalid streams/self", "link-target-invalid streams/up"},
	},
	{
		name: "links in another form",
		damage: func(tb testing.TB, c *checked) {
			relink(tb, c.file("streams/layer"), "../objects/../objects/"+c.layer.ObjectPath())
			relink(tb, c.file("streams/refs/some/parent"), "../../../streams/parent")
		},
		full: []string{"warning: link-not-canonical streams/layer (repairable)", "warning: link-not-canonical streams/refs/some/parent (repairable)"},
	},
	{
		name:   "an image's link leads to another object",
		damage: func(tb testing.TB, c *checked) { relink(tb, c.file("images/"+c.image.String()), objectTarget(c.a)) },
		full:   []string{"image-link-mismatch images/<image> (repairable)", "warning: named-ref-not-linked streams/parent"},
	},
	{
		name: "refs that lead elsewhere",
		damage: func(tb testing.TB, c *checked) {
			relink(tb, c.file("streams/refs/absent"), "../absent")
			relink(tb, c.file("streams/refs/chain"), "some/parent") // which the last component of names an entry
			relink(tb, c.file("streams/refs/object"), "../../objects/"+c.layer.ObjectPath())
			relink(tb, c.file("streams/refs/depth"), "../../../parent")
		},
		full: []string{
			"broken-symlink streams/refs/absent", "ref-target-invalid streams/refs/chain (repairable)",
			"ref-target-invalid streams/refs/depth (repairable)", "ref-target-invalid streams/refs/object",
		},
		left: []string{"broken-symlink streams/refs/absent", "ref-target-invalid streams/refs/object"},
	},
	{
		name:   "a file among refs",
		damage: func(tb testing.TB, c *checked) { must(tb, os.WriteFile(c.file("images/refs/file"), nil, 0o644)) },
		full:   []string{"unexpected-file-type images/refs/file"},
		left:   []string{"unexpected-file-type images/refs/file"},
	},
	{
		name: "refs at a great depth",
		damage: func(tb testing.TB, c *checked) {
			must(tb, os.MkdirAll(c.file("images/refs"+strings.Repeat("/d", 40)), 0o755))
		},
		full: []string{"limit-exceeded images/refs" + strings.Repeat("/d", 32)},
		left: []string{"limit-exceeded images/refs" + strings.Repeat("/d", 32)},
	},
	{
		name:   "a stream that is none",
		damage: func(tb testing.TB, c *checked) { must(tb, c.LinkStream("none", c.a)) },
		full:   []string{"stream-open-failed streams/none"},
		left:   []string{"stream-open-failed streams/none"},
	},
	{
		name: "chunks that cannot be read",
		damage: func(tb testing.TB, c *checked) {
			raw := check(os.ReadFile(c.object(c.layer)))(tb)
			copy(raw[binary.LittleEndian.Uint64(raw[64:]):], "no frame") // where the chunks begin
			must(tb, c.LinkStream("broken", putBytes(tb, c.Repo, raw)))
		},
		full: []string{"stream-read-failed streams/broken"},
		left: []string{"stream-read-failed streams/broken"},
	},
	{
		name: "a stream whose parts do not add up",
		damage: func(tb testing.TB, c *checked) {
			raw := check(os.ReadFile(c.object(c.layer)))(tb)
			raw[104]++ // the size in the info block
			must(tb, c.LinkStream("broken", putBytes(tb, c.Repo, raw)))
		},
		full: []string{"stream-size-mismatch streams/broken"},
		left: []string{"stream-size-mismatch streams/broken"},
	},
	{
		name:   "a stream of another type",
		damage: func(tb testing.TB, c *checked) { must(tb, c.LinkStream("layer", c.parent)) },
		full:   []string{"stream-type-mismatch streams/layer", "warning: named-ref-not-linked streams/layer"},
		left:   []string{"stream-type-mismatch streams/layer", "warning: named-ref-not-linked streams/layer"},
	},
	{
		name: "a stream of another content",
		damage: func(tb testing.TB, c *checked) {
			id := check(c.WriteStream(splitstream.Layer, func(w *splitstream.Writer) error { return w.External(c.a, 100) }))(tb)
			must(tb, c.LinkStream("layer", id))
			must(tb, c.LinkStream("old", c.layer))
		},
		full:  []string{"layer-mismatch streams/layer"},
		quick: []string{},
		left:  []string{"layer-mismatch streams/layer"},
	},
	{
		name: "a stream that nothing links",
		damage: func(tb testing.TB, c *checked) {
			must(tb, os.Remove(c.file("streams/layer")))
		},
		full: []string{"warning: named-ref-not-linked streams/parent"},
		left: []string{"warning: named-ref-not-linked streams/parent"},
	},
	{
		name: "an image is missing",
		damage: func(tb testing.TB, c *checked) {
			must(tb, os.Remove(c.object(c.image)))
			must(tb, os.Remove(c.file("images/refs/image")))
			must(tb, os.Remove(c.file("images/"+c.image.String())))
		},
		full: []string{"missing-named-ref streams/parent"},
		left: []string{"missing-named-ref streams/parent"},
	},
	{
		name: "an image that is none",
		damage: func(tb testing.TB, c *checked) {
			must(tb, c.LinkImage(c.b))
			overwrite(tb, c.object(c.image), bytes.Repeat([]byte{0}, 8192))
		},
		full: []string{
			"image-invalid images/" + fsverity.Sum(fsverity.SHA512, contentB).String(), "image-invalid images/<image>",
			"object-digest-mismatch objects/<image>",
		},
		quick: []string{"image-invalid images/" + fsverity.Sum(fsverity.SHA512, contentB).String(), "image-invalid images/<image>"},
		left: []string{
			"image-invalid images/" + fsverity.Sum(fsverity.SHA512, contentB).String(), "image-invalid images/<image>",
			"object-digest-mismatch objects/<image>",
		},
	},
}

func TestFsck(t *testing.T) {
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			path := newRepoPath(t, noVerity(), InitOptions{AllowMissingVerity: true})
			c := newChecked(t, check(open(t.Context(), path, OpenOptions{}, noVerity()))(t))
			d.damage(t, c)
			must(t, c.Close())
			c.Repo = openRepo(t, path, noVerity(), OpenOptions{})
			compare := func(what string, want, got []string) {
				t.Helper()
				if diff := cmp.Diff(append([]string{}, want...), got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", what, diff)
				}
			}
			_, full := c.runCheck(t, CheckOptions{})
			compare("full check", d.full, full)
			_, quick := c.runCheck(t, CheckOptions{Quick: true})
			if d.quick == nil {
				d.quick = d.full
			}
			compare("quick check", d.quick, quick)
			compare("after a repair", d.left, c.repair(t, CheckOptions{}))
		})
	}
}

// TestFsckOwner has what only root can make.
func TestFsckOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away: run as root")
	}
	const somebody = 12345
	c := newChecked(t, insecureRepo(t))
	must(t, os.Chown(c.file("streams"), somebody, -1))
	must(t, os.Chown(c.object(c.a), somebody, -1)) // a hard link has the owner of its other name
	want := []string{"warning: owner-unexpected streams"}
	if _, got := c.runCheck(t, CheckOptions{}); !cmp.Equal(got, want) {
		t.Errorf("findings %v, want %v", got, want)
	}
}

// TestFsckReadError has a disk that cannot read what is on it.
func TestFsckReadError(t *testing.T) {
	v := testVerity(t)
	c := newChecked(t, openRepo(t, newRepoPath(t, v, InitOptions{}), v, OpenOptions{}))
	c.Repo.verity.measure = func(f *os.File, alg fsverity.Algorithm) (fsverity.Digest, error) {
		d, err := v.measure(f, alg)
		if d == c.b {
			return fsverity.Digest{}, unix.EIO
		}
		return d, err
	}
	_, got := c.runCheck(t, CheckOptions{})
	if !slices.Contains(got, "object-verity-failed objects/<b>") {
		t.Errorf("findings %v", got)
	}
}

// TestFsckOpenError has an object that is there and cannot be opened: somebody
// has a lease on it.
func TestFsckOpenError(t *testing.T) {
	c := newChecked(t, insecureRepo(t))
	must(t, os.Chmod(c.object(c.b), 0o644))
	f := check(os.OpenFile(c.object(c.b), os.O_RDWR, 0))(t)
	defer f.Close()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skipf("the file system has no leases: %v", err)
	}
	_, got := c.runCheck(t, CheckOptions{})
	if want := []string{"object-open-failed objects/<b>"}; !slices.Equal(got, want) {
		t.Errorf("findings %v, want %v", got, want)
	}
}

// TestFsckHelp makes sure that no finding leaves its reader alone.
func TestFsckHelp(t *testing.T) {
	kinds := map[Kind]bool{}
	for _, d := range damages {
		c := newChecked(t, insecureRepo(t))
		d.damage(t, c)
		k, _ := c.runCheck(t, CheckOptions{Quick: true})
		list, _ := k.Findings()
		for _, f := range list {
			kinds[f.Kind] = true
			if f.Help == "" || f.Message == "" {
				t.Errorf("%+v says nothing", f)
			}
		}
	}
	if len(kinds) < 24 {
		t.Errorf("only the kinds %v", kinds)
	}
}

// TestFsckSecure has what only a repository that requires fs-verity can have.
func TestFsckSecure(t *testing.T) {
	v := testVerity(t)
	for _, d := range []struct {
		name        string
		damage      func(tb testing.TB, c *checked)
		full, quick []string
		left        []string
	}{
		{name: "none", damage: func(testing.TB, *checked) {}},
		{
			name:   "an object without fs-verity",
			damage: func(tb testing.TB, c *checked) { overwrite(tb, c.object(c.b), contentB) },
			full:   []string{"object-verity-missing objects/<b> (repairable)"},
			quick:  []string{"object-verity-missing objects/<b>"},
		},
		{
			name: "the stream of a layer without fs-verity",
			damage: func(tb testing.TB, c *checked) {
				overwrite(tb, c.object(c.layer), check(os.ReadFile(c.object(c.layer)))(tb))
			},
			full:  []string{"object-verity-missing objects/<layer> (repairable)"},
			quick: []string{"object-verity-missing objects/<layer>"},
		},
		{
			name:   "another content without fs-verity",
			damage: func(tb testing.TB, c *checked) { overwrite(tb, c.object(c.b), bytes.Repeat([]byte{'x'}, 5000)) },
			full:   []string{"object-digest-mismatch objects/<b>"},
			quick:  []string{"object-verity-missing objects/<b>"},
			left:   []string{"object-digest-mismatch objects/<b>"},
		},
		{
			name: "another content with fs-verity",
			damage: func(tb testing.TB, c *checked) {
				overwrite(tb, c.object(c.b), bytes.Repeat([]byte{'x'}, 5000))
				f := check(os.Open(c.object(c.b)))(tb)
				defer f.Close()
				must(tb, v.enable(f, fsverity.SHA512))
			},
			full: []string{"object-digest-mismatch objects/<b>"},
			left: []string{"object-digest-mismatch objects/<b>"},
		},
	} {
		t.Run(d.name, func(t *testing.T) {
			r := openRepo(t, newRepoPath(t, v, InitOptions{}), v, OpenOptions{})
			c := newChecked(t, r)
			d.damage(t, c)
			_, full := c.runCheck(t, CheckOptions{})
			if diff := cmp.Diff(append([]string{}, d.full...), full); diff != "" {
				t.Errorf("full check (-want +got):\n%s", diff)
			}
			_, quick := c.runCheck(t, CheckOptions{Quick: true})
			if d.quick == nil {
				d.quick = d.full
			}
			if diff := cmp.Diff(append([]string{}, d.quick...), quick); diff != "" {
				t.Errorf("quick check (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(append([]string{}, d.left...), c.repair(t, CheckOptions{})); diff != "" {
				t.Errorf("after a repair (-want +got):\n%s", diff)
			}
			if len(d.left) == 0 {
				f := check(r.OpenObject(c.b))(t) // the kernel measures it
				must(t, f.Close())
			}
		})
	}
}

// TestFsckDropDamaged removes what nothing can repair, so that a pull brings it
// back.
func TestFsckDropDamaged(t *testing.T) {
	c := newChecked(t, insecureRepo(t))
	overwrite(t, c.object(c.b), bytes.Repeat([]byte{'x'}, 5000))
	if left := c.repair(t, CheckOptions{}); len(left) != 1 {
		t.Fatalf("a repair left %v", left)
	}
	want := []string{"image-missing-object images/<image>", "missing-object-ref streams/layer"}
	if diff := cmp.Diff(want, c.repair(t, CheckOptions{DropDamaged: true})); diff != "" {
		t.Errorf("after the object was dropped (-want +got):\n%s", diff)
	}
	check2(c.Put(contentB))(t)
	if _, got := c.runCheck(t, CheckOptions{}); len(got) > 0 {
		t.Errorf("after it was stored again: %v", got)
	}
}

func check2(_ fsverity.Digest, _ Outcome, err error) func(testing.TB) {
	return func(tb testing.TB) {
		tb.Helper()
		must(tb, err)
	}
}

// TestFsckUsers names the streams that need a damaged object.
func TestFsckUsers(t *testing.T) {
	c := newChecked(t, insecureRepo(t))
	overwrite(t, c.object(c.a), bytes.Repeat([]byte{'x'}, 100))
	k, _ := c.runCheck(t, CheckOptions{Workers: 1})
	list, _ := k.Findings()
	if len(list) != 1 || !slices.Equal(slices.Sorted(slices.Values(list[0].UsedBy)), []string{"layer", "parent"}) {
		t.Errorf("findings %+v, want one that layer and parent need", list)
	}
}

// TestFsckOnly checks what one stream leads to, and nothing else.
func TestFsckOnly(t *testing.T) {
	c := newChecked(t, insecureRepo(t))
	other, _, err := c.Put([]byte("other"))
	must(t, err)
	overwrite(t, c.object(other), []byte("o-her"))
	relink(t, c.file("streams/old"), objectTarget(fsverity.Sum(fsverity.SHA512, []byte("gone"))))
	must(t, c.LinkStream("none", c.a))
	must(t, os.Chmod(c.path, 0o755))
	k, got := c.runCheck(t, CheckOptions{Streams: []string{"parent", "layer"}})
	if len(got) > 0 {
		t.Errorf("findings about what parent does not need: %v", got)
	}
	if n := k.Counts.ObjectsChecked.Load(); n != 5 {
		t.Errorf("%d objects were checked, want parent, layer, the image and two files", n)
	}
	overwrite(t, c.object(c.b), bytes.Repeat([]byte{'x'}, 5000))
	if _, got := c.runCheck(t, CheckOptions{Streams: []string{"parent"}}); !slices.Equal(got, []string{"object-digest-mismatch objects/<b>"}) {
		t.Errorf("findings %v", got)
	}
}

// TestFsckPadding recognises a layer whose last zero bytes an old release has
// dropped.
func TestFsckPadding(t *testing.T) {
	c := newChecked(t, insecureRepo(t))
	whole := slices.Concat([]byte("head"), contentA, contentB, make([]byte, 10240))
	sum := sha256.Sum256(whole)
	k := NewChecker(c.Repo, CheckOptions{Rule: func(name string) StreamRule {
		r := layerRule(name)
		if r.SHA256 != nil {
			r.SHA256 = &sum
		}
		return r
	}})
	must(t, k.Run(t.Context()))
	if got := c.describe(k); !slices.Equal(got, []string{"warning: padding-lost streams/layer"}) {
		t.Errorf("findings %v", got)
	}
}

// TestFsckBounded keeps a bounded number of findings, those that sort first,
// and counts the others.
func TestFsckBounded(t *testing.T) {
	c := newChecked(t, insecureRepo(t))
	for i := range 5000 {
		relink(t, c.file(fmt.Sprintf("streams/refs/%04d", i)), "../absent")
	}
	must(t, os.Chmod(c.path, 0o755))
	k, got := c.runCheck(t, CheckOptions{MaxFindings: 10})
	var want []string
	for i := range 10 {
		want = append(want, fmt.Sprintf("broken-symlink streams/refs/%04d", i))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
	_, byKind := k.Findings()
	all, bad := k.Total()
	if byKind[BrokenSymlink] != 5000 || byKind[ModeUnexpected] != 1 || all != 5001 || bad != 5000 {
		t.Errorf("%v, %d in all, %d errors", byKind, all, bad)
	}
}

// TestFsckCancelled ends when its context does.
func TestFsckCancelled(t *testing.T) {
	c := newChecked(t, insecureRepo(t))
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	if err := NewChecker(c.Repo, CheckOptions{}).Run(ctx); !errors.Is(err, stop) {
		t.Errorf("check: %v", err)
	}
}

// TestFsckReadOnly leaves no trace.
func TestFsckReadOnly(t *testing.T) {
	c := newChecked(t, insecureRepo(t))
	relink(t, c.file(".symlink-abcdefghijkl"), "nowhere")
	before := files(t, c.path)
	k, _ := c.runCheck(t, CheckOptions{})
	if done, err := k.Repair(t.Context()); len(done) > 0 || err != nil {
		t.Errorf("a check without Repair repaired %v, %v", done, err)
	}
	if diff := cmp.Diff(before, files(t, c.path)); diff != "" {
		t.Errorf("the repository was changed:\n%s", diff)
	}
}

// TestFsckWork stops when a few bytes on disk make more work than they are
// worth.
func TestFsckWork(t *testing.T) {
	c := newChecked(t, insecureRepo(t))
	inline := check(c.WriteStream(splitstream.Layer, func(w *splitstream.Writer) error {
		_, err := w.Write(make([]byte, 8<<20))
		return err
	}))(t)
	must(t, c.LinkStream("inline", inline))
	holes := fsverity.Sum(fsverity.SHA512, make([]byte, 8<<20))
	must(t, os.MkdirAll(filepath.Dir(c.object(holes)), 0o755))
	must(t, os.WriteFile(c.object(holes), nil, 0o644))
	must(t, os.Truncate(c.object(holes), 8<<20))
	describe := func(floor int64) []string {
		k := NewChecker(c.Repo, CheckOptions{Rule: layerRule})
		k.workFloor = floor
		must(t, k.Run(t.Context()))
		return c.describe(k)
	}
	if diff := cmp.Diff([]string{}, describe(1<<30)); diff != "" {
		t.Errorf("with enough work (-want +got):\n%s", diff)
	}
	// Whether the small streams find any work left depends on their turn.
	got := slices.DeleteFunc(describe(0), func(finding string) bool {
		return finding == "limit-exceeded streams/layer" || finding == "limit-exceeded streams/parent"
	})
	if diff := cmp.Diff([]string{"limit-exceeded objects/" + holes.ObjectPath(), "limit-exceeded streams/inline"}, got); diff != "" {
		t.Errorf("without work (-want +got):\n%s", diff)
	}
}

// FuzzFsck changes bytes of a repository, also in streams and images, and
// where links lead to.
func FuzzFsck(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 2, 0, 20, 255, 5, 1, 0, 9})
	f.Add([]byte("some bytes that change something"))
	f.Fuzz(func(t *testing.T, changes []byte) {
		c := newChecked(t, insecureRepo(t))
		var names []string
		for _, name := range files(t, c.path) {
			if name != "meta.json" {
				names = append(names, name)
			}
		}
		for len(changes) >= 4 {
			path := c.file(names[int(changes[0])%len(names)])
			if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
				raw := check(os.ReadFile(path))(t)
				if len(raw) > 0 {
					raw[int(binary.LittleEndian.Uint16(changes[1:]))%len(raw)] = changes[3]
					overwrite(t, path, raw)
				}
			} else if err == nil {
				target := "../" + names[int(changes[1])%len(names)]
				relink(t, path, target[:len(target)-int(changes[2])%3])
			}
			changes = changes[4:]
		}
		for _, quick := range []bool{true, false} {
			_, first := c.runCheck(t, CheckOptions{Quick: quick})
			_, second := c.runCheck(t, CheckOptions{Quick: quick, Workers: 1})
			if diff := cmp.Diff(first, second); diff != "" {
				t.Errorf("two checks of the same differ:\n%s", diff)
			}
		}
		c.repair(t, CheckOptions{DropDamaged: len(changes) > 0})
	})
}
