// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/types"

	"github.com/cfs-pull/cfs-pull/internal/rooted"
)

// fileStore is a place with files by name: a directory or an archive. It is
// safe for concurrent use.
type fileStore interface {
	// open returns the content and the size of a regular file. name is
	// slash-separated and relative. An absent file is fs.ErrNotExist.
	open(name string) (io.ReadCloser, int64, error)
	Close() error
}

// dirStore is a fileStore in a directory. Links are followed wherever they
// lead, since there are tools that build layouts of links: the user named the
// directory, and what comes out of it is either verified by digest or is a
// list of digests.
type dirStore string

func (d dirStore) open(name string) (io.ReadCloser, int64, error) {
	f, size, err := openRegular(filepath.Join(string(d), filepath.FromSlash(name)))
	if err != nil {
		return nil, 0, err
	}
	return f, size, nil
}

func (dirStore) Close() error { return nil }

// readStoreFile reads a whole file of at most limit bytes.
func readStoreFile(s fileStore, name string, limit int64) ([]byte, error) {
	f, size, err := s.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > limit {
		return nil, rooted.TooLarge(name, limit)
	}
	return rooted.ReadLimited(f, name, limit)
}

// noSignatures is the part of types.ImageSource that is the same for all
// sources that hold neither signatures nor layers under other names.
type noSignatures struct{}

func (noSignatures) GetSignatures(context.Context, *digest.Digest) ([][]byte, error) {
	return nil, nil
}

func (noSignatures) LayerInfosForCopy(context.Context, *digest.Digest) ([]types.BlobInfo, error) {
	return nil, nil
}

func (noSignatures) HasThreadSafeGetBlob() bool { return true }

// layoutSource reads an OCI image layout, in a directory or in an archive.
type layoutSource struct {
	noSignatures
	ref   types.ImageReference
	store fileStore
	// candidates are the descriptors of index.json that the reference may mean.
	// All of them have the same name, or none has one.
	candidates []imgspecv1.Descriptor
	top        imgspecv1.Descriptor
}

// newLayoutSource reads index.json. which is the part of the reference after
// the path: a name, "@" and a position, or nothing.
func newLayoutSource(ref types.ImageReference, store fileStore, which, name string) (*layoutSource, error) {
	data, err := readStoreFile(store, imgspecv1.ImageIndexFile, maxManifestSize)
	if err != nil {
		return nil, fmt.Errorf("read OCI layout: %w", err)
	}
	if err := checkUnambiguous(data); err != nil {
		return nil, fmt.Errorf("read OCI layout: index.json: %w", err)
	}
	var index imgspecv1.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("read OCI layout: index.json: %w", err)
	}
	candidates, err := layoutCandidates(index.Manifests, which)
	if err != nil {
		return nil, &NotFoundError{Reference: name, Err: err}
	}
	if refs := refNames(candidates); len(refs) > 1 {
		return nil, &UsageError{
			Subject: name,
			Err:     fmt.Errorf("the layout holds several images: %s", listSome(refs)),
			Hint:    "append :NAME",
		}
	}
	return &layoutSource{ref: ref, store: store, candidates: candidates}, nil
}

func layoutCandidates(manifests []imgspecv1.Descriptor, which string) ([]imgspecv1.Descriptor, error) {
	if position, ok := strings.CutPrefix(which, "@"); ok {
		n, err := strconv.Atoi(position)
		if err != nil || n < 0 || n >= len(manifests) {
			return nil, fmt.Errorf("no image at position %s, the layout holds %d", position, len(manifests))
		}
		return manifests[n : n+1], nil
	}
	if which != "" {
		named := slices.DeleteFunc(slices.Clone(manifests), func(d imgspecv1.Descriptor) bool {
			return d.Annotations[imgspecv1.AnnotationRefName] != which
		})
		if len(named) == 0 {
			return nil, fmt.Errorf("no image is called %q; the layout holds: %s", which, listSome(refNames(manifests)))
		}
		return named, nil
	}
	if len(manifests) == 0 {
		return nil, errors.New("the layout is empty")
	}
	return manifests, nil
}

// refNames are the distinct names of descriptors, "(unnamed)" for none.
func refNames(manifests []imgspecv1.Descriptor) []string {
	var names []string
	for _, d := range manifests {
		name := d.Annotations[imgspecv1.AnnotationRefName]
		if name == "" {
			name = "(unnamed)"
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// listSome joins the first names of a list for a message.
func listSome(names []string) string {
	const most = 20
	if len(names) == 0 {
		return "nothing"
	}
	text := strings.Join(names[:min(len(names), most)], ", ")
	if len(names) > most {
		text += fmt.Sprintf(", and %d more", len(names)-most)
	}
	return text
}

// blobPath is where a layout keeps a blob. The digest must be valid.
func blobPath(d digest.Digest) string {
	return path.Join(imgspecv1.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

func (s *layoutSource) Reference() types.ImageReference { return s.ref }

func (s *layoutSource) Close() error { return s.store.Close() }

func (s *layoutSource) GetManifest(_ context.Context, instance *digest.Digest) ([]byte, string, error) {
	d, mediaType := s.top.Digest, s.top.MediaType
	if instance != nil {
		d, mediaType = *instance, ""
	}
	if err := d.Validate(); err != nil {
		return nil, "", err
	}
	data, err := readStoreFile(s.store, blobPath(d), maxManifestSize)
	if err != nil {
		return nil, "", fmt.Errorf("read manifest: %w", err)
	}
	return data, mediaType, nil
}

func (s *layoutSource) GetBlob(_ context.Context, info types.BlobInfo, _ types.BlobInfoCache) (io.ReadCloser, int64, error) {
	if err := info.Digest.Validate(); err != nil {
		return nil, 0, err
	}
	return s.store.open(blobPath(info.Digest))
}
