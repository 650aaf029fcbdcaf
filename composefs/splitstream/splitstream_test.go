// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package splitstream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

const sha = fsverity.SHA256

func newFile(tb testing.TB) *os.File {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), "stream"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	return f
}

// write makes a stream with fill and reads it back.
func write(tb testing.TB, ct ContentType, fill func(*Writer)) (*Reader, []byte) {
	tb.Helper()
	f := newFile(tb)
	w, err := NewWriter(f, sha, ct)
	if err != nil {
		tb.Fatal(err)
	}
	fill(w)
	if err := w.Finish(); err != nil {
		tb.Fatal(err)
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		tb.Fatal(err)
	}
	r, err := NewReader(f, int64(len(b)), ReaderOptions{Algorithm: sha, ContentType: ct})
	if err != nil {
		tb.Fatal(err)
	}
	return r, b
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func say(tb testing.TB, w *Writer, s string) {
	tb.Helper()
	n, err := io.WriteString(w, s)
	if err != nil || n != len(s) {
		tb.Fatalf("write %d bytes: %d, %v", len(s), n, err)
	}
}

func id(s string) fsverity.Digest { return fsverity.Sum(sha, []byte(s)) }

func TestWriter(t *testing.T) {
	a, b := strings.Repeat("A", 100), strings.Repeat("B", 65)
	r, raw := write(t, Layer, func(w *Writer) {
		say(t, w, "h")
		say(t, w, "dr")
		must(t, w.External(id(a), 100))
		say(t, w, "mid")
		must(t, w.AddStreamRef("zz", id("zz")))
		must(t, w.External(id(b), 65))
		must(t, w.External(id(a), 100))
		say(t, w, "")
		say(t, w, "end")
		must(t, w.AddStreamRef("aa:bb", id("aa")))
		must(t, w.AddStreamRef("aa", id("zz")))
		must(t, w.AddStreamRef("twice", id("first")))
		must(t, w.AddStreamRef("twice", id("second")))
		must(t, w.AddObjectRef(id("extra")))
		must(t, w.AddObjectRef(id(b)))
		if w.InlineBytes() != 9 || w.Size() != 274 {
			t.Errorf("inline %d, size %d; want 9, 274", w.InlineBytes(), w.Size())
		}
	})
	if r.Size() != 274 || r.ContentType() != Layer {
		t.Errorf("size %d, type %s", r.Size(), r.ContentType())
	}
	want := []piece{{Inline: "hdr"}, {Object: fileA}, {Inline: "mid"}, {Object: fileB}, {Object: fileA}, {Inline: "end"}}
	if diff := cmp.Diff(want, pieces(t, r)); diff != "" {
		t.Errorf("chunks (-want +got):\n%s", diff)
	}
	if got, want := fmt.Sprint(r.ObjectRefs()), fmt.Sprint([]fsverity.Digest{id(a), id(b), id("extra")}); got != want {
		t.Errorf("object_refs %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(r.StreamRefs()), fmt.Sprint([]fsverity.Digest{id("zz"), id("aa"), id("first"), id("second")}); got != want {
		t.Errorf("stream_refs %s, want %s", got, want)
	}
	names := []NamedRef{{"aa", id("zz")}, {"aa:bb", id("aa")}, {"twice", id("second")}, {"zz", id("zz")}}
	if fmt.Sprint(r.NamedRefs()) != fmt.Sprint(names) {
		t.Errorf("named_refs %v, want %v", r.NamedRefs(), names)
	}
	h, err := decodeHeader((*[headerSize]byte)(raw))
	must(t, err)
	if string(raw[:11]) != magic || h.info != (span{32, 112}) {
		t.Errorf("header % x", raw[:32])
	}
	i := decodeInfo((*[infoSize]byte)(raw[32:]))
	if i.streamRefs.start%8 != 0 || i.objectRefs.start%8 != 0 {
		t.Errorf("tables are not aligned: %+v", i)
	}
	names2, err := io.ReadAll(unzstd(t, raw[i.namedRefs.start:i.namedRefs.end]))
	must(t, err)
	if got, want := string(names2), "0:aa\x001:aa:bb\x003:twice\x000:zz\x00"; got != want {
		t.Errorf("named_refs text %q, want %q", got, want)
	}
}

func unzstd(tb testing.TB, b []byte) io.Reader {
	tb.Helper()
	d, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1))
	must(tb, err)
	tb.Cleanup(d.Close)
	return d
}

