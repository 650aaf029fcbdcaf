// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
)

// member is an entry of a test archive. A regular file that the extraction
// puts elsewhere than its name says has the place in at.
type member struct {
	tar.Header
	content string
	at      string
}

func file(name, content string) member {
	return member{Header: tar.Header{Name: name, Mode: 0o644, Format: tar.FormatPAX}, content: content}
}

// testMembers have everything that matters to how an archive is put together.
func testMembers() []member {
	dir := func(name string) member {
		return member{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}}
	}
	with := func(m member, change func(*member)) member {
		change(&m)
		return m
	}
	large := strings.Repeat("0123456789abcdef", 200_000) // 3.2 MB
	return []member{
		dir("usr/"), dir("usr/bin/"),
		file("usr/empty", ""), file("usr/one", "x"), file("usr/64", strings.Repeat("a", 64)), file("usr/65", strings.Repeat("b", 65)),
		file("usr/4096", strings.Repeat("c", 4096)), file("usr/same", strings.Repeat("c", 4096)),
		file("usr/1M", strings.Repeat("d", 1<<20)), file("usr/1M+1", strings.Repeat("e", 1<<20+1)), file("usr/large", large),
		file("./usr/bin/dot", strings.Repeat("dot", 100)),
		with(file("usr/mode0", strings.Repeat("secret", 20)), func(m *member) { m.Mode = 0 }),
		with(file("usr/bin/setuid", strings.Repeat("suid", 20)), func(m *member) { m.Mode = 0o4755 }),
		with(file("usr/bin/caps", strings.Repeat("caps", 20)), func(m *member) {
			m.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
		}),
		with(file("usr/not-\xff\xfe-utf8", strings.Repeat("bytes", 20)), func(m *member) { m.Format = tar.FormatGNU }),
		file("usr/new\nline \\ \"quote\"", strings.Repeat("odd", 30)),
		file("usr/"+strings.Repeat("long", 60), strings.Repeat("long", 60)),
		{Header: tar.Header{Name: "usr/hard", Typeflag: tar.TypeLink, Linkname: "usr/4096"}},
		{Header: tar.Header{Name: "usr/link", Typeflag: tar.TypeSymlink, Linkname: "/usr/real"}},
		dir("usr/real/"),
		with(file("usr/link/through", strings.Repeat("through a link", 20)), func(m *member) { m.at = "usr/real/through" }),
		{Header: tar.Header{Name: "usr/fifo", Typeflag: tar.TypeFifo}},
		file("usr/last", strings.Repeat("z", 513)),
	}
}

// archiveOf is the tar of members, with something after its end.
func archiveOf(tb testing.TB, members []member) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := m.Header
		h.Size = int64(len(m.content))
		must(tb, w.WriteHeader(&h))
		check(io.WriteString(w, m.content))(tb)
	}
	must(tb, w.Close())
	b.Write(make([]byte, 20<<10))
	return b.Bytes()
}

// splitLayer makes what a store has of a layer: the files and, with the library
// that stores use, the tar-split metadata.
func splitLayer(tb testing.TB, members []member) (*Layer, []byte) {
	tb.Helper()
	raw := archiveOf(tb, members)
	dir := tb.TempDir()
	l := &Layer{DiffDir: filepath.Join(dir, "diff"), TarSplitPath: filepath.Join(dir, "layer.tar-split.gz"), UncompressedSize: int64(len(raw))}
	must(tb, os.Mkdir(l.DiffDir, 0o755))
	for _, m := range members {
		path := filepath.Join(l.DiffDir, m.Name)
		if m.at != "" {
			path = filepath.Join(l.DiffDir, m.at)
		}
		switch m.Typeflag {
		case tar.TypeDir:
			must(tb, os.MkdirAll(path, 0o755))
		case tar.TypeSymlink:
			must(tb, os.Symlink(m.Linkname, path))
		case tar.TypeLink:
			must(tb, os.Link(filepath.Join(l.DiffDir, m.Linkname), path))
		case tar.TypeFifo:
			must(tb, unix.Mkfifo(path, 0o600))
		default:
			must(tb, os.WriteFile(path, []byte(m.content), 0o600))
			must(tb, os.Chmod(path, fs.FileMode(m.Mode&0o777)))
		}
	}
	var split bytes.Buffer
	z := gzip.NewWriter(&split)
	in, done, err := asm.NewInputTarStreamWithDone(bytes.NewReader(raw), storage.NewJSONPacker(z), nil)
	must(tb, err)
	check(io.Copy(io.Discard, in))(tb)
	must(tb, in.Close())
	must(tb, <-done)
	must(tb, z.Close())
	must(tb, os.WriteFile(l.TarSplitPath, split.Bytes(), 0o600))
	return l, raw
}

