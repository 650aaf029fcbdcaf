// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// TestUnsyncedObject stores what a crash has left with its length and without
// its bytes, as ext4 does when the power fails before they are on disk.
func TestUnsyncedObject(t *testing.T) {
	small, large := string(randomBytes(5000)), string(randomBytes(comparePiece+5000))
	for name, c := range map[string]struct {
		content string
		store   func(t *testing.T, r *Repo, content string) (fsverity.Digest, Outcome, error)
	}{
		"put": {small, func(_ *testing.T, r *Repo, content string) (fsverity.Digest, Outcome, error) {
			return r.Put([]byte(content))
		}},
		"commit": {large, func(t *testing.T, r *Repo, content string) (fsverity.Digest, Outcome, error) {
			return put(t, r, content)
		}},
		"link": {large, func(t *testing.T, r *Repo, content string) (fsverity.Digest, Outcome, error) {
			f := donorFile(t, filepath.Join(filepath.Dir(r.Path()), "donor"), []byte(content))
			id := fsverity.Sum(r.Algorithm(), []byte(content))
			o, err := r.LinkFile(f, id)
			return id, o, err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := insecureRepo(t)
			id := fsverity.Sum(r.Algorithm(), []byte(c.content))
			path := objectPath(r, id)
			must(t, os.MkdirAll(filepath.Dir(path), 0o755))
			// The last byte is the only one that differs, or all are zeros.
			for _, left := range []string{c.content[:len(c.content)-1] + "\x00", string(make([]byte, len(c.content)))} {
				must(t, os.RemoveAll(path))
				must(t, os.WriteFile(path, []byte(left), 0o644))
				r.proven = provenObjects{} // another process
				if _, o, err := c.store(t, r, c.content); o == Present || err != nil {
					t.Errorf("store: %s, %v", o, err)
				}
				if readObject(t, r, id) != c.content {
					t.Error("the object has other bytes")
				}
				r.proven = provenObjects{}
				if _, o, err := c.store(t, r, c.content); o != Present || err != nil {
					t.Errorf("store again: %s, %v", o, err)
				}
			}
		})
	}
}

// TestProvenObject makes sure that what a linked stream names is not read: in an
// update that is most of an image.
func TestProvenObject(t *testing.T) {
	r := insecureRepo(t)
	const content, other = "what a linked stream names", "what nothing names at all."
	id, _, err := r.Put([]byte(content))
	must(t, err)
	stream, err := r.WriteStream(splitstream.Blob, func(w *splitstream.Writer) error { return w.External(id, uint64(len(content))) })
	must(t, err)
	for _, linked := range []bool{false, true} {
		if linked {
			must(t, r.LinkStream("oci-blob-test", stream))
		}
		must(t, os.WriteFile(objectPath(r, id), []byte(other), 0o644))
		r.proven = provenObjects{} // another process
		if _, o, err := r.Put([]byte(content)); (o == Present) != linked || err != nil {
			t.Errorf("linked %t: %s, %v", linked, o, err)
		}
	}
}
