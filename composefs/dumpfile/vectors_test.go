// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package dumpfile_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/composefs/dumpfile"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// vector is an entry of the conformance vectors.
type vector struct {
	ID          string `json:"id"`
	Path        string `json:"path"`
	Format      string `json:"format"`
	Status      string `json:"status"`
	Dump        *string
	DumpB64     string        `json:"dump_b64"`
	DumpGzB64   string        `json:"dump_gz_b64"`
	MinVersion  erofs.Version `json:"min_version"`
	MaxVersion  erofs.Version `json:"max_version"`
	Result      string        `json:"result"`
	ImageSHA256 string        `json:"image_sha256"`
	AssetSHA256 string        `json:"expected_image_sha256"`
	Verity256   string        `json:"image_fsverity_sha256"`
	Verity512   string        `json:"image_fsverity_sha512"`
}

func (v *vector) name() string {
	if v.ID != "" {
		return v.ID
	}
	return filepath.Base(v.Path)
}

// text is the dumpfile; ok is false where the vectors lack it.
func (v *vector) text(t *testing.T) (text []byte, ok bool) {
	t.Helper()
	if v.Dump != nil {
		return []byte(*v.Dump), true
	}
	b64 := v.DumpB64 + v.DumpGzB64
	if b64 == "" {
		return nil, false
	}
	raw, err := base64.StdEncoding.DecodeString(b64)
	if err != nil {
		t.Fatal(err)
	}
	if v.DumpGzB64 == "" {
		return raw, true
	}
	z, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = io.ReadAll(z); err != nil {
		t.Fatal(err)
	}
	return raw, true
}

func readJSON(t *testing.T, path string, to any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, to); err != nil {
		t.Fatalf("parse %s: %v", path, err)
	}
}

// imageOf is the image that mkcomposefs would make of a dump.
func imageOf(text []byte, minimum, maximum erofs.Version) ([]byte, error) {
	d, err := dumpfile.Parse(bytes.NewReader(text), dumpfile.ParseOptions{Compatible: true})
	if err != nil {
		return nil, err
	}
	var image bytes.Buffer
	err = d.WriteImage(&image, minimum, maximum)
	return image.Bytes(), err
}

