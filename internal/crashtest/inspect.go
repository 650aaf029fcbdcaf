// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package crashtest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Inspection is what a repository holds, whatever state it is in.
type Inspection struct {
	// Refs are the refs below streams/refs and images/refs, by their path in
	// the repository, and the first-level names that they lead to.
	Refs map[string]string
	// Objects are the files below objects/<hh>, by digest in hex.
	Objects []string
	// Leftovers are temporary files and links.
	Leftovers []string
	// Broken says what is wrong with what a link leads to, by the link's path.
	// Only refs keep something; a first-level link that is broken does no harm
	// as long as nobody relies on it.
	Broken map[string]error
}

// BrokenRefs are the refs that do not lead to something complete.
func (i *Inspection) BrokenRefs() []string {
	var out []string
	for _, link := range slices.Sorted(maps.Keys(i.Broken)) {
		if _, ok := i.Refs[link]; ok {
			out = append(out, fmt.Sprintf("%s: %v", link, i.Broken[link]))
		}
	}
	return out
}

// BrokenLinks are all links, refs included, that do not lead to something
// complete.
func (i *Inspection) BrokenLinks() []string {
	var out []string
	for _, link := range slices.Sorted(maps.Keys(i.Broken)) {
		out = append(out, fmt.Sprintf("%s: %v", link, i.Broken[link]))
	}
	return out
}

// inspector reads a repository. What was looked at once is remembered.
type inspector struct {
	dir     string
	alg     fsverity.Algorithm
	objects map[string]error
	streams map[string]error
	out     *Inspection
}

// Inspect reads all of a repository: every object that a link leads to is
// hashed, every layer reassembled. A directory that is not a repository, or not
// one yet, holds nothing.
func Inspect(dir string) (*Inspection, error) {
	i := inspector{
		dir: dir, alg: fsverity.SHA512, objects: map[string]error{}, streams: map[string]error{},
		out: &Inspection{Refs: map[string]string{}, Broken: map[string]error{}},
	}
	raw, err := os.ReadFile(filepath.Join(dir, "meta.json"))
	if err == nil {
		var meta struct{ Algorithm string }
		if err := json.Unmarshal(raw, &meta); err != nil {
			return nil, fmt.Errorf("read meta.json: %w", err)
		}
		if i.alg, err = fsverity.ParseAlgorithm(meta.Algorithm); err != nil {
			return nil, err
		}
	}
	if err := i.files(); err != nil {
		return nil, err
	}
	for _, kind := range []string{"streams", "images"} {
		if err := i.links(kind); err != nil {
			return nil, err
		}
	}
	return i.out, nil
}

// files lists objects and leftovers.
func (i *inspector) files() error {
	for _, pattern := range []string{".*", "objects/.*"} {
		found, err := filepath.Glob(filepath.Join(i.dir, pattern))
		if err != nil {
			return err
		}
		i.out.Leftovers = append(i.out.Leftovers, found...)
	}
	found, err := filepath.Glob(filepath.Join(i.dir, "objects", "??", "*"))
	if err != nil {
		return err
	}
	for _, file := range found {
		i.out.Objects = append(i.out.Objects, filepath.Base(filepath.Dir(file))+filepath.Base(file))
	}
	return nil
}

// links looks at all links of a kind, first those that refs lead to.
func (i *inspector) links(kind string) error {
	return filepath.WalkDir(filepath.Join(i.dir, kind), func(file string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || e.IsDir() {
			return err
		}
		link, err := filepath.Rel(i.dir, file)
		if err != nil {
			return err
		}
		name := path.Base(link)
		if path.Dir(link) != kind {
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			name = path.Base(target)
			i.out.Refs[link] = name
		}
		if kind == "streams" {
			err = i.namedStream(name)
		} else {
			err = i.image(name)
		}
		if err != nil {
			i.out.Broken[link] = err
		}
		return nil
	})
}

// target is the object that a first-level link leads to.
func (i *inspector) target(link string) (string, error) {
	target, err := os.Readlink(filepath.Join(i.dir, link))
	if err != nil {
		return "", err
	}
	id, err := fsverity.ParseObjectPath(strings.TrimPrefix(target, "../objects/"))
	if err != nil {
		return "", fmt.Errorf("%s leads to %s: %w", link, target, err)
	}
	return id.String(), nil
}

// object hashes an object.
func (i *inspector) object(id string) error {
	if err, seen := i.objects[id]; seen {
		return err
	}
	err := func() error {
		f, err := i.open(id)
		if err != nil {
			return err
		}
		defer f.Close()
		got, _, err := fsverity.SumFile(i.alg, f)
		if err != nil {
			return err
		}
		if got.String() != id {
			return fmt.Errorf("object %.16s… has the content of %.16s…", id, got)
		}
		return nil
	}()
	i.objects[id] = err
	return err
}

func (i *inspector) open(id string) (*os.File, error) {
	return os.Open(filepath.Join(i.dir, "objects", id[:2], id[2:]))
}

