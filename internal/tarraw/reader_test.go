// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package tarraw

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// sample has members of every kind and a body larger than the read buffer.
func sample() string {
	return member(paxData("path", "g"), typ('g')) + member("", typ('5'), name("d/")) + member(body(64), name("d/small")) +
		longName("d/"+strings.Repeat("l", 200)) + member(body(65)) + member(body(1000), typ('1')) +
		pax("SCHILY.xattr.user.a", "1") + member(body(3*bufferSize+1), name("d/big")) + member(body(512), name("d/block")) +
		header(name("d/empty")) + zeros(2) + strings.Repeat("after", 100000)
}

func TestSources(t *testing.T) {
	archive := sample()
	want, pieces, err := frame(strings.NewReader(archive), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if join(pieces) != archive {
		t.Fatal("pieces do not make the archive")
	}
	sources := map[string]func(io.Reader) io.Reader{
		"half reads":         iotest.HalfReader,
		"one byte reads":     iotest.OneByteReader,
		"data with EOF":      iotest.DataErrReader,
		"reads of nothing":   func(r io.Reader) io.Reader { return &stutter{r: r} },
		"513 bytes at once":  func(r io.Reader) io.Reader { return &limited{r, 513} },
		"buffer and 1 byte":  func(r io.Reader) io.Reader { return &limited{r, bufferSize + 1} },
		"hides other method": func(r io.Reader) io.Reader { return struct{ io.Reader }{r} },
	}
	for name, source := range sources {
		t.Run(name, func(t *testing.T) {
			got, gotPieces, err := frame(source(strings.NewReader(archive)), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if !cmp.Equal(want, got, ignoreOffset) || !cmp.Equal(pieces, gotPieces, cmp.AllowUnexported(piece{})) {
				t.Error("another result than from one large read")
			}
		})
	}
}

// stutter returns nothing with every second call.
type stutter struct {
	r   io.Reader
	odd bool
}

func (s *stutter) Read(p []byte) (int, error) {
	if s.odd = !s.odd; s.odd {
		return 0, nil
	}
	return s.r.Read(p)
}

type limited struct {
	r io.Reader
	n int
}

func (l *limited) Read(p []byte) (int, error) { return l.r.Read(p[:min(len(p), l.n)]) }

// TestBodies reads an external body in all the ways there are.
func TestBodies(t *testing.T) {
	archive := sample()
	content := body(3*bufferSize + 1)
	tests := map[string]func(r *Reader) (string, error){
		"read to the end": func(r *Reader) (string, error) {
			b, err := io.ReadAll(r)
			return string(b), err
		},
		"large reads": func(r *Reader) (string, error) {
			b := make([]byte, len(content))
			n, err := io.ReadFull(r, b)
			if err == io.ErrUnexpectedEOF {
				err = nil
			}
			return string(b[:n]), err
		},
		"small reads": func(r *Reader) (string, error) {
			b, err := io.ReadAll(iotest.OneByteReader(r))
			return string(b), err
		},
		"write to": func(r *Reader) (string, error) {
			var b strings.Builder
			_, err := r.WriteTo(&b)
			return b.String(), err
		},
		"peek": func(r *Reader) (string, error) {
			var all strings.Builder
			for {
				b, err := r.Peek()
				if err == io.EOF {
					r.Discard(100)
					return all.String(), nil
				}
				if err != nil {
					return "", err
				}
				n := min(len(b), 1000)
				all.Write(b[:n])
				r.Discard(n)
			}
		},
	}
	for name, read := range tests {
		t.Run(name, func(t *testing.T) {
			var inline bytes.Buffer
			r := NewReader(strings.NewReader(archive), func(b []byte) error {
				inline.Write(b)
				return nil
			}, Limits{})
			total := 0
			for {
				before := inline.Len()
				e, err := r.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if before == inline.Len() {
					t.Error("no inline bytes were delivered")
				}
				if !e.External() {
					if n, err := r.Read(make([]byte, 10)); n != 0 || err != io.EOF {
						t.Errorf("inline member reads as %d, %v", n, err)
					}
					continue
				}
				if r.Offset() != int64(inline.Len()+total) {
					t.Errorf("offset is %d, want %d", r.Offset(), inline.Len()+total)
				}
				got, err := read(r)
				if err != nil {
					t.Fatal(err)
				}
				if got != content[:e.Size] {
					t.Errorf("%s: wrong body of %d bytes", e.Name, len(got))
				}
				total += len(got)
				if n, err := r.Read(make([]byte, 10)); n != 0 || err != io.EOF {
					t.Errorf("after the body: %d, %v", n, err)
				}
			}
			if inline.Len()+total != len(archive) || r.Offset() != int64(len(archive)) {
				t.Errorf("%d bytes and %d of bodies, offset %d: want %d", inline.Len(), total, r.Offset(), len(archive))
			}
			if _, err := r.Next(); err != io.EOF {
				t.Errorf("after the end: %v", err)
			}
		})
	}
}

func TestUnreadBody(t *testing.T) {
	r := NewReader(strings.NewReader(member(body(100))), nil, Limits{})
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 99)); err != nil {
		t.Fatal(err)
	}
	_, err := r.Next()
	wantRule(t, err, RuleUnreadBody)
	if _, again := r.Next(); again != err {
		t.Errorf("error does not stay: %v", again)
	}
	if _, again := r.Read(make([]byte, 99)); again != err {
		t.Errorf("error does not stay: %v", again)
	}
}

