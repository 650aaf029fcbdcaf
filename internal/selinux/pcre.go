// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package selinux

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// pcreTranslator rewrites an expression in PCRE2 syntax for the engine of
// regexp2, which has the syntax of .NET. They differ in
//
//   - possessive quantifiers, which .NET writes as atomic groups;
//   - hyphens and brackets in classes;
//   - the count {,n}, which is literal text in .NET;
//   - escapes for classes of white space, and quoting;
//   - what a word boundary takes for a word: all letters in .NET.
type pcreTranslator struct {
	in    string
	pos   int
	out   []byte
	atom  int   // where the last thing that can be repeated starts in out, or -1
	opens []int // where groups that are not closed start in out
}

// pcreEscapes are escapes with another meaning in .NET, by what stands for
// them outside of a class.
var pcreEscapes = map[byte]string{
	'h': `[\t\x20\xa0]`,
	'H': `[^\t\x20\xa0]`,
	'v': `[\n\x0b\f\r\x85]`,
	'V': `[^\n\x0b\f\r\x85]`,
	's': `[\t\n\x0b\f\r\x20]`,
	'S': `[^\t\n\x0b\f\r\x20]`,
	'N': `[^\n]`,
	'R': `(?>\r\n|[\n\x0b\f\r\x85])`,
	'b': `(?:(?<=\w)(?!\w)|(?<!\w)(?=\w))`,
	'B': `(?:(?<=\w)(?=\w)|(?<!\w)(?!\w))`,
}

// translatePCRE returns the expression in the other syntax, or an error for
// what has no counterpart.
func translatePCRE(in string) (string, error) {
	t := &pcreTranslator{in: in, atom: -1}
	for t.pos < len(in) {
		if err := t.next(); err != nil {
			return "", err
		}
	}
	return string(t.out), nil
}

func (t *pcreTranslator) peek(n int) byte {
	if t.pos+n < len(t.in) {
		return t.in[t.pos+n]
	}
	return 0
}

// put appends something that can be repeated.
func (t *pcreTranslator) put(s string) {
	t.atom = len(t.out)
	t.out = append(t.out, s...)
}

func (t *pcreTranslator) next() error {
	c := t.in[t.pos]
	switch c {
	case '\\':
		return t.escape()
	case '[':
		return t.class()
	case '(':
		if t.peek(1) == '*' || t.peek(1) == '?' && strings.IndexByte("|R&+0123456789C#", t.peek(2)) >= 0 || t.peek(1) == '?' && t.peek(2) == 'P' && t.peek(3) != '<' {
			return fmt.Errorf("unsupported group %q", t.in[t.pos:min(t.pos+4, len(t.in))])
		}
		t.opens = append(t.opens, len(t.out))
		t.atom = -1
	case ')':
		n := len(t.opens)
		if n == 0 {
			return errors.New("closing parenthesis without an opening one")
		}
		t.atom = t.opens[n-1]
		t.opens = t.opens[:n-1]
	case '|':
		t.atom = -1
	case '*', '+', '?':
		t.quantifier(t.in[t.pos:t.pos+1], 1)
		return nil
	case '{':
		if text, n := t.count(); n > 0 {
			t.quantifier(text, n)
			return nil
		}
		t.put(`\{`)
		t.pos++
		return nil
	default:
		t.atom = len(t.out)
	}
	t.out = append(t.out, c)
	t.pos++
	return nil
}

// quantifier writes a quantifier that is n bytes long, with what follows it.
func (t *pcreTranslator) quantifier(text string, n int) {
	t.pos += n
	t.out = append(t.out, text...)
	switch {
	case t.peek(0) == '?':
		t.out = append(t.out, '?')
		t.pos++
	case t.peek(0) == '+' && t.atom >= 0:
		t.out = append(slices.Insert(t.out, t.atom, []byte("(?>")...), ')')
		t.pos++
	}
}

// count returns the quantifier in braces that follows, and its length, or 0 if
// the brace is literal text.
func (t *pcreTranslator) count() (text string, n int) {
	end := strings.IndexByte(t.in[t.pos:], '}')
	if end < 0 {
		return "", 0
	}
	inside := t.in[t.pos+1 : t.pos+end]
	lo, hi, comma := strings.Cut(inside, ",")
	if strings.Trim(lo, "0123456789") != "" || strings.Trim(hi, "0123456789") != "" || lo == "" && hi == "" {
		return "", 0
	}
	if lo == "" {
		lo = "0"
	}
	text = "{" + lo
	if comma {
		text += "," + hi
	}
	return text + "}", end + 1
}

