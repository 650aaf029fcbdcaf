// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"slices"
	"testing"

	"go.podman.io/storage"
)

// checkEverything is what "podman system check" does.
func checkEverything(tb testing.TB, s *Store) []error {
	tb.Helper()
	w := check(s.writer(tb.Context()))(tb)
	report := check(w.lib.Check(storage.CheckEverything()))(tb)
	var problems []error
	for _, list := range []map[string][]error{report.Layers, report.ROLayers, report.Images, report.ROImages, report.Containers} {
		for _, errs := range list {
			problems = slices.Concat(problems, errs)
		}
	}
	return problems
}