// namedStream looks at a stream by its content id, which says what it must be.
func (i *inspector) namedStream(name string) error {
	id, err := i.target("streams/" + name)
	if err != nil {
		return err
	}
	for prefix, want := range map[string]splitstream.ContentType{
		"oci-manifest-": splitstream.Manifest, "oci-config-": splitstream.Config, "oci-layer-": splitstream.Layer,
	} {
		if digest, ok := strings.CutPrefix(name, prefix); ok {
			return i.stream(id, want, digest)
		}
	}
	return fmt.Errorf("streams/%s is of no kind that is known here", name)
}

// stream looks at a stream: its own bytes, what it is made of, what it names.
// Its reassembled content must have the digest.
func (i *inspector) stream(id string, want splitstream.ContentType, digest string) error {
	key := id + " " + digest
	if err, seen := i.streams[key]; seen {
		return err
	}
	err := i.readStream(id, want, digest)
	if err != nil {
		err = fmt.Errorf("%s %.20s…: %w", want, digest, err)
	}
	i.streams[key] = err
	return err
}

func (i *inspector) readStream(id string, want splitstream.ContentType, digest string) error {
	if err := i.object(id); err != nil {
		return err
	}
	f, err := i.open(id)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	r, err := splitstream.NewReader(f, info.Size(), splitstream.ReaderOptions{Algorithm: i.alg, ContentType: want})
	if err != nil {
		return err
	}
	for _, object := range r.ObjectRefs() {
		if err := i.object(object.String()); err != nil {
			return err
		}
	}
	whole := sha256.New()
	if err := i.reassemble(r, whole); err != nil {
		return err
	}
	if got := "sha256:" + hex.EncodeToString(whole.Sum(nil)); got != digest {
		return fmt.Errorf("its content has the digest %s", got)
	}
	return i.named(r, want)
}

// reassemble writes a stream's content.
func (i *inspector) reassemble(r *splitstream.Reader, to hash.Hash) error {
	chunks, err := r.Chunks()
	if err != nil {
		return err
	}
	defer chunks.Close()
	for {
		c, err := chunks.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if c.Inline {
			if _, err := io.Copy(to, chunks); err != nil {
				return err
			}
			continue
		}
		f, err := i.open(c.Object.String())
		if err != nil {
			return err
		}
		_, err = io.Copy(to, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
}

// named looks at what a manifest or a config names, and that it names what it
// must.
func (i *inspector) named(r *splitstream.Reader, t splitstream.ContentType) error {
	refs := map[string]string{}
	for _, ref := range r.NamedRefs() {
		refs[ref.Name] = ref.ID.String()
	}
	if t == splitstream.Layer {
		return nil
	}
	raw, err := i.document(r)
	if err != nil {
		return err
	}
	var doc struct {
		Config struct{ Digest string }
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return err
	}
	wanted := doc.RootFS.DiffIDs
	if t == splitstream.Manifest {
		wanted = []string{"config:" + doc.Config.Digest}
	}
	for _, name := range wanted {
		if refs[name] == "" {
			return fmt.Errorf("it does not name %s", name)
		}
	}
	for name, id := range refs {
		if err := i.namedRef(name, id); err != nil {
			return err
		}
	}
	return nil
}

func (i *inspector) namedRef(name, id string) error {
	if strings.HasPrefix(name, "composefs.image") {
		return i.image(id)
	}
	if config, ok := strings.CutPrefix(name, "config:"); ok {
		return i.stream(id, splitstream.Config, config)
	}
	return i.stream(id, splitstream.Layer, name)
}

// document is the one object of a manifest or config.
func (i *inspector) document(r *splitstream.Reader) ([]byte, error) {
	objects := r.ObjectRefs()
	if len(objects) != 1 {
		return nil, fmt.Errorf("it has %d objects", len(objects))
	}
	f, err := i.open(objects[0].String())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// image looks at an EROFS image: its link, its bytes, what it is made of.
func (i *inspector) image(name string) error {
	id, err := i.target("images/" + name)
	if err == nil && id != name {
		err = fmt.Errorf("images/%.16s… leads to %.16s…", name, id)
	}
	if err == nil {
		err = i.object(id)
	}
	if err != nil {
		return err
	}
	f, err := i.open(id)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	im, err := erofs.Open(f, info.Size())
	if err != nil {
		return err
	}
	objects, err := im.Objects()
	if err != nil {
		return err
	}
	for _, object := range objects {
		if err := i.object(object.String()); err != nil {
			return fmt.Errorf("image %.16s…: %w", name, err)
		}
	}
	return nil
}

// tags are the names of refs of OCI images.
func (i *Inspection) tags() []string {
	var out []string
	for ref := range i.Refs {
		if tag, ok := strings.CutPrefix(ref, "streams/refs/oci/"); ok {
			out = append(out, tag)
		}
	}
	slices.Sort(out)
	return out
}
