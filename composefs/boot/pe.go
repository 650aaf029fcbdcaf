// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// ErrNotPE reports a file that is not in the Portable Executable format.
var ErrNotPE = errors.New("not a PE binary")

// ErrNoSection reports a section that a PE binary lacks.
var ErrNoSection = errors.New("no such section")

// Limits of what is read from PE binaries of an image. Real UKIs have about
// ten sections, and a few hundred with many profiles.
const (
	maxSections    = 2048
	maxTextSection = 1 << 20 // bytes
)

// Offsets and sizes of the PE format: the DOS header's pointer to the PE
// header, the signature with the COFF header, one section header.
const (
	peOffsetAt        = 0x3c
	peHeaderSize      = 4 + 20
	sectionHeaderSize = 40
)

type peSection struct {
	name [8]byte // padded with NUL
	size uint32  // in memory, which is what the content's length is
	at   uint32  // in the file
}

// peFile gives access to the sections of a PE binary. Only headers and the
// sections asked for are read.
type peFile struct {
	r        io.ReaderAt
	size     int64
	sections []peSection
}

// openPE reads the headers of a PE binary of size bytes. What the firmware
// checks beyond finding the sections, such as the machine, is not checked.
func openPE(r io.ReaderAt, size int64) (*peFile, error) {
	var pointer [4]byte
	if size < peOffsetAt+4 {
		return nil, ErrNotPE
	}
	if err := readFullAt(r, pointer[:], peOffsetAt); err != nil {
		return nil, err
	}
	at := int64(binary.LittleEndian.Uint32(pointer[:]))
	if at > size-peHeaderSize {
		return nil, ErrNotPE
	}
	var header [peHeaderSize]byte
	if err := readFullAt(r, header[:], at); err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(header[:], []byte("PE\x00\x00")) {
		return nil, ErrNotPE
	}
	coff := header[4:]
	count := int(binary.LittleEndian.Uint16(coff[2:]))
	optional := int64(binary.LittleEndian.Uint16(coff[16:]))
	if count > maxSections {
		return nil, fmt.Errorf("%w: %d sections are more than the limit of %d", ErrNotPE, count, maxSections)
	}
	at += peHeaderSize + optional
	if at+int64(count)*sectionHeaderSize > size {
		return nil, fmt.Errorf("%w: section headers reach beyond the end", ErrNotPE)
	}
	table := make([]byte, count*sectionHeaderSize)
	if err := readFullAt(r, table, at); err != nil {
		return nil, err
	}
	p := &peFile{r: r, size: size, sections: make([]peSection, count)}
	for i := range p.sections {
		h := table[i*sectionHeaderSize:][:sectionHeaderSize]
		p.sections[i] = peSection{
			name: [8]byte(h[:8]),
			size: binary.LittleEndian.Uint32(h[8:]),
			at:   binary.LittleEndian.Uint32(h[20:]),
		}
	}
	return p, nil
}

// section is the content of the first section of that name, at most eight
// bytes long.
func (p *peFile) section(name string) (*io.SectionReader, error) {
	var key [8]byte
	if copy(key[:], name) < len(name) {
		return nil, fmt.Errorf("section %s: %w", name, ErrNoSection)
	}
	for _, s := range p.sections {
		if s.name != key {
			continue
		}
		if int64(s.at)+int64(s.size) > p.size {
			return nil, fmt.Errorf("section %s: %w: reaches beyond the end", name, ErrNotPE)
		}
		return io.NewSectionReader(p.r, int64(s.at), int64(s.size)), nil
	}
	return nil, fmt.Errorf("section %s: %w", name, ErrNoSection)
}

// text is the content of a section that holds UTF-8 text of moderate size.
func (p *peFile) text(name string) (string, error) {
	s, err := p.section(name)
	if err != nil {
		return "", err
	}
	if s.Size() > maxTextSection {
		return "", fmt.Errorf("section %s: %d bytes are more than the limit of %d", name, s.Size(), maxTextSection)
	}
	data := make([]byte, s.Size())
	if err := readFullAt(s, data, 0); err != nil {
		return "", fmt.Errorf("section %s: %w", name, err)
	}
	if !utf8.Valid(data) {
		return "", fmt.Errorf("section %s: %w", name, ErrNotUTF8)
	}
	return string(data), nil
}

// Sections are the text sections of a UKI or of an addon. The first section of
// each name counts, which in a UKI of several profiles is the base profile's.
type Sections struct {
	Cmdline   string // .cmdline, without trailing NUL bytes
	OSRelease string // .osrel
	Uname     string // .uname, the kernel's version, without white space around

	HasCmdline, HasOSRelease, HasUname bool
}

// ReadSections reads the text sections of a PE binary of size bytes. A section
// that is missing is no error. The errors are ErrNotPE, ErrNotUTF8 and those
// of r.
func ReadSections(r io.ReaderAt, size int64) (*Sections, error) {
	p, err := openPE(r, size)
	if err != nil {
		return nil, fmt.Errorf("read sections: %w", err)
	}
	s := &Sections{}
	for _, t := range []struct {
		name string
		text *string
		has  *bool
	}{
		{".cmdline", &s.Cmdline, &s.HasCmdline},
		{".osrel", &s.OSRelease, &s.HasOSRelease},
		{".uname", &s.Uname, &s.HasUname},
	} {
		*t.text, err = p.text(t.name)
		if errors.Is(err, ErrNoSection) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read sections: %w", err)
		}
		*t.has = true
	}
	// The kernel's command line ends at the first NUL, so a tool that writes
	// one at the end means nothing by it.
	s.Cmdline = strings.TrimRight(s.Cmdline, "\x00")
	s.Uname = strings.TrimSpace(strings.TrimRight(s.Uname, "\x00"))
	return s, nil
}

// ErrNoName reports a UKI whose os-release section names no operating system.
var ErrNoName = errors.New("no name in the .osrel section")

// Label is the UKI's title in a boot menu, as the Boot Loader Specification
// makes it of the .osrel section.
func (s *Sections) Label() (string, error) {
	if !s.HasOSRelease {
		return "", fmt.Errorf("section .osrel: %w", ErrNoSection)
	}
	label, ok := ParseOSRelease(s.OSRelease).Label()
	if !ok {
		return "", ErrNoName
	}
	return label, nil
}
