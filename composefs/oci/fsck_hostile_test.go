// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// prepared is a repository that somebody prepares to harm those who read it.
type prepared struct {
	testing.TB
	dir string
}

func newPrepared(tb testing.TB) *prepared {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "repo")
	if _, err := composefs.Init(tb.Context(), dir, composefs.InitOptions{Algorithm: fsverity.SHA256, AllowMissingVerity: true}); err != nil {
		tb.Fatal(err)
	}
	p := &prepared{TB: tb, dir: dir}
	for _, d := range []string{"objects", "streams/refs/oci", "images/refs"} {
		p.must(os.MkdirAll(p.path(d), 0o755))
	}
	return p
}

func (p *prepared) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

func (p *prepared) path(name string) string { return filepath.Join(p.dir, name) }

// id is a digest that a test makes up.
func id(text string) fsverity.Digest { return fsverity.Sum(fsverity.SHA256, []byte(text)) }

// place makes room for an object, whatever it will be, and returns its path.
func (p *prepared) place(d fsverity.Digest) string {
	p.Helper()
	path := p.path("objects/" + d.ObjectPath())
	p.must(os.MkdirAll(filepath.Dir(path), 0o755))
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.Fatal(err)
	}
	return path
}

// fake puts content under a name that is not its digest.
func (p *prepared) fake(name fsverity.Digest, content []byte) {
	p.Helper()
	p.must(os.WriteFile(p.place(name), content, 0o644))
}

// put stores content under its own digest.
func (p *prepared) put(content []byte) fsverity.Digest {
	p.Helper()
	d := fsverity.Sum(fsverity.SHA256, content)
	p.fake(d, content)
	return d
}

// sparse makes a file of holes.
func (p *prepared) sparse(d fsverity.Digest, size int64) {
	p.Helper()
	f, err := os.Create(p.place(d))
	p.must(err)
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		p.Skipf("the file system has no files of %d bytes: %v", size, err)
	}
}

func (p *prepared) symlink(name, target string) {
	p.Helper()
	path := p.path(name)
	p.must(os.MkdirAll(filepath.Dir(path), 0o755))
	p.must(os.RemoveAll(path))
	p.must(os.Symlink(target, path))
}

// stream links an object as a stream, image as an image.
func (p *prepared) stream(name string, d fsverity.Digest) {
	p.Helper()
	p.symlink("streams/"+name, "../objects/"+d.ObjectPath())
}

func (p *prepared) image(d fsverity.Digest) {
	p.Helper()
	p.symlink("images/"+d.String(), "../objects/"+d.ObjectPath())
}

func compress(content []byte) []byte {
	w, err := zstd.NewWriter(nil, zstd.WithZeroFrames(true))
	if err != nil {
		panic(err)
	}
	defer w.Close()
	return w.EncodeAll(content, nil)
}

// file is a splitstream, byte by byte.
type file struct {
	ct      splitstream.ContentType
	size    uint64
	streams []fsverity.Digest
	objects []fsverity.Digest
	names   string // decompressed
	chunks  []byte // decompressed
	frame   []byte // in place of chunks
	patch   func([]byte)
}

func (s file) bytes() []byte {
	table := func(ids []fsverity.Digest) (out []byte) {
		for _, d := range ids {
			out = d.AppendBytes(out)
		}
		return out
	}
	frame := s.frame
	if frame == nil {
		frame = compress(s.chunks)
	}
	sections := [][]byte{table(s.streams), table(s.objects), frame, compress([]byte(s.names))}
	out := make([]byte, 112)
	copy(out, "SplitStream")
	out[14], out[15] = byte(fsverity.SHA256), 12
	binary.LittleEndian.PutUint64(out[16:], 32)
	binary.LittleEndian.PutUint64(out[24:], 112)
	for i, section := range sections {
		binary.LittleEndian.PutUint64(out[32+16*i:], uint64(len(out)))
		out = append(out, section...)
		binary.LittleEndian.PutUint64(out[40+16*i:], uint64(len(out)))
	}
	binary.LittleEndian.PutUint64(out[96:], uint64(s.ct))
	binary.LittleEndian.PutUint64(out[104:], s.size)
	if s.patch != nil {
		s.patch(out)
	}
	return out
}

