// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// direntBuffer is how many bytes of a directory are read at once.
	direntBuffer = 64 << 10

	// Offsets in the kernel's struct linux_dirent64.
	direntLength = 16
	direntType   = 18
	direntName   = 19
)

// direntBuffers keeps the buffers: a repository has 256 directories.
var direntBuffers = sync.Pool{New: func() any { return new([direntBuffer]byte) }}

// eachDirent calls f for each entry of the directory open for reading at fd,
// in the directory's order and without "." and "..". kind is one of unix.DT_*,
// never DT_UNKNOWN. name is valid until f returns. It allocates nothing for an
// entry: object directories hold millions of them. Errors are errnos and f's.
func eachDirent(fd int, f func(name []byte, kind uint8) error) error {
	pooled := direntBuffers.Get().(*[direntBuffer]byte)
	defer direntBuffers.Put(pooled)
	buf := pooled[:]
	for {
		n, err := unix.ReadDirent(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return err
		}
		for rest := buf[:n]; len(rest) > 0; {
			if len(rest) < direntName {
				return unix.EIO
			}
			length := int(binary.NativeEndian.Uint16(rest[direntLength:]))
			if length <= direntName || length > len(rest) {
				return unix.EIO
			}
			name, kind := rest[direntName:length], rest[direntType]
			rest = rest[length:]
			if end := bytes.IndexByte(name, 0); end >= 0 {
				name = name[:end]
			}
			if string(name) == "." || string(name) == ".." {
				continue
			}
			if kind == unix.DT_UNKNOWN {
				if kind, err = statKind(fd, string(name)); err != nil {
					return err
				}
			}
			if err := f(name, kind); err != nil {
				return err
			}
		}
	}
}

// statKind finds out what file systems do not say that keep no types in their
// directories.
func statKind(dirfd int, name string) (uint8, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW) }); err != nil {
		return 0, err
	}
	return uint8(st.Mode & unix.S_IFMT >> 12), nil // how DT_* are defined
}
