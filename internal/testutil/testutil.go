// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package testutil is what tests of several packages share: where the
// conformance vectors are, and how a test says which tool or privilege it
// lacks.
package testutil

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// ModuleRoot is the directory that holds go.mod: the current one, where go test
// runs the tests of the root, or one above. The sources that were compiled do
// not tell, as -trimpath takes their directory away.
func ModuleRoot(tb testing.TB) string {
	tb.Helper()
	here, err := os.Getwd()
	if err != nil {
		tb.Fatalf("find the module root: %v", err)
	}
	for dir := here; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			tb.Fatalf("find the module root: no go.mod in %s or above", here)
		}
	}
}

// Vectors is the directory of the large conformance vectors, which are not
// part of the module. It is CFS_PULL_VECTORS, or ../shared/vectors beside the
// module. The test is skipped where it is absent.
func Vectors(tb testing.TB) string {
	tb.Helper()
	dir := os.Getenv("CFS_PULL_VECTORS")
	if dir == "" {
		dir = filepath.Join(filepath.Dir(ModuleRoot(tb)), "shared", "vectors")
	}
	if _, err := os.Stat(filepath.Join(dir, "README.md")); err != nil {
		tb.Skipf("conformance vectors are not at %s; set CFS_PULL_VECTORS", dir)
	}
	return dir
}

// RequireTool skips the test when a program is missing and names the Debian
// package that has it. It returns the program's path.
func RequireTool(tb testing.TB, name, debianPackage string) string {
	tb.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		tb.Skipf("%s is not installed: apt-get install %s", name, debianPackage)
	}
	return path
}

// RequireRoot skips the test when it does not run as root.
func RequireRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: run the tests with sudo")
	}
}
