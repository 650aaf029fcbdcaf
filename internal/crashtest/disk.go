// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package crashtest

import (
	"io"
	"math/rand/v2"
	"sync"
)

const (
	blockSize = 4096
	// sectorSize is what a disk writes in one step. With less, a super block
	// of btrfs can be torn, which no file system takes.
	sectorSize = 4096
)

// Entry is something that a disk was told to do.
type Entry struct {
	Offset int64
	Data   []byte // what was written
	Zeros  int64  // bytes that were discarded; Data is nil
	Flush  bool   // everything before is on the medium
}

// Disk is a block device. What is written to it stays in memory; the base below
// is only read, and may be shared by many disks. It is safe for concurrent use.
type Disk struct {
	base io.ReaderAt
	size int64

	mu      sync.Mutex
	blocks  map[int64]*[blockSize]byte // those that differ from the base
	record  bool
	entries []Entry
}

// NewDisk is a disk of a size in bytes, a multiple of 4096, with the content of
// base. With record everything that changes it is noted.
func NewDisk(base io.ReaderAt, size int64, record bool) *Disk {
	return &Disk{base: base, size: size, blocks: map[int64]*[blockSize]byte{}, record: record}
}

// Entries is what was done so far.
func (d *Disk) Entries() []Entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.entries[:len(d.entries):len(d.entries)]
}

// ReadAt implements io.ReaderAt.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for n < len(p) && off+int64(n) < d.size {
		number, skip := (off+int64(n))/blockSize, int((off+int64(n))%blockSize)
		part := p[n:min(len(p), n+blockSize-skip)]
		if block := d.blocks[number]; block != nil {
			copy(part, block[skip:])
		} else if err := d.readBase(part, off+int64(n)); err != nil {
			return n, err
		}
		n += len(part)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readBase reads from the base, which may be shorter.
func (d *Disk) readBase(p []byte, off int64) error {
	n, err := d.base.ReadAt(p, off)
	if err == io.EOF {
		clear(p[n:])
		err = nil
	}
	return err
}

// WriteAt implements io.WriterAt.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.record {
		d.entries = append(d.entries, Entry{Offset: off, Data: append([]byte(nil), p...)})
	}
	return len(p), d.write(p, off)
}

// Discard makes a range read as zeros.
func (d *Disk) Discard(off, length int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.record {
		d.entries = append(d.entries, Entry{Offset: off, Zeros: length})
	}
	return d.discard(off, length)
}

// Flush notes that everything written before is on the medium.
func (d *Disk) Flush() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.record {
		d.entries = append(d.entries, Entry{Flush: true})
	}
}

func (d *Disk) write(p []byte, off int64) error {
	for len(p) > 0 {
		number, skip := off/blockSize, int(off%blockSize)
		block := d.blocks[number]
		if block == nil {
			block = new([blockSize]byte)
			if skip > 0 || len(p) < blockSize {
				if err := d.readBase(block[:], number*blockSize); err != nil {
					return err
				}
			}
			d.blocks[number] = block
		}
		n := copy(block[skip:], p)
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (d *Disk) discard(off, length int64) error {
	var zeros [blockSize]byte
	for length > 0 {
		n := min(length, blockSize-off%blockSize)
		if err := d.write(zeros[:n], off); err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return nil
}

// apply does what an entry says.
func (d *Disk) apply(e Entry) error {
	if e.Data == nil {
		return d.discard(e.Offset, e.Zeros)
	}
	return d.write(e.Data, e.Offset)
}

// Cut is a moment at which the power fails.
type Cut struct {
	// Flushed entries are on the medium, and Issued were told to the disk.
	// What is between them may have got there or not.
	Flushed, Issued int
	// Keep is which of those between did: none, all, or some, by chance.
	Keep Keep
	Seed uint64
}

// Keep is what becomes of writes that were not flushed.
type Keep uint8

// The kinds.
const (
	KeepNone  Keep = iota
	KeepAll        // in order, as a disk without a cache
	KeepSome       // each with one chance in two
	KeepParts      // and of each only some sectors
)

// String is the kind's name.
func (k Keep) String() string { return []string{"none", "all", "some", "parts"}[k] }

// Cuts are n moments of a recording, spread over all its flushes. For each flush
// there is first the medium as it was then; the others have some of what came
// until the next flush. Where there are more flushes than moments, shift, below
// 1, says which ones are taken.
func Cuts(entries []Entry, n int, shift float64, rng *rand.Rand) []Cut {
	flushes := []int{0} // as it was in the beginning
	for i, e := range entries {
		if e.Flush {
			flushes = append(flushes, i+1)
		}
	}
	var cuts []Cut
	for i := range n {
		at := int((float64(i) + shift) * float64(len(flushes)) / float64(n))
		kind := KeepNone
		if n >= len(flushes) {
			at = i % len(flushes)
		}
		if i >= len(flushes) || n < len(flushes) && i%2 == 1 {
			kind = KeepAll + Keep(rng.IntN(3))
		}
		c := Cut{Flushed: flushes[at], Issued: flushes[at], Keep: kind, Seed: rng.Uint64()}
		if kind != KeepNone {
			next := len(entries)
			if at+1 < len(flushes) {
				next = flushes[at+1] - 1
			}
			c.Issued += rng.IntN(next - c.Flushed + 1)
		}
		cuts = append(cuts, c)
	}
	return cuts
}

// After is the disk that a power cut leaves, of one that began with base and
// was told entries.
func (c Cut) After(base io.ReaderAt, size int64, entries []Entry) (*Disk, error) {
	d := NewDisk(base, size, false)
	rng := rand.New(rand.NewPCG(c.Seed, 0))
	for i, e := range entries[:c.Issued] {
		if e.Flush {
			continue
		}
		if i < c.Flushed || c.Keep == KeepAll || c.Keep != KeepNone && rng.IntN(2) == 0 {
			if i >= c.Flushed && c.Keep == KeepParts {
				if err := d.applyParts(e, rng); err != nil {
					return nil, err
				}
				continue
			}
			if err := d.apply(e); err != nil {
				return nil, err
			}
		}
	}
	return d, nil
}

// applyParts writes some sectors of an entry.
func (d *Disk) applyParts(e Entry, rng *rand.Rand) error {
	if e.Data == nil {
		return d.discard(e.Offset, e.Zeros/2/sectorSize*sectorSize)
	}
	for at := 0; at < len(e.Data); at += sectorSize {
		if rng.IntN(4) == 0 {
			continue
		}
		part := Entry{Offset: e.Offset + int64(at), Data: e.Data[at:min(len(e.Data), at+sectorSize)]}
		if err := d.apply(part); err != nil {
			return err
		}
	}
	return nil
}