func (t *pcreTranslator) escape() error {
	c := t.peek(1)
	if c == 'Q' {
		quoted := t.in[t.pos+2:]
		end := strings.Index(quoted, `\E`)
		if end < 0 {
			end = len(quoted)
		}
		for _, q := range []byte(quoted[:end]) {
			t.put(fmt.Sprintf(`\x%02x`, q))
		}
		t.pos = min(t.pos+2+end+2, len(t.in))
		return nil
	}
	if replacement, ok := pcreEscapes[c]; ok {
		t.put(replacement)
		t.pos += 2
		return nil
	}
	if strings.IndexByte("KXCgkoGELlUupPc", c) >= 0 {
		return fmt.Errorf(`unsupported escape \%c`, c)
	}
	if c == 0 {
		return errors.New("nothing behind a backslash")
	}
	if c == 'x' {
		v, err := t.hex()
		t.put(fmt.Sprintf(`\x%02x`, v))
		return err
	}
	t.put(t.in[t.pos : t.pos+2])
	t.pos += 2
	// A number of more digits is one escape.
	for '0' <= c && c <= '9' && '0' <= t.peek(0) && t.peek(0) <= '9' {
		t.out = append(t.out, t.peek(0))
		t.pos++
	}
	return nil
}

// hex parses \xHH, of which PCRE2 allows fewer digits, and \x{HH}.
func (t *pcreTranslator) hex() (byte, error) {
	t.pos += 2
	v, digits := 0, 0
	digit := func() bool {
		d := strings.IndexByte("0123456789abcdef", t.peek(0)|0x20)
		if d < 0 || t.peek(0) < '0' {
			return false
		}
		v, digits = v<<4|d, digits+1
		t.pos++
		return true
	}
	if t.peek(0) != '{' {
		if digit() {
			digit()
		}
		return byte(v), nil
	}
	t.pos++
	for v < 0x100 && digit() {
	}
	if t.peek(0) != '}' || digits == 0 || v > 0xff {
		return 0, errors.New("bad hexadecimal escape")
	}
	t.pos++
	return byte(v), nil
}

// class parses a class in brackets and writes it as ranges of numbers, since
// .NET reads escaped hyphens and brackets in a class in another way.
func (t *pcreTranslator) class() error {
	t.pos++
	negated := t.peek(0) == '^'
	if negated {
		t.pos++
	}
	var set byteSet
	for first := true; ; first = false {
		if t.pos >= len(t.in) {
			return errors.New("class is not closed")
		}
		if t.in[t.pos] == ']' && !first {
			t.pos++
			break
		}
		s, lo, single, err := t.classItem()
		if err != nil {
			return err
		}
		if !single {
			set.union(s)
			continue
		}
		hi := lo
		if t.peek(0) == '-' && t.pos+1 < len(t.in) && t.peek(1) != ']' {
			mark := t.pos
			t.pos++
			if _, hi, single, err = t.classItem(); err != nil {
				return err
			}
			if !single { // the hyphen is one, and the class comes again
				hi, t.pos = lo, mark
			}
		}
		if hi < lo {
			return errors.New("range of a class is out of order")
		}
		set.addRange(lo, hi)
	}
	t.put(formatClass(set, negated))
	return nil
}

// formatClass writes a set as a class without special characters.
func formatClass(set byteSet, negated bool) string {
	var empty byteSet
	switch {
	case set == empty && negated:
		return `[\s\S]`
	case set == empty:
		return `(?!)`
	}
	var b strings.Builder
	b.WriteByte('[')
	if negated {
		b.WriteByte('^')
	}
	for lo := 0; lo < 256; lo++ {
		if !set.has(byte(lo)) {
			continue
		}
		hi := lo
		for hi < 255 && set.has(byte(hi+1)) {
			hi++
		}
		fmt.Fprintf(&b, `\x%02x-\x%02x`, lo, hi)
		lo = hi
	}
	b.WriteByte(']')
	return b.String()
}

// classItem parses a character or a set within a class.
func (t *pcreTranslator) classItem() (set byteSet, c byte, single bool, err error) {
	c = t.in[t.pos]
	if c == '[' {
		p := regexParser{s: t.in, pos: t.pos}
		if set, ok := p.posix(); ok {
			t.pos = p.pos
			return set, 0, false, nil
		}
		if strings.IndexByte(":.=", t.peek(1)) >= 0 && t.peek(1) != 0 && strings.Contains(t.in[t.pos+2:], string(t.peek(1))+"]") {
			return set, 0, false, errors.New("unsupported POSIX class")
		}
	}
	if c != '\\' {
		t.pos++
		return set, c, true, nil
	}
	c = t.peek(1)
	switch c {
	case 'd', 'D', 's', 'S', 'w', 'W':
		t.pos += 2
		return perlClass(c), 0, false, nil
	case 'h', 'H':
		set = setOf("\t\t  \xa0\xa0")
	case 'v', 'V':
		set = setOf("\n\r\x85\x85")
	case 'x':
		c, err = t.hex()
		return set, c, true, err
	}
	if i := strings.IndexByte("hHvV", c); i >= 0 {
		if i%2 == 1 {
			set.negate()
		}
		t.pos += 2
		return set, 0, false, nil
	}
	t.pos += 2
	if i := strings.IndexByte("abefnrt", c); i >= 0 {
		return set, "\a\b\x1b\f\n\r\t"[i], true, nil
	}
	if c < '!' || '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z' {
		return set, 0, false, fmt.Errorf(`unsupported escape \%c in a class`, c)
	}
	return set, c, true, nil
}