// Other readers refuse a section of no bytes.
func TestWriterEmptySectionsAreFrames(t *testing.T) {
	r, raw := write(t, Any, func(*Writer) {})
	for _, s := range []span{r.info.stream, r.info.namedRefs} {
		if got := raw[s.start:s.end]; !bytes.Equal(got, emptyFrame[:]) {
			t.Errorf("section % x, want % x", got, emptyFrame)
		}
	}
	if got := pieces(t, r); got != nil {
		t.Errorf("chunks %v, want none", got)
	}
}

func TestWriterOneChunkForEachRun(t *testing.T) {
	noise := make([]byte, 3*maxBufferedRun)
	rand.NewChaCha8([32]byte{}).Read(noise)
	for _, sizes := range [][]int{
		{maxBufferedRun}, {maxBufferedRun - 1, 1}, {maxBufferedRun, 1}, {1, maxBufferedRun}, {maxBufferedRun + 1},
		{100, 2 * maxBufferedRun, 7}, {3 * maxBufferedRun},
	} {
		t.Run(fmt.Sprint(sizes), func(t *testing.T) {
			var run string
			r, _ := write(t, Layer, func(w *Writer) {
				for i := range 2 { // a run after a run, and a short one at the end
					off := 0
					for _, n := range sizes {
						say(t, w, string(noise[off:off+n]))
						off += n
					}
					run = string(noise[:off])
					must(t, w.External(id(fmt.Sprint(i)), 1))
				}
				say(t, w, "tail")
				if cap(w.run) > 2*maxBufferedRun {
					t.Errorf("%d bytes are buffered", cap(w.run))
				}
			})
			want := []piece{{Inline: run}, {Object: id("0").String()}, {Inline: run}, {Object: id("1").String()}, {Inline: "tail"}}
			got := pieces(t, r)
			if !cmp.Equal(want, got) {
				t.Errorf("%d chunks are not what was written", len(got))
			}
		})
	}
}

// The fixed frame must be what a decoder takes for eight raw bytes.
func TestWordFrame(t *testing.T) {
	b := wordFrame
	copy(b[len(b)-8:], "chunklen")
	got, err := io.ReadAll(unzstd(t, append(b[:], emptyFrame[:]...)))
	if err != nil || string(got) != "chunklen" {
		t.Errorf("decoded %q, %v", got, err)
	}
}

func TestWriterRefuses(t *testing.T) {
	tests := map[string]func(*Writer) error{
		"digest of another algorithm as external": func(w *Writer) error { return w.External(fsverity.Sum(fsverity.SHA512, nil), 1) },
		"no digest":                   func(w *Writer) error { return w.External(fsverity.Digest{}, 1) },
		"another algorithm as stream": func(w *Writer) error { return w.AddStreamRef("a", fsverity.Sum(fsverity.SHA512, nil)) },
		"name with NUL":               func(w *Writer) error { return w.AddStreamRef("a\x00b", id("")) },
		"name that is not UTF-8":      func(w *Writer) error { return w.AddStreamRef("\xff", id("")) },
		"size overflow": func(w *Writer) error {
			return errors.Join(w.External(id("a"), 1<<62), w.External(id("a"), 1<<62))
		},
	}
	for name, f := range tests {
		t.Run(name, func(t *testing.T) {
			w, err := NewWriter(newFile(t), sha, Layer)
			must(t, err)
			if err := f(w); err == nil {
				t.Fatal("accepted")
			}
			if err := w.Finish(); err == nil {
				t.Error("finished after an error")
			}
		})
	}
	if _, err := NewWriter(newFile(t), 3, Layer); err == nil {
		t.Error("unknown algorithm accepted")
	}
}

