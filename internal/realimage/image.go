// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package realimage

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// Tags of the image; both have the same layers, compressed differently.
const (
	TagGzip = "gzip"
	TagZstd = "zstd"
)

// Layout is the OCI layout directory of the test image: CFS_PULL_OS_IMAGE, or
// the small image that scripts/build-os-image made before. The test is skipped
// where there is none, because making it takes root, a package mirror and
// minutes.
func Layout(tb testing.TB) string {
	tb.Helper()
	if dir := os.Getenv("CFS_PULL_OS_IMAGE"); dir != "" {
		if _, err := os.Stat(filepath.Join(dir, "index.json")); err != nil {
			tb.Fatalf("CFS_PULL_OS_IMAGE is not an OCI layout: %v", err)
		}
		return dir
	}
	script := filepath.Join(testutil.ModuleRoot(tb), "scripts", "build-os-image")
	out, err := exec.Command(script, "--size", "small", "--print").Output()
	if err != nil {
		tb.Skip("no test image: run sudo scripts/build-os-image --size small")
	}
	return strings.TrimSuffix(string(out), "\n")
}
