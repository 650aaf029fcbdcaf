// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/cfs-pull/cfs-pull/internal/rooted"
)

// This file is the on-disk format of a containers-storage, as far as it is
// read: oci-and-boot.md §3.3 and §3.4.

// Places in a graph root of the overlay driver.
const (
	driverDir     = "overlay"        // <layer id>/diff, l/<short id>, tempdirs
	layersDir     = "overlay-layers" // layers.json, <layer id>.tar-split.gz
	imagesDir     = "overlay-images" // images.json, <image id>/<big data>
	layersFile    = layersDir + "/layers.json"
	volatileFile  = layersDir + "/volatile-layers.json"
	layersLock    = layersDir + "/layers.lock"
	imagesFile    = imagesDir + "/images.json"
	imagesLock    = imagesDir + "/images.lock"
	tarSplitEnd   = ".tar-split.gz"
	flatMarker    = "composefs-data/composefs.blob" // below a layer of the driver
	mountProgram  = driverDir + "/.has-mount-program"
	manifestKey   = "manifest" // big data, also the prefix of the keys of others
	incompleteKey = "incomplete"
)

// Limits on files of a store, in bytes.
const (
	maxRecords  = 256 << 20
	maxManifest = 4 << 20 // what pipeline/fetch accepts
	maxConfig   = 8 << 20
	maxFlagFile = 16
)

// imageRecord is an item of images.json.
type imageRecord struct {
	ID             string            `json:"id"`
	Names          []string          `json:"names"`
	Layer          string            `json:"layer"`
	BigDataNames   []string          `json:"big-data-names"`
	BigDataDigests map[string]string `json:"big-data-digests"`
	Created        time.Time         `json:"created"`
}

// layerRecord is an item of layers.json.
type layerRecord struct {
	ID               string         `json:"id"`
	Parent           string         `json:"parent"`
	DiffDigest       string         `json:"diff-digest"`
	DiffSize         int64          `json:"diff-size"`
	CompressedDigest string         `json:"compressed-diff-digest"`
	CompressedSize   int64          `json:"compressed-size"`
	TOCDigest        string         `json:"toc-digest"`
	Flags            map[string]any `json:"flags"`
}

// incomplete reports a layer that was being written when its writer died.
func (l *layerRecord) incomplete() bool {
	set, isBool := l.Flags[incompleteKey].(bool)
	return set && isBool
}

// records are the records of one graph root, read under its locks.
type records struct {
	root     string
	readOnly bool
	images   []imageRecord
	layers   map[string]*layerRecord
}

// readRecords reads the records of a graph root. The caller holds the locks.
// Records whose id could not be a file name are left out: nothing can belong
// to them.
func readRecords(root string, readOnly bool) (*records, error) {
	r := &records{root: root, readOnly: readOnly, layers: map[string]*layerRecord{}}
	images, err := readList[imageRecord](root, imagesFile)
	if err != nil {
		return nil, err
	}
	for _, i := range images {
		if validID(i.ID) {
			r.images = append(r.images, i)
		}
	}
	for _, file := range []string{layersFile, volatileFile} {
		layers, err := readList[layerRecord](root, file)
		if err != nil {
			return nil, err
		}
		for _, l := range layers {
			if _, twice := r.layers[l.ID]; validID(l.ID) && !twice {
				r.layers[l.ID] = &l
			}
		}
	}
	return r, nil
}

// readList reads a JSON array. A store without any such record need not have
// the file.
func readList[T any](root, file string) ([]T, error) {
	data, err := rooted.ReadFile(root, file, maxRecords)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(data) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []T
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", filepath.Join(root, file), ErrCorrupt, err)
	}
	return list, nil
}

// validID reports whether s is an id as the library makes them: 64 hex digits.
func validID(s string) bool { return len(s) == 64 && isHex(s) }

func isHex(s string) bool {
	return strings.Trim(s, "0123456789abcdef") == ""
}

// bigDataPath is the path of a data item of an image below the graph root.
func bigDataPath(image, key string) string {
	name := key
	if strings.Trim(key, ".0123456789abcdefghijklmnopqrstuvwxyz") != "" {
		name = "=" + base64.StdEncoding.EncodeToString([]byte(key))
	}
	return imagesDir + "/" + image + "/" + name
}

func diffDir(root, layer string) string { return filepath.Join(root, driverDir, layer, "diff") }

func tarSplitPath(root, layer string) string {
	return filepath.Join(root, layersDir, layer+tarSplitEnd)
}
