// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package microvm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// TestComposefsMount takes a repository that cfsctl made, turns fs-verity on
// for its objects and mounts one of its images as a boot does: EROFS below
// overlayfs with verity=require. Every file has the content of its object, and
// a file whose object was replaced cannot be opened.
func TestComposefsMount(t *testing.T) {
	Require(t)
	t.Parallel()
	vectors := testutil.Vectors(t)
	testutil.RequireTool(t, "zstd", "zstd")
	repo := t.TempDir()
	archive := filepath.Join(vectors, "repos", "sha512-1.tar.zst")
	if out, err := exec.CommandContext(t.Context(), "tar", "--zstd", "-C", repo, "-xf", archive).CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v\n%s", archive, err, out)
	}
	const name = "boot-modules"
	image := imageID(t, filepath.Join(vectors, "oci", "ids.json"), name, "sha512-1")
	files := externalFiles(t, filepath.Join(vectors, "oci", "expect", name+".dump"))

	var want []string
	for path, object := range files {
		content, err := os.ReadFile(filepath.Join(repo, "objects", object))
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprintf("%x  .%s\n", sha256.Sum256(content), path))
	}
	slices.Sort(want)

	const replaced, unsealed = "/boot/leftover", "/usr/lib/os-release"
	r := mustRun(t, Config{
		Files: map[string]string{
			"/repo":       repo,
			"/bin/enable": GoBuild(t, "./internal/microvm/testdata/enable"),
		},
		Disks:   []Disk{{Path: Ext4(t, 64)}},
		Modules: []string{"loop", "erofs", "overlay"},
		Script: `
			set -e
			mount -t ext4 /dev/vda /mnt
			cp -a /repo /mnt/repo && sync
			find /mnt/repo/objects -type f -print0 | xargs -0 enable | while read -r digest path; do
				[ "$path" = "/mnt/repo/objects/${digest:0:2}/${digest:2}" ] || echo "$path measures $digest"
			done
			mkdir /tmp/image /tmp/root
			mount -t erofs -o ro /mnt/repo/images/` + image + ` /tmp/image
			mount_root() {
				mount -t overlay -o ro,metacopy=on,redirect_dir=on,verity=require,lowerdir=/tmp/image::/mnt/repo/objects composefs /tmp/root
			}
			mount_root
			cd /tmp/root && find . -type f -size +0 -exec sha256sum '{}' + | sort && cd /
			umount /tmp/root

			echo tampering
			cd /mnt/repo/objects
			echo 'another content, sealed as well' >other && sync && enable other >/dev/null && mv other ` + files[replaced] + `
			cat ` + files[unsealed] + ` >same && mv same ` + files[unsealed] + `
			echo 3 >/proc/sys/vm/drop_caches
			mount_root
			for path in ` + replaced + ` ` + unsealed + `; do
				cat "/tmp/root$path" >/dev/null 2>&1 && echo "read $path" || echo "refused $path"
			done`,
	})
	wantOutput := strings.Join(want, "") + "tampering\nrefused " + replaced + "\nrefused " + unsealed + "\n"
	if r.Output != wantOutput {
		t.Errorf("output\n%s\nwant\n%s\nconsole\n%s", r.Output, wantOutput, r.Console)
	}
}

// imageID is the id of the named image's EROFS file in a repository of the
// given kind.
func imageID(t *testing.T, path, name, kind string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var ids map[string]map[string]struct {
		ImageID string `json:"image_id"`
	}
	if err := json.Unmarshal(raw, &ids); err != nil {
		t.Fatal(err)
	}
	id := ids[name][kind].ImageID
	if id == "" {
		t.Fatalf("%s has no id of %s in %s", path, name, kind)
	}
	return id
}

// externalFiles reads a dumpfile whose names need no escapes: the path of every
// regular file whose content is an object, to that object's path.
func externalFiles(t *testing.T, path string) map[string]string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		// path size mode nlink uid gid rdev mtime payload content digest
		field := strings.Fields(lines.Text())
		if strings.HasPrefix(field[2], "100") && field[8] != "-" {
			files[field[0]] = field[8]
		}
	}
	if len(files) < 4 {
		t.Fatalf("%s has %d files only", path, len(files))
	}
	return files
}
