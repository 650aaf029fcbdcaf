// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package unpack_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/storage/pkg/archive"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/cstor/unpack"
	"github.com/cfs-pull/cfs-pull/internal/realimage"
	"github.com/cfs-pull/cfs-pull/internal/tarraw"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// unpackTar unpacks an archive with contents from memory.
func unpackTar(ctx context.Context, layer io.Reader, dir string, o unpack.Options) (*unpack.Result, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	u, err := unpack.New(d, o)
	if err != nil {
		return nil, err
	}
	defer u.Close()
	r := tarraw.NewReader(layer, nil, tarraw.Limits{})
	for {
		e, err := r.Next()
		if err == io.EOF {
			return u.Finish()
		}
		if err != nil {
			return nil, err
		}
		var c unpack.Content
		if e.External() {
			data := make([]byte, e.Size)
			if _, err := io.ReadFull(r, data); err != nil {
				return nil, err
			}
			c.Fill = func(dst *os.File) error {
				_, err := dst.Write(data)
				return err
			}
		}
		if err := u.Entry(ctx, e, c); err != nil {
			return nil, err
		}
	}
}

// podmanUnpack is what containers-storage does with a layer.
func podmanUnpack(layer io.Reader, dir string) error {
	return archive.Unpack(layer, dir, &archive.TarOptions{WhiteoutFormat: archive.OverlayWhiteoutFormat})
}

func keep(name string) bool { return name != "security.selinux" }

// scan reads a tree. Directories that have no entry of their own have the time
// of the test.
func scan(t testing.TB, dir string, entries map[string]bool) realimage.Tree {
	t.Helper()
	tree, err := realimage.Scan(dir, keep)
	must(t, err)
	for name, e := range tree {
		if !entries[name] && e.Type == "dir" {
			e.Sec, e.Nsec = 0, 0
		}
		if e.Type == "char" && e.Rdev == "0:0" && e.Mode == 0 {
			e.Sec, e.Nsec = 0, 0 // a whiteout
		}
		tree[name] = e
	}
	return tree
}

// entriesOf are the names in an archive.
func entriesOf(t testing.TB, layer []byte) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return names
		}
		must(t, err)
		names[strings.TrimPrefix(path.Clean("/"+h.Name), "/")] = true
		if path.Clean(h.Name) == "." {
			names["."] = true
		}
	}
}

type member struct {
	tar.Header
	content string
}

var mtime = time.Unix(1700000000, 123456789)

// archiveOf makes a pax archive. Entries without a time get mtime.
func archiveOf(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := m.Header
		if h.ModTime.IsZero() {
			h.ModTime = mtime
		}
		if h.Format == 0 {
			h.Format = tar.FormatPAX
		}
		h.Size = int64(len(m.content))
		must(t, w.WriteHeader(&h))
		_, err := io.WriteString(w, m.content)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func dir(name string, mode int64) member {
	return member{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}}
}

func file(name string, mode int64, content string) member {
	return member{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, content: content}
}

func link(typ byte, name, target string) member {
	return member{Header: tar.Header{Typeflag: typ, Name: name, Linkname: target, Mode: 0o777}}
}

func (m member) owned(uid, gid int) member {
	m.Uid, m.Gid = uid, gid
	return m
}

func (m member) at(t time.Time) member {
	m.ModTime = t
	return m
}

func (m member) xattr(name, value string) member {
	m.PAXRecords = maps.Clone(m.PAXRecords)
	if m.PAXRecords == nil {
		m.PAXRecords = map[string]string{}
	}
	m.PAXRecords["SCHILY.xattr."+name] = value
	return m
}

func device(typ byte, name string, major, minor int64) member {
	return member{Header: tar.Header{Typeflag: typ, Name: name, Mode: 0o620, Devmajor: major, Devminor: minor}}
}