func testRepo(tb testing.TB) (*composefs.Repo, string) {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "repo")
	check(composefs.Init(tb.Context(), path, composefs.InitOptions{AllowMissingVerity: true}))(tb)
	repo := check(composefs.Open(tb.Context(), path, composefs.OpenOptions{}))(tb)
	tb.Cleanup(func() { must(tb, repo.Close()) })
	return repo, path
}

// importLayer imports a layer of a store, by any means.
func importLayer(tb testing.TB, repo *composefs.Repo, l *Layer, diffID oci.Digest) (string, *oci.Importer, error) {
	tb.Helper()
	im := oci.NewImporter(repo, oci.ImporterOptions{Methods: composefs.Methods{Reflink: true, Copy: true}})
	defer im.Close()
	id, err := im.ImportLayer(tb.Context(), func(context.Context) (oci.LayerReader, error) { return OpenLayer(l) }, diffID)
	return id.String(), im, err
}

// TestLayerIsItsArchive reads a layer as bytes, and imports it, and compares
// with the archive that it was made from.
func TestLayerIsItsArchive(t *testing.T) {
	l, raw := splitLayer(t, testMembers())
	r := check(OpenLayer(l))(t)
	if got := check(io.ReadAll(r))(t); !bytes.Equal(got, raw) {
		t.Errorf("read %d bytes, want the %d of the archive", len(got), len(raw))
	}
	must(t, r.Close())

	diffID := oci.DigestOf(raw)
	repo, _ := testRepo(t)
	id, im, err := importLayer(t, repo, l, diffID)
	must(t, err)
	blob := func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }
	other, _ := testRepo(t)
	direct := oci.NewImporter(other, oci.ImporterOptions{})
	defer direct.Close()
	want := check(direct.ImportLayer(t.Context(), oci.OpenBlob(blob, oci.Limits{}), diffID))(t)
	if id != want.String() {
		t.Errorf("the stream is %s, that of the archive %s", id, want)
	}
	// Also the number of objects: nothing came by another road.
	stored := im.Stats.ObjectsReflinked.Load() + im.Stats.ObjectsStored.Load()
	if n := direct.Stats.ObjectsStored.Load(); stored != n || im.Stats.ObjectsPresent.Load() != direct.Stats.ObjectsPresent.Load() {
		t.Errorf("%d objects, %d from the archive", stored, n)
	}
	if im.Stats.BytesInlined.Load() != direct.Stats.BytesInlined.Load() {
		t.Error("other bytes are inline")
	}
}

