// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package securemode

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// testMountCommand has the program mount what mountImage mounts elsewhere, and
// tampers with the image and with what says that fs-verity is required.
func testMountCommand(t *testing.T) {
	im := osImage()
	id := expected(t)[im.name]
	before := mounts(t)
	target := t.TempDir()
	mounted := func(repo, id string, args ...string) string {
		t.Helper()
		stdout, stderr, code := command(t, append([]string{"mount", "--repo", repo, id, target}, args...)...)
		if code != 0 {
			t.Fatalf("mount %q: exit status %d\n%s", args, code, stderr)
		}
		if !strings.Contains(stdout, id) {
			t.Errorf("mount %s says %q", id, stdout)
		}
		var options string
		for line := range strings.Lines(mounts(t)) {
			if strings.Contains(line, " "+target+" ") {
				options = line
			}
		}
		return options
	}
	unmount := func() {
		t.Helper()
		if _, stderr, code := command(t, "umount", target); code != 0 {
			t.Errorf("umount: exit status %d\n%s", code, stderr)
		}
		if diff := cmp.Diff(before, mounts(t)); diff != "" {
			t.Errorf("mounts (-before +after):\n%s", diff)
		}
	}
	refused := func(want int, args ...string) {
		t.Helper()
		_, stderr, code := command(t, append([]string{"mount", "--repo", mainRepo, id.Image, target}, args...)...)
		if code != want {
			t.Errorf("mount %q: exit status %d, want %d\n%s", args, code, want, stderr)
		}
		if code == 0 {
			unmount()
		}
		if diff := cmp.Diff(before, mounts(t)); diff != "" {
			t.Errorf("mounts (-before +after):\n%s", diff)
		}
	}

	checkStatus(t)
	dropCaches(t)
	if options := mounted(mainRepo, id.Image); !strings.Contains(options, "verity=require") {
		t.Errorf("fs-verity is not required by the mount: %s", options)
	}
	checkTree(t, target, im.files())
	unmount()
	if options := mounted(mainRepo, id.BootImage, "--read-write", filepath.Join(disk, "changes")); !strings.Contains(options, "verity=require") {
		t.Errorf("fs-verity is not required by the mount: %s", options)
	}
	if err := os.WriteFile(filepath.Join(target, "new"), []byte("new"), 0o644); err != nil {
		t.Error(err)
	}
	files := im.bootFiles()
	files["new"] = []byte("new")
	checkTree(t, target, files)
	unmount()

	// Another image in the place of the image, and the image without
	// protection. Then the same where meta.json has lost its protection, which
	// whoever can do the one can do too.
	image := filepath.Join(mainRepo, "objects", id.Image[:2], id.Image[2:])
	content, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(content)
	changed[len(changed)-1]++
	aside(t, image, func() {
		replace(t, image, changed, fsverity.SHA512)
		refused(7)
		replace(t, image, changed, 0)
		refused(7)
		refused(7, "--allow-missing-verity", "--force")
		replace(t, image, content, 0)
		refused(7)
		refused(0, "--allow-missing-verity", "--force") // its content was hashed
		meta := filepath.Join(mainRepo, "meta.json")
		aside(t, meta, func() {
			text, err := os.ReadFile(meta + ".aside")
			if err != nil {
				t.Fatal(err)
			}
			replace(t, meta, text, 0)
			refused(0)
			refused(6, "--require-verity")
			replace(t, image, changed, fsverity.SHA512)
			refused(7)
			replace(t, image, changed, 0)
			refused(7)
		})
	})
	// All is as before.
	if options := mounted(mainRepo, id.Image); !strings.Contains(options, "verity=require") {
		t.Errorf("fs-verity is not required by the mount: %s", options)
	}
	unmount()
}

// checkStatus asks the program what the repository can do.
func checkStatus(t *testing.T) {
	t.Helper()
	stdout, stderr, code := command(t, "status", "--json", "--repo", mainRepo)
	var status struct {
		Repository struct{ VerityRequired bool }
		Verity     string
	}
	if err := json.Unmarshal([]byte(stdout), &status); err != nil || code != 0 {
		t.Fatalf("status: exit status %d, %v\n%s", code, err, stderr)
	}
	if !status.Repository.VerityRequired || status.Verity != "yes" {
		t.Errorf("status says %s", stdout)
	}
}

// aside moves a file out of the way while f runs.
func aside(t *testing.T, path string, f func()) {
	t.Helper()
	if err := os.Rename(path, path+".aside"); err != nil {
		t.Fatal(err)
	}
	f()
	if err := os.Rename(path+".aside", path); err != nil {
		t.Fatal(err)
	}
}

// mounts is the kernel's list of mounts.
func mounts(t *testing.T) string {
	t.Helper()
	list, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(list)
}
