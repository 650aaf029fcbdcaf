// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package securemode

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// objects lists the objects of a repository: their paths by the digest that is
// their name. Nothing else may be there.
func objects(t *testing.T, repo string) map[string]string {
	t.Helper()
	paths := map[string]string{}
	dir := filepath.Join(repo, "objects")
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if !d.Type().IsRegular() || strings.HasPrefix(d.Name(), ".") {
			t.Errorf("%s is not an object", path)
		}
		paths[filepath.Base(filepath.Dir(path))+d.Name()] = path
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// checkMeasured wants the kernel to enforce the name of every object, every
// image to be one of them, and meta.json to be protected as well.
func checkMeasured(t *testing.T, repo string, alg fsverity.Algorithm) {
	t.Helper()
	paths := objects(t, repo)
	checkObjects(t, paths, alg)
	meta, err := os.ReadFile(filepath.Join(repo, "meta.json"))
	if err != nil {
		t.Fatal(err)
	}
	want := fsverity.Sum(alg, meta).String()
	if got := measure(t, filepath.Join(repo, "meta.json"), alg); got != want {
		t.Errorf("meta.json measures %s, want %s", got, want)
	}
	images, err := filepath.Glob(filepath.Join(repo, "images", "[0-9a-f]*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(images) == 0 {
		t.Errorf("repository %s has no images", repo)
	}
	for _, image := range images {
		name := filepath.Base(image)
		target, err := filepath.EvalSymlinks(image)
		if err != nil || target != paths[name] {
			t.Errorf("image %s leads to %s, %v, want the object of that name", name, target, err)
		}
	}
}

// checkObjects wants the kernel to enforce the name of every object.
func checkObjects(t *testing.T, paths map[string]string, alg fsverity.Algorithm) {
	t.Helper()
	if len(paths) < 5 {
		t.Errorf("there are %d objects, which is not a pulled image", len(paths))
	}
	for name, path := range paths {
		if got := measure(t, path, alg); got != name {
			t.Errorf("object %s measures %s", name, got)
		}
	}
	if _, err := os.Stat(fsverityTool); err != nil {
		return
	}
	args := []string{"measure"}
	for _, path := range paths {
		args = append(args, path)
	}
	out, err := exec.CommandContext(t.Context(), fsverityTool, args...).Output()
	if err != nil {
		t.Fatalf("fsverity measure: %v", err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		digest, path, _ := strings.Cut(strings.TrimSpace(line), " ")
		_, digest, _ = strings.Cut(digest, ":")
		if seen++; digest == "" || paths[digest] != path {
			t.Errorf("fsverity measure says %s", line)
		}
	}
	if seen != len(paths) {
		t.Errorf("fsverity measure printed %d digests, want %d", seen, len(paths))
	}
}

// measure is the digest that the kernel enforces for a file, or why there is
// none.
func measure(t *testing.T, path string, alg fsverity.Algorithm) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer f.Close() // read-only
	d, err := fsverity.Measure(f, alg)
	if errors.Is(err, fsverity.ErrNotEnabled) {
		return "nothing"
	}
	if err != nil {
		t.Error(err)
	}
	return d.String()
}

// objectOf is the path of the object with some content.
func objectOf(repo string, content []byte) string {
	return filepath.Join(repo, "objects", fsverity.Sum(fsverity.SHA512, content).ObjectPath())
}

// replace puts another file in the place of an object, with fs-verity unless
// alg is 0.
func replace(t *testing.T, path string, content []byte, alg fsverity.Algorithm) {
	t.Helper()
	fake := filepath.Join(disk, "fake")
	if err := os.WriteFile(fake, content, 0o644); err != nil {
		t.Fatal(err)
	}
	if alg != 0 {
		f, err := os.Open(fake)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close() // read-only
		if err := fsverity.Enable(f, alg); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(fake, path); err != nil {
		t.Fatal(err)
	}
}

// unseal takes the protection from an object: a file without fs-verity and
// with the same content takes its place.
func unseal(t *testing.T, path string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	replace(t, path, content, 0)
}

// dropCaches makes the next reads come from the disk.
func dropCaches(t *testing.T) {
	t.Helper()
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0); err != nil {
		t.Fatal(err)
	}
}