// TestChangedLayers changes a layer after it was stored.
func TestChangedLayers(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.Mkdir(outside, 0o755))
	for _, c := range []struct {
		name   string
		change func(tb testing.TB, dir string)
		text   string // in the error, apart from the name of the file
		file   string
	}{
		{"other content", func(tb testing.TB, dir string) {
			path := filepath.Join(dir, "usr/4096")
			before := check(os.Stat(path))(tb)
			must(tb, os.WriteFile(path, bytes.Repeat([]byte("C"), 4096), 0o600))
			must(tb, os.Chtimes(path, before.ModTime(), before.ModTime()))
		}, "has other content", "usr/4096"},
		{"other content of a large file", func(tb testing.TB, dir string) {
			f := check(os.OpenFile(filepath.Join(dir, "usr/large"), os.O_WRONLY, 0))(tb)
			check(f.WriteAt([]byte("X"), 3_000_000))(tb)
			must(tb, f.Close())
		}, "has other content", "usr/large"},
		{"other content of an inline file", func(tb testing.TB, dir string) {
			must(tb, os.WriteFile(filepath.Join(dir, "usr/one"), []byte("y"), 0o600))
		}, "has other content", "usr/one"},
		{"shorter", func(tb testing.TB, dir string) { must(tb, os.Truncate(filepath.Join(dir, "usr/65"), 64)) }, "64 bytes, not 65", "usr/65"},
		{"shorter, inline", func(tb testing.TB, dir string) { must(tb, os.Truncate(filepath.Join(dir, "usr/64"), 63)) }, "63 bytes, not 64", "usr/64"},
		{"longer", func(tb testing.TB, dir string) { must(tb, os.Truncate(filepath.Join(dir, "usr/large"), 4_000_000)) }, "4000000 bytes, not 3200000", "usr/large"},
		{"missing", func(tb testing.TB, dir string) { must(tb, os.Remove(filepath.Join(dir, "usr/4096"))) }, "is missing", "usr/4096"},
		{"a link to the same bytes", func(tb testing.TB, dir string) {
			path := filepath.Join(dir, "usr/4096")
			must(tb, os.Rename(path, filepath.Join(outside, "4096")))
			must(tb, os.Symlink(filepath.Join(outside, "4096"), path))
		}, "replaced by a link", "usr/4096"},
		{"a directory moved out and linked to", func(tb testing.TB, dir string) {
			must(tb, os.Rename(filepath.Join(dir, "usr/bin"), filepath.Join(outside, "bin")))
			must(tb, os.Symlink(filepath.Join(outside, "bin"), filepath.Join(dir, "usr/bin")))
		}, "is missing", "usr/bin/"},
		{"a directory moved out and linked to with ..", func(tb testing.TB, dir string) {
			must(tb, os.Rename(filepath.Join(dir, "usr/bin"), filepath.Join(dir, "../bin")))
			must(tb, os.Symlink("../../bin", filepath.Join(dir, "usr/bin")))
		}, "is missing", "usr/bin/"},
		{"a directory", func(tb testing.TB, dir string) {
			must(tb, os.Remove(filepath.Join(dir, "usr/4096")))
			must(tb, os.Mkdir(filepath.Join(dir, "usr/4096"), 0o755))
		}, "not a regular file", "usr/4096"},
		{"a FIFO", func(tb testing.TB, dir string) {
			must(tb, os.Remove(filepath.Join(dir, "usr/large")))
			must(tb, unix.Mkfifo(filepath.Join(dir, "usr/large"), 0o600))
		}, "not a regular file", "usr/large"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, raw := splitLayer(t, testMembers())
			c.change(t, l.DiffDir)
			repo, path := testRepo(t)
			_, _, err := importLayer(t, repo, l, oci.DigestOf(raw))
			if !errors.Is(err, oci.ErrIntegrity) && !errors.Is(err, composefs.ErrChanged) {
				t.Fatalf("import: %v, want an integrity error", err)
			}
			for _, want := range []string{c.text, filepath.Join(l.DiffDir, c.file)} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
			if entries, _ := os.ReadDir(filepath.Join(path, "streams")); len(entries) > 0 {
				t.Errorf("the repository has streams: %v", entries)
			}
		})
	}
}

