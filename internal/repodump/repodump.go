// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package repodump reads what a composefs repository says, apart from how it is
// encoded, so that tests can compare repositories of different writers.
//
// The ids of splitstreams depend on who compressed them and are left out:
// references are shown by the name of what they lead to.
package repodump

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Repository is a repository's logical content. The JSON form is that of the
// conformance vectors.
type Repository struct {
	Meta        map[string]any    `json:"meta"`
	Links       map[string]string `json:"links"`
	Streams     map[string]Stream `json:"streams"`
	Images      map[string]Image  `json:"images"`
	FileObjects []string          `json:"file_objects"`
}

// Stream is a splitstream: its reassembled size and digest, its chunks in
// order, the objects and streams it refers to.
type Stream struct {
	Type       string            `json:"type"`
	Size       uint64            `json:"size"`
	SHA256     string            `json:"sha256"`
	Chunks     []string          `json:"chunks"`
	Named      map[string]string `json:"named"`
	Objects    []string          `json:"objects"`
	StreamRefs []string          `json:"stream_refs"`
}

// Image is an EROFS image as a file.
type Image struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Dump reads a repository. Everything in it must be readable.
func Dump(dir string) (*Repository, error) {
	d := dumper{dir: dir, names: map[string]string{}, out: &Repository{
		Links: map[string]string{}, Streams: map[string]Stream{}, Images: map[string]Image{}, FileObjects: []string{},
	}}
	raw, err := os.ReadFile(filepath.Join(dir, "meta.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, &d.out.Meta); err != nil {
		return nil, err
	}
	return d.out, errors.Join(d.links(), d.images(), d.streams())
}

type dumper struct {
	dir   string
	names map[string]string // id -> name of the link to it
	out   *Repository
	used  []string // objects that streams and images are made of
}

func (d *dumper) object(id string) string { return filepath.Join(d.dir, "objects", id[:2], id[2:]) }

func (d *dumper) links() error {
	for _, top := range []string{"streams", "images"} {
		err := filepath.WalkDir(filepath.Join(d.dir, top), func(file string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			if _, err := os.Stat(file); err != nil {
				return err
			}
			link, _ := filepath.Rel(d.dir, file)
			d.out.Links[link] = target
			if path.Dir(link) != top {
				return nil
			}
			id, ok := strings.CutPrefix(target, "../objects/")
			if !ok {
				return fmt.Errorf("%s leads to %s", link, target)
			}
			id = strings.Replace(id, "/", "", 1)
			if top == "images" {
				d.names[id] = "image:" + e.Name()
				return nil
			}
			d.names[id] = e.Name()
			d.out.Links[link] = "<stream object>"
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (d *dumper) images() error {
	for id, name := range d.names {
		name, ok := strings.CutPrefix(name, "image:")
		if !ok {
			continue
		}
		data, err := os.ReadFile(d.object(id))
		if err != nil {
			return err
		}
		sum := sha256.Sum256(data)
		d.out.Images[name] = Image{Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}
		d.used = append(d.used, id)
	}
	return nil
}

func (d *dumper) streams() error {
	for link := range d.out.Links {
		if path.Dir(link) != "streams" {
			continue
		}
		target, err := os.Readlink(filepath.Join(d.dir, link))
		if err != nil {
			return err
		}
		id := strings.Replace(strings.TrimPrefix(target, "../objects/"), "/", "", 1)
		s, err := d.stream(id)
		if err != nil {
			return fmt.Errorf("%s: %w", link, err)
		}
		d.out.Streams[path.Base(link)] = *s
	}
	for _, id := range d.used {
		if _, err := os.Stat(d.object(id)); err == nil {
			d.out.FileObjects = append(d.out.FileObjects, id)
		}
	}
	slices.Sort(d.out.FileObjects)
	d.out.FileObjects = slices.Compact(d.out.FileObjects)
	return nil
}

func (d *dumper) refName(id fsverity.Digest) string {
	if name, ok := d.names[id.String()]; ok {
		return name
	}
	return "unknown:" + id.String()
}

func (d *dumper) stream(id string) (*Stream, error) {
	f, err := os.Open(d.object(id))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	r, err := splitstream.NewReader(f, info.Size(), splitstream.ReaderOptions{})
	if err != nil {
		return nil, err
	}
	s := &Stream{
		Type: r.ContentType().String(), Size: r.Size(), Chunks: []string{},
		Named: map[string]string{}, Objects: []string{}, StreamRefs: []string{},
	}
	for _, ref := range r.NamedRefs() {
		s.Named[ref.Name] = d.refName(ref.ID)
	}
	for _, ref := range r.StreamRefs() {
		s.StreamRefs = append(s.StreamRefs, d.refName(ref))
	}
	if t := r.ContentType(); t == splitstream.Config || t == splitstream.Manifest {
		slices.Sort(s.StreamRefs)
	}
	for _, object := range r.ObjectRefs() {
		s.Objects = append(s.Objects, object.String())
	}
	d.used = append(d.used, s.Objects...)
	return s, d.chunks(r, s)
}

func (d *dumper) chunks(r *splitstream.Reader, s *Stream) error {
	chunks, err := r.Chunks()
	if err != nil {
		return err
	}
	defer chunks.Close()
	whole := sha256.New()
	for {
		c, err := chunks.Next()
		if errors.Is(err, io.EOF) {
			s.SHA256 = sum(whole)
			return nil
		}
		if err != nil {
			return err
		}
		if !c.Inline {
			f, err := os.Open(d.object(c.Object.String()))
			if err != nil {
				return err
			}
			n, err := io.Copy(whole, f)
			f.Close()
			if err != nil {
				return err
			}
			s.Chunks = append(s.Chunks, fmt.Sprintf("object %d %s", n, c.Object))
			continue
		}
		part := sha256.New()
		if _, err := io.Copy(io.MultiWriter(whole, part), chunks); err != nil {
			return err
		}
		s.Chunks = append(s.Chunks, fmt.Sprintf("inline %d %s", c.Length, sum(part)))
	}
}

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }
