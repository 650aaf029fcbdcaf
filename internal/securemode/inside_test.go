// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package securemode

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Repositories on the disk that the second boot looks at.
const (
	mainRepo   = disk + "/repo"
	sharedRepo = disk + "/shared"
)

// step is a part of the test inside the machine.
type step struct {
	name string
	run  func(*testing.T)
}

// steps are what happens in each boot. The disk is kept from one to the next.
var steps = map[string][]step{
	bootPull:    {{"Pull", testPull}, {"Mount", testMountCommand}, {"Tamper", testTamper}, {"Concurrent", testConcurrent}, {"CopyImage", testCopyImage}},
	bootDamaged: {{"File", testDamagedFile}, {"Image", testDamagedImage}, {"Fsck", testDamagedFsck}},
	bootOptions: {
		{"Refused", testRefused}, {"Loosen", testLoosen}, {"NotRequired", testNotRequired},
		{"SHA256", testSHA256}, {"Unsealed", testUnsealed}, {"MountTampered", testMountTampered}, {"Killed", testKilled},
		{"Fsck", testFsck},
	},
}

// runSteps is what the test does inside the machine.
func runSteps(t *testing.T, fs fileSystem, boot string) {
	mount(t, "/dev/vda", disk, fs.name, 0, fs.options)
	for _, step := range steps[boot] {
		t.Run(step.name, step.run)
	}
}

// expected is what the host's pulls gave.
func expected(t *testing.T) map[string]ids {
	t.Helper()
	raw, err := os.ReadFile(expectedFile)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]ids
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// testRefused pulls to file systems without fs-verity, or without it for
// blocks of 4096 bytes.
func testRefused(t *testing.T) {
	for _, test := range []struct{ name, kind, source string }{
		{"tmpfs", "tmpfs", "tmpfs"},
		{"ext4", "ext4", plainDisk},
		{"ext4 with small blocks", "ext4", smallBlocks},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := t.TempDir()
			mount(t, test.source, target, test.kind, 0, "")
			ref, calls := deadRegistry(t)
			absent, empty := filepath.Join(target, "absent"), filepath.Join(target, "empty")
			if err := os.Mkdir(empty, 0o755); err != nil {
				t.Fatal(err)
			}
			r, code := tryPull(t, absent, ref, "--init", "--tls-verify=false", "--retry=0")
			if code != 6 || r.Error.Kind != "fs-verity" || r.Error.Remedy == "" {
				t.Errorf("pull: exit status %d, %+v, want 6 and what to do about it", code, r.Error)
			}
			if _, _, code := command(t, "init", "--repo", empty); code != 6 {
				t.Errorf("init: exit status %d, want 6", code)
			}
			if n := calls.Load(); n != 0 {
				t.Errorf("the registry was asked %d times before the pull was refused", n)
			}
			if _, err := os.Lstat(absent); !os.IsNotExist(err) {
				t.Errorf("a repository was left behind: %v", err)
			}
			if left, err := os.ReadDir(empty); err != nil || len(left) != 0 {
				t.Errorf("the empty directory has %v, %v", left, err)
			}
			if info, err := os.Stat(empty); err != nil || info.Mode().Perm() != 0o755 {
				t.Errorf("the empty directory was changed: %v, %v", info.Mode(), err)
			}

			// Without the requirement the registry is asked.
			if _, code := tryPull(t, absent, ref, "--init", "--allow-missing-verity", "--tls-verify=false", "--retry=0"); code == 0 || calls.Load() == 0 {
				t.Errorf("pull from a dead registry: exit status %d after %d calls", code, calls.Load())
			}
		})
	}
}

// testPull makes the repository that most of the others use.
func testPull(t *testing.T) {
	im := osImage()
	initRepository(t, mainRepo)
	r := pull(t, mainRepo, layout(im.name))
	if !r.Changed || !r.Repository.VerityRequired || r.Repository.Algorithm != "fsverity-sha512-12" {
		t.Errorf("the first pull gave %+v, want a change in a repository that requires SHA-512 fs-verity", r)
	}
	if diff := cmp.Diff(expected(t)[im.name], ids{r.Image.ID, r.BootImage.ID}); diff != "" {
		t.Errorf("ids differ from those without fs-verity (-want +got):\n%s", diff)
	}
	checkMeasured(t, mainRepo, fsverity.SHA512)
	before := objects(t, mainRepo)
	if again := pull(t, mainRepo, layout(im.name)); again.Changed || again.Image.ID != r.Image.ID || again.BootImage.ID != r.BootImage.ID || again.Stats.Objects.Copied != 0 {
		t.Errorf("the second pull gave %+v, want no change", again)
	}
	if diff := cmp.Diff(before, objects(t, mainRepo)); diff != "" {
		t.Errorf("objects after the second pull (-before +after):\n%s", diff)
	}
	checkMounts(t, mainRepo, im)

	var reference map[string]struct {
		ImageID string `json:"image_id"`
		BootID  string `json:"boot_image_id"`
	}
	raw, err := os.ReadFile(filepath.Join(conformance, "expect", "boot-modules.json"))
	if err == nil {
		err = json.Unmarshal(raw, &reference)
	}
	if err != nil {
		t.Fatal(err)
	}
	r = pull(t, mainRepo, "oci:"+conformance+"/layout:boot-modules")
	if want := reference["sha512-1"]; r.Image.ID != want.ImageID || r.BootImage.ID != want.BootID {
		t.Errorf("boot-modules: images %s and %s, the reference tool has %+v", r.Image.ID, r.BootImage.ID, want)
	}
	checkMeasured(t, mainRepo, fsverity.SHA512)
}