// capability is cap_net_raw+ep in the kernel's form, version 2.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func TestUnpack(t *testing.T) {
	testutil.RequireRoot(t)
	large := strings.Repeat("0123456789abcdef", 20000)
	long := strings.Repeat("n", 255)
	for _, test := range []struct {
		name    string
		members []member
	}{
		{"empty", nil},
		{"files", []member{
			dir("./", 0o751).owned(3, 4).xattr("user.root", "r"), dir("./usr/", 0o755), file("./usr/empty", 0o644, ""), file("./usr/inline", 0o600, "small"),
			file("./usr/external", 0o644, large), file("usr/exec", 0o755, large), file("/usr/absolute", 0o644, "x"),
			file("./usr//./odd", 0o644, "y"), file("usr/"+long, 0o644, large[:65]), file("usr/new\nline", 0o644, "z"), file("usr/\xff\xfe", 0o644, "bytes"),
		}},
		{"modes and owners", []member{
			dir("d", 0).owned(5, 6), dir("sticky", 0o1777), dir("setgid", 0o2775).owned(0, 50), file("setgid/inherits", 0o644, "x"),
			file("none", 0, large), file("setuid", 0o4755, large).owned(7, 8), file("setgidfile", 0o2711, "s").owned(7, 8),
			file("group", 0o664, "g"), file("high", 0o644, "h").owned(4000000000, 4000000000), file("d/below", 0o600, large),
			link(tar.TypeSymlink, "link", "d").owned(9, 10),
		}},
		{"times", []member{
			dir("d", 0o755).at(time.Unix(1, 1)), file("d/old", 0o644, "o").at(time.Unix(0, 0)), file("d/late", 0o644, "l").at(time.Unix(5000000000, 0)),
			link(tar.TypeSymlink, "d/link", "old").at(time.Unix(2, 2)), device(tar.TypeFifo, "d/fifo", 0, 0).at(time.Unix(3, 999999999)),
			dir("d/sub", 0o755).at(time.Unix(4, 0)), file("d/sub/file", 0o644, large), file("d/after", 0o644, "a"),
		}},
		{"attributes", []member{
			dir("d", 0o755).xattr("user.on.dir", "1").xattr("trusted.overlay.opaque", "y"),
			file("d/cap", 0o755, large).xattr("security.capability", capability).owned(1, 1),
			file("d/suid-cap", 0o4755, "s").xattr("security.capability", capability),
			file("d/many", 0o644, "m").xattr("user.a", "x").xattr("user.b", "\x00\x01\xff").xattr("user.empty", "").xattr("trusted.c", "t"),
			file("d/label", 0o644, "l").xattr("security.selinux", "system_u:object_r:bin_t:s0"),
			file("d/foreign", 0o644, "f").xattr("com.apple.provenance", "x").xattr("user.kept", "k"),
			link(tar.TypeSymlink, "d/link", "cap").xattr("trusted.on.link", "v"),
			device(tar.TypeChar, "d/dev", 1, 3).xattr("trusted.on.device", "v"),
		}},
		{"hard links", []member{
			dir("a", 0o755), file("a/file", 0o644, large), link(tar.TypeLink, "a/second", "a/file"), link(tar.TypeLink, "third", "./a/second"),
			dir("b", 0o755), file("b/x", 0o600, "x").owned(1, 2), link(tar.TypeLink, "b/y", "/b/x").owned(3, 4), link(tar.TypeSymlink, "b/sym", "x"),
			link(tar.TypeLink, "b/sym2", "b/sym"), device(tar.TypeChar, "b/null", 1, 3), link(tar.TypeLink, "b/null2", "b/null"),
			file("b/cap", 0o755, "c").xattr("security.capability", capability), link(tar.TypeLink, "b/cap2", "b/cap").xattr("user.late", "1"),
		}},
		{"devices", []member{
			device(tar.TypeChar, "null", 1, 3), device(tar.TypeBlock, "loop", 7, 0), device(tar.TypeChar, "large", 259, 1048575),
			device(tar.TypeFifo, "fifo", 0, 0), device(tar.TypeChar, "zero", 0, 0).owned(3, 4),
		}},
		{"whiteouts", []member{
			dir("etc", 0o755), file("etc/.wh.passwd", 0o600, "").owned(1, 2), dir("var", 0o755).xattr("user.a", "b"), file("var/.wh..wh..opq", 0, ""),
			file("var/kept", 0o644, "k"), file(".wh.root", 0, "content is ignored"), file(".wh..wh.plnk", 0, ""),
			file(".wh.back", 0, ""), file("back", 0o644, "again"), file(".wh.dir", 0, ""), dir("dir", 0o750), file("dir/file", 0o644, "f"),
			file(".wh.gone", 0, ""), file("gone/.wh.deeper", 0, ""),
			file(".wh.linked", 0, ""), link(tar.TypeLink, "linked", "back"),
		}},
		{"missing parents", []member{
			file("a/b/c/file", 0o644, large), dir("a/b", 0o700).owned(1, 1), file("x/y", 0o644, "y"), file("w/.wh.z", 0, ""), file("o/.wh..wh..opq", 0, ""),
		}},
		{"symbolic links", []member{
			link(tar.TypeSymlink, "absolute", "/etc/passwd"), link(tar.TypeSymlink, "out", "../../../../etc/passwd"),
			link(tar.TypeSymlink, "loop", "loop"), link(tar.TypeSymlink, "bytes", "\xff\xfe"), link(tar.TypeSymlink, "long", strings.Repeat("t/", 2000)),
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			layer := archiveOf(t, test.members...)
			entries := entriesOf(t, layer)
			want, got := t.TempDir(), t.TempDir()
			must(t, podmanUnpack(bytes.NewReader(layer), want))
			result, err := unpackTar(t.Context(), bytes.NewReader(layer), got, unpack.Options{})
			must(t, err)
			if diff := realimage.Diff(scan(t, want, entries), scan(t, got, entries), 20); len(diff) > 0 {
				t.Errorf("differs from podman's:\n%s", strings.Join(diff, "\n"))
			}
			uids, gids := map[uint32]bool{}, map[uint32]bool{}
			for _, m := range test.members {
				if !strings.HasPrefix(path.Base(m.Name), ".wh.") {
					uids[uint32(m.Uid)], gids[uint32(m.Gid)] = true, true
				}
			}
			wantResult := &unpack.Result{
				UIDs: slices.Sorted(maps.Keys(uids)), GIDs: slices.Sorted(maps.Keys(gids)), Root: entries["."], XattrsDropped: result.XattrsDropped,
			}
			if diff := cmp.Diff(wantResult, result); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			if dropped := int64(0); test.name == "attributes" {
				if dropped = 1; result.XattrsDropped != dropped {
					t.Errorf("%d attributes were dropped, want %d", result.XattrsDropped, dropped)
				}
			}
		})
	}
}

