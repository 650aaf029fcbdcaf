// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package microvm

import (
	"fmt"
	"io"
	"math"
)

// cpioWriter writes the "newc" archive that Linux unpacks as its initramfs:
// per entry a header of "070701" and 13 fields of 8 hex digits, the name with
// a zero byte, and the content, name and content each padded to 4 bytes. All
// owners are root and all times 0.
type cpioWriter struct {
	w      io.Writer
	offset int64
	inode  uint32
	err    error // the first one; later calls do nothing
}

// add writes an entry: mode has the file type, name no leading slash, device
// is major and minor of a device node.
func (c *cpioWriter) add(name string, mode uint32, device [2]uint32, size int64, content io.Reader) {
	if c.err != nil {
		return
	}
	if size > math.MaxUint32 {
		c.err = fmt.Errorf("%s has %d bytes, more than the archive format can say", name, size)
		return
	}
	c.inode++
	const links = 1
	_, c.err = fmt.Fprintf(c, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, mode, 0, 0, links, 0, size, 0, 0, device[0], device[1], len(name)+1, 0, name)
	c.pad()
	if c.err == nil && size > 0 {
		_, c.err = io.CopyN(c, content, size)
	}
	c.pad()
}

// close writes the end of the archive.
func (c *cpioWriter) close() error {
	c.inode = math.MaxUint32 // the trailer's number is then 0
	c.add("TRAILER!!!", 0, [2]uint32{}, 0, nil)
	return c.err
}

// Write counts what goes out, for the padding.
func (c *cpioWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.offset += int64(n)
	return n, err
}

func (c *cpioWriter) pad() {
	if n := -c.offset & 3; n > 0 && c.err == nil {
		_, c.err = c.Write(make([]byte, n))
	}
}
