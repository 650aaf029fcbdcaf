// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package crashtest

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// content is what a disk of four sectors holds, one letter for each.
func content(t *testing.T, d *Disk) string {
	t.Helper()
	b := make([]byte, 4*sectorSize)
	if _, err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for sector := range 4 {
		letter := b[sector*sectorSize]
		if !bytes.Equal(b[sector*sectorSize:(sector+1)*sectorSize], bytes.Repeat([]byte{letter}, sectorSize)) {
			t.Errorf("sector %d is torn", sector)
		}
		if letter == 0 {
			letter = '0'
		}
		out.WriteByte(letter)
	}
	return out.String()
}

func sectors(letter byte, n int) []byte { return bytes.Repeat([]byte{letter}, n*sectorSize) }

// newTestDisk is a recording of five changes and three flushes, and its base.
func newTestDisk(t *testing.T) (*Disk, *bytes.Reader) {
	t.Helper()
	base := bytes.NewReader(sectors('x', 3)) // shorter than the disk
	d := NewDisk(base, 4*sectorSize, true)
	for _, step := range []struct {
		letter  byte
		at, len int64
	}{{'a', 0, 2}, {}, {'b', 1, 2}, {'c', 3, 1}, {}, {0, 1, 1}, {'d', 0, 1}, {}} {
		switch {
		case step.len == 0:
			d.Flush()
		case step.letter == 0:
			if err := d.Discard(step.at*sectorSize, step.len*sectorSize); err != nil {
				t.Fatal(err)
			}
		default:
			if _, err := d.WriteAt(sectors(step.letter, int(step.len)), step.at*sectorSize); err != nil {
				t.Fatal(err)
			}
		}
	}
	return d, base
}

func TestDisk(t *testing.T) {
	d, base := newTestDisk(t)
	if got := content(t, d); got != "d0bc" {
		t.Errorf("the disk has %q", got)
	}
	if n := len(d.Entries()); n != 8 {
		t.Errorf("%d entries", n)
	}
	for want, c := range map[string]Cut{
		"xxx0": {},
		"aax0": {Flushed: 2, Issued: 2},
		"abb0": {Flushed: 2, Issued: 3, Keep: KeepAll},
		"abbc": {Flushed: 5, Issued: 5},
		"a0bc": {Flushed: 5, Issued: 6, Keep: KeepAll},
		"d0bc": {Flushed: 8, Issued: 8},
	} {
		after, err := c.After(base, 4*sectorSize, d.Entries())
		if err != nil {
			t.Fatal(err)
		}
		if got := content(t, after); got != want {
			t.Errorf("%+v leaves %q, want %q", c, got, want)
		}
	}
	// Between two flushes anything may have got there.
	seen := map[string]bool{}
	for seed := range uint64(50) {
		after, err := Cut{Flushed: 2, Issued: 4, Keep: KeepSome, Seed: seed}.After(base, 4*sectorSize, d.Entries())
		if err != nil {
			t.Fatal(err)
		}
		seen[content(t, after)] = true
	}
	if diff := cmp.Diff(map[string]bool{"aax0": true, "abb0": true, "aaxc": true, "abbc": true}, seen); diff != "" {
		t.Errorf("what a cut may leave (-want +got):\n%s", diff)
	}
	// And of a write, any of its sectors.
	seen = map[string]bool{}
	for seed := range uint64(200) {
		after, err := Cut{Flushed: 2, Issued: 3, Keep: KeepParts, Seed: seed}.After(base, 4*sectorSize, d.Entries())
		if err != nil {
			t.Fatal(err)
		}
		seen[content(t, after)] = true
	}
	if diff := cmp.Diff(map[string]bool{"aax0": true, "abb0": true, "abx0": true, "aab0": true}, seen); diff != "" {
		t.Errorf("what a cut in a write may leave (-want +got):\n%s", diff)
	}
}

func TestCuts(t *testing.T) {
	d, _ := newTestDisk(t)
	entries := d.Entries()
	for _, n := range []int{1, 2, 4, 7, 100} {
		cuts := Cuts(entries, n, 0.9, rand.New(rand.NewPCG(1, 2)))
		if len(cuts) != n {
			t.Errorf("%d cuts, want %d", len(cuts), n)
		}
		clean := map[int]bool{}
		for _, c := range cuts {
			if c.Flushed > 0 && !entries[c.Flushed-1].Flush || c.Issued < c.Flushed || c.Issued > len(entries) {
				t.Errorf("%+v is not behind a flush, or not within the recording", c)
			}
			for _, e := range entries[c.Flushed:c.Issued] {
				if e.Flush {
					t.Errorf("%+v goes over a flush", c)
				}
			}
			if c.Keep == KeepNone {
				clean[c.Flushed] = true
			}
		}
		if n >= 4 && len(clean) != 4 {
			t.Errorf("%d cuts do not have every flush: %v", n, clean)
		}
	}
}