// What breaks a rule is refused, and nothing outside of the directory comes to
// be.
func TestUnpackRefuses(t *testing.T) {
	testutil.RequireRoot(t)
	for _, test := range []struct {
		name    string
		members []member
		want    string
	}{
		{"dot dot", []member{file("../escape", 0o644, "x")}, "must not contain"},
		{"dot dot inside", []member{dir("a", 0o755), file("a/../b", 0o644, "x")}, "must not contain"},
		{"through a link that leads out", []member{link(tar.TypeSymlink, "out", "../outside"), file("out/escape", 0o644, "x")}, "not a directory"},
		{"through an absolute link", []member{link(tar.TypeSymlink, "out", "/tmp"), dir("out/escape", 0o755)}, "not a directory"},
		{"through a link that stays inside", []member{dir("real", 0o755), link(tar.TypeSymlink, "in", "real"), file("in/x", 0o644, "x")}, "not a directory"},
		{"whiteout through a link", []member{link(tar.TypeSymlink, "out", "../outside"), file("out/.wh.file", 0, "")}, "not a directory"},
		{"opaque through a link", []member{link(tar.TypeSymlink, "out", "../outside"), file("out/.wh..wh..opq", 0, "")}, "not a directory"},
		{"hard link out", []member{link(tar.TypeLink, "x", "../outside/file")}, "must not contain"},
		{"hard link to what is not in the layer", []member{link(tar.TypeLink, "x", "outside/file")}, "not in the layer"},
		{"hard link through a link", []member{link(tar.TypeSymlink, "out", "../outside"), link(tar.TypeLink, "x", "out/file")}, "not in the layer"},
		{"hard link to a directory", []member{dir("d", 0o755), link(tar.TypeLink, "x", "d")}, "to the directory"},
		{"hard link to the root", []member{link(tar.TypeLink, "x", "/")}, "to a directory"},
		{"hard link to a whiteout", []member{file(".wh.y", 0, ""), link(tar.TypeLink, "x", "y")}, "not in the layer"},
		{"twice", []member{file("x", 0o644, "1"), file("x", 0o644, "2")}, "twice"},
		{"twice, spelled differently", []member{dir("d", 0o755), file("d/x", 0o644, "1"), file("./d//x", 0o644, "2")}, "twice"},
		{"twice as a directory", []member{dir("d", 0o755), dir("d/", 0o700)}, "twice"},
		{"root twice", []member{dir("./", 0o755), dir("/", 0o700)}, "twice"},
		{"file for a link", []member{link(tar.TypeSymlink, "x", "../outside/file"), file("x", 0o644, "overwritten")}, "twice"},
		{"hard link over a file", []member{file("x", 0o644, "1"), file("y", 0o644, "2"), link(tar.TypeLink, "x", "y")}, "twice"},
		{"whiteout twice", []member{file(".wh.x", 0, ""), file("./.wh.x", 0, "")}, "twice"},
		{"file for a directory", []member{file("d/x", 0o644, "1"), file("d", 0o644, "2")}, "replaces a directory"},
		{"hard link for a directory", []member{file("d/x", 0o644, "1"), link(tar.TypeLink, "d", "d/x")}, "replaces a directory"},
		{"below a file", []member{file("f", 0o644, strings.Repeat("x", 100)), file("f/x", 0o644, "2")}, "not a directory"},
		{"below a whiteout", []member{file(".wh.d", 0, ""), file("d/x", 0o644, "2")}, "not a directory"},
		{"whiteout of its own layer", []member{file("x", 0o644, "1"), file(".wh.x", 0, "")}, "hides"},
		{"whiteout of nothing", []member{file(".wh.", 0, "")}, "of nothing"},
		{"whiteout of the parent", []member{file(".wh...", 0, "")}, "of nothing"},
		{"root is a file", []member{file(".", 0o644, "")}, "must be a directory"},
		{"too deep", []member{dir(strings.Repeat("d/", 3000), 0o755)}, "components"},
		{"mode of another type", []member{file("x", unix.S_IFCHR|0o644, "1")}, "another file type"},
	} {
		t.Run(test.name, func(t *testing.T) {
			base := t.TempDir()
			outside, inside := filepath.Join(base, "outside"), filepath.Join(base, "inside")
			must(t, os.Mkdir(outside, 0o755))
			must(t, os.Mkdir(inside, 0o755))
			must(t, os.WriteFile(filepath.Join(outside, "file"), []byte("outside"), 0o600))
			before, err := realimage.Scan(outside, realimage.KeepAll)
			must(t, err)
			_, err = unpackTar(t.Context(), bytes.NewReader(archiveOf(t, test.members...)), inside, unpack.Options{})
			if e, ok := errors.AsType[*oci.EntryError](err); !ok || !errors.Is(err, oci.ErrMalformed) || !strings.Contains(e.Rule, test.want) {
				t.Errorf("error %v, want an EntryError about %q", err, test.want)
			}
			after, err := realimage.Scan(outside, realimage.KeepAll)
			must(t, err)
			if diff := realimage.Diff(before, after, 10); len(diff) > 0 {
				t.Errorf("something outside changed:\n%s", strings.Join(diff, "\n"))
			}
			names, err := os.ReadDir(base)
			must(t, err)
			if len(names) != 2 {
				t.Errorf("something came to be beside the directory: %v", names)
			}
		})
	}
}