// words are chunks: object indexes, or negative lengths of inline data.
func words(v ...int64) (out []byte) {
	for _, w := range v {
		out = binary.LittleEndian.AppendUint64(out, uint64(w))
	}
	return out
}

// document stores a JSON document and its stream under a name by its digest.
func (p *prepared) document(kind string, ct splitstream.ContentType, raw string, names string, streams ...fsverity.Digest) (oci.Digest, fsverity.Digest) {
	p.Helper()
	d := p.put(file{
		ct: ct, size: uint64(len(raw)), objects: []fsverity.Digest{p.put([]byte(raw))}, chunks: words(0), streams: streams, names: names,
	}.bytes())
	digest := oci.DigestOf([]byte(raw))
	p.stream("oci-"+kind+"-"+digest.String(), d)
	return digest, d
}

func erofsImage(tb testing.TB, root *tree.Node, v erofs.Version) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := erofs.Write(&b, root, erofs.WriteOptions{Version: v}); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func smallTree() *tree.Node {
	root := tree.NewDirectory()
	root.SetEntry("usr", tree.NewDirectory())
	root.SetEntry("f", &tree.Node{Kind: tree.Regular, Size: 100, Object: id("f")})
	return root
}

// preparations are repositories that are out to harm their reader, and a kind
// of finding that each must give.
var preparations = []struct {
	name string
	make func(p *prepared)
	want composefs.Kind
}{
	{"a FIFO as an object", func(p *prepared) { p.must(unix.Mkfifo(p.place(id("x")), 0o644)) }, composefs.ObjectNotRegular},
	{"a socket as an object", func(p *prepared) { p.must(unix.Mknod(p.place(id("x")), unix.S_IFSOCK|0o644, 0)) }, composefs.ObjectNotRegular},
	{"a directory as an object", func(p *prepared) { p.must(os.Mkdir(p.place(id("x")), 0o755)) }, composefs.ObjectNotRegular},
	{"a link to a device as an object", func(p *prepared) { p.must(os.Symlink("/dev/zero", p.place(id("x")))) }, composefs.ObjectNotRegular},
	{"a link to itself as an object", func(p *prepared) { p.must(os.Symlink(filepath.Base(id("x").ObjectPath()), p.place(id("x")))) }, composefs.ObjectNotRegular},
	{"an object of 8 TiB of holes", func(p *prepared) { p.sparse(id("x"), 8<<40) }, composefs.LimitExceeded},
	{"a FIFO as a stream", func(p *prepared) {
		p.must(unix.Mkfifo(p.place(id("x")), 0o644))
		p.stream("oci-layer-"+oci.DigestOf(nil).String(), id("x"))
	}, composefs.StreamOpenFailed},
	{"a FIFO as an image", func(p *prepared) {
		p.must(unix.Mkfifo(p.place(id("x")), 0o644))
		p.image(id("x"))
	}, composefs.ImageOpenFailed},
	{"a FIFO as a document", func(p *prepared) {
		p.must(unix.Mkfifo(p.place(id("x")), 0o644))
		d := p.put(file{ct: splitstream.Manifest, objects: []fsverity.Digest{id("x")}, chunks: words(0)}.bytes())
		p.stream("oci-manifest-"+oci.DigestOf(nil).String(), d)
	}, composefs.ObjectNotRegular},
	{"a FIFO in a layer", func(p *prepared) {
		p.must(unix.Mkfifo(p.place(id("x")), 0o644))
		d := p.put(file{ct: splitstream.Layer, objects: []fsverity.Digest{id("x")}, chunks: words(0)}.bytes())
		p.stream("oci-layer-"+oci.DigestOf(nil).String(), d)
	}, composefs.ObjectNotRegular},
	{"objects lead out", func(p *prepared) { p.symlink("objects", "/") }, composefs.UnexpectedType},
	{"a directory of objects leads out", func(p *prepared) { p.symlink("objects/00", "/usr/bin") }, composefs.UnexpectedType},
	{"streams lead out", func(p *prepared) { p.symlink("streams", "/proc") }, composefs.UnexpectedType},
	{"refs lead out", func(p *prepared) { p.symlink("streams/refs", "/") }, composefs.StatFailed},
	{"refs lead to themselves", func(p *prepared) { p.symlink("images/refs/a", ".") }, composefs.RefTargetInvalid},
	{"links lead out", func(p *prepared) {
		p.symlink("streams/a", "../../../../../../etc/passwd")
		p.symlink("streams/b", "../../../../../../proc/self/objects/"+id("x").ObjectPath())
	}, composefs.LinkTargetInvalid},
	{"a link to a very long target", func(p *prepared) { p.symlink("streams/a", "../"+strings.Repeat("x/", 2000)) }, composefs.LinkTargetInvalid},
	{"names that a terminal obeys", func(p *prepared) {
		p.symlink("streams/a\x1b]0;owned\x07\nok", "../objects/"+id("x").ObjectPath())
		p.symlink("streams/refs/oci/\x1b[2J", "../../a")
	}, composefs.BrokenSymlink},
	{"refs without end", func(p *prepared) {
		for i := range 3000 {
			p.must(os.Symlink("../../absent", p.path(fmt.Sprintf("streams/refs/oci/%d", i))))
		}
	}, composefs.BrokenSymlink},
	{"directories of refs without end", func(p *prepared) {
		p.must(os.MkdirAll(p.path("streams/refs"+strings.Repeat("/d", 300)), 0o755))
	}, composefs.LimitExceeded},
	{"streams in a circle", func(p *prepared) {
		p.fake(id("a"), file{streams: []fsverity.Digest{id("b")}, names: "0:next\x00"}.bytes())
		p.fake(id("b"), file{streams: []fsverity.Digest{id("a")}, names: "0:next\x00"}.bytes())
		p.stream("a", id("a"))
	}, composefs.ObjectDigestMismatch},
	{"a stream that names itself in all roles", func(p *prepared) {
		p.fake(id("a"), file{
			ct: splitstream.Config, size: 1 << 40, streams: []fsverity.Digest{id("a")}, objects: []fsverity.Digest{id("a")},
			names: "0:composefs.image\x000:config:sha256:0\x000:self\x00", chunks: bytes.Repeat(words(0), 10_000),
		}.bytes())
		for _, kind := range []string{"config", "manifest", "layer", "blob"} {
			p.stream("oci-"+kind+"-"+oci.DigestOf([]byte(kind)).String(), id("a"))
		}
		p.image(id("a"))
	}, composefs.StreamTypeMismatch},
	{"a chain of streams", func(p *prepared) {
		next := p.put(file{}.bytes())
		for range 300 {
			next = p.put(file{streams: []fsverity.Digest{next}, names: "0:next\x00"}.bytes())
		}
		p.stream("first", next)
	}, composefs.NamedRefNotLinked},
	{"a table beyond the end", func(p *prepared) {
		p.stream("a", p.put(file{patch: func(b []byte) { binary.LittleEndian.PutUint64(b[56:], 1<<63) }}.bytes()))
	}, composefs.StreamOpenFailed},
	{"a table that overlaps the header", func(p *prepared) {
		p.stream("a", p.put(file{patch: func(b []byte) { binary.LittleEndian.PutUint64(b[48:], 0); binary.LittleEndian.PutUint64(b[56:], 96) }}.bytes()))
	}, composefs.MissingObjectRef},
	{"an enormous table of holes", func(p *prepared) {
		raw := file{}.bytes()
		binary.LittleEndian.PutUint64(raw[48:], 1<<20)
		binary.LittleEndian.PutUint64(raw[56:], 1<<20+32<<19)
		p.fake(id("a"), raw)
		p.must(os.Truncate(p.path("objects/"+id("a").ObjectPath()), 1<<20+32<<19))
		p.stream("a", id("a"))
	}, composefs.MissingObjectRef},
	{"a table that is too long", func(p *prepared) {
		raw := file{}.bytes()
		binary.LittleEndian.PutUint64(raw[56:], 1<<40)
		p.fake(id("a"), raw)
		if err := os.Truncate(p.path("objects/"+id("a").ObjectPath()), 1<<41); err != nil {
			p.Skip(err)
		}
		p.stream("a", id("a"))
	}, composefs.StreamOpenFailed},
	{"names that expand without end", func(p *prepared) {
		p.stream("a", p.put(file{names: strings.Repeat("0:\x00", 8<<20)}.bytes()))
	}, composefs.StreamOpenFailed},
	{"chunks that expand beyond what the stream says", func(p *prepared) {
		raw := append(words(-1<<30), make([]byte, 64<<20)...)
		p.stream("a", p.put(file{size: 100, chunks: raw}.bytes()))
	}, composefs.StreamSizeMismatch},
	{"chunks of nothing", func(p *prepared) {
		empty := p.put(nil)
		p.stream("a", p.put(file{objects: []fsverity.Digest{empty}, chunks: bytes.Repeat(words(0), 4<<20)}.bytes()))
	}, composefs.StreamSizeMismatch},
	{"a chunk of 2^63 bytes", func(p *prepared) {
		p.stream("a", p.put(file{size: 1<<64 - 1, chunks: words(-1 << 63)}.bytes()))
	}, composefs.StreamReadFailed},
	{"a chunk of an object that is in no table", func(p *prepared) {
		p.stream("a", p.put(file{size: 1, chunks: words(1 << 40)}.bytes()))
	}, composefs.StreamReadFailed},
	{"a layer of one large file again and again", func(p *prepared) {
		p.sparse(id("x"), 8<<40)
		d := p.put(file{ct: splitstream.Layer, size: 1<<64 - 1, objects: []fsverity.Digest{id("x")}, chunks: bytes.Repeat(words(0), 1<<20)}.bytes())
		p.stream("oci-layer-"+oci.DigestOf(nil).String(), d)
	}, composefs.LimitExceeded},
	{"a window of zstd beyond all memory", func(p *prepared) {
		p.stream("a", p.put(file{frame: []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 0x41, 0x00, 0x00, 0, 0, 0, 0, 0, 0, 0, 0}}.bytes()))
	}, composefs.StreamReadFailed},
	{"an image that is not one", func(p *prepared) { p.image(p.put(make([]byte, 1<<20))) }, composefs.ImageInvalid},
	{"an image of holes", func(p *prepared) {
		raw := erofsImage(p, smallTree(), erofs.V1)
		p.fake(id("a"), raw)
		p.must(os.Truncate(p.path("objects/"+id("a").ObjectPath()), 64<<30))
		p.image(id("a"))
	}, composefs.ImageReadFailed},
	{"an image that says it has all inodes of the world", func(p *prepared) {
		raw := erofsImage(p, smallTree(), erofs.V2)
		binary.LittleEndian.PutUint64(raw[1024+16:], 1<<62)
		p.image(p.put(raw))
	}, composefs.ImageInvalid},
	{"an image whose directory is somewhere else", func(p *prepared) {
		raw := erofsImage(p, smallTree(), erofs.V2)
		raw[1152] = 0                                            // plain layout
		binary.LittleEndian.PutUint32(raw[1152+16:], 0xfffffff0) // its block
		p.image(p.put(raw))
	}, composefs.ImageInvalid},
	{"an image whose directory contains itself", func(p *prepared) {
		raw := erofsImage(p, smallTree(), erofs.V2)
		binary.LittleEndian.PutUint64(raw[1152+64+3*12:], 1152/32)
		p.image(p.put(raw))
	}, composefs.ImageInvalid},
	{"an image with objects of another repository", func(p *prepared) {
		root := tree.NewDirectory()
		root.SetEntry("f", &tree.Node{Kind: tree.Regular, Size: 100, Object: fsverity.Sum(fsverity.SHA512, nil)})
		p.image(p.put(erofsImage(p, root, erofs.V2)))
	}, composefs.ImageInvalid},
	{"a manifest of brackets", func(p *prepared) {
		p.document("manifest", splitstream.Manifest, strings.Repeat("[", 1<<20), "")
	}, oci.ManifestParseFailed},
	{"a manifest that is too large", func(p *prepared) {
		p.document("manifest", splitstream.Manifest, `{"config":{}}`+strings.Repeat(" ", oci.MaxDocument), "")
	}, oci.ManifestReadFailed},
	{"a config of a million layers", func(p *prepared) {
		diff := oci.DigestOf(nil).String()
		raw := `{"rootfs":{"diff_ids":["` + strings.Repeat(diff+`","`, 100_000) + diff + `"]}}`
		d, stream := p.document("config", splitstream.Config, raw, "")
		manifest := fmt.Sprintf(`{"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q}}`, d)
		p.document("manifest", splitstream.Manifest, manifest, "0:config:"+d.String()+"\x00", stream)
	}, oci.ConfigParseFailed},
	{"a config that names its layers as images", func(p *prepared) {
		layer := p.put(file{ct: splitstream.Layer}.bytes())
		diff := oci.DigestOf(nil)
		p.stream("oci-layer-"+diff.String(), layer)
		raw := fmt.Sprintf(`{"rootfs":{"diff_ids":[%q]}}`, diff)
		names := "0:composefs.image\x000:composefs.image.boot.v1.xattrs=keep-user-xattrs\x000:composefs.imagined\x000:" + diff.String() + "\x00"
		p.document("config", splitstream.Config, raw, names, layer)
	}, oci.ImageNotLinked},
	{"a layer of garbage that an image is made from", func(p *prepared) {
		garbage := bytes.Repeat([]byte{0xff}, 2048)
		layer := p.put(file{ct: splitstream.Layer, size: 2048, chunks: append(words(-2048), garbage...)}.bytes())
		diff := oci.DigestOf(garbage)
		p.stream("oci-layer-"+diff.String(), layer)
		image := p.put(erofsImage(p, tree.NewDirectory(), erofs.V1))
		p.image(image)
		raw := fmt.Sprintf(`{"rootfs":{"diff_ids":[%q]}}`, diff)
		p.document("config", splitstream.Config, raw, "0:composefs.image.v1\x001:"+diff.String()+"\x00", image, layer)
	}, oci.ImageRebuildFailed},
	{"tags that are everything else", func(p *prepared) {
		p.must(os.Mkdir(p.path("streams/refs/oci/dir"), 0o755))
		p.must(unix.Mkfifo(p.path("streams/refs/oci/fifo"), 0o644))
		p.symlink("streams/refs/oci/self", "self")
		p.symlink("streams/refs/oci/root", "/")
		p.symlink("streams/refs/oci/up", "../../..")
	}, composefs.UnexpectedType},
}

