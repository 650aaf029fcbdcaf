// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package microvm runs a shell script in a small virtual machine, for tests
// that need what the machine they run on may not have: a kernel with
// fs-verity, root, a power switch.
//
// A machine is QEMU without KVM, a distribution kernel, and an initramfs made
// for the run: busybox, the files of [Config.Files] and the script. It boots in
// a few seconds and stops when the script ends:
//
//	func TestInside(t *testing.T) {
//		microvm.Require(t) // skips, and says what to install
//		disk := microvm.Ext4(t, 64)
//		result, err := microvm.Run(t.Context(), microvm.Config{
//			Files:  map[string]string{"/bin/tool": microvm.GoBuild(t, "./cmd/tool")},
//			Disks:  []microvm.Disk{{Path: disk}},
//			Script: "mount -t ext4 /dev/vda /mnt && tool check /mnt",
//		})
//		if err != nil || result.ExitCode != 0 {
//			t.Fatalf("%v\n%s", err, result)
//		}
//	}
//
// # Inside
//
// The script runs as root under busybox's shell, as process 1's child, with
// nothing on standard input. There are /proc, /sys, /dev, /dev/shm, /tmp, /run
// and an empty /mnt; the loopback interface is up; there is no other network.
// All of it is memory. Disks are /dev/vda, /dev/vdb and so on. The root can be
// the old root of pivot_root(2). Programs have to be static.
//
// # Bringing files in and out
//
// Files go in through [Config.Files] or on a disk. What the script leaves in
// /out comes back in [Config.OutputDir]. Disk images keep what was written to
// them.
//
// # Power cuts
//
// "echo o > /proc/sysrq-trigger" in the script, or the end of the context, cuts
// the power: nothing is flushed, and Run returns [ErrNoStatus]. With
// [Disk.WriteLog] every write and flush is recorded, so that a test can rebuild
// the disk as it was at any moment.
package microvm