func TestUnpackLimits(t *testing.T) {
	testutil.RequireRoot(t)
	layer := archiveOf(t, file("a", 0o644, "1"), file("b", 0o644, "2"), file("c", 0o644, "3"))
	_, err := unpackTar(t.Context(), bytes.NewReader(layer), t.TempDir(), unpack.Options{MaxEntries: 2})
	if !errors.Is(err, oci.ErrTooLarge) {
		t.Errorf("too many entries: %v", err)
	}
}

// The content that a caller provides is checked, its errors come back, and each
// file is done exactly once.
func TestContent(t *testing.T) {
	testutil.RequireRoot(t)
	broken := errors.New("broken disk")
	for _, test := range []struct {
		name string
		fill func(dst *os.File) error
		want string // empty for success
	}{
		{"right", func(dst *os.File) error { _, err := dst.Write(make([]byte, 100)); return err }, ""},
		{"short", func(dst *os.File) error { _, err := dst.Write(make([]byte, 99)); return err }, "99 bytes"},
		{"long", func(dst *os.File) error { _, err := dst.Write(make([]byte, 101)); return err }, "101 bytes"},
		{"error", func(*os.File) error { return broken }, "broken disk"},
	} {
		t.Run(test.name, func(t *testing.T) {
			name := t.TempDir()
			d, err := os.Open(name)
			must(t, err)
			defer d.Close()
			u, err := unpack.New(d, unpack.Options{Workers: 2})
			must(t, err)
			done := make(chan error, 10)
			e := &tarraw.Entry{Type: tarraw.TypeRegular, Name: "f", Mode: 0o640, Size: 100}
			must(t, u.Entry(t.Context(), e, unpack.Content{Fill: test.fill, Done: func(dst *os.File, err error) {
				if err == nil {
					var b [1000]byte
					if n, readErr := dst.ReadAt(b[:], 0); n != 100 || readErr != io.EOF {
						err = fmt.Errorf("read %d bytes, %w", n, readErr)
					}
					dst.Close()
				}
				done <- err
			}}))
			_, err = u.Finish()
			u.Close()
			close(done)
			got := []error{}
			for err := range done {
				got = append(got, err)
			}
			if len(got) != 1 {
				t.Fatalf("Done was called %d times", len(got))
			}
			for _, err := range []error{err, got[0]} {
				if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
					t.Errorf("error %v, want %q", err, test.want)
				}
			}
			if test.name == "error" && !errors.Is(err, broken) {
				t.Errorf("%v does not wrap the caller's error", err)
			}
		})
	}
}

