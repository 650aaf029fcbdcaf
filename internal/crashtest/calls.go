// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package crashtest

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// callNames are the system calls that the tracer can stop at, those that work
// on files, by number.
var callNames = map[uint32]string{
	unix.SYS_READ: "read", unix.SYS_PREAD64: "pread64", unix.SYS_READV: "readv", unix.SYS_GETDENTS64: "getdents64",
	unix.SYS_OPEN: "open", unix.SYS_OPENAT: "openat", unix.SYS_OPENAT2: "openat2", unix.SYS_CLOSE: "close",
	unix.SYS_FSTAT: "fstat", unix.SYS_NEWFSTATAT: "newfstatat", unix.SYS_STATX: "statx",
	unix.SYS_STATFS: "statfs", unix.SYS_FSTATFS: "fstatfs", unix.SYS_FACCESSAT: "faccessat", unix.SYS_FACCESSAT2: "faccessat2",
	unix.SYS_READLINKAT: "readlinkat", unix.SYS_LSEEK: "lseek",

	unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "pwrite64", unix.SYS_WRITEV: "writev", unix.SYS_FTRUNCATE: "ftruncate",
	unix.SYS_FALLOCATE: "fallocate", unix.SYS_COPY_FILE_RANGE: "copy_file_range", unix.SYS_SENDFILE: "sendfile",
	unix.SYS_IOCTL: "ioctl", unix.SYS_FLOCK: "flock",
	unix.SYS_LINKAT: "linkat", unix.SYS_SYMLINKAT: "symlinkat", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_MKDIRAT: "mkdirat",
	unix.SYS_MKDIR: "mkdir", unix.SYS_RMDIR: "rmdir", unix.SYS_UNLINK: "unlink", unix.SYS_RENAME: "rename",
	unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2",
	unix.SYS_FCHMOD: "fchmod", unix.SYS_FCHMODAT: "fchmodat", unix.SYS_FCHOWNAT: "fchownat", unix.SYS_UTIMENSAT: "utimensat",
	unix.SYS_FSETXATTR: "fsetxattr", unix.SYS_SETXATTR: "setxattr",
	unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fdatasync", unix.SYS_SYNCFS: "syncfs",
}

// Sets of system calls, by name. Of calls that write or read through a
// descriptor only those count that do so to a file, a directory or a block
// device: pipes and the like are how the Go runtime and the terminal work.
var (
	// Changing is every call that can change a file system or make a change
	// durable: between two of them nothing changes that a kill could leave.
	Changing = []string{
		callCreate, "write", "pwrite64", "writev", "ftruncate", "fallocate", "copy_file_range", "sendfile",
		"ioctl", "flock", "linkat", "symlinkat", "unlinkat", "mkdirat", "mkdir", "rmdir", "unlink",
		"rename", "renameat", "renameat2", "fchmod", "fchmodat", "fchownat", "utimensat", "fsetxattr", "setxattr",
		"fsync", "fdatasync", "syncfs",
	}
	// Allocating is every call that may find no space.
	Allocating = []string{
		callCreate, "write", "pwrite64", "writev", "ftruncate", "fallocate", "copy_file_range", "sendfile", "linkat", "symlinkat",
		"mkdirat", "mkdir", "rename", "renameat", "renameat2", "fsync", "fdatasync", "syncfs",
	}
	// Reading is every call that reads a file or a directory.
	Reading = []string{"read", "pread64", "readv", "getdents64", "readlinkat"}
	// Opening is every call that makes a descriptor of a path.
	Opening = []string{"open", "openat", "openat2"}
)

// callCreate stands for the calls that open, where they make a file.
const callCreate = "create"

// numbers are the numbers of named calls, sorted.
func numbers(names []string) ([]uint32, error) {
	var out []uint32
	for _, name := range names {
		found := false
		for nr, known := range callNames {
			if known == name || name == callCreate && slices.Contains(Opening, known) {
				out, found = append(out, nr), true
			}
		}
		if !found {
			return nil, fmt.Errorf("the tracer does not know the system call %q", name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}
