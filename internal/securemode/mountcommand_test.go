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

// commandMount mounts images of a repository with the program.
type commandMount struct {
	*testing.T
	repo, target, before string
}

func newCommandMount(t *testing.T, repo string) *commandMount {
	return &commandMount{t, repo, t.TempDir(), mounts(t)}
}

// mount mounts an image, which must require fs-verity of files.
func (m *commandMount) mount(id string, args ...string) {
	m.Helper()
	stdout, stderr, code := command(m.T, append([]string{"mount", "--repo", m.repo, id, m.target}, args...)...)
	if code != 0 {
		m.Fatalf("mount %q: exit status %d\n%s", args, code, stderr)
	}
	if !strings.Contains(stdout, id) {
		m.Errorf("mount %s says %q", id, stdout)
	}
	for line := range strings.Lines(mounts(m.T)) {
		if strings.Contains(line, " "+m.target+" ") && strings.Contains(line, "verity=require") {
			return
		}
	}
	m.Errorf("mount %q does not require fs-verity:\n%s", args, mounts(m.T))
}

func (m *commandMount) unmount() {
	m.Helper()
	if _, stderr, code := command(m.T, "umount", m.target); code != 0 {
		m.Errorf("umount: exit status %d\n%s", code, stderr)
	}
	m.checkNothingLeft()
}

// exits mounts an image and wants an exit status.
func (m *commandMount) exits(want int, id string, args ...string) {
	m.Helper()
	_, stderr, code := command(m.T, append([]string{"mount", "--repo", m.repo, id, m.target}, args...)...)
	if code != want {
		m.Errorf("mount %q: exit status %d, want %d\n%s", args, code, want, stderr)
	}
	if code == 0 {
		m.unmount()
	}
	m.checkNothingLeft()
}

func (m *commandMount) checkNothingLeft() {
	m.Helper()
	if diff := cmp.Diff(m.before, mounts(m.T)); diff != "" {
		m.Errorf("mounts (-before +after):\n%s", diff)
	}
}

// testMountCommand has the program mount what mountImage mounts elsewhere.
func testMountCommand(t *testing.T) {
	im := osImage()
	id := expected(t)[im.name]
	checkStatus(t)
	m := newCommandMount(t, mainRepo)
	dropCaches(t)
	m.mount(id.Image)
	checkTree(t, m.target, im.files())
	m.unmount()
	m.mount(id.BootImage, "--read-write", filepath.Join(disk, "changes"))
	if err := os.WriteFile(filepath.Join(m.target, "new"), []byte("new"), 0o644); err != nil {
		t.Error(err)
	}
	files := im.bootFiles()
	files["new"] = []byte("new")
	checkTree(t, m.target, files)
	m.unmount()
}

// testMountTampered has another image in the place of an image, and the image
// without protection; then the same where meta.json has lost its protection,
// which whoever can do the one can do too.
func testMountTampered(t *testing.T) {
	repo := filepath.Join(disk, "tampered")
	initRepository(t, repo)
	id := pull(t, repo, layout(overlappingImage(0).name)).Image.ID
	m := newCommandMount(t, repo)
	image, meta := filepath.Join(repo, "objects", id[:2], id[2:]), filepath.Join(repo, "meta.json")
	content, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	settings, err := os.ReadFile(meta)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(content)
	changed[len(changed)-1]++ // the kernel would not notice
	aside(t, image, func() {
		replace(t, image, changed, fsverity.SHA512)
		m.exits(7, id)
		replace(t, image, changed, 0)
		m.exits(7, id)
		m.exits(7, id, "--allow-missing-verity", "--force")
		replace(t, image, content, 0)
		m.exits(7, id)
		m.exits(0, id, "--allow-missing-verity", "--force") // its content was hashed
		aside(t, meta, func() {
			replace(t, meta, settings, 0)
			m.exits(0, id)
			m.exits(6, id, "--require-verity")
			replace(t, image, changed, fsverity.SHA512)
			m.exits(7, id)
			replace(t, image, changed, 0)
			m.exits(7, id)
		})
	})
	m.mount(id) // as before
	m.unmount()
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
