// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package tarraw

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// fixSums gives every aligned block with a header's magic, or of type g, the
// right checksum, so that the fuzzer gets past it.
func fixSums(b []byte) {
	for ; len(b) >= BlockSize; b = b[BlockSize:] {
		if bytes.HasPrefix(b[257:], []byte("ustar")) || b[156] == typePaxGlobal {
			sum, _ := block(b[:BlockSize]).sum()
			copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add([]byte(header()+zeros(2)), false)
	f.Add([]byte(longName("name")+longLink("link")+header(typ('2'))+zeros(1)+member(body(3))), true)
	f.Add([]byte(pax("path", "p", "mtime", "1.5", "SCHILY.xattr.user.a", "b", "size", "70")+header()+body(512)), true)
	f.Add([]byte(member(body(65))+member("", typ('g'))+member(body(700), typ('1'))+zeros(2)+"after"), false)
	f.Add([]byte(pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0")+header()), true)
	f.Add([]byte(header(magic(oldMagic), rawSize("\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03"))+body(512)), false)
	f.Fuzz(func(t *testing.T, archive []byte, sums bool) {
		if sums {
			archive = bytes.Clone(archive)
			fixSums(archive)
		}
		entries, pieces, err := frame(bytes.NewReader(archive), Limits{})
		again, againPieces, againErr := frame(iotest.HalfReader(bytes.NewReader(archive)), Limits{})
		if fmt.Sprint(err) != fmt.Sprint(againErr) || !cmp.Equal(entries, again, cmpopts.EquateComparable(fsverity.Digest{})) || !cmp.Equal(pieces, againPieces, cmp.AllowUnexported(piece{})) {
			t.Fatalf("result depends on the sizes of reads: %v, %v", err, againErr)
		}
		for _, e := range entries {
			if e.Name == "" || len(e.Name) > DefaultMaxExtension+256 || e.Regular() && !e.External() && uint64(len(e.Content)) != e.Size {
				t.Errorf("impossible entry %+v", e)
			}
		}
		if err != nil {
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("error of type %T: %v", err, err)
			}
			return
		}
		if join(pieces) != string(archive) {
			t.Fatal("pieces do not make the archive")
		}
		for i := 1; i < len(pieces); i++ {
			if !pieces[i].inline && !pieces[i-1].inline {
				t.Fatal("two bodies without a header between them")
			}
		}
		stream, err := readStream(&fakeChunks{pieces: pieces})
		if err != nil {
			t.Fatalf("pieces do not read back: %v", err)
		}
		if diff := cmp.Diff(entries, stream, cmpopts.IgnoreFields(Entry{}, "Object")); diff != "" {
			t.Fatalf("pieces read back differently:\n%s", diff)
		}
	})
}

// FuzzStreamReader reads chunks in the splitstream encoding: a number below
// zero is that many inline bytes, which follow; others are bodies.
func FuzzStreamReader(f *testing.F) {
	encode := func(pieces ...piece) []byte {
		var b []byte
		for _, p := range pieces {
			if p.inline {
				b = binary.LittleEndian.AppendUint64(b, uint64(-int64(len(p.data))))
				b = append(b, p.data...)
			} else {
				b = binary.LittleEndian.AppendUint64(b, 0)
			}
		}
		return b
	}
	f.Add(encode(piece{true, header(size(100))}, piece{false, body(100)}, piece{true, strings.Repeat("\x00", 412) + zeros(2)}))
	f.Add(encode(piece{true, member(body(64)) + longName("a")}, piece{true, header()}))
	f.Add(encode(piece{true, header(size(600), typ('5')) + zeros(1)}, piece{true, zeros(1)}))
	f.Add(binary.LittleEndian.AppendUint64(nil, 1<<63))
	f.Fuzz(func(t *testing.T, data []byte) {
		// The source does not fix checksums: it would have to know where
		// headers are. Do so in the whole input, at any alignment of 8.
		data = bytes.Clone(data)
		for at := 0; at+BlockSize <= len(data); at += 8 {
			if bytes.HasPrefix(data[at+257:], []byte("ustar")) {
				fixSums(data[at : at+BlockSize])
			}
		}
		entries, err := readStream(&encodedChunks{data: data})
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Fatalf("error of type %T: %v", err, err)
		}
		for _, e := range entries {
			if e.External() == e.Object.IsZero() {
				t.Fatalf("external file without object, or the other way round: %+v", e)
			}
			if e.Regular() && !e.External() && uint64(len(e.Content)) != e.Size {
				t.Fatalf("content has another size: %+v", e)
			}
		}
	})
}

type encodedChunks struct {
	data []byte
	left uint64
}

func (c *encodedChunks) Next() (splitstream.Chunk, error) {
	if c.left > uint64(len(c.data)) {
		return splitstream.Chunk{}, io.ErrUnexpectedEOF
	}
	c.data = c.data[c.left:]
	c.left = 0
	if len(c.data) == 0 {
		return splitstream.Chunk{}, io.EOF
	}
	if len(c.data) < 8 {
		return splitstream.Chunk{}, io.ErrUnexpectedEOF
	}
	v := int64(binary.LittleEndian.Uint64(c.data))
	c.data = c.data[8:]
	if v >= 0 {
		return splitstream.Chunk{Object: object("any")}, nil
	}
	c.left = -uint64(v)
	return splitstream.Chunk{Inline: true, Length: c.left}, nil
}

func (c *encodedChunks) Read(p []byte) (int, error) {
	if c.left == 0 || len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(uint64(len(p)), c.left)], c.data)
	c.data = c.data[n:]
	c.left -= uint64(n)
	return n, nil
}
