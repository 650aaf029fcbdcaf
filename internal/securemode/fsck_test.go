// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package securemode

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// fsck checks a repository and returns the kinds of its findings with the
// paths, sorted as the program does.
func fsck(t *testing.T, repo string, args ...string) (findings []string, code int) {
	t.Helper()
	stdout, stderr, code := command(t, append([]string{"fsck", "--json", "--repo", repo}, args...)...)
	var r struct {
		OK       bool
		Findings []struct{ Kind, Path string }
	}
	if err := json.Unmarshal([]byte(stdout), &r); err != nil {
		t.Fatalf("fsck %q: exit status %d, %v in %q\n%s", args, code, err, stdout, stderr)
	}
	if r.OK != (code == 0) {
		t.Errorf("fsck %q: exit status %d, ok: %t", args, code, r.OK)
	}
	for _, f := range r.Findings {
		findings = append(findings, f.Kind+" "+f.Path)
	}
	return findings, code
}

func checkFsck(t *testing.T, repo string, wantCode int, want []string, args ...string) {
	t.Helper()
	if got, code := fsck(t, repo, args...); code != wantCode || !slices.Equal(got, want) {
		t.Errorf("fsck %q: exit status %d, %q, want %d, %q", args, code, got, wantCode, want)
	}
}

// testFsck tampers with objects. Those that only lack their protection get it
// back from a repair, the others from a pull.
func testFsck(t *testing.T) {
	im := overlappingImage(0)
	repo := filepath.Join(disk, "fsck")
	initRepository(t, repo)
	pull(t, repo, layout(im.name))
	checkFsck(t, repo, 0, nil)

	content := im.files()["usr/share/common/large"]
	object := objectOf(repo, content)
	path := "objects/" + fsverity.Sum(fsverity.SHA512, content).ObjectPath()
	unseal(t, object)
	checkFsck(t, repo, 7, []string{"object-verity-missing " + path})
	checkFsck(t, repo, 7, []string{"object-verity-missing " + path}, "--quick")
	checkFsck(t, repo, 0, nil, "--repair")
	checkMeasured(t, repo, fsverity.SHA512)

	other := slices.Clone(content)
	other[0]++
	replace(t, object, other, fsverity.SHA512)
	checkFsck(t, repo, 7, []string{"object-digest-mismatch " + path}, "--quick")
	checkFsck(t, repo, 7, []string{"object-digest-mismatch " + path}, "--repair")
	pull(t, repo, layout(im.name))
	checkFsck(t, repo, 0, nil)
	checkMeasured(t, repo, fsverity.SHA512)
}