func TestSourceErrors(t *testing.T) {
	broken := errors.New("broken")
	archive := sample()
	for _, cut := range []int{0, 1, 512, 600, 2000, 4000, 100000, len(archive) - bufferSize, len(archive) - 1, len(archive)} {
		_, _, err := frame(io.MultiReader(strings.NewReader(archive[:cut]), iotest.ErrReader(broken)), Limits{})
		wantRule(t, err, RuleRead)
		if !errors.Is(err, broken) {
			t.Errorf("cut at %d: cause is lost: %v", cut, err)
		}
	}
	// What a decompressor says of cut input is not the end of the archive.
	_, _, err := frame(io.MultiReader(strings.NewReader(archive[:600]), iotest.ErrReader(io.ErrUnexpectedEOF)), Limits{})
	wantRule(t, err, RuleRead)
	_, _, err = frame(&silent{}, Limits{})
	wantRule(t, err, RuleRead)
	_, _, err = frame(&liar{}, Limits{})
	wantRule(t, err, RuleRead)
}

// TestCuts cuts an archive everywhere: that is only accepted between members.
func TestCuts(t *testing.T) {
	archive := member(body(10)) + longName("a") + member(body(600), name("g")) + zeros(2)
	good := map[int]bool{0: true, 1024: true, 3584: true, 4608: true}
	for cut := range len(archive) + 1 {
		_, pieces, err := frame(strings.NewReader(archive[:cut]), Limits{})
		if good[cut] {
			if err != nil || join(pieces) != archive[:cut] {
				t.Errorf("cut at %d: %v", cut, err)
			}
			continue
		}
		if e := wantRule(t, err, RuleTruncated); e.Offset != int64(cut) {
			t.Errorf("cut at %d: error at %d", cut, e.Offset)
		}
	}
}

type silent struct{}

func (*silent) Read([]byte) (int, error) { return 0, nil }

type liar struct{}

func (*liar) Read(p []byte) (int, error) { return len(p) + 1, nil }

func TestSinkErrors(t *testing.T) {
	archive := sample()
	for _, sinkErr := range []error{errors.New("full"), io.EOF} {
		for calls := 1; ; calls++ {
			n := 0
			r := NewReader(strings.NewReader(archive), func([]byte) error {
				if n++; n == calls {
					return sinkErr
				}
				return nil
			}, Limits{})
			var err error
			for err == nil {
				if _, err = r.Next(); err == nil {
					_, err = r.WriteTo(io.Discard)
				}
			}
			if n < calls {
				break // inline was not called that often
			}
			if err != sinkErr {
				t.Fatalf("call %d: error is %v, want that of the function", calls, err)
			}
			if n > calls {
				t.Fatalf("inline was called again after its error")
			}
		}
	}
}

