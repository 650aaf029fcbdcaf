// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package dumpfile

import (
	"bytes"
	"errors"
	"fmt"
)

const hexDigits = "0123456789abcdef"

// appendEscaped appends s with everything escaped that is no printable ASCII
// character, and "=" if asked.
func appendEscaped[T string | []byte](b []byte, s T, escapeEqual bool) []byte {
	for i := range len(s) {
		switch c := s[i]; {
		case c == '\\':
			b = append(b, '\\', '\\')
		case c == '\n':
			b = append(b, '\\', 'n')
		case c == '\r':
			b = append(b, '\\', 'r')
		case c == '\t':
			b = append(b, '\\', 't')
		case c < 0x21 || c > 0x7e || c == '=' && escapeEqual:
			b = append(b, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		default:
			b = append(b, c)
		}
	}
	return b
}

// appendOptional appends a field in which "-" means nothing.
func appendOptional[T string | []byte](b []byte, s T) []byte {
	switch {
	case len(s) == 0:
		return append(b, '-')
	case len(s) == 1 && s[0] == '-':
		return append(b, `\x2d`...)
	}
	return appendEscaped(b, s, false)
}

var errEscape = errors.New("bad escape")

// unescape undoes the escapes of a field. The result shares b's memory where
// there are none.
func unescape(b []byte) ([]byte, error) {
	first := bytes.IndexByte(b, '\\')
	if first < 0 {
		return b, nil
	}
	out := append(make([]byte, 0, len(b)), b[:first]...)
	for i := first; i < len(b); i++ {
		if b[i] != '\\' {
			out = append(out, b[i])
			continue
		}
		i++
		if i == len(b) {
			return nil, fmt.Errorf("%w: backslash at the end of a field", errEscape)
		}
		switch b[i] {
		case '\\':
			out = append(out, '\\')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'x':
			if i+2 >= len(b) {
				return nil, fmt.Errorf("%w: \\x needs two digits", errEscape)
			}
			hi, lo := unhex(b[i+1]), unhex(b[i+2])
			if hi < 0 || lo < 0 {
				return nil, fmt.Errorf("%w: \\x%c%c", errEscape, b[i+1], b[i+2])
			}
			out = append(out, byte(hi<<4|lo))
			i += 2
		default:
			return nil, fmt.Errorf("%w: \\%c", errEscape, b[i])
		}
	}
	return out, nil
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
