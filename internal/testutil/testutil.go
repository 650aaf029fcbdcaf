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
	"runtime"
	"testing"
)

// ModuleRoot is the directory that holds go.mod.
func ModuleRoot(tb testing.TB) string {
	tb.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		tb.Fatal("find the module root: no caller information")
	}
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
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
