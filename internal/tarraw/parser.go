// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package tarraw

import (
	"errors"
	"fmt"
	"math"
)

// Step is what a [Parser] made of a block.
type Step uint8

// The steps.
const (
	// More: the parser wants the next block of the archive.
	More Step = iota
	// Ready: a member's header is complete, and Entry returns it. The
	// caller takes the member's body and padding out of the archive before
	// it gives the parser the next block.
	Ready
	// End: the block was the second of the two zero blocks that end an
	// archive. What follows is not for the parser.
	End
)

// Parser turns the header blocks of an archive into members. It does no input
// itself: the caller gives it the archive block by block, without the bodies
// of members, but with the data of extension records.
//
// Make one with [NewParser].
type Parser struct {
	limits Limits

	offset int64 // of the next block
	start  int64 // offset of the first block of the current member
	entry  *Entry

	// What precedes the member's header.
	zero     bool // a single zero block
	longName []byte
	longLink []byte
	pax      []byte
	have     [3]bool // which of the three were there, by recordKind
	records  int
	total    int64 // sum of the sizes of the records

	// The record whose data is being collected.
	data   *[]byte // nil for a global header, whose data is dropped
	missed int64   // bytes of data that are still to come

	hint string // for errors about the current member
}

type recordKind uint8

const (
	kindLongName recordKind = iota
	kindLongLink
	kindPax
)

var recordNames = [...]string{"long name", "long link", "pax header"}

// NewParser returns a Parser with the given limits.
func NewParser(l Limits) *Parser {
	return &Parser{limits: l.withDefaults()}
}

// Entry is the member of the last step, if that was Ready.
func (p *Parser) Entry() *Entry { return p.entry }

// Pending reports whether the archive cannot end here, for it would cut a
// member short: an extension record or a single zero block was last.
func (p *Parser) Pending() bool {
	return p.zero || p.missed > 0 || p.records > 0
}

// Skip accounts for n bytes of the archive that the parser does not see, so
// that its offsets stay right.
func (p *Parser) Skip(n uint64) { p.offset += int64(n) }

func (p *Parser) fail(offset int64, rule string, err error) error {
	return &Error{Entry: p.hint, Offset: offset, Rule: rule, Err: err}
}

// setHint makes errors name the record or member of header b, unless a record
// before it has a name already.
func (p *Parser) setHint(b block) {
	if p.hint == "" {
		p.hint = string(b.name())
	}
}

func (p *Parser) failHeader(b block, offset int64, rule string, err error) error {
	p.setHint(b)
	return p.fail(offset, rule, err)
}

// Block gives the parser the next block, BlockSize bytes, which it does not
// keep. Errors are of type *[Error]; the parser is of no use after one.
func (p *Parser) Block(b []byte) (Step, error) {
	b = b[:BlockSize]
	offset := p.offset
	p.offset += BlockSize

	if p.missed > 0 {
		n := min(p.missed, BlockSize)
		if p.data != nil {
			*p.data = append(*p.data, b[:n]...)
		}
		p.missed -= n
		return More, nil
	}

	if p.records == 0 {
		if !p.zero {
			p.start = offset
		}
		p.hint = ""
	}
	sum, isZero := block(b).sum()
	if isZero {
		if !p.zero {
			p.zero = true
			return More, nil
		}
		if p.records > 0 {
			return More, p.fail(offset, RuleOrphan, errors.New("the archive ends after it"))
		}
		p.zero = false
		return End, nil
	}
	if p.zero && p.records == 0 {
		p.start = offset
	}
	p.zero = false
	return p.header(block(b), offset, sum)
}

func (p *Parser) header(b block, offset int64, sum uint64) (Step, error) {
	if p.records > p.limits.MaxPending {
		return More, p.failHeader(b, offset, RulePending, fmt.Errorf("more than %d", p.limits.MaxPending))
	}
	stored, err := parseOctal(b.checksum())
	if err != nil {
		return More, p.failHeader(b, offset, RuleChecksum, err)
	}
	if stored != sum {
		return More, p.failHeader(b, offset, RuleChecksum, fmt.Errorf("stored %d, computed %d", stored, sum))
	}
	size, err := parseNumeric(b.size())
	if err != nil {
		return More, p.failHeader(b, offset, RuleNumber, fmt.Errorf("size: %w", err))
	}
	if size > math.MaxUint64-BlockSize {
		return More, p.failHeader(b, offset, RuleSize, errSize(size))
	}

	ustar, gnu := b.isUstar(), b.isGNU()
	switch typ := b.typeflag(); {
	case typ == typePaxGlobal:
		return p.globalHeader(b, offset, size)
	case !ustar && !gnu:
		// An old header: the letters below mean nothing in it.
	case typ == typeLongName:
		return p.record(b, offset, size, kindLongName, &p.longName)
	case typ == typeLongLink:
		return p.record(b, offset, size, kindLongLink, &p.longLink)
	case typ == typePax:
		return p.record(b, offset, size, kindPax, &p.pax)
	case typ == typeSparse:
		return More, p.failHeader(b, offset, RuleSparse, errSparse)
	}

	e := &Entry{Size: size, Offset: p.start}
	p.entry = e
	if err := p.member(e, b, ustar, gnu); err != nil {
		if p.hint = e.Name; e.Name == "" {
			p.hint = string(b.name())
		}
		return More, p.fail(offset, err.rule, err.err)
	}
	p.hint = e.Name
	p.clearRecords()
	return Ready, nil
}

