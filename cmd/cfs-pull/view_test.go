// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/loopfs"
	"github.com/cfs-pull/cfs-pull/internal/realimage"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// command runs the program in this process and wants it to succeed.
func command(tb testing.TB, args ...string) string {
	tb.Helper()
	var stdout, stderr bytes.Buffer
	if code := run(args, &stdout, &stderr); code != 0 {
		tb.Fatalf("cfs-pull %q exited with %d:\n%s", args, code, stderr.Bytes())
	}
	return stdout.String()
}

// conformanceImages is the directory with the layout of the conformance images
// and the names of those that can be pulled: the complete ones where they are,
// else those of the module.
func conformanceImages(tb testing.TB) (dir string, names []string) {
	tb.Helper()
	dir = os.Getenv("CFS_PULL_VECTORS")
	if dir == "" {
		dir = filepath.Join(filepath.Dir(testutil.ModuleRoot(tb)), "shared", "vectors")
	}
	dir = filepath.Join(dir, "oci")
	if _, err := os.Stat(filepath.Join(dir, "layout")); err != nil {
		dir = filepath.Join(testutil.ModuleRoot(tb), "testdata", "oci")
	}
	files, err := filepath.Glob(filepath.Join(dir, "expect", "*.json"))
	if err != nil || len(files) == 0 {
		tb.Fatalf("no expectations below %s (%v)", dir, err)
	}
	for _, file := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(file), ".json"))
	}
	return dir, names
}

// pullAll pulls images under their names as tags into a new repository.
func pullAll(tb testing.TB, repo, dir string, names []string, init ...string) {
	tb.Helper()
	command(tb, append([]string{"init", "--repo", repo, "--allow-missing-verity"}, init...)...)
	for _, name := range names {
		var stderr bytes.Buffer
		code := run([]string{
			"--direct", "--repo", repo, "--allow-missing-verity", "--insecure-policy", "--min-free=0", "--quiet", "--allow-no-boot",
			"--os=linux", "--arch=amd64", "--tag", name, "oci:" + filepath.Join(dir, "layout") + ":" + name,
		}, &bytes.Buffer{}, &stderr)
		// Its kernel image was sealed for another image on purpose.
		if code != 0 && (name != "boot-uki" || code != exitIntegrity) {
			tb.Fatalf("pull %s: exit status %d\n%s", name, code, stderr.Bytes())
		}
	}
}

// imageIDs are the ids that the reference tool gives an image.
type imageIDs struct {
	ImageID     string `json:"image_id"`
	BootImageID string `json:"boot_image_id"`
}

func expectedIDs(tb testing.TB, dir, name, kind string) imageIDs {
	tb.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "expect", name+".json"))
	if err != nil {
		tb.Fatal(err)
	}
	var all map[string]imageIDs
	if err := json.Unmarshal(raw, &all); err != nil {
		tb.Fatal(err)
	}
	if all[kind].ImageID == "" || all[kind].BootImageID == "" {
		tb.Fatalf("no ids of %s in a repository of kind %s", name, kind)
	}
	return all[kind]
}

