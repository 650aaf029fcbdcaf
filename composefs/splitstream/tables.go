// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package splitstream

import (
	"fmt"
	"io"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// tablePiece is how many bytes of a table are read at once, a multiple of
// every digest size.
const tablePiece = 64 << 10

// Tables is what a split stream refers to. In contrast to a [Reader] it does
// not hold the tables of digests, which may be large, but reads them in
// pieces; the chunk stream is not touched.
type Tables struct{ head *Reader }

// OpenTables reads and checks the header, the info block and the names of the
// split stream that is the first size bytes of r. Errors are those of
// [NewReader].
func OpenTables(r io.ReaderAt, size int64, o ReaderOptions) (*Tables, error) {
	head, err := readHead(r, size, o)
	if err != nil {
		return nil, err
	}
	if err := head.readNames(); err != nil {
		return nil, err
	}
	return &Tables{head: head}, nil
}

// IsSplitStream reports whether the first size bytes of r begin like a split
// stream. Only reading can fail.
func IsSplitStream(r io.ReaderAt, size int64) (bool, error) {
	if size < headerSize {
		return false, nil
	}
	var b [headerSize]byte
	if err := readAt(r, b[:], 0); err != nil {
		return false, fmt.Errorf("read splitstream header: %w", err)
	}
	return hasMagic(&b), nil
}

// ContentType is what the stream says it holds.
func (t *Tables) ContentType() ContentType { return t.head.ContentType() }

// Size is the length in bytes of the reassembled stream as the writer noted
// it. It is information, not a promise.
func (t *Tables) Size() uint64 { return t.head.Size() }

// EachObject calls f for every object that the stream needs, in the order of
// the table, in which an object may occur repeatedly.
func (t *Tables) EachObject(f func(fsverity.Digest)) error {
	size := t.head.algorithm.Size()
	table := t.head.info.objectRefs
	piece := make([]byte, min(tablePiece, table.length()))
	for at := table.start; at < table.end; at += uint64(len(piece)) {
		piece = piece[:min(uint64(len(piece)), table.end-at)]
		if err := readAt(t.head.r, piece, at); err != nil {
			return fmt.Errorf("read object_refs of splitstream: %w", err)
		}
		for i := range len(piece) / size {
			f(t.head.digest(piece, i))
		}
	}
	return nil
}

// EachNamed calls f for every reference by name, sorted by name.
func (t *Tables) EachNamed(f func(NamedRef)) error {
	entry := make([]byte, t.head.algorithm.Size())
	for _, n := range t.head.names {
		if err := readAt(t.head.r, entry, t.head.info.streamRefs.start+uint64(n.index)*uint64(len(entry))); err != nil {
			return fmt.Errorf("read stream_refs of splitstream: %w", err)
		}
		f(NamedRef{Name: n.name, ID: t.head.digest(entry, 0)})
	}
	return nil
}
