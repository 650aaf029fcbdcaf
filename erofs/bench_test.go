// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package erofs_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/erofs/internal/erofstest"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// benchInodes is about what a small bootable operating system has.
const benchInodes = 40_000

func report(b *testing.B, im *erofs.Image) {
	b.Helper()
	b.SetBytes(im.Size())
	b.ReportMetric(benchInodes*float64(b.N)/b.Elapsed().Seconds(), "files/s")
}

func BenchmarkWrite(b *testing.B) {
	root := erofstest.OS(benchInodes)
	for _, v := range versions {
		b.Run(v.String(), func(b *testing.B) {
			im := open(b, marshal(b, root, v))
			b.ReportAllocs()
			for b.Loop() {
				if err := erofs.Write(io.Discard, root, erofs.WriteOptions{Version: v}); err != nil {
					b.Fatal(err)
				}
			}
			report(b, im)
		})
	}
}

// BenchmarkDigest is what an image costs anyway: its fs-verity digest, without
// which it has no name. Compare the other times with it.
func BenchmarkDigest(b *testing.B) {
	image := marshal(b, erofstest.OS(benchInodes), erofs.V1)
	b.SetBytes(int64(len(image)))
	for b.Loop() {
		fsverity.Sum(fsverity.SHA512, image)
	}
}

func BenchmarkRead(b *testing.B) {
	root := erofstest.OS(benchInodes)
	for _, v := range versions {
		image := marshal(b, root, v)
		im := open(b, image)
		for name, f := range map[string]func() error{
			"Open":           func() error { _, err := erofs.Open(bytes.NewReader(image), int64(len(image))); return err },
			"Objects":        func() error { _, err := im.Objects(); return err },
			"Tree":           func() error { _, err := im.Tree(); return err },
			"CheckCanonical": im.CheckCanonical,
		} {
			b.Run(name+"/"+v.String(), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := f(); err != nil {
						b.Fatal(err)
					}
				}
				report(b, im)
			})
		}
	}
}