func TestWriterReportsFileErrors(t *testing.T) {
	f, err := os.Open(os.DevNull) // not writable
	must(t, err)
	defer f.Close()
	w, err := NewWriter(f, sha, Layer)
	must(t, err)
	must(t, w.AddStreamRef("a", id("a")))
	if err := w.Finish(); err == nil {
		t.Error("writing to a file opened for reading succeeded")
	}
}

// build assembles a file from parts, so that tests can break each of them.
type build struct {
	header    func([]byte)
	info      func(*info)
	infoExtra int
	streams   []byte
	objects   []byte
	names     string
	namesRaw  []byte
	chunks    []byte
	chunksRaw []byte
}

func compress(tb testing.TB, b []byte) []byte {
	tb.Helper()
	enc, err := newEncoder()
	must(tb, err)
	return enc.EncodeAll(b, nil)
}

func (b build) file(tb testing.TB) []byte {
	tb.Helper()
	var i info
	body := make([]byte, infoEnd+b.infoExtra)
	add := func(p []byte) span {
		s := span{uint64(len(body)), uint64(len(body) + len(p))}
		body = append(body, p...)
		return s
	}
	// In an order of its own: ranges count, not places.
	if b.chunksRaw == nil {
		b.chunksRaw = compress(tb, b.chunks)
	}
	i.stream = add(b.chunksRaw)
	i.objectRefs = add(b.objects)
	if b.namesRaw == nil {
		b.namesRaw = compress(tb, []byte(b.names))
	}
	i.namedRefs = add(b.namesRaw)
	i.streamRefs = add(b.streams)
	if b.info != nil {
		b.info(&i)
	}
	h := header{algorithm: sha, info: span{infoStart, infoEnd + uint64(b.infoExtra)}}.encode()
	e := i.encode()
	copy(body, h[:])
	copy(body[infoStart:], e[:])
	if b.header != nil {
		b.header(body)
	}
	return body
}

func word(n int64, more ...byte) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, uint64(n)), more...)
}

func TestReaderRefusesTables(t *testing.T) {
	one := id("one").Bytes()
	names := func(s string) build { return build{streams: one, names: s} }
	tests := map[string]build{
		"no magic":                  {header: func(b []byte) { b[0] = 's' }},
		"version 1":                 {header: func(b []byte) { b[11] = 1 }},
		"algorithm 2":               {header: func(b []byte) { b[14] = 2 }},
		"algorithm 0":               {header: func(b []byte) { b[14] = 0 }},
		"block size 2^16":           {header: func(b []byte) { b[15] = 16 }},
		"info block behind the end": {header: func(b []byte) { binary.LittleEndian.PutUint64(b[24:], 1<<40) }},
		"info block backwards":      {header: func(b []byte) { binary.LittleEndian.PutUint64(b[16:], 200) }},
		"info block too short":      {header: func(b []byte) { binary.LittleEndian.PutUint64(b[24:], 111) }},
		"info block of -1":          {header: func(b []byte) { copy(b[16:32], bytes.Repeat([]byte{0xff}, 16)) }},
		"stream backwards":          {info: func(i *info) { i.stream.start = i.stream.end + 1 }},
		"stream behind the end":     {info: func(i *info) { i.stream.end = 1 << 62 }},
		"stream of -1":              {info: func(i *info) { i.stream.end = 1<<64 - 1 }},
		"objects behind the end":    {info: func(i *info) { i.objectRefs.end += 1 << 20 }},
		"objects not a multiple":    {objects: one[:31]},
		"streams not a multiple":    {streams: append(one[:32:32], 0)},
		"no named_refs frame":       {info: func(i *info) { i.namedRefs.end = i.namedRefs.start }},
		"named_refs cut off":        {streams: one, names: strings.Repeat("0:a name\x00", 100), info: func(i *info) { i.namedRefs.end-- }},
		"named_refs not zstd":       {namesRaw: []byte("0:a\x00")},
		"name without NUL":          names("0:a"),
		"name without colon":        names("0\x00"),
		"index not a number":        names("x:a\x00"),
		"index negative":            names("-1:a\x00"),
		"index empty":               names(":a\x00"),
		"index out of range":        names("1:a\x00"),
		"index huge":                names("18446744073709551616:a\x00"),
		"name not UTF-8":            names("0:\xff\x00"),
		"names bomb":                names(strings.Repeat("0:a\x00", maxNamesSize/4+1)),
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			f := b.file(t)
			_, err := NewReader(bytes.NewReader(f), int64(len(f)), ReaderOptions{Algorithm: sha})
			if !errors.Is(err, ErrFormat) {
				t.Errorf("error %v, want %v", err, ErrFormat)
			}
		})
	}
}

