// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// manyObjects fills a repository with n objects of a live stream, quickly.
func manyObjects(tb testing.TB, r *Repo, n int) {
	tb.Helper()
	ids := make([]fsverity.Digest, n)
	for i := range ids {
		ids[i], _, _ = r.Put([]byte("object " + strconv.Itoa(i)))
	}
	must(tb, r.LinkStream("layer", check(r.WriteStream(splitstream.Layer, func(w *splitstream.Writer) error {
		for _, id := range ids {
			if err := w.External(id, 100); err != nil {
				return err
			}
		}
		return nil
	}))(tb)))
	must(tb, r.SetStreamRef("layer", "layer"))
}

// BenchmarkCollectGarbage looks through a repository in which everything is in
// use. CFS_PULL_BENCH_OBJECTS is the number of objects.
func BenchmarkCollectGarbage(b *testing.B) {
	n := 4000
	if text := os.Getenv("CFS_PULL_BENCH_OBJECTS"); text != "" {
		n = check(strconv.Atoi(text))(b)
	}
	b.Run(fmt.Sprint(n), func(b *testing.B) {
		r := insecureRepo(b)
		manyObjects(b, r, n)
		b.ResetTimer()
		for b.Loop() {
			if got := check(r.CollectGarbage(b.Context(), GCOptions{DryRun: true}))(b); !got.Empty() {
				b.Fatalf("would remove %+v", got)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/object")
	})
}
