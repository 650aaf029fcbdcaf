// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package ocilayout_test

import (
	"archive/tar"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfs-pull/cfs-pull/internal/ocilayout"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// skopeo verifies every blob that it copies, and the diff_ids when it changes
// the compression.
func TestLayoutIsReadBySkopeo(t *testing.T) {
	skopeo := testutil.RequireTool(t, "skopeo", "skopeo")
	dir := filepath.Join(t.TempDir(), "layout")
	w, err := ocilayout.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []ocilayout.Compression{ocilayout.Gzip, ocilayout.Zstd, ocilayout.None} {
		err := w.AddLayer(c, func(tw *tar.Writer) error {
			return tw.WriteHeader(&tar.Header{Name: string(rune('a'+i)) + "/", Typeflag: tar.TypeDir, Mode: 0o755})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish("v1", v1.ImageConfig{Labels: map[string]string{"key": "value"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := ocilayout.Create(dir); err == nil {
		t.Error("a second image replaced the first one without a word")
	}

	inspect := func(value any, how string) {
		t.Helper()
		out, err := exec.Command(skopeo, "inspect", how, "oci:"+dir+":v1").Output()
		if err != nil {
			t.Fatalf("skopeo inspect %s: %v", how, err)
		}
		if err := json.Unmarshal(out, value); err != nil {
			t.Fatal(err)
		}
	}
	var manifest v1.Manifest
	inspect(&manifest, "--raw")
	var types []string
	for _, l := range manifest.Layers {
		types = append(types, l.MediaType)
	}
	want := []string{v1.MediaTypeImageLayerGzip, v1.MediaTypeImageLayerZstd, v1.MediaTypeImageLayer}
	if !slices.Equal(types, want) {
		t.Errorf("skopeo sees layers %v, want %v", types, want)
	}
	var config v1.Image
	inspect(&config, "--config")
	if config.Config.Labels["key"] != "value" || len(config.RootFS.DiffIDs) != 3 {
		t.Errorf("skopeo sees the config %+v", config)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command(skopeo, "copy", "--dest-compress-format=gzip", "--dest-compress", "oci:"+dir+":v1", "dir:"+copied).CombinedOutput(); err != nil {
		t.Errorf("skopeo copy: %v\n%s", err, out)
	}
}
