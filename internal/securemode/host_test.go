// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package securemode

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/cfs-pull/cfs-pull/internal/microvm"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// ids are the EROFS images of an image.
type ids struct{ Image, BootImage string }

// pullOnHost pulls all images into a repository that does not require
// fs-verity and returns a file with the ids by name: protection must not change
// them.
func pullOnHost(t *testing.T, program, images string) string {
	t.Helper()
	repo := filepath.Join(t.TempDir(), "repo")
	expected := map[string]ids{}
	for _, im := range allImages() {
		cmd := exec.CommandContext(t.Context(), program, "--direct", "--init", "--allow-missing-verity", "--insecure-policy",
			"--progress=none", "--json", "--min-free=0", "--repo", repo, "oci:"+filepath.Join(images, im.name)+":latest")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("pull %s outside the virtual machine: %v\n%s", im.name, err, stderr.Bytes())
		}
		var r result
		if err := json.Unmarshal(out, &r); err != nil {
			t.Fatal(err)
		}
		expected[im.name] = ids{r.Image.ID, r.BootImage.ID}
	}
	raw, err := json.Marshal(expected)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "expected.json")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// addFsverityTool adds the fsverity program with the libraries that it is
// linked with, where the host has it: what the kernel measures is then also
// read by a program that is not ours.
func addFsverityTool(t *testing.T, files map[string]string) {
	t.Helper()
	tool, err := exec.LookPath("fsverity")
	if err != nil {
		t.Log("digests are not compared with fsverity(1): apt-get install fsverity")
		return
	}
	out, err := exec.CommandContext(t.Context(), "ldd", tool).Output()
	if err != nil {
		t.Fatalf("ldd %s: %v", tool, err)
	}
	files[fsverityTool] = tool
	for _, m := range regexp.MustCompile(`(?m)(/\S+) \(0x[0-9a-f]+\)$`).FindAllSubmatch(out, -1) {
		files[string(m[1])] = string(m[1])
	}
}

// formatExt4 makes a small disk image with an ext4 of another kind than
// [microvm.Ext4] makes.
func formatExt4(t *testing.T, args ...string) string {
	t.Helper()
	image := microvm.Ext4(t, 16)
	tool := "/usr/sbin/mkfs.ext4" // not on everybody's PATH
	if _, err := os.Stat(tool); err != nil {
		tool = testutil.RequireTool(t, "mkfs.ext4", "e2fsprogs")
	}
	args = append([]string{"-q", "-F"}, append(args, image)...)
	if out, err := exec.CommandContext(t.Context(), tool, args...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	return image
}

// blockWith returns the block of a file that has the text.
func blockWith(t *testing.T, file []byte, text string) []byte {
	t.Helper()
	at := bytes.Index(file, []byte(text))
	if at < 0 {
		t.Fatalf("the EROFS image does not have the text %q", text)
	}
	at -= at % blockSize
	return file[at : at+blockSize]
}

// damage changes one byte of each block of a disk image that has the given
// content.
func damage(t *testing.T, image string, block []byte) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found := 0
	buffer := make([]byte, 1<<20)
	for at := int64(0); ; at += int64(len(buffer)) {
		n, err := io.ReadFull(f, buffer)
		for i := 0; i+blockSize <= n; i += blockSize {
			if !bytes.Equal(buffer[i:i+blockSize], block) {
				continue
			}
			found++
			if _, err := f.WriteAt([]byte{block[100] ^ 1}, at+int64(i)+100); err != nil {
				t.Fatal(err)
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if found == 0 {
		t.Fatalf("no block of the disk begins with %.40q", block)
	}
	t.Logf("damaged %d blocks that begin with %.27q", found, block)
}