func errSize(size uint64) error { return fmt.Errorf("%d bytes are too many", size) }

// globalHeader starts to skip a global pax header. Extension records before
// it are void: they belong to a member, and none followed.
func (p *Parser) globalHeader(b block, offset int64, size uint64) (Step, error) {
	if size > uint64(p.limits.MaxExtension) {
		return More, p.failHeader(b, offset, RuleExtension, fmt.Errorf("global pax header of %d bytes, limit %d", size, p.limits.MaxExtension))
	}
	p.clearRecords()
	p.setHint(b)
	p.data = nil
	p.missed = int64(size)
	return More, nil
}

// record starts to collect an extension record's data.
func (p *Parser) record(b block, offset int64, size uint64, kind recordKind, data *[]byte) (Step, error) {
	if p.have[kind] {
		return More, p.failHeader(b, offset, RuleDuplicate, fmt.Errorf("second %s", recordNames[kind]))
	}
	room := uint64(p.limits.MaxExtension - p.total)
	if size > room {
		return More, p.failHeader(b, offset, RuleExtension, fmt.Errorf("%d bytes after %d, limit %d", size, p.total, p.limits.MaxExtension))
	}
	p.setHint(b)
	p.have[kind] = true
	p.total += int64(size)
	p.records++
	*data = (*data)[:0]
	p.data = data
	p.missed = int64(size)
	return More, nil
}

// maxKept is the capacity in bytes above which an extension buffer is not
// kept for the next member.
const maxKept = 16 << 10

func (p *Parser) clearRecords() {
	if p.records == 0 {
		return
	}
	for _, b := range []*[]byte{&p.longName, &p.longLink, &p.pax} {
		if cap(*b) > maxKept {
			*b = nil
		}
	}
	p.have = [3]bool{}
	p.records, p.total = 0, 0
	p.data = nil
}

// ruleError is a broken rule, before the member's name and offset are known.
type ruleError struct {
	rule string
	err  error
}

// member fills e from its header and the extension records.
func (p *Parser) member(e *Entry, b block, ustar, gnu bool) *ruleError {
	e.Type = b.typeflag()
	if e.Type == 0 {
		e.Type = TypeRegular
	}
	if p.have[kindLongName] {
		e.Name = string(trimNUL(p.longName))
	} else if prefix := b.ustarPrefix(ustar); len(prefix) > 0 {
		e.Name = string(prefix) + "/" + string(b.name())
	} else {
		e.Name = string(b.name())
	}
	if p.have[kindLongLink] {
		e.Linkname = string(trimNUL(p.longLink))
	} else if link := b.linkname(); len(link) > 0 {
		e.Linkname = string(link)
	}
	if err := e.setNumbers(b, ustar || gnu); err != nil {
		return &ruleError{RuleNumber, err}
	}
	if p.have[kindPax] {
		if err := applyPax(e, p.pax); err != nil {
			e.Name = paxName(p.pax, e.Name)
			return err
		}
	}
	// No file is that large, and offsets shall not overflow.
	if e.Size > math.MaxInt64-BlockSize {
		return &ruleError{RuleSize, errSize(e.Size)}
	}
	if e.Name == "" {
		return &ruleError{RulePath, errors.New("empty path")}
	}
	return nil
}

// ustarPrefix is the front part of a long path; GNU headers use its place for
// other things.
func (b block) ustarPrefix(ustar bool) []byte {
	if !ustar {
		return nil
	}
	return b.prefix()
}

// trimNUL removes the NUL that ends the data of a GNU record.
func trimNUL(b []byte) []byte {
	if n := len(b); n > 0 && b[n-1] == 0 {
		return b[:n-1]
	}
	return b
}

// setNumbers reads the numeric fields. Each must be well formed, even where a
// pax record overrides it. Only headers with a magic have device numbers, and
// those are always text.
func (e *Entry) setNumbers(b block, hasDev bool) error {
	mode, err := parseNumeric(b.mode())
	if err != nil {
		return fmt.Errorf("mode: %w", err)
	}
	uid, err := parseNumeric(b.uid())
	if err != nil {
		return fmt.Errorf("uid: %w", err)
	}
	gid, err := parseNumeric(b.gid())
	if err != nil {
		return fmt.Errorf("gid: %w", err)
	}
	mtime, err := parseNumeric(b.mtime())
	if err != nil {
		return fmt.Errorf("mtime: %w", err)
	}
	e.Mode, e.UID, e.GID, e.MtimeSec = uint32(mode), uint32(uid), uint32(gid), int64(mtime)
	if !hasDev {
		return nil
	}
	major, err := parseOctal(b.devmajor())
	if err != nil {
		return fmt.Errorf("device major number: %w", err)
	}
	minor, err := parseOctal(b.devminor())
	if err != nil {
		return fmt.Errorf("device minor number: %w", err)
	}
	e.Devmajor, e.Devminor, e.HasDev = uint32(major), uint32(minor), true
	return nil
}
