// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
)

// Where entries are searched.
const (
	entriesDir   = "/boot/loader/entries"
	ukiDir       = "/boot/EFI/Linux"
	addonsDir    = "/boot/loader/addons"
	modulesDir   = "/usr/lib/modules"
	osReleaseAt  = "/usr/lib/os-release"
	confSuffix   = ".conf"
	efiSuffix    = ".efi"
	addonSuffix  = ".addon.efi"
	extraDirName = ".efi.extra.d"
)

// Limits of what an image may hold. Beyond them Find fails rather than use
// unbounded memory and time.
const (
	maxConfSize  = 1 << 20  // bytes of one .conf file
	maxConfTotal = 16 << 20 // bytes of all
	maxConfFiles = 256      // files that one names
	maxEntries   = 10000
	maxPath      = 4096 // bytes of a PE binary's path; also limits the depth
	maxOSRelease = 1 << 20
)

type finder struct {
	root      *tree.Node
	content   Content
	entries   []Entry
	confBytes int64
	osRelease *tree.Node
}

// Find collects the boot entries of an image from its merged tree, in which
// /boot has not been emptied yet: first Type 1 entries, then UKIs and addons,
// then kernels below /usr/lib/modules, each group in byte order of the names.
//
// A directory that does not exist is an empty one. It is an error if
//   - a directory on one of the paths is something else (symbolic links are
//     not followed),
//   - a name that ends in .conf or .efi is not a regular file,
//   - a .conf file is not UTF-8, or names a linux, initrd or efi path that is
//     not a regular file of the image,
//   - a directory with a kernel has a name that is not UTF-8,
//   - a limit on sizes and counts is exceeded.
//
// Below /usr/lib/modules, a vmlinuz that is not a regular file is no kernel,
// and an initramfs.img that is not one is absent; see [Entry.MissingInitrd].
func Find(root *tree.Node, c Content) ([]Entry, error) {
	f := &finder{root: root, content: c}
	f.osRelease = lookupFollowing(root, osReleaseAt)
	for _, step := range []func() error{f.findConfs, f.findUKIs, f.findModules} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("find boot entries: %w", err)
		}
	}
	return f.entries, nil
}

func (f *finder) add(e Entry) error {
	if len(f.entries) == maxEntries {
		return fmt.Errorf("more than %d entries", maxEntries)
	}
	e.OSRelease = f.osRelease
	f.entries = append(f.entries, e)
	return nil
}

