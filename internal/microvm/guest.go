// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package microvm

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// initScript is /init. It reads /etc/microvm/modules and runs
// /etc/microvm/script.
//
//go:embed init.sh
var initScript []byte

// File types of a Unix mode.
const (
	modeFile    = 0o100000
	modeDir     = 0o040000
	modeSymlink = 0o120000
	modeChar    = 0o020000
)

// guest is the content of the initramfs.
type guest struct {
	entries map[string]entry // by path without the leading slash
}

// entry is one file of the guest. Its content is either here or on the host.
type entry struct {
	mode     uint32 // type and permission bits
	data     []byte // content, or target of a symlink
	hostPath string // content of a regular file, when not empty
	device   [2]uint32
}

// newGuest puts together busybox, the modules, the script and the caller's
// files.
func newGuest(k kit, c Config) (*guest, error) {
	g := &guest{entries: map[string]entry{}}
	for _, dir := range []string{"dev", "proc", "sys", "tmp", "run", "mnt", "out", "root", "etc", "usr/bin", "usr/sbin", "sbin", "var/tmp"} {
		g.add(dir, entry{mode: modeDir | 0o755})
	}
	for _, dir := range []string{"tmp", "var/tmp"} {
		g.add(dir, entry{mode: modeDir | 0o1777})
	}
	g.add("dev/console", entry{mode: modeChar | 0o600, device: [2]uint32{5, 1}})
	g.add("init", entry{mode: modeFile | 0o755, data: initScript})
	g.add("etc/passwd", entry{mode: modeFile | 0o644, data: []byte("root:x:0:0:root:/root:/bin/sh\n")})
	g.add("etc/group", entry{mode: modeFile | 0o644, data: []byte("root:x:0:\n")})
	g.add("etc/hosts", entry{mode: modeFile | 0o644, data: []byte("127.0.0.1 localhost\n::1 localhost\n")})
	g.add("etc/microvm/script", entry{mode: modeFile | 0o755, data: []byte(c.Script)})
	if err := g.addBusybox(k.busybox); err != nil {
		return nil, err
	}
	if err := g.addModules(k.modules, c); err != nil {
		return nil, err
	}
	for inside, host := range c.Files {
		if err := g.addHost(inside, host); err != nil {
			return nil, fmt.Errorf("put %s into the virtual machine: %w", inside, err)
		}
	}
	return g, nil
}

// add puts an entry at name and makes the directories above it.
func (g *guest) add(name string, e entry) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		return
	}
	g.entries[name] = e
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if g.entries[dir].mode&modeDir == 0 {
			g.entries[dir] = entry{mode: modeDir | 0o755}
		}
	}
}

// addBusybox makes every applet a symlink, as "busybox --install -s" does.
func (g *guest) addBusybox(busybox string) error {
	g.add("bin/busybox", entry{mode: modeFile | 0o755, hostPath: busybox})
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("list what busybox has: %w", err)
	}
	for _, name := range strings.Fields(string(applets)) {
		if name != "busybox" {
			g.add("bin/"+name, entry{mode: modeSymlink | 0o777, data: []byte("busybox")})
		}
	}
	return nil
}

// addModules adds the modules and the list that init loads them by.
func (g *guest) addModules(dir string, c Config) error {
	table, err := readModuleTable(dir)
	if err != nil {
		return err
	}
	names := c.Modules
	if len(c.Disks) > 0 {
		names = append([]string{"virtio_blk"}, names...)
	}
	order, err := table.loadOrder(names)
	if err != nil {
		return err
	}
	var list strings.Builder
	for _, file := range order {
		content, err := table.read(file)
		if err != nil {
			return err
		}
		inside := "/lib/modules/" + moduleName(file) + ".ko"
		g.add(inside, entry{mode: modeFile | 0o644, data: content})
		fmt.Fprintln(&list, inside)
	}
	g.add("etc/microvm/modules", entry{mode: modeFile | 0o644, data: []byte(list.String())})
	return nil
}

// addHost adds a file or a directory of the host.
func (g *guest) addHost(inside, host string) error {
	info, err := os.Stat(host)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return g.addHostFile(inside, host, info)
	}
	return filepath.WalkDir(host, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		below, err := filepath.Rel(host, name)
		if err != nil {
			return err
		}
		return g.addHostFile(path.Join(inside, filepath.ToSlash(below)), name, info)
	})
}

func (g *guest) addHostFile(inside, host string, info fs.FileInfo) error {
	perm := uint32(info.Mode().Perm())
	switch info.Mode().Type() {
	case 0:
		g.add(inside, entry{mode: modeFile | perm, hostPath: host})
	case fs.ModeDir:
		g.add(inside, entry{mode: modeDir | perm})
	case fs.ModeSymlink:
		target, err := os.Readlink(host)
		if err != nil {
			return err
		}
		g.add(inside, entry{mode: modeSymlink | 0o777, data: []byte(target)})
	default:
		return fmt.Errorf("%s is a %s", host, info.Mode().Type())
	}
	return nil
}

// writeFile writes the initramfs, not compressed: unpacking it would take
// longer in the machine than reading it.
func (g *guest) writeFile(name string) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("create initramfs: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := g.write(w); err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	return w.Flush()
}

func (g *guest) write(w io.Writer) error {
	names := make([]string, 0, len(g.entries))
	for name := range g.entries {
		names = append(names, name)
	}
	slices.Sort(names) // a directory comes before what is in it

	archive := cpioWriter{w: w}
	for _, name := range names {
		e := g.entries[name]
		if e.hostPath == "" {
			archive.add(name, e.mode, e.device, int64(len(e.data)), strings.NewReader(string(e.data)))
			continue
		}
		if err := addHostContent(&archive, name, e); err != nil {
			return err
		}
	}
	return archive.close()
}

func addHostContent(archive *cpioWriter, name string, e entry) error {
	f, err := os.Open(e.hostPath)
	if err != nil {
		return err
	}
	defer f.Close() // read-only
	info, err := f.Stat()
	if err != nil {
		return err
	}
	archive.add(name, e.mode, e.device, info.Size(), f)
	return archive.err
}
