// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package depcheck holds the test that pins which package may import which.
package depcheck

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

const module = "github.com/cfs-pull/cfs-pull/"

// layers are the packages from the bottom up. A package may import those of
// the lines before its own.
var layers = [][]string{
	{"fsverity", "internal/rooted"},
	{"composefs/tree"},
	{"composefs/splitstream", "erofs"},
	{"composefs/dumpfile", "composefs/scan", "internal/filelock", "internal/freespace"},
	{"internal/tarraw", "internal/selinux", "composefs", "composefs/boot"},
	{"composefs/mount", "composefs/oci"},
	{"composefs/bootc", "pipeline/fetch", "cstor/unpack"},
	{"cstor"},
	{"pipeline"},
	{"cmd/cfs-pull"},
}

// testOnly are packages that only tests, demonstrations and benchmarks use.
var testOnly = []string{
	"bench", "erofs/internal/erofstest", "internal/crashtest", "internal/demo", "internal/depcheck", "internal/loopfs", "internal/microvm", "internal/ocilayout",
	"internal/realimage", "internal/repodump", "internal/securemode", "internal/testregistry", "internal/testutil",
}

// containersImporters are the only packages that may import the libraries of
// the containers projects: they are large and change their interfaces.
var containersImporters = []string{"pipeline/fetch", "cstor"}

func TestImports(t *testing.T) {
	rank := map[string]int{}
	for i, names := range layers {
		for _, name := range names {
			rank[name] = i
		}
	}
	root := testutil.ModuleRoot(t)
	seen := map[string]bool{}
	err := filepath.WalkDir(root, func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && (e.Name() == "testdata" || e.Name() == "tools" || e.Name() != "." && strings.HasPrefix(e.Name(), ".")) {
			return fs.SkipDir
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		rel, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(rel)
		if isTestOnly(pkg) {
			return nil
		}
		own, known := rank[pkg]
		if !known {
			t.Errorf("package %s is in no layer; add it where it belongs", pkg)
			return nil
		}
		seen[pkg] = true
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range parsed.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			checkImport(t, pkg, name, own, rank)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range rank {
		if !seen[name] {
			t.Errorf("package %s is in a layer but has no files", name)
		}
	}
}

func isTestOnly(pkg string) bool {
	for _, prefix := range testOnly {
		if pkg == prefix || strings.HasPrefix(pkg, prefix+"/") {
			return true
		}
	}
	return false
}

func checkImport(t *testing.T, pkg, name string, own int, rank map[string]int) {
	t.Helper()
	if strings.HasPrefix(name, "go.podman.io/") && !slices.Contains(containersImporters, pkg) {
		t.Errorf("%s imports %s, which only %s may", pkg, name, strings.Join(containersImporters, " and "))
	}
	if name == "unsafe" && pkg != "fsverity" {
		t.Errorf("%s imports unsafe", pkg)
	}
	local, ok := strings.CutPrefix(name, module)
	if !ok {
		return
	}
	if isTestOnly(local) {
		t.Errorf("%s imports %s, which is for tests", pkg, local)
		return
	}
	if other, ok := rank[local]; !ok || other >= own {
		t.Errorf("%s imports %s, which is not below it", pkg, path.Base(local))
	}
}