// checkMounts mounts the plain and the boot image and reads all files.
func checkMounts(t *testing.T, repo string, im image, refused ...string) {
	t.Helper()
	id := expected(t)[im.name]
	dropCaches(t)
	checkTree(t, mountImage(t, repo, id.Image), im.files(), refused...)
	checkTree(t, mountImage(t, repo, id.BootImage), im.bootFiles(), refused...)
}

// testLoosen asks a repository that requires fs-verity to do without.
func testLoosen(t *testing.T) {
	ref, calls := deadRegistry(t)
	repo := filepath.Join(disk, "secure")
	initRepository(t, repo)
	r, code := tryPull(t, repo, ref, "--allow-missing-verity", "--tls-verify=false", "--retry=0")
	if code != 125 || r.Error.Kind != "verity-required" || calls.Load() != 0 {
		t.Errorf("pull: exit status %d after %d calls, %+v, want a refusal before any", code, calls.Load(), r.Error)
	}
	// Insisting does not mean that it is not used where it is there.
	r = pull(t, repo, layout("overlapping-1"), "--allow-missing-verity", "--force")
	if !r.Repository.VerityRequired {
		t.Error("a pull that was forced to do without fs-verity changed what the repository requires")
	}
	checkMeasured(t, repo, fsverity.SHA512)
}

// testNotRequired has a repository that does not require fs-verity on a file
// system that has it.
func testNotRequired(t *testing.T) {
	im := overlappingImage(2)
	repo := filepath.Join(disk, "not-required")
	initRepository(t, repo, "--allow-missing-verity")
	r := pull(t, repo, layout(im.name))
	if r.Repository.VerityRequired {
		t.Error("the repository requires fs-verity")
	}
	if got := measure(t, filepath.Join(repo, "meta.json"), fsverity.SHA512); got != "nothing" {
		t.Errorf("meta.json measures %s, which makes the repository one that requires fs-verity", got)
	}
	// As the reference tool does.
	checkObjects(t, objects(t, repo), fsverity.SHA512)
	checkMounts(t, repo, im)

	unseal(t, objectOf(repo, im.files()["usr/share/common/large"]))
	if r := pull(t, repo, layout(im.name)); r.Changed {
		t.Errorf("an object without fs-verity was not accepted: %+v", r)
	}
	// meta.json is protected or not from the beginning.
	if _, stderr, code := command(t, "init", "--repo", repo); code != 0 {
		t.Errorf("init of an equal repository: exit status %d\n%s", code, stderr)
	}
	if got := measure(t, filepath.Join(repo, "meta.json"), fsverity.SHA512); got != "nothing" {
		t.Errorf("meta.json measures %s after a second init", got)
	}
}

// testSHA256 has the other algorithm, and images in two formats.
func testSHA256(t *testing.T) {
	repo := filepath.Join(disk, "sha256")
	initRepository(t, repo, "--algorithm", "fsverity-sha256-12", "--erofs", "both")
	im := overlappingImage(1)
	r := pull(t, repo, layout(im.name))
	if !r.Repository.VerityRequired || r.Repository.Algorithm != "fsverity-sha256-12" || len(r.BootImage.Others) != 1 {
		t.Errorf("the pull gave %+v, want a repository that requires SHA-256 fs-verity, and two formats", r)
	}
	checkMeasured(t, repo, fsverity.SHA256)
	dropCaches(t)
	files := im.bootFiles()
	checkTree(t, mountImage(t, repo, r.BootImage.ID), files)
	checkTree(t, mountImage(t, repo, r.BootImage.Others[0].ID), files)
}

