// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fsContext is a file system on its way to a mount, fsopen(2). Its first
// error is kept and makes the steps after it do nothing.
type fsContext struct {
	name string
	fd   int
	err  error
}

func openContext(name string) *fsContext {
	c := &fsContext{name: name}
	c.fd, c.err = unix.Fsopen(name, unix.FSOPEN_CLOEXEC)
	if c.err != nil {
		c.fd = -1
		remedy := ""
		if errors.Is(c.err, unix.ENODEV) {
			remedy = remedyModule(name)
		}
		c.err = kernelError("open file system "+name, "", remedy, c.err)
	}
	return c
}

func (c *fsContext) close() {
	if c.fd >= 0 {
		unix.Close(c.fd)
	}
}

// do makes one call about the context.
func (c *fsContext) do(step, remedy string, call func(fd int) error) {
	if c.err != nil {
		return
	}
	err := call(c.fd)
	for errors.Is(err, unix.EINTR) {
		err = call(c.fd)
	}
	if err != nil {
		c.err = kernelError(step+" of "+c.name, c.messages(), remedy, err)
	}
}

func (c *fsContext) setFlag(key string) {
	c.do("set option "+key, "", func(fd int) error { return unix.FsconfigSetFlag(fd, key) })
}

func (c *fsContext) setString(key, value, remedy string) {
	c.do("set option "+key+"="+value, remedy, func(fd int) error { return unix.FsconfigSetString(fd, key, value) })
}

func (c *fsContext) setFile(key string, f *os.File, remedy string) {
	c.do("set option "+key, remedy, func(fd int) error { return unix.FsconfigSetFd(fd, key, int(f.Fd())) })
}

// mount creates the file system and its mount, which is attached nowhere and
// goes away when it is closed.
func (c *fsContext) mount(attributes int, remedy string) (*os.File, error) {
	c.do("create file system", remedy, unix.FsconfigCreate)
	mount := -1
	c.do("mount file system", remedy, func(fd int) (err error) {
		mount, err = unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attributes)
		return err
	})
	if c.err != nil {
		return nil, c.err
	}
	return os.NewFile(uintptr(mount), c.name), nil
}

// messages is what the kernel has to say about the context.
func (c *fsContext) messages() string {
	var all []string
	for range 16 { // the kernel keeps no more than eight
		buf := make([]byte, 1024)
		n, err := unix.Read(c.fd, buf)
		if err != nil || n <= 0 {
			break
		}
		// "e text": an error, a warning or information
		text := strings.TrimSpace(string(buf[:n]))
		if len(text) > 2 && text[1] == ' ' {
			text = text[2:]
		}
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}

// procPath is a path to what f is open on.
func procPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }
