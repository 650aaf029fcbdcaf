#!/bin/busybox sh
# SPDX-FileCopyrightText: The cfs-pull authors
# SPDX-License-Identifier: Apache-2.0
#
# Process 1 of a micro-VM: makes the usual mounts, loads the modules, runs the
# script and hands back its output, its exit code and the files in /out.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TMPDIR=/tmp

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run

# port NAME prints the device of the serial port of that name.
port() {
	for dir in /sys/class/virtio-ports/*; do
		if [ "$(cat "$dir/name")" = "$1" ]; then
			echo "/dev/${dir##*/}"
			return
		fi
	done
	echo /dev/console
}
status=$(port status)
output=$(port output)
files=$(port files)

finish() {
	echo "$*" >"$status"
	sync
	poweroff -f
}

while read -r module; do
	why=$(insmod "$module" 2>&1) || finish "setup insmod $module: $why"
done </etc/microvm/modules
ip link set lo up

# The kernel started with one CPU, see machine.args.
for online in /sys/devices/system/cpu/cpu[1-9]*/online; do
	[ ! -e "$online" ] || echo 1 >"$online" || finish "setup cannot start another CPU: $online"
done

# The root of an initramfs cannot be moved away by pivot_root. A mount of
# itself on top can.
mkdir /run/root
mount --rbind / /run/root
cd /run/root || finish "setup no root directory"
mount --move . /

# From here on the machine cannot be started again as if nothing had happened.
echo start >"$status"
chroot . /bin/sh /etc/microvm/script </dev/null >"$output" 2>&1
code=$?
chroot . tar -c -f "$files" -C /out . || finish "setup cannot hand back /out"
finish "exit $code"