func TestReaderAccepts(t *testing.T) {
	one, two := id("one").Bytes(), id("two").Bytes()
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0}, "abc"...)
	tests := map[string]struct {
		build
		names  string
		chunks []piece
	}{
		"longer info block":      {build: build{infoExtra: 40}},
		"flags":                  {build: build{header: func(b []byte) { b[12], b[13] = 0xff, 0xff }}},
		"last of a name counts":  {build: build{streams: append(one, two...), names: "0:a\x001:b\x001:a\x00"}, names: "[a=1 b=1]"},
		"names in any order":     {build: build{streams: append(one, two...), names: "0:b\x001:a\x001:\x00"}, names: "[=1 a=1 b=0]"},
		"adjacent inline chunks": {build: build{chunks: append(word(-1, 'a'), word(-2, 'b', 'c')...)}, chunks: []piece{{Inline: "a"}, {Inline: "bc"}}},
		"two frames and a skippable one": {
			build:  build{chunksRaw: append(append(compress(t, word(-3, 'a')), skippable...), compress(t, []byte("bc"))...)},
			chunks: []piece{{Inline: "abc"}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := tt.file(t)
			// A reader that returns data and EOF at once is legal.
			r, err := NewReader(bytes.NewReader(f), int64(len(f)), ReaderOptions{})
			must(t, err)
			var names []string
			for _, n := range r.names {
				names = append(names, fmt.Sprintf("%s=%d", n.name, n.index))
			}
			if got := fmt.Sprint(names); tt.names != "" && got != tt.names {
				t.Errorf("names %s, want %s", got, tt.names)
			}
			if diff := cmp.Diff(tt.chunks, pieces(t, r)); diff != "" {
				t.Errorf("chunks (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReaderOptions(t *testing.T) {
	b := vector(t, "config")
	open := func(o ReaderOptions) error {
		_, err := NewReader(bytes.NewReader(b), int64(len(b)), o)
		return err
	}
	if err := open(ReaderOptions{ContentType: Layer}); !errors.Is(err, ErrContentType) || errors.Is(err, ErrFormat) {
		t.Errorf("other type: %v", err)
	}
	if err := open(ReaderOptions{Algorithm: fsverity.SHA512}); !errors.Is(err, ErrFormat) {
		t.Errorf("other algorithm: %v", err)
	}
	for n := range b {
		// Every prefix is refused or, cut in the stream section at the end,
		// found out when that is read; here its range is.
		_, err := NewReader(bytes.NewReader(b[:n]), int64(n), ReaderOptions{})
		if !errors.Is(err, ErrFormat) {
			t.Fatalf("prefix of %d bytes: %v", n, err)
		}
	}
	broken := iotest.ErrReader(io.ErrClosedPipe)
	if _, err := NewReader(readerAt{broken}, 1000, ReaderOptions{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("reading fails: %v", err)
	}
	if _, err := NewReader(bytes.NewReader(b[:100]), int64(len(b)), ReaderOptions{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("shorter than said: %v", err)
	}
}

type readerAt struct{ io.Reader }

func (r readerAt) ReadAt(p []byte, _ int64) (int, error) { return r.Read(p) }

func TestChunksRefuses(t *testing.T) {
	one := id("one").Bytes()
	tests := map[string]build{
		"object out of range":     {objects: one, chunks: word(1)},
		"object without a table":  {chunks: word(0)},
		"largest number":          {objects: one, chunks: word(1<<63 - 1)},
		"word cut off":            {objects: one, chunks: word(0)[:7]},
		"inline without bytes":    {chunks: word(-1)},
		"inline bytes cut off":    {chunks: word(-3, 'a', 'b')},
		"smallest number":         {chunks: word(-1<<63, 'a', 'b')},
		"frame cut off":           {chunks: word(-100, bytes.Repeat([]byte("abcdefghij"), 10)...), info: func(i *info) { i.stream.end-- }},
		"not zstd":                {chunksRaw: word(-3, 'a', 'b', 'c')},
		"garbage behind":          {chunksRaw: append(compress(t, word(-1, 'a')), "garbage"...)},
		"window larger than 2^27": {chunksRaw: []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 18<<3 | 1<<2, 0x41, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			f := b.file(t)
			r, err := NewReader(bytes.NewReader(f), int64(len(f)), ReaderOptions{})
			must(t, err)
			// With and without reading the inline bytes.
			for _, read := range []bool{true, false} {
				c, err := r.Chunks()
				must(t, err)
				defer c.Close()
				for err == nil {
					if _, err = c.Next(); err == nil && read {
						_, err = io.Copy(io.Discard, c)
					}
				}
				if !errors.Is(err, ErrFormat) {
					t.Errorf("read %t: error %v, want %v", read, err, ErrFormat)
				}
				if _, again := c.Next(); again != err {
					t.Errorf("the error is not kept: %v", again)
				}
			}
			if err := r.Reassemble(io.Discard, func(fsverity.Digest) (io.ReadCloser, error) {
				return io.NopCloser(strings.NewReader("")), nil
			}); !errors.Is(err, ErrFormat) {
				t.Errorf("reassemble: %v", err)
			}
		})
	}
	t.Run("no frame", func(t *testing.T) {
		f := build{info: func(i *info) { i.stream.end = i.stream.start }}.file(t)
		r, err := NewReader(bytes.NewReader(f), int64(len(f)), ReaderOptions{})
		must(t, err)
		if _, err := r.Chunks(); !errors.Is(err, ErrFormat) {
			t.Errorf("error %v, want %v", err, ErrFormat)
		}
	})
}

func TestSmallestNumberIsALength(t *testing.T) {
	f := build{chunks: word(-1<<63, 'a')}.file(t)
	r, err := NewReader(bytes.NewReader(f), int64(len(f)), ReaderOptions{})
	must(t, err)
	c, err := r.Chunks()
	must(t, err)
	defer c.Close()
	if chunk, err := c.Next(); err != nil || !chunk.Inline || chunk.Length != 1<<63 {
		t.Errorf("chunk %+v, %v; want 2^63 inline bytes", chunk, err)
	}
}

func TestNextSkipsUnreadBytes(t *testing.T) {
	long := strings.Repeat("0123456789", 10000)
	r, _ := write(t, Layer, func(w *Writer) {
		say(t, w, long)
		must(t, w.External(id("x"), 1))
		say(t, w, "end")
	})
	c, err := r.Chunks()
	must(t, err)
	defer c.Close()
	_, err = c.Next()
	must(t, err)
	b := make([]byte, 15)
	_, err = io.ReadFull(c, b)
	must(t, err)
	if string(b) != long[:15] {
		t.Errorf("read %q", b)
	}
	if chunk, err := c.Next(); err != nil || chunk.Object != id("x") {
		t.Errorf("chunk %+v, %v", chunk, err)
	}
	if n, err := c.Read(b); n != 0 || err != io.EOF {
		t.Errorf("read in an external chunk: %d, %v", n, err)
	}
	_, err = c.Next()
	must(t, err)
	if got, err := io.ReadAll(iotest.OneByteReader(c)); err != nil || string(got) != "end" {
		t.Errorf("read %q, %v", got, err)
	}
	if _, err := c.Next(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	c.Close()
	c2, err := r.Chunks()
	must(t, err)
	c2.Close()
	if _, err := c2.Next(); err == nil || err == io.EOF {
		t.Errorf("after Close: %v", err)
	}
}

func TestReassembleStopsAtErrors(t *testing.T) {
	r, _ := write(t, Layer, func(w *Writer) {
		say(t, w, "a")
		must(t, w.External(id("x"), 1))
	})
	if err := r.Reassemble(io.Discard, func(fsverity.Digest) (io.ReadCloser, error) { return nil, os.ErrNotExist }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing object: %v", err)
	}
	if err := r.Reassemble(io.Discard, func(fsverity.Digest) (io.ReadCloser, error) {
		return io.NopCloser(iotest.ErrReader(io.ErrClosedPipe)), nil
	}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("unreadable object: %v", err)
	}
}

func TestContentTypeString(t *testing.T) {
	for ct, want := range map[ContentType]string{
		Layer: "ocilayer", Config: "ociconfg", Manifest: "ocimanif", Blob: "oci_blob", 0: "0x0", 0xAFE138C18C463EF1: "0xafe138c18c463ef1",
	} {
		if got := ct.String(); got != want {
			t.Errorf("%#x: %q, want %q", uint64(ct), got, want)
		}
	}
}

func FuzzReader(f *testing.F) {
	for _, name := range []string{"empty", "inline", "inline-old-header", "mixed", "config", "layer"} {
		f.Add(vector(f, name))
	}
	one := id("one").Bytes()
	f.Add(build{streams: one, objects: one, names: "0:a\x00", chunks: append(word(-3, []byte("abc")...), word(0)...)}.file(f))
	f.Add(build{chunks: word(-1 << 63)}.file(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := NewReader(bytes.NewReader(b), int64(len(b)), ReaderOptions{})
		if err != nil {
			return
		}
		for _, n := range r.NamedRefs() {
			if id, ok := r.NamedRef(n.Name); !ok || id != n.ID {
				t.Errorf("look up %q: %s, %t; listed as %s", n.Name, id, ok, n.ID)
			}
		}
		c, err := r.Chunks()
		if err != nil {
			return
		}
		defer c.Close()
		// What can be read can be written, and reads the same.
		file, err := os.CreateTemp(t.TempDir(), "")
		must(t, err)
		defer file.Close()
		w, err := NewWriter(file, r.Algorithm(), r.ContentType())
		must(t, err)
		var want bytes.Buffer
		for total := 0; ; {
			chunk, err := c.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return
			}
			if !chunk.Inline {
				must(t, w.External(chunk.Object, 0))
				fmt.Fprintf(&want, "[%s]", chunk.Object)
				continue
			}
			n, err := io.Copy(io.MultiWriter(w, &want), io.LimitReader(c, 1<<20))
			if err != nil {
				return
			}
			if total += int(n); total > 1<<20 {
				return // a bomb
			}
		}
		must(t, w.Finish())
		st, err := file.Stat()
		must(t, err)
		r2, err := NewReader(file, st.Size(), ReaderOptions{Algorithm: r.Algorithm()})
		must(t, err)
		var got bytes.Buffer
		must(t, r2.Reassemble(&got, func(id fsverity.Digest) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader("[" + id.String() + "]")), nil
		}))
		if !bytes.Equal(want.Bytes(), got.Bytes()) {
			t.Errorf("written again: %q, want %q", got.Bytes(), want.Bytes())
		}
	})
}