// TestVectors compares with podman's unpacker and with GNU tar on the layers of
// the conformance images and, where there is one, of a real image.
func TestVectors(t *testing.T) {
	testutil.RequireRoot(t)
	layouts := []string{filepath.Join(testutil.Vectors(t), "oci", "layout")}
	if testing.Short() {
		t.Log("short: without the real image")
	} else if dir := os.Getenv("CFS_PULL_OS_IMAGE"); dir != "" {
		layouts = append(layouts, dir)
	}
	gnutar := testutil.RequireTool(t, "tar", "tar")
	compared := 0
	for _, layout := range layouts {
		for _, l := range layersOf(t, layout) {
			t.Run(l.name, func(t *testing.T) {
				got, want, byTar := t.TempDir(), t.TempDir(), t.TempDir()
				err := withLayer(t, l, func(r io.Reader) error {
					_, err := unpackTar(t.Context(), r, got, unpack.Options{})
					return err
				})
				if err != nil {
					// Such an image cannot be had by a composefs repository either,
					// or the file system does not take an attribute.
					if !errors.Is(err, oci.ErrMalformed) && !isTarError(err) {
						if podmanErr := withLayer(t, l, func(r io.Reader) error { return podmanUnpack(r, want) }); podmanErr == nil {
							t.Fatalf("podman unpacks it, but: %v", err)
						}
					}
					t.Logf("refused: %v", err)
					return
				}
				if err := withLayer(t, l, func(r io.Reader) error { return podmanUnpack(r, want) }); err != nil {
					t.Fatalf("podman refuses what we take: %v", err)
				}
				entries := map[string]bool{}
				must(t, withLayer(t, l, func(r io.Reader) error {
					for tr := tar.NewReader(r); ; {
						h, err := tr.Next()
						if err == io.EOF {
							return nil
						}
						if err != nil {
							return err
						}
						if name := strings.TrimPrefix(path.Clean("/"+h.Name), "/"); name != "" {
							entries[name] = true
						} else {
							entries["."] = true
						}
					}
				}))
				ours := scan(t, got, entries)
				if diff := realimage.Diff(scan(t, want, entries), ours, 20); len(diff) > 0 {
					t.Errorf("differs from podman's:\n%s", strings.Join(diff, "\n"))
				}
				compared++

				err = withLayer(t, l, func(r io.Reader) error {
					cmd := exec.Command(gnutar, "-x", "--numeric-owner", "--same-owner", "-p", "--xattrs", "--xattrs-include=*", "--warning=no-all", "-C", byTar)
					cmd.Stdin = r
					if out, err := cmd.CombinedOutput(); err != nil {
						return fmt.Errorf("%w: %s", err, out)
					}
					return nil
				})
				if err != nil {
					t.Logf("GNU tar: %v", err)
					return
				}
				// GNU tar knows no whiteouts.
				theirs := scan(t, byTar, entries)
				for name := range theirs {
					if base := path.Base(name); strings.HasPrefix(base, ".wh.") {
						delete(theirs, name)
						delete(ours, path.Join(path.Dir(name), strings.TrimPrefix(base, ".wh.")))
					}
				}
				// Nor does it set the time of a directory that it comes back to, or
				// let the header of a hard link change a file.
				for name, e := range ours {
					e.Xattrs = strings.TrimSpace(strings.ReplaceAll(e.Xattrs, `trusted.overlay.opaque="y"`, ""))
					other := theirs[name]
					switch {
					case e.Type == "dir":
						e.Sec, e.Nsec = other.Sec, other.Nsec
					case e.First != "":
						e.Mode, e.UID, e.GID, e.Sec, e.Nsec = other.Mode, other.UID, other.GID, other.Sec, other.Nsec
					}
					ours[name] = e
				}
				if diff := realimage.Diff(theirs, ours, 20); len(diff) > 0 {
					t.Errorf("differs from GNU tar's:\n%s", strings.Join(diff, "\n"))
				}
			})
		}
	}
	if compared < 20 {
		t.Errorf("only %d layers were compared", compared)
	}
}