// directory is the directory at path, or nil if there is nothing.
func (f *finder) directory(path string) (*tree.Node, error) {
	n, err := f.root.Lookup(path)
	if errors.Is(err, tree.ErrNotExist) {
		return nil, nil
	}
	if err == nil && n.Kind != tree.Directory {
		err = tree.ErrNotDirectory
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	return n, nil
}

func (f *finder) findConfs() error {
	dir, err := f.directory(entriesDir)
	if dir == nil {
		return err
	}
	for _, name := range dir.Names() {
		if !strings.HasSuffix(name, confSuffix) {
			continue
		}
		path := entriesDir + "/" + name
		n := dir.Entry(name)
		e := Entry{Type: BLS, Name: name, Path: path}
		if err := f.loadConf(&e, n); err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		if err := f.add(e); err != nil {
			return err
		}
	}
	return nil
}

func (f *finder) loadConf(e *Entry, n *tree.Node) error {
	if n.Kind != tree.Regular {
		return errNotRegular
	}
	text, err := readNode(f.content, n, maxConfSize)
	if err != nil {
		return err
	}
	if f.confBytes += int64(len(text)); f.confBytes > maxConfTotal {
		return fmt.Errorf("entries have more than %d bytes together", maxConfTotal)
	}
	if e.Config, err = ParseConfig(text); err != nil {
		return err
	}
	for _, key := range []struct {
		name string
		role Role
	}{{"linux", RoleKernel}, {"initrd", RoleInitrd}, {"efi", RoleEFI}} {
		for _, value := range e.Config.Values(key.name) {
			n, err := lookupFile(f.root, value)
			if err != nil {
				return fmt.Errorf("%s %q: %w", key.name, clip(value), err)
			}
			if len(e.Files) == maxConfFiles {
				return fmt.Errorf("more than %d files", maxConfFiles)
			}
			e.Files = append(e.Files, File{Role: key.role, Path: value, Node: n})
		}
	}
	return nil
}

// lookupFile finds the regular file at a path that an image's file names. The
// path is relative to the root whether or not it begins with a slash; it may
// not have a component "..", nor begin with ".".
func lookupFile(root *tree.Node, path string) (*tree.Node, error) {
	var parts []string
	for i, name := range strings.Split(path, "/") {
		switch {
		case name == "" || name == "." && i > 0:
		case name == "." || name == "..":
			return nil, errors.New("path leaves the image")
		default:
			parts = append(parts, name)
		}
	}
	if len(parts) == 0 {
		return nil, errors.New("not a path of a file")
	}
	n, err := root.Lookup(strings.Join(parts, "/"))
	if err != nil {
		return nil, err
	}
	if n.Kind != tree.Regular {
		return nil, errNotRegular
	}
	return n, nil
}

func (f *finder) findUKIs() error {
	for _, place := range []struct {
		path  string
		addon Type
	}{{ukiDir, UKIAddon}, {addonsDir, GlobalAddon}} {
		dir, err := f.directory(place.path)
		if err != nil {
			return err
		}
		if dir == nil {
			continue
		}
		if err := f.walkPE(dir, place.path, "", place.addon); err != nil {
			return err
		}
	}
	modules, err := f.directory(modulesDir)
	if modules == nil {
		return err
	}
	for _, kver := range modules.Names() {
		dir := modules.Entry(kver)
		if dir.Kind != tree.Directory {
			continue
		}
		if err := f.walkPE(dir, modulesDir+"/"+kver, kver, UKIAddon); err != nil {
			return err
		}
	}
	return nil
}

// walkPE adds every PE binary below dir. It keeps its own stack, and makes a
// path only of what it found: an image decides how deep and wide the tree is.
func (f *finder) walkPE(dir *tree.Node, at, kver string, addon Type) error {
	type level struct {
		dir   *tree.Node
		names []string
	}
	stack := []level{{dir, dir.Names()}}
	var path []string // names of the directories below dir
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if len(top.names) == 0 {
			stack = stack[:len(stack)-1]
			if len(path) > 0 {
				path = path[:len(path)-1]
			}
			continue
		}
		name := top.names[0]
		top.names = top.names[1:]
		n := top.dir.Entry(name)
		if n.Kind == tree.Directory {
			if len(stack) > maxPath/2 {
				return fmt.Errorf("%q: directories are too deep", at)
			}
			path = append(path, name)
			stack = append(stack, level{n, n.Names()})
			continue
		}
		if !strings.HasSuffix(name, efiSuffix) {
			continue
		}
		e := Entry{Type: UKI, Kver: kver}
		role := RoleUKI
		if strings.HasSuffix(name, addonSuffix) {
			e.Type, role = addon, RoleAddon
		}
		length := len(at) + 1 + len(name)
		for _, p := range path {
			length += len(p) + 1
		}
		if length > maxPath {
			return fmt.Errorf("%q: path of %q is too long", at, clip(name))
		}
		e.Name = strings.Join(append(path[:len(path):len(path)], name), "/")
		e.Path = at + "/" + e.Name
		if n.Kind != tree.Regular {
			return fmt.Errorf("%q: %w", e.Path, errNotRegular)
		}
		e.Files = []File{{Role: role, Path: e.Path, Node: n}}
		if err := f.add(e); err != nil {
			return err
		}
	}
	return nil
}

func (f *finder) findModules() error {
	modules, err := f.directory(modulesDir)
	if modules == nil {
		return err
	}
	for _, kver := range modules.Names() {
		dir := modules.Entry(kver)
		if dir.Kind != tree.Directory {
			continue
		}
		kernel := dir.Entry("vmlinuz")
		if kernel == nil || kernel.Kind != tree.Regular {
			continue
		}
		at := modulesDir + "/" + kver
		if !utf8.ValidString(kver) {
			return fmt.Errorf("%q: kernel version is %w", at, ErrNotUTF8)
		}
		e := Entry{Type: UsrLibModules, Name: kver, Kver: kver, Path: at + "/vmlinuz"}
		e.Files = []File{{Role: RoleKernel, Path: e.Path, Node: kernel}}
		if n := dir.Entry("initramfs.img"); n != nil && n.Kind == tree.Regular {
			e.Files = append(e.Files, File{Role: RoleInitrd, Path: at + "/initramfs.img", Node: n})
		}
		if f.osRelease != nil {
			e.Files = append(e.Files, File{Role: RoleOSRelease, Path: osReleaseAt, Node: f.osRelease})
		}
		if err := f.add(e); err != nil {
			return err
		}
	}
	return nil
}

// lookupFollowing finds the regular file at path as a process whose root is
// the tree would. It is nil where there is no such file.
func lookupFollowing(root *tree.Node, path string) *tree.Node {
	n, err := root.Follow(path, true)
	if err != nil || n.Kind != tree.Regular {
		return nil
	}
	return n
}

// ReadOSRelease reads the image's os-release. It is empty where there is none,
// or one that is not UTF-8 text of moderate size.
func (e *Entry) ReadOSRelease(c Content) (OSRelease, error) {
	if e.OSRelease == nil || e.OSRelease.Size > maxOSRelease {
		return OSRelease{}, nil
	}
	text, err := readNode(c, e.OSRelease, maxOSRelease)
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", osReleaseAt, err)
	}
	if !utf8.Valid(text) {
		return OSRelease{}, nil
	}
	return ParseOSRelease(string(text)), nil
}