// testTamper puts other files in the place of objects. They cannot be read
// through a mount, and a pull repairs them.
func testTamper(t *testing.T) {
	im := osImage()
	files := im.files()
	t.Run("Read", func(t *testing.T) {
		replaced := bytes.Clone(files[replacedFile])
		replaced[1000]++
		unseal(t, objectOf(mainRepo, files[unsealedFile]))
		replace(t, objectOf(mainRepo, files[replacedFile]), replaced, fsverity.SHA512)
		replace(t, objectOf(mainRepo, files[otherSumFile]), files[otherSumFile], fsverity.SHA256)
		if err := os.Remove(objectOf(mainRepo, files[removedFile])); err != nil {
			t.Fatal(err)
		}
		checkMounts(t, mainRepo, im, unsealedFile, replacedFile, otherSumFile, removedFile)
	})
	t.Run("Repair", func(t *testing.T) {
		r := pull(t, mainRepo, layout(im.name))
		if r.Stats.Objects.Copied != 4 || !r.Changed {
			t.Errorf("the pull stored %d objects, changed: %t, want the 4 that were broken", r.Stats.Objects.Copied, r.Changed)
		}
		checkMeasured(t, mainRepo, fsverity.SHA512)
		checkMounts(t, mainRepo, im)
	})
}

// testUnsealed takes the protection from all objects, also from EROFS images,
// layers, config and manifest. One pull gives it back.
func testUnsealed(t *testing.T) {
	im := overlappingImage(0)
	repo := filepath.Join(disk, "unsealed")
	initRepository(t, repo)
	pull(t, repo, layout(im.name))
	before := objects(t, repo)
	for _, path := range before {
		unseal(t, path)
	}
	if r := pull(t, repo, layout(im.name)); !r.Changed {
		t.Errorf("the pull repaired everything and says that nothing changed: %+v", r)
	}
	if diff := cmp.Diff(before, objects(t, repo)); diff != "" {
		t.Errorf("objects after the repair (-before +after):\n%s", diff)
	}
	checkMeasured(t, repo, fsverity.SHA512)
	checkMounts(t, repo, im)
	if r := pull(t, repo, layout(im.name)); r.Changed {
		t.Errorf("the pull after the repair gave %+v, want no change", r)
	}
}

// testKilled kills a pull in the middle. What is there then is protected, and
// the next pull takes it over.
func testKilled(t *testing.T) {
	im := osImage()
	repo := filepath.Join(disk, "killed")
	for try := 1; !killPull(t, im, repo); try++ {
		if try == 10 {
			t.Fatalf("each of %d pulls ended before it was killed", try)
		}
		if err := os.RemoveAll(repo); err != nil {
			t.Fatal(err)
		}
	}
	left := objects(t, repo)
	checkObjects(t, left, fsverity.SHA512)
	if r := pull(t, repo, layout(im.name)); r.Stats.Objects.Present == 0 {
		t.Errorf("there were %d objects, and the next pull used none: %+v", len(left), r)
	}
	checkMeasured(t, repo, fsverity.SHA512)
}

// killPull starts a pull into a new repository and kills it when it has stored
// some objects. It reports whether that was before the pull's end: where the
// CPUs are busy, a pull may end between two looks at it.
func killPull(t *testing.T, im image, repo string) bool {
	initRepository(t, repo)
	cmd := exec.CommandContext(t.Context(), program, "--direct", "--insecure-policy", "--progress=none", "--repo", repo, layout(im.name))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for done := false; !done; {
		select {
		case err := <-ended:
			if err != nil {
				t.Fatalf("the pull that was to be killed failed: %v", err)
			}
			return false
		case <-time.After(10 * time.Millisecond):
		}
		stored, err := filepath.Glob(filepath.Join(repo, "objects", "??", "*"))
		if err != nil {
			t.Fatal(err)
		}
		done = len(stored) >= 20
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
	tags, err := filepath.Glob(filepath.Join(repo, "streams", "refs", "oci", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(tags) == 0 // with a tag it was as good as over
}

// testConcurrent has several processes that pull overlapping images, some of
// them the same, into one repository.
func testConcurrent(t *testing.T) {
	initRepository(t, sharedRepo)
	results := make([]result, overlapping+2)
	var group sync.WaitGroup
	for i := range results {
		group.Go(func() {
			r, code := tryPull(t, sharedRepo, layout(overlappingImage(i%overlapping).name))
			if code != 0 {
				t.Errorf("pull %d: exit status %d: %+v", i, code, r.Error)
			}
			results[i] = r
		})
	}
	group.Wait()
	if t.Failed() {
		return
	}
	checkMeasured(t, sharedRepo, fsverity.SHA512)
	for i, r := range results {
		im := overlappingImage(i % overlapping)
		if diff := cmp.Diff(expected(t)[im.name], ids{r.Image.ID, r.BootImage.ID}); diff != "" {
			t.Errorf("ids of %s (-want +got):\n%s", im.name, diff)
		}
		if i < overlapping {
			checkMounts(t, sharedRepo, im)
			continue
		}
		// An image that two processes pulled.
		if again := pull(t, sharedRepo, layout(im.name)); again.Changed {
			t.Errorf("another pull of %s changed something: %+v", im.name, again)
		}
	}
}

// testCopyImage hands the host the EROFS image that it is to damage.
func testCopyImage(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(sharedRepo, "images", expected(t)["overlapping-0"].Image))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(imageCopy, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