func sum256(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// TestMkcomposefs compares with C mkcomposefs, rule by rule.
func TestMkcomposefs(t *testing.T) {
	var file struct{ Cases []vector }
	readJSON(t, filepath.Join("testdata", "mkcomposefs.json"), &file)
	if len(file.Cases) < 100 {
		t.Fatalf("only %d cases", len(file.Cases))
	}
	for _, v := range file.Cases {
		t.Run(v.name(), func(t *testing.T) {
			text, ok := v.text(t)
			if !ok {
				t.Fatal("no dump")
			}
			image, err := imageOf(text, v.MinVersion, v.MaxVersion)
			if v.name() == "overwrite-longer-xattr-erange" {
				// mkcomposefs fails by an error in its accounting; we do not.
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if v.Result == "error" {
				if err == nil {
					t.Fatal("accepted, but mkcomposefs refuses it")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := sum256(image); got != v.ImageSHA256 {
				t.Errorf("image %s (%d bytes), want %s", got, len(image), v.ImageSHA256)
			}
		})
	}
}

func bigVectors(t *testing.T) map[string]json.RawMessage {
	t.Helper()
	var file map[string]json.RawMessage
	readJSON(t, filepath.Join(testutil.Vectors(t), "erofs-vectors.json"), &file)
	return file
}

func section[T any](t *testing.T, file map[string]json.RawMessage, key string) (v T) {
	t.Helper()
	if err := json.Unmarshal(file[key], &v); err != nil {
		t.Fatalf("parse %s: %v", key, err)
	}
	return v
}

// TestAssets compares with the images that the C implementation's tests pin.
func TestAssets(t *testing.T) {
	done := 0
	for _, v := range section[[]vector](t, bigVectors(t), "c_assets") {
		text, ok := v.text(t)
		if !ok {
			continue // the large ones are not among the vectors
		}
		done++
		t.Run(v.name(), func(t *testing.T) {
			image, err := imageOf(text, v.MinVersion, v.MaxVersion)
			if err != nil {
				t.Fatal(err)
			}
			if got := sum256(image); got != v.AssetSHA256 {
				t.Errorf("image %s, want %s", got, v.AssetSHA256)
			}
			if got := fsverity.Sum(fsverity.SHA512, image).String(); got != v.Verity512 {
				t.Errorf("fs-verity %s, want %s", got, v.Verity512)
			}
		})
	}
	if done < 10 {
		t.Errorf("only %d assets", done)
	}
}

// TestRefused checks that what mkcomposefs's tests want refused is refused,
// strictly and compatibly.
func TestRefused(t *testing.T) {
	for _, v := range section[[]vector](t, bigVectors(t), "c_should_fail") {
		text, ok := v.text(t)
		if !ok {
			continue
		}
		t.Run(v.name(), func(t *testing.T) {
			if _, err := imageOf(text, erofs.V0, erofs.V1); err == nil {
				t.Error("accepted in compatible mode")
			}
			root, err := dumpfile.ParseTree(bytes.NewReader(text), dumpfile.ParseOptions{})
			if err == nil {
				_, err = erofs.Marshal(root, erofs.V1)
			}
			if err == nil {
				t.Error("accepted in strict mode")
			}
		})
	}
}

// TestTreeImages compares images of trees, which follow composefs-rs: pinned
// ones, and those of the reference model where the vectors say who confirmed it.
func TestTreeImages(t *testing.T) {
	file := bigVectors(t)
	texts := map[string][]byte{}
	corner := section[struct{ Cases []vector }](t, file, "c_corner_cases")
	for _, v := range append(corner.Cases, section[[]vector](t, file, "rs_dump_only")...) {
		if text, ok := v.text(t); ok {
			texts[v.ID] = text
		}
	}
	derived := section[struct{ Entries []vector }](t, file, "derived")
	for _, v := range append(derived.Entries, section[[]vector](t, file, "rs_pinned")...) {
		t.Run(v.ID+"/"+v.Format, func(t *testing.T) {
			text, ok := v.text(t)
			if !ok {
				text, ok = texts[v.ID]
			}
			if !ok {
				t.Fatal("no dump")
			}
			d, err := dumpfile.Parse(bytes.NewReader(text), dumpfile.ParseOptions{Compatible: true})
			if err != nil {
				t.Fatal(err)
			}
			root, err := d.Tree()
			if err != nil {
				t.Fatal(err)
			}
			version := erofs.Version(v.Format[1] - '0')
			image, err := erofs.Marshal(root, version)
			if err != nil {
				t.Fatal(err)
			}
			if v.ImageSHA256 != "" && sum256(image) != v.ImageSHA256 {
				t.Errorf("image %s (%d bytes), want %s", sum256(image), len(image), v.ImageSHA256)
			}
			if v.Verity256 != "" {
				if got := fsverity.Sum(fsverity.SHA256, image).String(); got != v.Verity256 {
					t.Errorf("fs-verity %s, want %s", got, v.Verity256)
				}
			}
			if v.Verity512 != "" {
				if got := fsverity.Sum(fsverity.SHA512, image).String(); got != v.Verity512 {
					t.Errorf("fs-verity %s, want %s", got, v.Verity512)
				}
			}
		})
	}
}

// TestExpectedDumps reads the dumps that cfsctl made of whole images, writes
// them again, and compares the image of each with cfsctl's.
func TestExpectedDumps(t *testing.T) {
	dir := filepath.Join(testutil.Vectors(t), "oci")
	var ids map[string]map[string]struct {
		Image string `json:"image_id"`
	}
	readJSON(t, filepath.Join(dir, "ids.json"), &ids)
	dumps, err := filepath.Glob(filepath.Join(dir, "expect", "*.dump"))
	if err != nil || len(dumps) < 15 {
		t.Fatalf("%d dumps: %v", len(dumps), err)
	}
	for _, path := range dumps {
		name := strings.TrimSuffix(filepath.Base(path), ".dump")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			root, err := dumpfile.ParseTree(bytes.NewReader(text), dumpfile.ParseOptions{Algorithm: fsverity.SHA512})
			if err != nil {
				t.Fatal(err)
			}
			var again bytes.Buffer
			if err := dumpfile.Write(&again, root, fsverity.SHA512); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(text), again.String()); diff != "" {
				t.Errorf("written dump differs (-want +got):\n%s", diff)
			}
			for kind, version := range map[string]erofs.Version{"sha512-1": erofs.V1, "sha512-2": erofs.V2} {
				image, err := erofs.Marshal(root, version)
				if err != nil {
					t.Fatal(err)
				}
				if got, want := fsverity.Sum(fsverity.SHA512, image).String(), ids[name][kind].Image; got != want {
					t.Errorf("%s image %s, want %s", kind, got, want)
				}
			}
			literal, err := imageOf(text, erofs.V1, erofs.V1)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := fsverity.Sum(fsverity.SHA512, literal).String(), ids[name]["sha512-1"].Image; got != want {
				t.Errorf("image by mkcomposefs's rules %s, want %s", got, want)
			}
		})
	}
}

func TestSyntaxErrorNamesLine(t *testing.T) {
	_, err := dumpfile.Parse(strings.NewReader("/ 0 40755 2 0 0 0 0.0 - - -\n/a\n"), dumpfile.ParseOptions{})
	var syntax *dumpfile.SyntaxError
	if !errors.As(err, &syntax) || syntax.Line != 2 {
		t.Errorf("error %v, want a syntax error in line 2", err)
	}
}
