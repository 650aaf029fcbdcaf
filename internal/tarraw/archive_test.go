// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package tarraw

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

const (
	ustarMagic = "ustar\x0000"
	gnuMagic   = "ustar  \x00"
	oldMagic   = "\x00\x00\x00\x00\x00\x00\x00\x00"
)

// field overwrites part of a header before the checksum is made.
type field struct {
	at   int
	text string
}

func raw(at int, text string) field       { return field{at, text} }
func name(s string) field                 { return field{0, s} }
func mode(s string) field                 { return field{100, s} }
func uid(s string) field                  { return field{108, s} }
func gid(s string) field                  { return field{116, s} }
func size(n int) field                    { return field{124, fmt.Sprintf("%011o\x00", n)} }
func rawSize(s string) field              { return field{124, s} }
func mtime(s string) field                { return field{136, s} }
func typ(c byte) field                    { return field{156, string(c)} }
func linkname(s string) field             { return field{157, s} }
func magic(s string) field                { return field{257, s} }
func devices(major, minor string) field   { return field{329, pad(major, 8) + pad(minor, 8)} }
func prefix(s string) field               { return field{345, s} }
func pad(s string, n int) string          { return s + strings.Repeat("\x00", n-len(s)) }
func blocks(s string) string              { return s + strings.Repeat("\x00", int(padding(uint64(len(s))))) }
func zeros(n int) string                  { return strings.Repeat("\x00", n*BlockSize) }
func body(n int) string                   { return strings.Repeat("b", n) }
func badSum(h string, text string) string { return h[:148] + pad(text, 8) + h[156:] }

// header makes a regular ustar header named "f" and applies fields to it.
func header(fields ...field) string {
	b := make([]byte, BlockSize)
	set := func(f field) { copy(b[f.at:], f.text) }
	for _, f := range append([]field{
		name("f"), mode("0000644\x00"), uid("0001750\x00"), gid("0000144\x00"), size(0),
		mtime("14524631000\x00"), typ('0'), magic(ustarMagic), devices("0000000\x00", "0000000\x00"),
	}, fields...) {
		if f.at == 0 {
			clear(b[:100])
		}
		set(f)
	}
	sum := 8 * int(' ')
	for i, c := range b {
		if i < 148 || i >= 156 {
			sum += int(c)
		}
	}
	set(raw(148, fmt.Sprintf("%06o\x00 ", sum)))
	return string(b)
}

// member is a header whose size is the body's, with the padded body.
func member(content string, fields ...field) string {
	return header(append([]field{size(len(content))}, fields...)...) + blocks(content)
}

func longName(s string) string { return member(s+"\x00", typ('L'), magic(gnuMagic)) }
func longLink(s string) string { return member(s+"\x00", typ('K'), magic(gnuMagic)) }

// pax is a pax header; records are key, value, key, value...
func pax(records ...string) string {
	return member(paxData(records...), typ('x'), name("PaxHeaders/f"))
}

func paxData(records ...string) string {
	var all strings.Builder
	for i := 0; i < len(records); i += 2 {
		all.WriteString(paxRecord(records[i], records[i+1]))
	}
	return all.String()
}

func paxRecord(key, value string) string {
	rest := " " + key + "=" + value + "\n"
	n := len(rest) + 1
	for len(fmt.Sprint(n))+len(rest) != n {
		n++
	}
	return fmt.Sprint(n) + rest
}

// piece is part of an archive as a splitstream keeps it.
type piece struct {
	inline bool
	data   string
}

// frame reads an archive to its end. It checks that bodies have the announced
// length.
func frame(src io.Reader, l Limits) (entries []*Entry, pieces []piece, err error) {
	var inline bytes.Buffer
	flush := func() {
		if inline.Len() > 0 {
			pieces = append(pieces, piece{true, inline.String()})
			inline.Reset()
		}
	}
	r := NewReader(src, func(b []byte) error {
		inline.Write(b)
		return nil
	}, l)
	for {
		e, err := r.Next()
		if err == io.EOF {
			flush()
			return entries, pieces, nil
		}
		if err != nil {
			return entries, pieces, err
		}
		if e.External() {
			flush()
			body, err := io.ReadAll(r)
			if err != nil {
				return entries, pieces, err
			}
			if uint64(len(body)) != e.Size {
				return entries, pieces, fmt.Errorf("body of %d bytes, size %d", len(body), e.Size)
			}
			pieces = append(pieces, piece{false, string(body)})
		}
		entries = append(entries, e)
	}
}

func join(pieces []piece) string {
	var b strings.Builder
	for _, p := range pieces {
		b.WriteString(p.data)
	}
	return b.String()
}

// object is the digest that tests give to a body: it is not the real one,
// which nothing here looks at.
func object(body string) fsverity.Digest {
	sum := sha256.Sum256([]byte(body))
	d, err := fsverity.DigestFromBytes(fsverity.SHA256, sum[:])
	if err != nil {
		panic(err) // the length is a constant
	}
	return d
}

// fakeChunks is a ChunkSource in memory.
type fakeChunks struct {
	pieces []piece
	left   string
}

func (f *fakeChunks) Next() (splitstream.Chunk, error) {
	if len(f.pieces) == 0 {
		return splitstream.Chunk{}, io.EOF
	}
	p := f.pieces[0]
	f.pieces = f.pieces[1:]
	if !p.inline {
		f.left = ""
		return splitstream.Chunk{Object: object(p.data)}, nil
	}
	f.left = p.data
	return splitstream.Chunk{Inline: true, Length: uint64(len(p.data)), Index: -1}, nil
}

func (f *fakeChunks) Read(p []byte) (int, error) {
	if f.left == "" {
		return 0, io.EOF
	}
	n := copy(p, f.left)
	f.left = f.left[n:]
	return n, nil
}

func readStream(chunks ChunkSource) ([]*Entry, error) {
	r := NewStreamReader(chunks, Limits{})
	var entries []*Entry
	for {
		e, err := r.Next()
		if err == io.EOF {
			return entries, nil
		}
		if err != nil {
			return entries, err
		}
		entries = append(entries, e)
	}
}

// wantRule fails the test unless err is an Error of that rule.
func wantRule(t *testing.T, err error, rule string) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error is %v, want an *Error", err)
	}
	if e.Rule != rule {
		t.Fatalf("error is %q: %v, want %q", e.Rule, err, rule)
	}
	return e
}
