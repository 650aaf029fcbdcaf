// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package testutil is what tests of several packages share: where the
// conformance vectors are, and how a test says which tool or privilege it
// lacks.
package testutil

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
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

// VectorRepository unpacks repos/<kind>.tar.zst of the conformance vectors, a
// repository as a reference tool left it, into a directory of its own.
func VectorRepository(tb testing.TB, kind string) string {
	tb.Helper()
	file := filepath.Join(Vectors(tb), "repos", kind+".tar.zst")
	dir := tb.TempDir()
	if err := unpack(file, dir); err != nil {
		tb.Fatalf("unpack %s: %v", file, err)
	}
	return dir
}

// unpack unpacks an archive of directories, links and files.
func unpack(file, to string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	d, err := zstd.NewReader(f)
	if err != nil {
		return err
	}
	defer d.Close()
	dir, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer dir.Close()
	for tr := tar.NewReader(d); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = unpackEntry(dir, h, tr)
		}
		if err != nil {
			return err
		}
	}
}

func unpackEntry(dir *os.Root, h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		return dir.MkdirAll(filepath.Clean(h.Name), 0o755)
	case tar.TypeSymlink:
		return dir.Symlink(h.Linkname, h.Name)
	case tar.TypeReg:
		out, err := dir.Create(h.Name)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, content)
		return errors.Join(err, out.Close())
	}
	return fmt.Errorf("%s: unexpected type %q", h.Name, h.Typeflag)
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

// RequireCfsctl skips the test when the reference tool is missing: CFS_PULL_CFSCTL
// or a program cfsctl in the search path. It returns the tool's path.
func RequireCfsctl(tb testing.TB) string {
	tb.Helper()
	name := os.Getenv("CFS_PULL_CFSCTL")
	if name == "" {
		name = "cfsctl"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		tb.Skipf("cfsctl is not there: build it from composefs-rs (cargo build --release -p composefs-ctl) and set CFS_PULL_CFSCTL: %v", err)
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
