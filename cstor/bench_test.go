// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"github.com/cfs-pull/cfs-pull/internal/ocilayout"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// BenchmarkPull pulls an image into a new store. The image is CSTOR_BENCH_REF,
// or one of 4000 files of 20 KB in four layers.
func BenchmarkPull(b *testing.B) {
	testutil.RequireRoot(b)
	refs := map[string]string{"image": os.Getenv("CSTOR_BENCH_REF")}
	if refs["image"] == "" {
		delete(refs, "image")
		for name, c := range map[string]ocilayout.Compression{"gzip": ocilayout.Gzip, "zstd": ocilayout.Zstd, "plain": ocilayout.None} {
			var layers []layerFiles
			for i := range 4 {
				files := layerFiles{}
				for j := range 1000 {
					files[fmt.Sprintf("dir%d/file%d-%d", j%20, i, j)] = bytes.Repeat(noise(i*1000+j, 5<<10), 4)
				}
				layers = append(layers, files)
			}
			refs[name] = makeImage(b, c, layers...)
		}
	}
	for name, ref := range refs {
		b.Run(name, func(b *testing.B) {
			var size int64
			for b.Loop() {
				b.StopTimer()
				s := openStore(b, storeOptions(b, b.TempDir()))
				src := openSource(b, ref, fetchOptions(b))
				b.StartTimer()
				r := check(s.Pull(b.Context(), src, PullOptions{MinFree: -1}))(b)
				b.StopTimer()
				size = 0
				for _, l := range check(s.Layers(check(s.Lookup(r.ImageID))(b)))(b) {
					size += l.UncompressedSize
				}
				must(b, os.RemoveAll(s.graphRoot))
				b.StartTimer()
			}
			b.SetBytes(size)
		})
	}
}
