// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// writeImage stores an EROFS image of files with the given objects.
func writeImage(tb testing.TB, r *Repo, v erofs.Version, objects ...fsverity.Digest) fsverity.Digest {
	tb.Helper()
	root := tree.NewDirectory()
	for i, id := range objects {
		root.SetEntry(string(rune('p'+i)), &tree.Node{Kind: tree.Regular, Size: 100, Object: id})
	}
	temp := check(r.CreateTemp())(tb)
	must(tb, erofs.Write(temp.File(), root, erofs.WriteOptions{Version: v}))
	id, _, err := fsverity.SumFile(r.Algorithm(), temp.File())
	must(tb, err)
	check(r.Commit(temp, id))(tb)
	return id
}

func TestReferences(t *testing.T) {
	r := insecureRepo(t)
	a, _, err := r.Put([]byte("a"))
	must(t, err)
	b, _, err := r.Put([]byte("b"))
	must(t, err)
	image := writeImage(t, r, erofs.V1, a, b)
	child := check(r.WriteStream(splitstream.Layer, func(w *splitstream.Writer) error { return w.External(a, 1) }))(t)
	parent := check(r.WriteStream(splitstream.Config, func(w *splitstream.Writer) error {
		return errors.Join(w.AddStreamRef("layer", child), w.AddStreamRef("composefs.image.v1", image), w.External(b, 1))
	}))(t)

	got := check(r.StreamTables(parent))(t)
	want := &StreamTables{
		Type: splitstream.Config, Size: 1, Objects: []fsverity.Digest{b},
		Named: []splitstream.NamedRef{{Name: "composefs.image.v1", ID: image}, {Name: "layer", ID: child}},
	}
	if !cmp.Equal(want, got, cmp.Comparer(func(a, b fsverity.Digest) bool { return a == b })) {
		t.Errorf("tables %v, want %v", got, want)
	}
	for _, n := range got.Named {
		if want := n.ID == image; IsImageRef(n.Name) != want {
			t.Errorf("%s leads to an image: %t", n.Name, !want)
		}
	}
	objects := check(r.ImageObjects(image))(t)
	if len(objects) != 2 || objects[0] != a || objects[1] != b {
		t.Errorf("image has objects %v", objects)
	}
	if _, err := r.ImageObjects(a); !errors.Is(err, erofs.ErrCorrupt) {
		t.Errorf("objects of a file: %v", err)
	}
	if _, err := r.StreamTables(a); !errors.Is(err, splitstream.ErrFormat) {
		t.Errorf("tables of a file: %v", err)
	}
	if _, err := r.ImageObjects(fsverity.Sum(r.Algorithm(), []byte("absent"))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("objects of nothing: %v", err)
	}
}
