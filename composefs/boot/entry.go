// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
)

// Type is the kind of a boot entry.
type Type uint8

// The kinds, in the order in which entries are found.
const (
	// BLS is a Type 1 entry of the Boot Loader Specification.
	BLS Type = iota + 1
	// UKI is a unified kernel image, a Type 2 entry.
	UKI
	// UKIAddon is an addon of one UKI.
	UKIAddon
	// GlobalAddon is an addon of every UKI.
	GlobalAddon
	// UsrLibModules is a kernel below /usr/lib/modules.
	UsrLibModules
)

// String is the kind's name in results: "bls", "uki", "uki-addon",
// "global-addon" or "usr-lib-modules".
func (t Type) String() string {
	switch t {
	case BLS:
		return "bls"
	case UKI:
		return "uki"
	case UKIAddon:
		return "uki-addon"
	case GlobalAddon:
		return "global-addon"
	case UsrLibModules:
		return "usr-lib-modules"
	}
	return fmt.Sprintf("unknown-%d", uint8(t))
}

// MarshalText writes the name.
func (t Type) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// Role is what a file does for its entry.
type Role string

// The roles.
const (
	RoleKernel    Role = "vmlinuz"
	RoleInitrd    Role = "initrd"
	RoleEFI       Role = "efi" // EFI binary that a Type 1 entry names
	RoleUKI       Role = "uki"
	RoleAddon     Role = "addon"
	RoleOSRelease Role = "os-release"
)

// File is one file of an entry.
type File struct {
	Role Role
	// Path is where the file is in the image. For files of Type 1 entries it
	// is the value in the entry's text as it stands.
	Path string
	Node *tree.Node // a regular file
}

// Entry is one boot entry of an image.
type Entry struct {
	Type Type
	// Name is the file name of a Type 1 entry, the path of a PE binary below
	// the directory that was searched, or the kernel version.
	Name string
	// Path is the image's path of the .conf file, the PE binary or the kernel.
	Path string
	// Kver is the directory's name for what is below /usr/lib/modules.
	Kver string
	// Files are the entry's files: kernel, initrds in order and EFI binaries
	// of a Type 1 entry (one for each line), the PE binary, or kernel, initrd
	// and os-release of UsrLibModules.
	Files []File
	// Config is the text of a Type 1 entry, nil otherwise.
	Config *Config
	// OSRelease is the image's /usr/lib/os-release, or nil.
	OSRelease *tree.Node
}

// Errors that a caller may want to tell apart.
var (
	// ErrNoKernel reports an entry without a kernel where one is needed.
	ErrNoKernel = errors.New("no kernel")
	// ErrNoInitrd reports a kernel without an initrd. It cannot start an
	// image, as the initrd mounts it.
	ErrNoInitrd = errors.New("no initramfs")
)

// file is the first file of a role, or nil.
func (e *Entry) file(role Role) *File {
	for i := range e.Files {
		if e.Files[i].Role == role {
			return &e.Files[i]
		}
	}
	return nil
}

// filesOf are the files of a role in order.
func (e *Entry) filesOf(role Role) []File {
	var files []File
	for _, f := range e.Files {
		if f.Role == role {
			files = append(files, f)
		}
	}
	return files
}

// MissingInitrd flags a kernel that has no initrd. Such an entry is part of
// what an image holds, but cannot be exported.
func (e *Entry) MissingInitrd() bool {
	return e.file(RoleKernel) != nil && e.file(RoleInitrd) == nil
}

// BootDigest is the SHA-256, in hex, over the entry's kernel followed by its
// initrd. With several initrds, which only Type 1 entries have, each follows
// in the order of its line. Of a UKI the sections .linux and .initrd are taken.
// An entry that lacks either part is ErrNoKernel or ErrNoInitrd; addons and
// EFI binaries of Type 1 entries have no kernel.
func (e *Entry) BootDigest(ctx context.Context, c Content) (string, error) {
	h := sha256.New()
	var err error
	if e.Type == UKI {
		err = hashUKI(ctx, h, c, e.Files[0].Node)
	} else {
		err = e.hashKernel(ctx, h, c)
	}
	if err != nil {
		return "", fmt.Errorf("digest boot entry %q: %w", e.Name, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (e *Entry) hashKernel(ctx context.Context, w io.Writer, c Content) error {
	if e.file(RoleKernel) == nil {
		return ErrNoKernel
	}
	if e.file(RoleInitrd) == nil {
		return ErrNoInitrd
	}
	for _, role := range []Role{RoleKernel, RoleInitrd} {
		for _, f := range e.filesOf(role) {
			if err := copyNode(ctx, w, c, f.Node); err != nil {
				return fmt.Errorf("%q: %w", f.Path, err)
			}
			if role == RoleKernel {
				break
			}
		}
	}
	return nil
}

func hashUKI(ctx context.Context, w io.Writer, c Content, n *tree.Node) (err error) {
	r, size, err := openNode(c, n)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	p, err := openPE(r, size)
	if err != nil {
		return err
	}
	for _, part := range []struct {
		name    string
		missing error
	}{{".linux", ErrNoKernel}, {".initrd", ErrNoInitrd}} {
		s, err := p.section(part.name)
		if errors.Is(err, ErrNoSection) {
			return part.missing
		}
		if err != nil {
			return err
		}
		if err := copyExactly(ctx, w, s, s.Size()); err != nil {
			return err
		}
	}
	return nil
}

// Sections reads the text sections of a UKI or addon.
func (e *Entry) Sections(c Content) (s *Sections, err error) {
	f := e.file(RoleUKI)
	if f == nil {
		f = e.file(RoleAddon)
	}
	if f == nil {
		return nil, fmt.Errorf("read sections of %q: %w", e.Name, ErrNotPE)
	}
	r, size, err := openNode(c, f.Node)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", f.Path, err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if s, err = ReadSections(r, size); err != nil {
		return nil, fmt.Errorf("%q: %w", f.Path, err)
	}
	return s, nil
}

// Skipped is an entry that was left out, and why.
type Skipped struct {
	Entry  *Entry
	Reason string
}

// Choose picks what is to be exported of the entries that Find found, as bootc
// does: the kind of the first entry decides, so that an image that ships the
// kernel of its UKI beside it is started through the UKI. Addons belong to
// UKIs. A kernel without initramfs is left out, unless all are, so that
// exporting says what is wrong.
func Choose(entries []Entry) (chosen []Entry, skipped []Skipped) {
	if len(entries) == 0 {
		return nil, nil
	}
	kind := UKI
	for i := range entries {
		if t := entries[i].Type; t == BLS || t == UKI || t == UsrLibModules {
			kind = t
			break
		}
	}
	var broken []Entry
	var left []Skipped // those of broken
	for i := range entries {
		e := &entries[i]
		t := e.Type
		if t == UKIAddon || t == GlobalAddon {
			t = UKI
		}
		switch {
		case t != kind:
			skipped = append(skipped, Skipped{e, fmt.Sprintf("the image is started through entries of kind %s", kind)})
		case e.MissingInitrd():
			broken = append(broken, *e)
			left = append(left, Skipped{e, ErrNoInitrd.Error()})
		default:
			chosen = append(chosen, *e)
		}
	}
	if len(chosen) == 0 {
		return broken, skipped
	}
	return chosen, append(skipped, left...)
}
