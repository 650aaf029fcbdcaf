// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/types"

	"github.com/cfs-pull/cfs-pull/internal/rooted"
)

// maxDirFile bounds each file in a dir: image that is not a blob, in bytes.
const maxDirFile = maxManifestSize

// dirSource reads a dir: image. Manifests and signatures are the library's to
// read; blobs are opened here.
type dirSource struct {
	types.ImageSource
	dir string
}

// newDirSource opens the image in dir. The library reads whole files, whatever
// their kind and size, so they are looked at before.
func newDirSource(ctx context.Context, ref types.ImageReference, sys *types.SystemContext, dir string) (*dirSource, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read directory image: %w", err)
	}
	for _, entry := range entries {
		name := entry.Name()
		if name != "version" && !strings.HasSuffix(name, "manifest.json") && !strings.Contains(name, "signature-") {
			continue
		}
		f, size, err := openRegular(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("read directory image: %w", err)
		}
		f.Close()
		if size > maxDirFile {
			return nil, rooted.TooLarge(f.Name(), maxDirFile)
		}
	}
	src, err := ref.NewImageSource(ctx, sys)
	if err != nil {
		return nil, err
	}
	return &dirSource{ImageSource: src, dir: dir}, nil
}

func (s *dirSource) HasThreadSafeGetBlob() bool { return true }

func (s *dirSource) GetBlob(_ context.Context, info types.BlobInfo, _ types.BlobInfoCache) (io.ReadCloser, int64, error) {
	if err := info.Digest.Validate(); err != nil {
		return nil, 0, err
	}
	name := info.Digest.Encoded()
	if info.Digest.Algorithm() != digest.Canonical {
		name = info.Digest.Algorithm().String() + "-" + name
	}
	return dirStore(s.dir).open(name)
}
