// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fsverity

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// measureArg is struct fsverity_digest with room for the largest digest. The
// kernel writes the digest right behind the two 16-bit fields.
type measureArg struct {
	unix.FsverityDigest
	digest [MaxDigestSize]byte
}

// ioctlEnable is FS_IOC_ENABLE_VERITY with blocks of 4096 bytes, no salt and
// no signature.
func ioctlEnable(f *os.File, alg Algorithm) error {
	arg := unix.FsverityEnableArg{
		Version:        1,
		Hash_algorithm: uint32(alg),
		Block_size:     BlockSize,
	}
	return ioctl(f, unix.FS_IOC_ENABLE_VERITY, unsafe.Pointer(&arg))
}

// ioctlMeasure is FS_IOC_MEASURE_VERITY. It returns the kernel's number of the
// algorithm and the digest.
func ioctlMeasure(f *os.File) (uint16, []byte, error) {
	var arg measureArg
	arg.Size = MaxDigestSize
	if err := ioctl(f, unix.FS_IOC_MEASURE_VERITY, unsafe.Pointer(&arg)); err != nil {
		return 0, nil, err
	}
	return arg.Algorithm, arg.digest[:min(int(arg.Size), MaxDigestSize)], nil
}

// ioctl calls ioctl(2) until no signal interrupts it. The error is an errno or
// says that f is closed.
func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	errno := unix.EINTR
	err = conn.Control(func(fd uintptr) {
		for errno == unix.EINTR {
			_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg))
		}
	})
	if err != nil {
		return os.ErrClosed // the only reason for which Control does not call
	}
	if errno != 0 {
		return errno
	}
	return nil
}