func TestWriteToErrors(t *testing.T) {
	next := func() *Reader {
		r := NewReader(strings.NewReader(member(body(1000))), nil, Limits{})
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		return r
	}
	full := errors.New("full")
	if _, err := next().WriteTo(writer(func(p []byte) (int, error) { return 0, full })); err != full {
		t.Errorf("error is %v", err)
	}
	if _, err := next().WriteTo(writer(func(p []byte) (int, error) { return len(p) - 1, nil })); err != io.ErrShortWrite {
		t.Errorf("error is %v", err)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// repeat is an endless source of one archive member, n times.
type repeat struct {
	member string
	n, at  int
}

func (r *repeat) Read(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		if r.at == len(r.member) {
			r.at = 0
			r.n--
		}
		if r.n <= 0 {
			break
		}
		n := copy(p, r.member[r.at:])
		r.at += n
		p = p[n:]
		total += n
	}
	if total == 0 {
		return 0, io.EOF
	}
	return total, nil
}

// TestMemory reads a million members, and then a member that claims more than
// any memory holds.
func TestMemory(t *testing.T) {
	const members = 1_000_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	src := &repeat{member: member(body(100), name("usr/share/doc/package/file")), n: members}
	r := NewReader(src, func([]byte) error { return nil }, Limits{})
	buf := make([]byte, 200)
	n := 0
	for {
		_, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Read(buf); err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != members {
		t.Errorf("%d members, want %d", n, members)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if after.HeapAlloc > before.HeapAlloc+(4<<20) {
		t.Errorf("heap grew by %d bytes", after.HeapAlloc-before.HeapAlloc)
	}
	runtime.KeepAlive(r)

	for _, archive := range []string{
		header(rawSize("77777777777\x00")), header(typ('5'), rawSize("\x80\x00\x00\x00\x7f\xff\x00\x00\x00\x00\x00\x00")),
	} {
		runtime.ReadMemStats(&before)
		if _, _, err := frame(strings.NewReader(archive), Limits{}); err == nil {
			t.Error("accepted")
		}
		runtime.ReadMemStats(&after)
		allocs := after.TotalAlloc - before.TotalAlloc
		if allocs > 2*bufferSize {
			t.Errorf("a size that lies costs %d bytes", allocs)
		}
	}
}

func TestStreamChunks(t *testing.T) {
	in := func(data string) piece { return piece{true, data} }
	ext := func(n int) piece { return piece{false, body(n)} }
	rest := strings.Repeat("\x00", 412)
	tests := []struct {
		name   string
		pieces []piece
		rule   string // or empty: accepted
	}{
		{"nothing", nil, ""},
		{"external body", []piece{in(header(size(100))), ext(100), in(rest + zeros(2))}, ""},
		{"external body of whole blocks at the end", []piece{in(header(size(1024))), ext(1024)}, ""},
		{"cut between members", []piece{in(header()), in(header()), in(zeros(2))}, ""},
		{"cut between record blocks", []piece{in(longName("a")[:512]), in(longName("a")[512:]), in(header())}, ""},
		{"cut between header and small body", []piece{in(header(size(3))), in(blocks("abc")), in(zeros(2))}, ""},
		{"cut after padding", []piece{in(header(size(100))), ext(100), in(rest), in(header())}, ""},
		{"cut between the zero blocks", []piece{in(zeros(1)), in(zeros(1))}, ""},
		{"one zero block at the end", []piece{in(header() + zeros(1))}, ""},
		{"empty member at the end", []piece{in(header())}, ""},
		{"anything after the end", []piece{in(zeros(2) + "x"), ext(3), in("y")}, ""},
		{"inline body of another type", []piece{in(header(size(100000), typ('5')) + blocks(body(100000)))}, ""},

		{"small file external", []piece{in(header(size(64))), ext(64), in(body(448))}, RuleInlineMax},
		{"large file inline", []piece{in(member(body(65)))}, RuleInlineMax},
		{"other type external", []piece{in(header(size(100), typ('5'))), ext(100), in(rest)}, RuleChunk},
		{"header external", []piece{ext(512)}, RuleChunk},
		{"object after an empty file", []piece{in(header()), ext(100)}, RuleChunk},
		{"padding external", []piece{in(header(size(100))), ext(100), ext(412)}, RuleChunk},
		{"cut in a header", []piece{in(header()[:100]), in(header()[100:])}, RuleChunk},
		{"cut in a small body", []piece{in(header(size(3)) + "a"), in("bc" + strings.Repeat("\x00", 509))}, RuleChunk},
		{"cut in padding", []piece{in(header(size(100))), ext(100), in(rest[:1]), in(rest[1:])}, RuleChunk},
		{"cut in an inline body", []piece{in(header(size(1000), typ('5')) + zeros(1)), in(zeros(1))}, RuleChunk},
		{"size that lies", []piece{in(header(rawSize("77777777777\x00"), typ('5')) + zeros(5))}, RuleChunk},
		{"empty chunk", []piece{in("")}, RuleChunk},
		{"end in a record", []piece{in(longName("a"))}, RuleTruncated},
		{"end before a record's data", []piece{in(longName("a")[:512])}, RuleTruncated},
		{"end before a small body", []piece{in(header(size(3)))}, RuleTruncated},
		{"end before a large body", []piece{in(header(size(100)))}, RuleTruncated},
		{"end before padding", []piece{in(header(size(100))), ext(100)}, RuleTruncated},
		{"bad header", []piece{in(body(512))}, RuleChecksum},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := readStream(&fakeChunks{pieces: test.pieces})
			if test.rule != "" {
				wantRule(t, err, test.rule)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

// shortChunks promises more than it has.
type shortChunks struct{ fakeChunks }

func (s *shortChunks) Read(p []byte) (int, error) {
	if len(s.left) <= 100 {
		return 0, io.EOF
	}
	return s.fakeChunks.Read(p[:min(len(p), len(s.left)-100)])
}

func TestStreamSourceErrors(t *testing.T) {
	s := &shortChunks{fakeChunks{pieces: []piece{{true, header() + header()}}}}
	_, err := readStream(s)
	wantRule(t, err, RuleRead)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error is %v", err)
	}
}

func TestStreamOffsets(t *testing.T) {
	archive := sample()
	entries, pieces, err := frame(strings.NewReader(archive), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	again, err := readStream(writeStream(t, pieces))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(entries, again, cmpopts.IgnoreFields(Entry{}, "Object")); diff != "" {
		t.Error(diff)
	}
	for _, e := range entries {
		if typ := archive[e.Offset+156]; !strings.ContainsRune("015Lx", rune(typ)) {
			t.Errorf("%s: no header at %d", e.Name, e.Offset)
		}
	}
}