// TestChangedMetadata changes the tar-split metadata.
func TestChangedMetadata(t *testing.T) {
	var records []string
	l, raw := splitLayer(t, testMembers())
	z := check(gzip.NewReader(bytes.NewReader(check(os.ReadFile(l.TarSplitPath))(t))))(t)
	for line := range strings.Lines(string(check(io.ReadAll(z))(t))) {
		records = append(records, line)
	}
	compress := func(lines ...string) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		check(io.WriteString(z, strings.Join(lines, "")))(t)
		must(t, z.Close())
		return b.Bytes()
	}
	all := compress(records...)
	unusable := func(err error) bool { return isUnusable(err) }
	corrupt := func(err error) bool { return errors.Is(err, ErrCorrupt) }
	for name, c := range map[string]struct {
		split []byte // nil: no file
		size  int64
		is    func(error) bool
	}{
		"missing":            {nil, int64(len(raw)), func(err error) bool { return errors.Is(err, fs.ErrNotExist) }},
		"not compressed":     {[]byte(strings.Join(records, "")), int64(len(raw)), corrupt},
		"empty":              {[]byte{}, int64(len(raw)), corrupt},
		"cut short":          {all[:len(all)/2], int64(len(raw)), corrupt},
		"not JSON":           {compress("{]\n"), int64(len(raw)), corrupt},
		"unknown type":       {compress(`{"type":3,"position":0}` + "\n"), int64(len(raw)), corrupt},
		"negative size":      {compress(`{"type":1,"name":"f","size":-5,"payload":"AAAAAAAAAAA=","position":0}` + "\n"), int64(len(raw)), corrupt},
		"bad base64":         {compress(`{"type":2,"payload":"*","position":0}` + "\n"), int64(len(raw)), corrupt},
		"line without end":   {compress(`{"type":2,"payload":"` + strings.Repeat("A", maxSplitLine+splitBuffer)), 0, corrupt},
		"entry left out":     {compress(records[1:]...), int64(len(raw)), unusable},
		"entries at the end": {compress(append(records[:len(records):len(records)], records...)...), int64(len(raw)), unusable},
		"record of a sparse": {all, int64(len(raw)) - 4096, unusable},
		"header changed": {compress(append([]string{strings.Replace(records[0], "dXNyL", "dXNzL", 1)}, records[1:]...)...), int64(len(raw)),
			func(err error) bool { return errors.Is(err, oci.ErrMalformed) }},
	} {
		t.Run(name, func(t *testing.T) {
			changed := *l
			changed.TarSplitPath = filepath.Join(t.TempDir(), "split")
			changed.UncompressedSize = c.size
			if c.split != nil {
				must(t, os.WriteFile(changed.TarSplitPath, c.split, 0o600))
			}
			repo, _ := testRepo(t)
			if _, _, err := importLayer(t, repo, &changed, oci.DigestOf(raw)); err == nil || !c.is(err) {
				t.Errorf("import: %v", err)
			}
		})
	}
}

func isUnusable(err error) bool {
	_, ok := errors.AsType[*UnusableLayerError](err)
	return ok
}

func TestUnusableLayers(t *testing.T) {
	for _, l := range []Layer{{DiffDir: "/x"}, {DiffDir: "/x", TarSplitPath: "/x", Partial: "only a part of it was pulled"}} {
		if _, err := OpenLayer(&l); !isUnusable(err) || !strings.Contains(err.Error(), l.Partial) {
			t.Errorf("%+v: %v", l, err)
		}
	}
	l, _ := splitLayer(t, testMembers())
	must(t, os.RemoveAll(l.DiffDir))
	if _, err := OpenLayer(l); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a layer that is gone: %v", err)
	}
}

// FuzzTarSplit compares the reader with the library's.
func FuzzTarSplit(f *testing.F) {
	f.Add([]byte(`{"type":2,"payload":"AAAA","position":0}` + "\n" + `{"type":1,"name":"a","size":3,"payload":"AAAAAAAAAAA=","position":1}`))
	f.Add([]byte(`{"type":1,"name_raw":"//4=","payload":null,"position":0}` + "\n\n"))
	f.Add([]byte(`{"position":0,"payload":"AA==","type":2}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		check(z.Write(text))(t)
		must(t, z.Close())
		path := filepath.Join(t.TempDir(), "split")
		must(t, os.WriteFile(path, b.Bytes(), 0o600))
		ours := check(openTarSplit(path))(t)
		defer ours.Close()
		theirs := storage.NewJSONUnpacker(bytes.NewReader(text))
		for {
			got, err := ours.next()
			if err != nil {
				return // what it refuses is no matter here
			}
			want, err := theirs.Next()
			if err != nil {
				return // it refuses names that occur twice, for instance
			}
			switch {
			case want.Type == storage.SegmentType && (got.segment == nil || !bytes.Equal(got.segment, want.Payload)):
				t.Fatalf("segment %q, the library has %q", got.segment, want.Payload)
			case want.Type == storage.FileType && (got.segment != nil || got.name != want.GetName() || got.size != want.Size):
				t.Fatalf("file %q of %d bytes, the library has %q of %d", got.name, got.size, want.GetName(), want.Size)
			}
		}
	})
}
