// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package securemode

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// testDamagedFile: what was measured at the beginning says nothing about
// blocks. They are checked when they are read.
func testDamagedFile(t *testing.T) {
	im := osImage()
	checkMeasured(t, mainRepo, fsverity.SHA512)
	checkMounts(t, mainRepo, im, damagedFile)

	want := im.files()[damagedFile]
	f, err := os.Open(filepath.Join(mountImage(t, mainRepo, expected(t)[im.name].BootImage), damagedFile))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // read-only
	block := make([]byte, blockSize)
	for at := 0; at < len(want); at += blockSize {
		_, err := f.ReadAt(block, int64(at))
		isDamaged := bytes.HasPrefix(want[at:], []byte(damagedMarker))
		switch {
		case isDamaged && !errors.Is(err, unix.EIO):
			t.Errorf("reading the damaged block: %v, want %v", err, unix.EIO)
		case !isDamaged && (err != nil && err != io.EOF || !bytes.Equal(block, want[at:at+blockSize])):
			t.Errorf("reading the block at %d: %v", at, err)
		}
	}
}

// testDamagedFsck finds by reading what no measurement shows.
func testDamagedFsck(t *testing.T) {
	path := "objects/" + fsverity.Sum(fsverity.SHA512, osImage().files()[damagedFile]).ObjectPath()
	dropCaches(t)
	checkFsck(t, mainRepo, 0, nil, "--quick")
	checkFsck(t, mainRepo, 7, []string{"object-verity-failed " + path})
}

// testDamagedImage reads a file whose content is in the EROFS image.
func testDamagedImage(t *testing.T) {
	const name = "overlapping-0"
	root := mountImage(t, sharedRepo, expected(t)[name].Image)
	if content, err := os.ReadFile(filepath.Join(root, inlineFile)); !errors.Is(err, unix.EIO) {
		t.Errorf("reading a file of the damaged EROFS image gave %q, %v, want %v", content, err, unix.EIO)
	}
	// The other images are as they were.
	for i := 1; i < overlapping; i++ {
		checkMounts(t, sharedRepo, overlappingImage(i))
	}
	// A pull that has to read the damaged block says where it is.
	r, code := tryPull(t, sharedRepo, layout(name))
	if code != 1 || !strings.Contains(r.Error.Message, "read "+sharedRepo+"/objects/") || !strings.Contains(r.Error.Message, unix.EIO.Error()) {
		t.Errorf("pull over a damaged image: exit status %d, %+v, want an error that names the object", code, r.Error)
	}
}
