// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package splitstream

import (
	"bytes"
	"errors"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// tables reads a stream's tables as strings.
func tables(tb testing.TB, b []byte) (objects []string, named map[string]string) {
	tb.Helper()
	t, err := OpenTables(bytes.NewReader(b), int64(len(b)), ReaderOptions{Algorithm: sha})
	must(tb, err)
	must(tb, t.EachObject(func(d fsverity.Digest) { objects = append(objects, d.String()) }))
	named = map[string]string{}
	must(tb, t.EachNamed(func(n NamedRef) { named[n.Name] = n.ID.String() }))
	return objects, named
}

// What Tables says of a stream is what a Reader says.
func TestTablesLikeReader(t *testing.T) {
	var large, streams []byte
	for i := range 3*tablePiece/sha.Size() + 7 {
		large = append(large, id(strconv.Itoa(i)).Bytes()...)
	}
	streams = append(id("one").Bytes(), id("two").Bytes()...)
	files := map[string][]byte{
		"several pieces":  build{objects: large}.file(t),
		"one whole piece": build{objects: large[:tablePiece]}.file(t),
		"names":           build{streams: streams, names: "1:b\x000:a:b\x000:\x001:a:b\x00"}.file(t),
	}
	for _, name := range []string{"empty", "inline-old-header", "mixed", "config"} {
		files[name] = vector(t, name)
	}
	for name, b := range files {
		t.Run(name, func(t *testing.T) {
			r, err := NewReader(bytes.NewReader(b), int64(len(b)), ReaderOptions{Algorithm: sha})
			must(t, err)
			var wantObjects []string
			for _, d := range r.ObjectRefs() {
				wantObjects = append(wantObjects, d.String())
			}
			wantNamed := map[string]string{}
			for _, n := range r.NamedRefs() {
				wantNamed[n.Name] = n.ID.String()
			}
			objects, named := tables(t, b)
			if diff := cmp.Diff(wantObjects, objects); diff != "" {
				t.Errorf("objects (-reader +tables):\n%s", diff)
			}
			if diff := cmp.Diff(wantNamed, named); diff != "" {
				t.Errorf("named refs (-reader +tables):\n%s", diff)
			}
			if is, err := IsSplitStream(bytes.NewReader(b), int64(len(b))); !is || err != nil {
				t.Errorf("is a split stream: %t, %v", is, err)
			}
		})
	}
}

func TestTablesRefuse(t *testing.T) {
	for name, b := range map[string]build{
		"no magic":               {header: func(b []byte) { b[0] = 's' }},
		"objects behind the end": {info: func(i *info) { i.objectRefs.end += 1 << 20 }},
		"objects not a multiple": {objects: id("one").Bytes()[:31]},
		"no named_refs frame":    {info: func(i *info) { i.namedRefs.end = i.namedRefs.start }},
		"index out of range":     {streams: id("one").Bytes(), names: "1:a\x00"},
	} {
		f := b.file(t)
		if _, err := OpenTables(bytes.NewReader(f), int64(len(f)), ReaderOptions{Algorithm: sha}); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: error %v, want %v", name, err, ErrFormat)
		}
	}
	// A file that shrinks meanwhile.
	f := build{objects: id("one").Bytes()}.file(t)
	cut := &shrinking{Reader: bytes.NewReader(f)}
	tab, err := OpenTables(cut, int64(len(f)), ReaderOptions{})
	must(t, err)
	cut.gone = true
	if err := tab.EachObject(func(fsverity.Digest) {}); err == nil {
		t.Error("a table that could not be read was accepted")
	}
}

type shrinking struct {
	*bytes.Reader
	gone bool
}

func (s *shrinking) ReadAt(b []byte, off int64) (int, error) {
	if s.gone {
		return 0, errors.New("gone")
	}
	return s.Reader.ReadAt(b, off)
}

func TestIsSplitStream(t *testing.T) {
	for _, b := range [][]byte{nil, []byte("SplitStream"), bytes.Repeat([]byte{0}, 200), []byte(`{"schemaVersion": 2, "config": {"mediaType": ""}}`)} {
		if is, err := IsSplitStream(bytes.NewReader(b), int64(len(b))); is || err != nil {
			t.Errorf("%.20q: %t, %v", b, is, err)
		}
	}
}
