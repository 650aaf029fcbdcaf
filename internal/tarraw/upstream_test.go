// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package tarraw

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
)

// TestAgreesWithTarCore compares with what the parser of composefs-rs makes of
// archives of all kinds. testdata/README.md says where the file comes from.
func TestAgreesWithTarCore(t *testing.T) {
	f, err := os.Open("testdata/tar-core-0.1.0.jsonl.zst")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	accepted, refused := 0, 0
	for cases := json.NewDecoder(z); ; {
		var c struct {
			Archive []byte
			Want    string
		}
		if err := cases.Decode(&c); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if c.Want == "ERR" {
			refused++
		} else {
			accepted++
		}
		if diff := cmp.Diff(c.Want, describe(string(c.Archive))); diff != "" {
			t.Errorf("archive %d (-tar-core +ours):\n%s", accepted+refused, diff)
		}
	}
	if accepted < 400 || refused < 100 {
		t.Errorf("only %d accepted and %d refused archives", accepted, refused)
	}
}

// describe frames an archive and writes the result in the form of the file.
func describe(archive string) string {
	entries, pieces, err := frame(strings.NewReader(archive), Limits{})
	if err != nil {
		return "ERR"
	}
	var b strings.Builder
	for _, e := range entries {
		major, minor := "None", "None"
		if e.HasDev {
			major, minor = fmt.Sprintf("Some(%d)", e.Devmajor), fmt.Sprintf("Some(%d)", e.Devminor)
		}
		var xattrs []string
		for _, x := range e.Xattrs {
			xattrs = append(xattrs, fmt.Sprintf("%x=%x", x.Name, x.Value))
		}
		fmt.Fprintf(&b, "entry %d %x %x %o %d %d %d %d %d %s %s [%s]\n", e.Type, e.Name, e.Linkname, e.Mode, e.UID, e.GID,
			e.Size, e.MtimeSec, e.MtimeNsec, major, minor, strings.Join(xattrs, ","))
	}
	inline := 0
	for _, p := range pieces {
		if p.inline {
			inline = len(p.data)
			continue
		}
		fmt.Fprintf(&b, "inline %d\nbody %d\n", inline, len(p.data))
		inline = 0
	}
	fmt.Fprintf(&b, "inline %d\n", inline)
	return b.String()
}
