// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package tarraw

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// The fields of a header block, POSIX ustar layout.
type block []byte // BlockSize bytes

func (b block) name() []byte     { return cstring(b[0:100]) }
func (b block) mode() []byte     { return b[100:108] }
func (b block) uid() []byte      { return b[108:116] }
func (b block) gid() []byte      { return b[116:124] }
func (b block) size() []byte     { return b[124:136] }
func (b block) mtime() []byte    { return b[136:148] }
func (b block) checksum() []byte { return b[148:156] }
func (b block) typeflag() byte   { return b[156] }
func (b block) linkname() []byte { return cstring(b[157:257]) }
func (b block) devmajor() []byte { return b[329:337] }
func (b block) devminor() []byte { return b[337:345] }
func (b block) prefix() []byte   { return cstring(b[345:500]) }

// isUstar and isGNU compare magic and version together.
func (b block) isUstar() bool { return string(b[257:265]) == "ustar\x0000" }
func (b block) isGNU() bool   { return string(b[257:265]) == "ustar  \x00" }

// cstring is b up to the first NUL.
func cstring(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

// sum is the unsigned sum of the bytes of a header block with the checksum
// field taken as spaces; zero reports a block of zero bytes.
//
// It adds eight bytes at a time in lanes of 16 bits, which cannot overflow:
// 64 words put at most 2*255 each into a lane.
func (b block) sum() (sum uint64, zero bool) {
	const lanes = 0x00ff00ff00ff00ff
	b = b[:BlockSize]
	var acc, or uint64
	for i := 0; i < BlockSize; i += 8 {
		v := binary.LittleEndian.Uint64(b[i:])
		or |= v
		acc += v&lanes + v>>8&lanes
	}
	if or == 0 {
		return 0, true
	}
	sum = acc&0xffff + acc>>16&0xffff + acc>>32&0xffff + acc>>48
	for _, c := range b[148:156] {
		sum += ' ' - uint64(c)
	}
	return sum, false
}

// parseNumeric reads a field that is octal text, or a big-endian number if
// the high bit of its first byte is set. That bit is not part of the number,
// and only the low 64 bits of the number count.
func parseNumeric(field []byte) (uint64, error) {
	if field[0]&0x80 == 0 {
		return parseOctal(field)
	}
	v := uint64(field[0] & 0x7f)
	for _, c := range field[1:] {
		v = v<<8 | uint64(c)
	}
	return v, nil
}

func isSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

// parseOctal reads octal text that ends at the first NUL, with white space
// around it. Nothing at all is 0, and a plus sign is allowed.
func parseOctal(field []byte) (uint64, error) {
	b := field
	for len(b) > 0 && isSpace(b[0]) {
		b = b[1:]
	}
	// The common form, digits up to a NUL or a space, needs no search.
	var v uint64
	i := 0
	for i < len(b) && '0' <= b[i] && b[i] <= '7' {
		v = v<<3 | uint64(b[i]-'0')
		i++
	}
	if i == len(b) || b[i] == 0 {
		return v, nil
	}
	rest := cstring(b[i:])
	if i == 0 && rest[0] == '+' {
		return parseOctalPlus(field, rest[1:])
	}
	for _, c := range rest {
		if !isSpace(c) {
			return 0, fmt.Errorf("%q is not an octal number", field)
		}
	}
	return v, nil
}

// parseOctalPlus reads what follows a plus sign: at least one digit.
func parseOctalPlus(field, b []byte) (uint64, error) {
	if len(b) == 0 || b[0] < '0' || b[0] > '7' {
		return 0, fmt.Errorf("%q is not an octal number", field)
	}
	return parseOctal(b)
}