func isTarError(err error) bool {
	_, ok := errors.AsType[*tarraw.Error](err)
	return ok
}

type layerBlob struct{ name, path string }

// layersOf lists the layers in a layout, each once.
func layersOf(t testing.TB, layout string) []layerBlob {
	t.Helper()
	blob := func(d v1.Descriptor) string {
		return filepath.Join(layout, "blobs", d.Digest.Algorithm().String(), d.Digest.Encoded())
	}
	var layers []layerBlob
	seen := map[string]bool{}
	var visit func(name, file string)
	visit = func(name, file string) {
		content, err := os.ReadFile(file)
		if err != nil {
			return // an image with a hole
		}
		var doc struct {
			Manifests []v1.Descriptor `json:"manifests"`
			Layers    []v1.Descriptor `json:"layers"`
		}
		must(t, json.Unmarshal(content, &doc))
		for _, d := range doc.Manifests {
			if tag := d.Annotations[v1.AnnotationRefName]; tag != "" {
				visit(tag, blob(d))
			} else {
				visit(name, blob(d))
			}
		}
		for i, d := range doc.Layers {
			if file := blob(d); !seen[file] {
				seen[file] = true
				layers = append(layers, layerBlob{fmt.Sprintf("%s-%d", name, i), file})
			}
		}
	}
	visit(filepath.Base(layout), filepath.Join(layout, "index.json"))
	return layers
}

// withLayer calls do with the uncompressed bytes of a layer.
func withLayer(t testing.TB, l layerBlob, do func(io.Reader) error) error {
	t.Helper()
	open := oci.OpenBlob(func(context.Context) (io.ReadCloser, error) { return os.Open(l.path) }, oci.Limits{})
	r, err := open(t.Context())
	if err != nil {
		return fmt.Errorf("%w: %w", oci.ErrMalformed, err)
	}
	defer r.Close()
	return do(r)
}
