// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func readSections(data string) (*Sections, error) {
	return ReadSections(strings.NewReader(data), int64(len(data)))
}

func TestReadSections(t *testing.T) {
	for _, tt := range []struct {
		name     string
		sections []string
		want     Sections
	}{
		{"none", nil, Sections{}},
		{"all", []string{".osrel", "ID=x\n", ".cmdline", "rw quiet\n\x00\x00", ".uname", "6.1\n\x00"},
			Sections{Cmdline: "rw quiet\n", OSRelease: "ID=x\n", Uname: "6.1", HasCmdline: true, HasOSRelease: true, HasUname: true}},
		{"empty", []string{".cmdline", ""}, Sections{HasCmdline: true}},
		{"first of two", []string{".cmdline", "a", ".cmdline", "b"}, Sections{Cmdline: "a", HasCmdline: true}},
		{"name with the same beginning", []string{".cmdlin", "a", ".osrelx", "b"}, Sections{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readSections(peBuild(tt.sections...))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// The standard library's reader is the second opinion on where sections are.
func TestSectionsAgainstDebugPE(t *testing.T) {
	data := ukiBuild("composefs=" + hex512("a"))
	std, err := pe.NewFile(strings.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	own, err := openPE(strings.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if len(std.Sections) != 5 || len(own.sections) != 5 {
		t.Fatalf("%d and %d sections, want 5", len(std.Sections), len(own.sections))
	}
	for _, s := range std.Sections {
		want, err := s.Data()
		if err != nil {
			t.Fatal(err)
		}
		r, err := own.section(s.Name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, want[:s.VirtualSize]) {
			t.Errorf("section %s differs (%v)", s.Name, err)
		}
	}
}

func TestReadSectionsRefuses(t *testing.T) {
	good := peBuild(".cmdline", "x")
	edit := func(change func(b []byte)) string {
		b := []byte(good)
		change(b)
		return string(b)
	}
	section := 0x80 + peHeaderSize + 240
	for _, tt := range []struct {
		name, data string
		want       error
	}{
		{"empty", "", ErrNotPE},
		{"short", good[:0x3f], ErrNotPE},
		{"text", strings.Repeat("a", 4096), ErrNotPE},
		{"no signature", edit(func(b []byte) { b[0x80] = 'X' }), ErrNotPE},
		{"header beyond the end", edit(func(b []byte) { binary.LittleEndian.PutUint32(b[0x3c:], 0xffffffff) }), ErrNotPE},
		{"header at the very end", edit(func(b []byte) { binary.LittleEndian.PutUint32(b[0x3c:], uint32(len(b)-4)) }), ErrNotPE},
		{"cut in the section table", good[:section+20], ErrNotPE},
		{"too many sections", edit(func(b []byte) { binary.LittleEndian.PutUint16(b[0x86:], 0xffff) }), ErrNotPE},
		{"optional header too large", edit(func(b []byte) { binary.LittleEndian.PutUint16(b[0x94:], 0xffff) }), ErrNotPE},
		{"section beyond the end", edit(func(b []byte) { binary.LittleEndian.PutUint32(b[section+8:], 0xffffff) }), ErrNotPE},
		{"section size and place overflow", edit(func(b []byte) {
			binary.LittleEndian.PutUint32(b[section+8:], 0x400)
			binary.LittleEndian.PutUint32(b[section+20:], 0xfffffd00)
		}), ErrNotPE},
		{"not UTF-8", peBuild(".cmdline", "\xff"), ErrNotUTF8},
		{"file shorter than said", good[:len(good)-600], nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			size := int64(len(tt.data))
			if tt.want == nil {
				size = int64(len(good))
			}
			_, err := ReadSections(strings.NewReader(tt.data), size)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got error %v, want %v", err, tt.want)
			}
		})
	}
	huge := peBuild(".cmdline", strings.Repeat("a", maxTextSection+1))
	if _, err := readSections(huge); err == nil {
		t.Error("no error for a command line above the limit")
	}
	limit := peBuild(".cmdline", strings.Repeat("a", maxTextSection))
	if _, err := readSections(limit); err != nil {
		t.Errorf("command line at the limit: %v", err)
	}
}

// countingReader counts the bytes read.
type countingReader struct {
	r io.ReaderAt
	n int64
}

func (c *countingReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(p, off)
	c.n += int64(n)
	return n, err
}

func TestReadSectionsReadsLittle(t *testing.T) {
	data := peBuild(".linux", big("k", 4<<20), ".cmdline", "quiet", ".initrd", big("i", 4<<20))
	r := &countingReader{r: strings.NewReader(data)}
	if _, err := ReadSections(r, int64(len(data))); err != nil {
		t.Fatal(err)
	}
	if r.n > 1024 {
		t.Errorf("read %d bytes of %d", r.n, len(data))
	}
}

func TestSectionsLabel(t *testing.T) {
	s, err := readSections(peBuild(".osrel", testOSRelease))
	if err != nil {
		t.Fatal(err)
	}
	if label, err := s.Label(); label != "Example OS 42 42" || err != nil {
		t.Errorf("got %q, %v", label, err)
	}
	if _, err := (&Sections{}).Label(); !errors.Is(err, ErrNoSection) {
		t.Errorf("without section: %v", err)
	}
	if _, err := (&Sections{HasOSRelease: true, OSRelease: "VERSION_ID=1\n"}).Label(); !errors.Is(err, ErrNoName) {
		t.Errorf("without name: %v", err)
	}
}

func FuzzReadSections(f *testing.F) {
	f.Add([]byte(peBuild(".osrel", testOSRelease, ".cmdline", "composefs="+hex512("a")+" quiet\x00", ".uname", "6.1")))
	f.Add([]byte(peBuild()))
	f.Add([]byte(peBuild(".linux", "k", ".initrd", "i")))
	f.Add([]byte("MZ" + strings.Repeat("\x00", 0x3a) + "\x40\x00\x00\x00PE\x00\x00\x64\x86\xff\xff" + strings.Repeat("\x00", 60)))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		s, err := ReadSections(r, int64(len(data)))
		if err != nil {
			return
		}
		if !s.HasCmdline && s.Cmdline != "" || len(s.Cmdline) > len(data) || len(s.OSRelease) > len(data) {
			t.Fatalf("impossible sections %+v", s)
		}
		_, _ = s.Label()
		_ = CheckUKI(s, candidates(t, hex512("a"), hex512("b")))
	})
}
