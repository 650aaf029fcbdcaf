// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package tarraw

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
)

// Keys of pax records that are looked at.
const (
	paxPath           = "path"
	paxLinkpath       = "linkpath"
	paxSize           = "size"
	paxUID            = "uid"
	paxGID            = "gid"
	paxMtime          = "mtime"
	paxXattr          = "SCHILY.xattr."
	paxSparse         = "GNU.sparse."
	paxSparseMajor    = "GNU.sparse.major"
	paxSparseMinor    = "GNU.sparse.minor"
	paxSparseOffset   = "GNU.sparse.offset"
	paxSparseNumbytes = "GNU.sparse.numbytes"
	paxSparseMap      = "GNU.sparse.map"
	paxSparseSize     = "GNU.sparse.size"
	paxSparseRealsize = "GNU.sparse.realsize"
	paxSparseName     = "GNU.sparse.name"
)

var (
	errPaxRecord = errors.New("malformed record")
	errPaxKey    = errors.New("key is not UTF-8")
	errSparse    = errors.New("sparse files are not supported in layers")
)

// nextPax cuts the first record, "<length> <key>=<value>\n", off data. The
// length is decimal and counts the whole record.
//
// ok is false at the end of the data, and also where no length can be read:
// the format ignores what follows, for instance NUL padding. A record whose
// length does not fit its text is an error.
func nextPax(data []byte) (key, value, rest []byte, ok bool, err error) {
	space := bytes.IndexByte(data, ' ')
	if space < 0 {
		return nil, nil, nil, false, nil
	}
	n, valid := parseDecimal(data[:space])
	if !valid {
		return nil, nil, nil, false, nil
	}
	if n > uint64(len(data)) || n < uint64(space)+2 || data[n-1] != '\n' {
		return nil, nil, nil, false, errPaxRecord
	}
	key, value, found := bytes.Cut(data[space+1:n-1], []byte{'='})
	if !found {
		return nil, nil, nil, false, errPaxRecord
	}
	return key, value, data[n:], true, nil
}

// parseDecimal reads an unsigned decimal number that fits 64 bits. A plus
// sign and leading zeros are allowed, nothing else is.
func parseDecimal(b []byte) (uint64, bool) {
	if len(b) > 0 && b[0] == '+' {
		b = b[1:]
	}
	if len(b) == 0 {
		return 0, false
	}
	var v uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		d := uint64(c - '0')
		if v > (math.MaxUint64-d)/10 {
			return 0, false
		}
		v = v*10 + d
	}
	return v, true
}

func badPax(rule, format string, args ...any) *ruleError {
	return &ruleError{rule, fmt.Errorf(format, args...)}
}

// shorten bounds foreign text in an error message.
func shorten(b []byte) []byte { return b[:min(len(b), 64)] }

// applyPax lets the records of one pax header override e. Later records win,
// but the nanoseconds are those of the first mtime record.
func applyPax(e *Entry, data []byte) *ruleError {
	if perr := checkSparseVersion(data); perr != nil {
		return perr
	}
	var (
		sparseName  []byte
		sparseStart bool // an offset record waits for its numbytes record
		sparse      bool
		firstMtime  = true
	)
	for {
		key, value, rest, ok, err := nextPax(data)
		if err != nil {
			return &ruleError{RulePax, err}
		}
		if !ok {
			break
		}
		data = rest
		if !utf8.Valid(key) {
			return badPax(RulePax, "%w: %q", errPaxKey, shorten(key))
		}
		switch string(key) {
		case paxPath:
			e.Name = string(value)
		case paxLinkpath:
			e.Linkname = string(value)
		case paxSize, paxUID, paxGID, paxSparseSize, paxSparseRealsize, paxSparseOffset, paxSparseNumbytes:
			v, ok := parseDecimal(value)
			if !ok {
				return badPax(RulePaxNumber, "%s is not an unsigned number: %q", key, shorten(value))
			}
			switch string(key) {
			case paxSize:
				e.Size = v
			case paxUID:
				e.UID = uint32(v)
			case paxGID:
				e.GID = uint32(v)
			case paxSparseOffset:
				sparseStart = true
			case paxSparseNumbytes:
				sparse = sparse || sparseStart
				sparseStart = false
			}
		case paxMtime:
			whole, _, _ := bytes.Cut(value, []byte{'.'})
			v, ok := parseDecimal(whole)
			if !ok || !utf8.Valid(value) {
				if len(whole) > 0 && whole[0] == '-' {
					return badPax(RulePaxTime, "negative times are not supported in layers: %q", shorten(value))
				}
				return badPax(RulePaxTime, "not a time: %q", shorten(value))
			}
			e.MtimeSec = int64(v)
			if firstMtime {
				e.MtimeNsec = nanoseconds(value)
				firstMtime = false
			}
		case paxSparseMap:
			sparse = true
		case paxSparseName:
			sparseName = value
		default:
			if name, ok := bytes.CutPrefix(key, []byte(paxXattr)); ok {
				e.Xattrs = append(e.Xattrs, tree.Xattr{Name: string(name), Value: bytes.Clone(value)})
			}
		}
	}
	if sparseName != nil {
		e.Name = string(sparseName)
	}
	if sparse {
		return &ruleError{RuleSparse, errSparse}
	}
	e.Xattrs = sortXattrs(e.Xattrs)
	return nil
}

// paxName is the path that the records name, or else name. It is for error
// messages, where an earlier record was at fault.
func paxName(data []byte, name string) string {
	for {
		key, value, rest, ok, err := nextPax(data)
		if !ok || err != nil {
			return name
		}
		if string(key) == paxPath || string(key) == paxSparseName {
			name = string(value)
		}
		data = rest
	}
}

// checkSparseVersion refuses sparse files of version 1.0, whose map is in the
// body. It looks at the records up to the second of the two version keys.
func checkSparseVersion(data []byte) *ruleError {
	if !bytes.Contains(data, []byte(paxSparse)) {
		return nil
	}
	var major, minor uint64
	var hasMajor, hasMinor bool
	for !hasMajor || !hasMinor {
		key, value, rest, ok, err := nextPax(data)
		if err != nil {
			return &ruleError{RulePax, err}
		}
		if !ok {
			return nil
		}
		data = rest
		var number *uint64
		switch string(key) {
		case paxSparseMajor:
			number, hasMajor = &major, true
		case paxSparseMinor:
			number, hasMinor = &minor, true
		default:
			continue
		}
		if *number, ok = parseDecimal(value); !ok {
			return badPax(RulePaxNumber, "%s is not an unsigned number: %q", key, shorten(value))
		}
	}
	if major == 1 && minor == 0 {
		return &ruleError{RuleSparse, errSparse}
	}
	return nil
}

// nanoseconds is the fraction of a pax time: what follows the first dot, cut
// or filled with zeros to nine digits, or 0 where that is not a number.
func nanoseconds(value []byte) uint32 {
	_, frac, _ := bytes.Cut(value, []byte{'.'})
	frac = frac[:min(len(frac), 9)]
	v, ok := parseDecimal(frac)
	if !ok {
		return 0
	}
	for i := len(frac); i < 9; i++ {
		v *= 10
	}
	return uint32(v)
}

// sortXattrs sorts by name; of equal names the last one stays.
func sortXattrs(xattrs []tree.Xattr) []tree.Xattr {
	if len(xattrs) < 2 {
		return xattrs
	}
	slices.SortStableFunc(xattrs, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	kept := xattrs[:0]
	for i, x := range xattrs {
		if i+1 < len(xattrs) && xattrs[i+1].Name == x.Name {
			continue
		}
		kept = append(kept, x)
	}
	return kept
}
