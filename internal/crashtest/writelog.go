// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package crashtest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// What dm-log-writes and QEMU's blklogwrites write: a super block, then for each
// entry a sector with four numbers and the data. All is little endian.
const (
	logMagic   = 0x6a736677736872
	logVersion = 1

	logFlush   = 1
	logDiscard = 4
)

// maxLogEntry bounds the data of one entry, in bytes.
const maxLogEntry = 64 << 20

// ReadWriteLog reads what a virtual machine wrote to a disk with
// [github.com/cfs-pull/cfs-pull/internal/microvm.Disk.WriteLog].
func ReadWriteLog(r io.Reader) ([]Entry, error) {
	in := bufio.NewReaderSize(r, 1<<20)
	var super struct {
		Magic, Version, Entries uint64
		SectorSize              uint32
	}
	if err := binary.Read(in, binary.LittleEndian, &super); err != nil {
		return nil, fmt.Errorf("read super block of write log: %w", err)
	}
	if super.Magic != logMagic || super.Version != logVersion || super.SectorSize < 512 || super.SectorSize > blockSize {
		return nil, fmt.Errorf("read write log: super block %+v is not one", super)
	}
	sector := int64(super.SectorSize)
	if _, err := in.Discard(int(sector) - binary.Size(super)); err != nil {
		return nil, fmt.Errorf("read write log: %w", err)
	}
	var entries []Entry
	for range super.Entries {
		e, flush, err := readLogEntry(in, sector)
		if err != nil {
			return nil, fmt.Errorf("read entry %d of write log: %w", len(entries), err)
		}
		// A flush comes before the data that it is with.
		if flush {
			entries = append(entries, Entry{Flush: true})
		}
		if len(e.Data) > 0 || e.Zeros > 0 {
			entries = append(entries, e)
		}
	}
	return entries, nil
}

func readLogEntry(in *bufio.Reader, sector int64) (e Entry, flush bool, err error) {
	var head struct{ Sector, Count, Flags, Length uint64 }
	if err := binary.Read(in, binary.LittleEndian, &head); err != nil {
		return e, false, err
	}
	if _, err := in.Discard(int(sector) - binary.Size(head)); err != nil {
		return e, false, err
	}
	e.Offset = int64(head.Sector) * sector
	size := int64(head.Count) * sector
	if head.Flags&logDiscard != 0 {
		e.Zeros = size
		return e, head.Flags&logFlush != 0, nil
	}
	if size < 0 || size > maxLogEntry {
		return e, false, errors.New("it is too large")
	}
	e.Data = make([]byte, size)
	_, err = io.ReadFull(in, e.Data)
	return e, head.Flags&logFlush != 0, err
}
