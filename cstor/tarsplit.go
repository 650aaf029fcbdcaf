// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
)

// tarSplit reads the metadata that containers-storage keeps of a layer's tar
// archive, so that it can be put together again: a gzip file with a JSON object
// a line, each either a segment, raw bytes of the archive, or a file, which
// stands for the file's content. The format is that of
// github.com/vbatts/tar-split/tar/storage; this reader is several times faster,
// as it decodes segments, which are nearly all of it, without reflection.
type tarSplit struct {
	file    *os.File
	gzip    *gzip.Reader
	in      *bufio.Reader
	long    []byte // a line that is longer than the buffer of in
	payload []byte // of the segment returned last
	entries int
}

const (
	splitBuffer = 256 << 10
	// maxSplitLine bounds a line. A segment holds the headers of one member
	// and the padding of the one before, and a header may be as long as
	// tarraw's limit for extension records, 1 MiB; base64 makes that a third
	// longer. What follows the end of an archive comes in pieces.
	maxSplitLine = 16 << 20
)

// splitEntry is a segment or a file.
type splitEntry struct {
	// segment is raw bytes of the archive, valid until the next entry is read.
	// It is nil for a file.
	segment []byte
	name    string // of a file, as in the archive
	size    int64  // of its content
	crc     uint64 // of its content, ISO polynomial
	hasCRC  bool
}

func openTarSplit(path string) (*tarSplit, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(bufio.NewReaderSize(f, splitBuffer))
	if err != nil {
		f.Close() // read-only
		return nil, fmt.Errorf("read %s: %w: %w", path, ErrCorrupt, err)
	}
	return &tarSplit{file: f, gzip: z, in: bufio.NewReaderSize(z, splitBuffer)}, nil
}

func (t *tarSplit) Close() error { return errors.Join(t.gzip.Close(), t.file.Close()) }

// next returns the next entry, or io.EOF.
func (t *tarSplit) next() (splitEntry, error) {
	line, err := t.line()
	if err == io.EOF {
		return splitEntry{}, io.EOF
	}
	t.entries++
	var e splitEntry
	if err == nil {
		e, err = t.parse(line)
	}
	if err != nil {
		return splitEntry{}, fmt.Errorf("read %s: %w: entry %d: %w", t.file.Name(), ErrCorrupt, t.entries, err)
	}
	return e, nil
}

// line is the next line that is not empty, without its end. It is valid until
// the next call.
func (t *tarSplit) line() ([]byte, error) {
	for {
		t.long = t.long[:0]
		line, err := t.in.ReadSlice('\n')
		for errors.Is(err, bufio.ErrBufferFull) {
			if len(t.long)+len(line) > maxSplitLine {
				return nil, fmt.Errorf("longer than %d bytes", maxSplitLine)
			}
			t.long = append(t.long, line...)
			line, err = t.in.ReadSlice('\n')
		}
		if len(t.long) > 0 {
			t.long = append(t.long, line...)
			line = t.long
		}
		line = bytes.TrimSpace(line)
		switch {
		case len(line) > 0 && (err == nil || err == io.EOF):
			return line, nil
		case err != nil:
			return nil, err
		}
	}
}

// segmentStart begins a segment as the Go library writes it.
var segmentStart = []byte(`{"type":2,"payload":"`)

func (t *tarSplit) parse(line []byte) (splitEntry, error) {
	if rest, ok := bytes.CutPrefix(line, segmentStart); ok {
		if end := bytes.IndexByte(rest, '"'); end >= 0 && isPosition(rest[end+1:]) {
			if text := rest[:end]; bytes.IndexByte(text, '\\') < 0 {
				return t.segment(text)
			}
		}
	}
	var e struct {
		Type    int    `json:"type"`
		Name    string `json:"name"`
		NameRaw []byte `json:"name_raw"`
		Size    int64  `json:"size"`
		Payload []byte `json:"payload"`
	}
	if err := json.Unmarshal(line, &e); err != nil {
		return splitEntry{}, err
	}
	switch e.Type {
	case 1:
		if e.Size < 0 {
			return splitEntry{}, fmt.Errorf("file %.300q has %d bytes", e.Name, e.Size)
		}
		f := splitEntry{name: e.Name, size: e.Size}
		if len(e.NameRaw) > 0 {
			f.name = string(e.NameRaw)
		}
		if len(e.Payload) == 8 {
			f.crc, f.hasCRC = binary.BigEndian.Uint64(e.Payload), true
		}
		return f, nil
	case 2:
		return splitEntry{segment: append([]byte{}, e.Payload...)}, nil
	}
	return splitEntry{}, fmt.Errorf("unknown type %d", e.Type)
}

// isPosition reports whether b is the end of a segment: its position, which is
// of no use to who reads all entries in order.
func isPosition(b []byte) bool {
	b, ok := bytes.CutPrefix(b, []byte(`,"position":`))
	b, end := bytes.CutSuffix(b, []byte("}"))
	if !ok || !end || len(b) == 0 {
		return false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

func (t *tarSplit) segment(text []byte) (splitEntry, error) {
	if n := base64.StdEncoding.DecodedLen(len(text)); cap(t.payload) < n || t.payload == nil {
		t.payload = make([]byte, max(n, 64<<10))
	}
	t.payload = t.payload[:cap(t.payload)]
	n, err := base64.StdEncoding.Decode(t.payload, text)
	if err != nil {
		return splitEntry{}, err
	}
	return splitEntry{segment: t.payload[:n:n]}, nil
}