// maxDuration is far above what a check of any of these takes on a machine
// that has other things to do.
const maxDuration = 2 * time.Minute

// checkPrepared checks a repository in each way. It must end, without an error.
func checkPrepared(t *testing.T, p *prepared, refs ...string) *oci.FsckReport {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), maxDuration)
	defer cancel()
	repo, err := composefs.Open(ctx, p.dir, composefs.OpenOptions{})
	p.must(err)
	defer func() {
		if err := repo.Close(); err != nil {
			t.Error(err)
		}
	}()
	full, err := oci.Fsck(ctx, repo, oci.FsckOptions{MaxFindings: 50})
	p.must(err)
	_, err = oci.Fsck(ctx, repo, oci.FsckOptions{Quick: true, MaxFindings: 50})
	p.must(err)
	for _, ref := range refs {
		// A reference to nothing is an error, of course.
		if _, err = oci.Fsck(ctx, repo, oci.FsckOptions{Image: ref, MaxFindings: 50}); ctx.Err() != nil {
			t.Error(err)
		}
	}
	_, err = oci.Fsck(ctx, repo, oci.FsckOptions{Repair: true, MaxFindings: 50})
	p.must(err)
	again, err := oci.Fsck(ctx, repo, oci.FsckOptions{MaxFindings: 50})
	p.must(err)
	for _, f := range again.Findings {
		if f.Repairable && !slices.ContainsFunc(full.Findings, func(g composefs.Finding) bool { return g.Kind == f.Kind }) {
			t.Errorf("a repair left %+v", f)
		}
	}
	return full
}

func TestFsckHostile(t *testing.T) {
	if len(preparations) < 40 {
		t.Errorf("only %d repositories", len(preparations))
	}
	for _, h := range preparations {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			p := newPrepared(t)
			h.make(p)
			r := checkPrepared(t, p, "self", oci.DigestOf([]byte("manifest")).String())
			if r.ByKind[h.want] == 0 {
				t.Errorf("no finding %s: %+v", h.want, r.Findings)
			}
			for _, f := range r.Findings {
				if strings.ContainsFunc(f.Path+f.Message+f.Stream, func(r rune) bool { return r < ' ' || r == 0x7f }) || len(f.Message) > 4096 {
					t.Errorf("finding %q %q is not fit to print", f.Path, f.Message)
				}
			}
		})
	}
}
