// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// hostileRepo is a new repository with an image, and the path of its EROFS
// image.
func hostileRepo(t *testing.T) (repo, erofs string) {
	t.Helper()
	repo = filepath.Join(t.TempDir(), "repo")
	dir := filepath.Join(testutil.ModuleRoot(t), "testdata", "oci")
	pullAll(t, repo, dir, []string{"boot-modules"})
	id := expectedIDs(t, dir, "boot-modules", "sha512-1").ImageID
	return repo, filepath.Join(repo, "objects", id[:2], id[2:])
}

// try runs a command that must come to an end, whatever it is.
func try(t *testing.T, args ...string) (code int, output string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	start := time.Now()
	code = run(args, &stdout, &stderr)
	if took := time.Since(start); took > 2*time.Minute {
		t.Errorf("cfs-pull %q took %v", args, took)
	}
	if code != 0 && stderr.Len() == 0 {
		t.Errorf("cfs-pull %q exited with %d without a word", args, code)
	}
	return code, stdout.String() + stderr.String()
}

// TestHostileRepository has repositories that somebody has prepared. Nothing
// outside of them is shown, nothing is changed there, and every command ends.
func TestHostileRepository(t *testing.T) {
	const secret = "nobody should see this, it is outside"
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.MkdirAll(filepath.Join(outside, "refs", "oci"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte(strings.Repeat(secret+"\n", 10)), 0o600); err != nil {
		t.Fatal(err)
	}
	link := func(target string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
		}
	}
	fifo := func(t *testing.T, path string) {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		path   string // below the repository; a pattern
		change func(*testing.T, string)
	}{
		"objects lead out":            {"objects", link(outside)},
		"an object directory out":     {"objects/[0-9a-f]?", link(outside)},
		"objects lead out, directly":  {"objects/??/*", link(filepath.Join(outside, "secret"))},
		"objects are FIFOs":           {"objects/??/*", fifo},
		"streams lead out":            {"streams", link(outside)},
		"refs lead out":               {"streams/refs/oci", link(filepath.Join(outside, "refs", "oci"))},
		"images lead out":             {"images", link(outside)},
		"an image leads out":          {"images/[0-9a-f]*", link(filepath.Join(outside, "secret"))},
		"a tag leads to itself":       {"streams/refs/oci/boot-modules", link("boot-modules")},
		"a tag leads out":             {"streams/refs/oci/boot-modules", link("../../../../outside/secret")},
		"a tag is a FIFO":             {"streams/refs/oci/boot-modules", fifo},
		"manifest and config are one": {"streams/oci-manifest-*", link("../objects/00/" + strings.Repeat("0", 126))},
		"meta.json is a FIFO":         {"meta.json", fifo},
		"meta.json leads out":         {"meta.json", link(filepath.Join(outside, "secret"))},
	} {
		t.Run(name, func(t *testing.T) {
			repo, _ := hostileRepo(t)
			paths, err := filepath.Glob(filepath.Join(repo, c.path))
			if err != nil || len(paths) == 0 {
				t.Fatalf("%s: %v, %v", c.path, paths, err)
			}
			for _, path := range paths {
				c.change(t, path)
			}
			target := t.TempDir()
			for _, args := range [][]string{
				{"images", "--all"}, {"images", "--all", "--json"}, {"status"}, {"inspect", "boot-modules"}, {"inspect", "--config", "boot-modules"},
				{"inspect", "439089ec2e1c"}, {"inspect", "sha256:30b8b66"}, {"inspect", "refs/x"}, {"ls", "-R", "boot-modules"},
				{"cat", "boot-modules", "/usr/lib/os-release"}, {"cat", "439089ec2e1c", "/usr/lib/os-release"}, {"dump", "boot-modules"},
				{"dump", "--boot", "boot-modules"}, {"compute-id", "boot-modules"}, {"mount", "439089ec2e1c", target}, {"tag", "boot-modules", "new"},
				{"untag", "boot-modules"},
			} {
				code, output := try(t, append(args, "--repo", repo)...)
				if strings.Contains(output, secret) {
					t.Errorf("%q shows what is outside:\n%s", args, output)
				}
				if args[0] == "mount" && code == 0 {
					command(t, "umount", target)
				}
			}
			left, err := os.ReadDir(outside)
			if err != nil || len(left) != 2 {
				t.Errorf("outside there is %v, %v", left, err)
			}
			if left, err := os.ReadDir(filepath.Join(outside, "refs", "oci")); err != nil || len(left) != 0 {
				t.Errorf("outside there is %v, %v", left, err)
			}
		})
	}
}

// TestHostileErofs has EROFS images whose ids are right and whose structure is
// not.
func TestHostileErofs(t *testing.T) {
	path, erofs := hostileRepo(t)
	good, err := os.ReadFile(erofs)
	if err != nil {
		t.Fatal(err)
	}
	repo, err := composefs.Open(t.Context(), path, composefs.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	random := rand.New(rand.NewPCG(1, 2)) // the same on every run
	refused := 0
	const variants = 120
	for range variants {
		bad := bytes.Clone(good)
		for range 1 + random.IntN(4) {
			// Not in the padding at the beginning.
			bad[1024+random.IntN(len(bad)-1024)] ^= byte(1 << random.IntN(8))
		}
		id, _, err := repo.Put(bad)
		if err != nil {
			t.Fatal(err)
		}
		if err := repo.LinkImage(id); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{
			{"ls", "-R", id.String()}, {"dump", id.String()}, {"cat", id.String(), "/usr/lib/os-release"},
			{"inspect", id.String()}, {"compute-id", id.String()},
		} {
			code, output := try(t, append(args, "--repo", path)...)
			switch code {
			case 0:
			case exitOther, exitNotFound, exitIntegrity:
				refused++
			default:
				t.Errorf("%q exited with %d:\n%s", args, code, output)
			}
		}
	}
	if refused < variants {
		t.Errorf("only %d of %d looks at damaged images failed", refused, 5*variants)
	}
}
