// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// mountErofs mounts an image file; the mount is attached nowhere.
func (m *mounter) mountErofs(image *os.File) (*os.File, error) {
	var err error
	if !m.noFileBacked {
		var mount *os.File
		mount, err = erofsMount(procPath(image))
		// Kernels before 6.12, or without CONFIG_EROFS_FS_BACKED_BY_FILE, want
		// a block device.
		if err == nil || !errors.Is(err, unix.ENOTBLK) {
			return mount, err
		}
	}
	device, loopErr := attachLoop(image)
	if loopErr != nil {
		return nil, errors.Join(err, loopErr)
	}
	// The mount keeps the device, and then the device is gone by itself.
	defer device.Close()
	return erofsMount(device.Name())
}

func erofsMount(source string) (*os.File, error) {
	c := openContext("erofs")
	defer c.close()
	c.setFlag("ro")
	c.setString("source", source, "")
	return c.mount(unix.MOUNT_ATTR_RDONLY, "")
}

const (
	loopControl  = "/dev/loop-control"
	loopAttempts = 64 // others may take the device that was free
	remedyLoop   = "this kernel mounts EROFS only from a block device: load the driver with \"modprobe loop\", or use Linux 6.12 or newer"
)

// attachLoop makes a file a read-only loop device that goes away when nobody
// uses it any more. It is not opened with direct I/O, so that what is cached of
// the file is not read again.
func attachLoop(image *os.File) (*os.File, error) {
	control, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if err != nil {
		return nil, &KernelError{Step: "get a loop device", Remedy: remedyLoop, Err: err}
	}
	defer control.Close() // nothing was written
	for range loopAttempts {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, kernelError("get a loop device", "", remedyLoop, err)
		}
		device, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDONLY, 0)
		if err != nil {
			return nil, &KernelError{Step: "open loop device", Remedy: remedyLoop, Err: err}
		}
		config := unix.LoopConfig{
			Fd:   uint32(image.Fd()),
			Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR},
		}
		copy(config.Info.File_name[:len(config.Info.File_name)-1], image.Name())
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, nil
		}
		device.Close() // not ours
		if !errors.Is(err, unix.EBUSY) {
			return nil, kernelError(fmt.Sprintf("attach %s to %s", image.Name(), device.Name()), "", remedyLoop, err)
		}
	}
	return nil, &KernelError{Step: "get a loop device", Err: unix.EBUSY}
}