// TestDumpAndIDs compares dumps and ids with those of the reference tool, by
// every way to get them.
func TestDumpAndIDs(t *testing.T) {
	dir, names := conformanceImages(t)
	for kind, init := range map[string][]string{
		"sha512-1": nil,
		"sha512-2": {"--erofs=v2"},
		"sha256-1": {"--algorithm=fsverity-sha256-12"},
	} {
		t.Run(kind, func(t *testing.T) {
			names := names
			if kind != "sha512-1" { // what the format makes a difference for
				names = []string{"boot-modules", "layers", "selinux", "special", "xattrs"}
			}
			repo := "--repo=" + filepath.Join(t.TempDir(), "repo")
			pullAll(t, strings.TrimPrefix(repo, "--repo="), dir, names, init...)
			for _, name := range names {
				want := expectedIDs(t, dir, name, kind)
				same := func(what, got, want string) {
					t.Helper()
					if diff := cmp.Diff(strings.TrimSuffix(want, "\n"), strings.TrimSuffix(got, "\n")); diff != "" {
						t.Errorf("%s of %s differs (-want +got):\n%s", what, name, diff)
					}
				}
				same("id", command(t, "compute-id", repo, name), want.ImageID)
				same("id of the boot image", command(t, "compute-id", repo, "--boot", name), want.BootImageID)

				plain, boot := filepath.Join(t.TempDir(), "dump"), filepath.Join(t.TempDir(), "dump")
				dump, bootDump := command(t, "dump", repo, name), command(t, "dump", repo, "--boot", name)
				for file, text := range map[string]string{plain: dump, boot: bootDump} {
					if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				same("id of the dump", command(t, "compute-id", repo, plain), want.ImageID)
				same("id of the dump as a boot image", command(t, "compute-id", repo, "--boot", plain), want.BootImageID)
				same("id of the boot image's dump", command(t, "compute-id", repo, boot), want.BootImageID)
				same("id of the EROFS image", command(t, "compute-id", repo, want.ImageID), want.ImageID)
				if kind != "sha512-1" {
					continue
				}
				same("dump of the EROFS image", command(t, "dump", repo, want.ImageID), dump)
				same("dump of the boot EROFS image", command(t, "dump", repo, want.BootImageID), bootDump)
				reference, err := os.ReadFile(filepath.Join(dir, "expect", name+".dump"))
				switch {
				case err == nil:
					same("dump", dump, string(reference))
				case !os.IsNotExist(err):
					t.Fatal(err)
				}
			}
		})
	}
}

// TestMounted mounts every image and compares it with what ls, cat and
// compute-id say.
func TestMounted(t *testing.T) {
	dir, names := conformanceImages(t)
	repository := filepath.Join(loopfs.Mount(t, loopfs.XFS), "repo")
	repo := "--repo=" + repository
	pullAll(t, repository, dir, names)
	for _, name := range names {
		want := expectedIDs(t, dir, name, "sha512-1")
		for _, c := range []struct {
			boot []string
			id   string
		}{{nil, want.ImageID}, {[]string{"--boot"}, want.BootImageID}} {
			target := t.TempDir()
			got := command(t, slices.Concat([]string{"mount", repo}, c.boot, []string{name, target})...)
			if got != fmt.Sprintf("Mounted %s on %s\n", c.id, target) {
				t.Errorf("mount: %s", got)
			}
			t.Cleanup(func() { command(t, "umount", target) })
			mounted, err := realimage.Scan(target, isNoMark)
			if err != nil {
				t.Fatal(err)
			}
			listed := listedTree(t, repo, name, target, c.boot)
			// Overlayfs shows a whiteout of the image's tree as the marked file
			// that stands for it, in a marked directory.
			whiteouts := 0
			for path, e := range listed {
				if e.Type == "char" && e.Rdev == "0:0" {
					whiteouts++
					delete(listed, path)
					delete(mounted, path)
				}
			}
			if d := realimage.Diff(mounted, listed, 20); len(d) > 0 {
				t.Errorf("ls %v of %s differs from the mounted tree:\n%s", c.boot, name, strings.Join(d, "\n"))
			}
			if whiteouts > 0 {
				continue
			}
			if id := command(t, slices.Concat([]string{"compute-id"}, c.boot, []string{target})...); id != c.id+"\n" {
				t.Errorf("compute-id %v of the mounted %s: %s, want %s", c.boot, name, id, c.id)
			}
		}
	}
}

// isNoMark tells extended attributes of files from those that are marks for
// overlayfs.
func isNoMark(xattr string) bool {
	return !strings.HasPrefix(xattr, "trusted.overlay.") && !strings.HasPrefix(xattr, "user.overlay.")
}

// maxCats is how many files of an image the command cat is tried on.
const maxCats = 8

// listedTree is an image as ls shows it, and cat for some of the files. The
// content of the others is that of the mounted image, if it has the digest
// that ls says.
func listedTree(t *testing.T, repo, name, mounted string, boot []string) realimage.Tree {
	t.Helper()
	cats := 0
	var list lsJSON
	text := command(t, slices.Concat([]string{"ls", repo, "--json", "--recursive"}, boot, []string{name})...)
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	types := map[string]string{"directory": "dir", "file": "file", "symlink": "link", "char-device": "char", "block-device": "block", "fifo": "fifo", "socket": "socket"}
	out, inodes := realimage.Tree{}, map[int][]string{}
	// The root is no entry of itself.
	var root struct{ Entries []lsEntry }
	text = command(t, slices.Concat([]string{"ls", repo, "--json", "--directory"}, boot, []string{name})...)
	if err := json.Unmarshal([]byte(text), &root); err != nil || len(root.Entries) != 1 {
		t.Fatalf("ls --directory: %v in %s", err, text)
	}
	for _, e := range append(root.Entries, list.Entries...) {
		path := e.Path
		if e.PathBytes != nil {
			path = string(e.PathBytes)
		}
		key := strings.TrimPrefix(path, "/")
		if key == "" {
			key = "."
		}
		mode, err := strconv.ParseUint(e.Mode, 8, 32)
		if err != nil {
			t.Fatal(err)
		}
		modified, err := time.Parse(time.RFC3339Nano, e.Modified)
		if err != nil {
			t.Fatal(err)
		}
		target := e.Target
		if e.TargetBytes != nil {
			target = string(e.TargetBytes)
		}
		entry := realimage.Entry{
			Type: types[e.Type], Mode: uint32(mode), UID: e.UID, GID: e.GID,
			Sec: modified.Unix(), Nsec: int64(modified.Nanosecond()), Target: target,
			Xattrs: xattrText(e.Xattrs),
		}
		switch {
		case e.Size != nil:
			entry.Size = int64(*e.Size)
			content, err := os.ReadFile(filepath.Join(mounted, path))
			if err != nil {
				t.Fatal(err)
			}
			if !e.Object.IsZero() && e.Object != fsverity.Sum(e.Object.Algorithm(), content) {
				t.Errorf("%s of %s does not have the digest that ls says", path, name)
			}
			if cats++; cats <= maxCats {
				content = []byte(command(t, slices.Concat([]string{"cat", repo}, boot, []string{name, path})...))
			}
			sum := sha256.Sum256(content)
			entry.SHA256 = hex.EncodeToString(sum[:])
		case target != "":
			entry.Size = int64(len(target))
		case e.Major != nil:
			entry.Rdev = fmt.Sprintf("%d:%d", *e.Major, *e.Minor)
		}
		out[key] = entry
		if e.Type != "directory" {
			inodes[e.Inode] = append(inodes[e.Inode], key)
		}
	}
	for _, keys := range inodes {
		for _, key := range keys {
			entry := out[key]
			if len(keys) > 1 {
				entry.First = slices.Min(keys)
			}
			out[key] = entry
		}
	}
	return out
}

// xattrText is what realimage makes of extended attributes.
func xattrText(xattrs map[string][]byte) string {
	var out []string
	for name, value := range xattrs {
		out = append(out, fmt.Sprintf("%s=%q", name, value))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}
