// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package selinux

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"unicode"
	"unicode/utf8"
)

// byteSet is a set of bytes.
type byteSet [4]uint64

func (s *byteSet) add(c byte)          { s[c>>6] |= 1 << (c & 63) }
func (s *byteSet) has(c byte) bool     { return s[c>>6]&(1<<(c&63)) != 0 }
func (s *byteSet) union(o byteSet)     { s.combine(o, func(a, b uint64) uint64 { return a | b }) }
func (s *byteSet) intersect(o byteSet) { s.combine(o, func(a, b uint64) uint64 { return a & b }) }
func (s *byteSet) subtract(o byteSet)  { s.combine(o, func(a, b uint64) uint64 { return a &^ b }) }
func (s *byteSet) symmetric(o byteSet) { s.combine(o, func(a, b uint64) uint64 { return a ^ b }) }
func (s *byteSet) negate() {
	s.symmetric(byteSet{math.MaxUint64, math.MaxUint64, math.MaxUint64, math.MaxUint64})
}

func (s *byteSet) combine(o byteSet, f func(a, b uint64) uint64) {
	for i := range s {
		s[i] = f(s[i], o[i])
	}
}

func (s *byteSet) addRange(lo, hi byte) {
	for c := int(lo); c <= int(hi); c++ {
		s.add(byte(c))
	}
}

// fold adds the other case of each ASCII letter.
func (s *byteSet) fold() {
	for c := byte('a'); c <= 'z'; c++ {
		upper := c - 'a' + 'A'
		if s.has(c) || s.has(upper) {
			s.add(c)
			s.add(upper)
		}
	}
}

// setOf makes a set of pairs of bounds.
func setOf(bounds string) byteSet {
	var s byteSet
	for i := 0; i < len(bounds); i += 2 {
		s.addRange(bounds[i], bounds[i+1])
	}
	return s
}

// posixClass returns the set of [:name:].
func posixClass(name string) (byteSet, bool) {
	switch name {
	case "alnum":
		return setOf("09AZaz"), true
	case "alpha":
		return setOf("AZaz"), true
	case "ascii":
		return setOf("\x00\x7f"), true
	case "blank":
		return setOf("\t\t  "), true
	case "cntrl":
		return setOf("\x00\x1f\x7f\x7f"), true
	case "digit":
		return setOf("09"), true
	case "graph":
		return setOf("!~"), true
	case "lower":
		return setOf("az"), true
	case "print":
		return setOf(" ~"), true
	case "punct":
		return setOf("!/:@[`{~"), true
	case "space":
		return setOf("\t\r  "), true
	case "upper":
		return setOf("AZ"), true
	case "word":
		return setOf("09AZaz__"), true
	case "xdigit":
		return setOf("09AFaf"), true
	}
	return byteSet{}, false
}

// perlClass returns the set of \d, \s, \w and their negations.
func perlClass(c byte) byteSet {
	name := map[byte]string{'d': "digit", 's': "space", 'w': "word"}[c|0x20]
	s, _ := posixClass(name)
	if c < 'a' {
		s.negate()
	}
	return s
}

type nodeOp uint8

const (
	opByte   nodeOp = iota // the byte b
	opSet                  // one byte of set
	opConcat               // all of subs in order; the empty string if there are none
	opAlt                  // one of subs
	opRepeat               // subs[0], min to max times; max -1 is no bound
	opLook                 // assertion b
)

// node is a part of a parsed expression.
type node struct {
	op       nodeOp
	b        byte
	set      *byteSet
	subs     []*node
	min, max int
}

// byteNodes has a node of opByte for each byte: most of a policy is literal
// text, and nodes do not change.
type byteNodes [256]node

func newByteNodes() *byteNodes {
	var t byteNodes
	for c := range t {
		t[c] = node{op: opByte, b: byte(c)}
	}
	return &t
}

// maxDepth bounds the nesting of groups and classes.
const maxDepth = 200

// syntaxError says why an expression is not for the automaton.
type syntaxError struct {
	text string
	// fatal: no other engine should try.
	fatal bool
}

func (e *syntaxError) Error() string { return e.text }

func invalid(format string, args ...any) error {
	return &syntaxError{text: fmt.Sprintf(format, args...)}
}

type flags struct {
	fold      bool // i: letters stand for both cases
	dotAll    bool // s: a dot is any byte, NUL as well
	multiLine bool // m: ^ and $ match at newlines too
}

// regexParser parses the syntax of Rust's regex crate with Unicode off and
// NUL as the line terminator.
type regexParser struct {
	s     string // valid UTF-8
	pos   int
	depth int
	names []string // of groups
	flags flags
	bytes *byteNodes
}

// parseRegex parses an expression. Errors are of type *[syntaxError].
func parseRegex(s string, bytes *byteNodes) (*node, error) {
	p := &regexParser{s: s, bytes: bytes}
	n, err := p.alternatives()
	if err != nil {
		return nil, err
	}
	if p.pos < len(s) {
		return nil, invalid("closing parenthesis without an opening one")
	}
	return n, nil
}

func (p *regexParser) more() bool { return p.pos < len(p.s) }

// peek returns the byte n places ahead, or 0 behind the end.
func (p *regexParser) peek(n int) byte {
	if p.pos+n < len(p.s) {
		return p.s[p.pos+n]
	}
	return 0
}

func (p *regexParser) accept(prefix string) bool {
	if len(p.s)-p.pos >= len(prefix) && p.s[p.pos:p.pos+len(prefix)] == prefix {
		p.pos += len(prefix)
		return true
	}
	return false
}

func (p *regexParser) enter() error {
	if p.depth++; p.depth > maxDepth {
		return &syntaxError{text: fmt.Sprintf("nested more than %d levels deep", maxDepth), fatal: true}
	}
	return nil
}

// alternatives parses up to a closing parenthesis or the end. Flags that are
// set in between hold up to there, for later alternatives too.
func (p *regexParser) alternatives() (*node, error) {
	var alts []*node
	for {
		n, err := p.concat()
		if err != nil {
			return nil, err
		}
		alts = append(alts, n)
		if !p.accept("|") {
			break
		}
	}
	if len(alts) == 1 {
		return alts[0], nil
	}
	return &node{op: opAlt, subs: alts}, nil
}

func (p *regexParser) concat() (*node, error) {
	var subs []*node
	repeatable := false // there is something for a repetition to repeat
	for p.more() {
		var n *node
		var err error
		switch p.s[p.pos] {
		case '|', ')':
			return concatOf(subs), nil
		case '(':
			n, err = p.group()
		case '[':
			p.pos++
			n, err = p.class()
		case '?', '*', '+', '{':
			if !repeatable {
				return nil, invalid("nothing to repeat")
			}
			subs[len(subs)-1], err = p.repeat(subs[len(subs)-1])
			if err != nil {
				return nil, err
			}
			continue
		default:
			n, err = p.primitive()
		}
		if err != nil {
			return nil, err
		}
		if repeatable = n != nil; repeatable {
			subs = append(subs, n)
		}
	}
	return concatOf(subs), nil
}

// concatOf joins nodes; concatenations among them that are not repeated lose
// their own node, so that a literal prefix is seen through groups.
func concatOf(subs []*node) *node {
	if len(subs) == 1 {
		return subs[0]
	}
	flat := subs[:0:0]
	for _, n := range subs {
		if n.op == opConcat {
			flat = append(flat, n.subs...)
		} else {
			flat = append(flat, n)
		}
	}
	return &node{op: opConcat, subs: flat}
}

// group parses a group, or flags, for which it returns nil.
func (p *regexParser) group() (*node, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	p.pos++
	outer := p.flags
	switch {
	case p.accept("?=") || p.accept("?!") || p.accept("?<=") || p.accept("?<!"):
		return nil, invalid("look-around")
	case p.accept("?P<") || p.accept("?<"):
		if err := p.groupName(); err != nil {
			return nil, err
		}
	case p.accept("?"):
		set, err := p.groupFlags()
		if err != nil {
			return nil, err
		}
		if set {
			return nil, nil
		}
	}
	n, err := p.alternatives()
	if err != nil {
		return nil, err
	}
	if !p.accept(")") {
		return nil, invalid("group is not closed")
	}
	p.flags = outer
	return n, nil
}

func (p *regexParser) groupName() error {
	start := p.pos
	for p.more() {
		c, size := utf8.DecodeRuneInString(p.s[p.pos:])
		if c == '>' {
			if p.pos == start {
				return invalid("empty group name")
			}
			name := p.s[start:p.pos]
			p.pos++
			if slices.Contains(p.names, name) {
				return &syntaxError{text: "two groups of one name", fatal: true}
			}
			p.names = append(p.names, name)
			return nil
		}
		first := p.pos == start
		if c != '_' && !unicode.IsLetter(c) && (first || c != '.' && c != '[' && c != ']' && !unicode.IsNumber(c)) {
			return invalid("bad group name")
		}
		p.pos += size
	}
	return invalid("group name is not closed")
}

// groupFlags parses what follows "(?" up to ")", for which it reports true, or
// up to ":".
func (p *regexParser) groupFlags() (set bool, err error) {
	on := true
	seen := map[byte]bool{}
	last := byte(0)
	var unsupported error
	for p.more() {
		c := p.s[p.pos]
		p.pos++
		if c == ':' || c == ')' {
			if last == '-' {
				return false, invalid("nothing behind the minus sign of flags")
			}
			if c == ')' && last == 0 {
				return false, invalid("empty flags")
			}
			return c == ')', unsupported
		}
		if seen[c] {
			return false, invalid("repeated flag %q", c)
		}
		seen[c] = true
		last = c
		switch c {
		case '-':
			on = false
		case 'i':
			p.flags.fold = on
		case 's':
			p.flags.dotAll = on
		case 'U':
			// Greediness does not change what matches as a whole.
		case 'm':
			p.flags.multiLine = on
		case 'u', 'R', 'x':
			// These are off to begin with. The other engine would not do
			// what they ask for.
			if on {
				unsupported = &syntaxError{text: fmt.Sprintf("flag %q is not supported", c), fatal: true}
			}
		default:
			return false, invalid("unknown flag %q", c)
		}
	}
	return false, invalid("flags are not closed")
}

// repeat parses a repetition operator behind n. A question mark behind the
// operator makes it lazy, which does not change what matches as a whole; any
// other operator repeats the repetition.
func (p *regexParser) repeat(n *node) (*node, error) {
	c := p.s[p.pos]
	p.pos++
	r := &node{op: opRepeat, subs: []*node{n}, min: 0, max: -1}
	switch c {
	case '?':
		r.max = 1
	case '+':
		r.min = 1
	case '{':
		lo, okLo := p.decimal()
		r.min, r.max = lo, lo
		if p.accept(",") {
			hi, okHi := p.decimal()
			if r.max = hi; !okHi {
				r.max = -1
			}
		}
		if !okLo || !p.accept("}") || r.max >= 0 && r.max < r.min {
			return nil, invalid("bad repetition count")
		}
	}
	p.accept("?")
	return r, nil
}

// maxCount bounds the count of a repetition; what it repeats is copied that
// often.
const maxCount = 10000

// decimal parses a number; those above maxCount come out as maxCount+1.
func (p *regexParser) decimal() (int, bool) {
	start := p.pos
	for c := p.peek(0); '0' <= c && c <= '9'; c = p.peek(0) {
		p.pos++
	}
	if p.pos == start {
		return 0, false
	}
	n, err := strconv.Atoi(p.s[start:p.pos])
	if err != nil || n > maxCount {
		n = maxCount + 1
	}
	return n, true
}

// primitive parses one character, escape or assertion outside of a class.
func (p *regexParser) primitive() (*node, error) {
	switch p.s[p.pos] {
	case '.':
		p.pos++
		set := byteSet{}
		set.negate()
		if !p.flags.dotAll {
			set.subtract(setOf("\x00\x00"))
		}
		return &node{op: opSet, set: &set}, nil
	case '^':
		p.pos++
		return p.lineAssertion(lookStart, lookStartLine), nil
	case '$':
		p.pos++
		return p.lineAssertion(lookEnd, lookEndLine), nil
	case '\\':
		return p.escape()
	}
	c, size := utf8.DecodeRuneInString(p.s[p.pos:])
	p.pos += size
	return p.literal(literal{char: c}), nil
}

// lineAssertion is an assertion that is another one in multi-line mode.
func (p *regexParser) lineAssertion(text, line byte) *node {
	if p.flags.multiLine {
		text = line
	}
	return &node{op: opLook, b: text}
}

// literal is a character, or a byte above 0x7f that was written as \xNN.
type literal struct {
	char rune
	raw  bool
}

func (p *regexParser) literal(l literal) *node {
	if l.raw {
		return &p.bytes[byte(l.char)]
	}
	if l.char >= utf8.RuneSelf {
		n := &node{op: opConcat}
		for _, c := range []byte(string(l.char)) {
			n.subs = append(n.subs, &p.bytes[c])
		}
		return n
	}
	c := byte(l.char)
	if lower := c | 0x20; p.flags.fold && 'a' <= lower && lower <= 'z' {
		s := setOf(string([]byte{c, c}))
		s.fold()
		return &node{op: opSet, set: &s}
	}
	return &p.bytes[c]
}

func (p *regexParser) escape() (*node, error) {
	switch c := p.peek(1); c {
	case 'd', 'D', 's', 'S', 'w', 'W':
		p.pos += 2
		set := perlClass(c)
		return &node{op: opSet, set: &set}, nil
	case 'A', 'z', 'b', 'B', '<', '>':
		p.pos += 2
		look := map[byte]byte{'A': lookStart, 'z': lookEnd, 'b': lookWord, 'B': lookNotWord, '<': lookWordStart, '>': lookWordEnd}[c]
		if c == 'b' {
			switch {
			case p.accept("{start}"):
				look = lookWordStart
			case p.accept("{end}"):
				look = lookWordEnd
			case p.accept("{start-half}"):
				look = lookWordStartHalf
			case p.accept("{end-half}"):
				look = lookWordEndHalf
			}
		}
		return &node{op: opLook, b: look}, nil
	}
	l, err := p.escapedLiteral()
	if err != nil {
		return nil, err
	}
	return p.literal(l), nil
}

// escapedLiteral parses an escape that stands for a character.
func (p *regexParser) escapedLiteral() (literal, error) {
	c := p.peek(1)
	p.pos += 2
	switch c {
	case 'a':
		return literal{char: '\a'}, nil
	case 'f':
		return literal{char: '\f'}, nil
	case 't':
		return literal{char: '\t'}, nil
	case 'n':
		return literal{char: '\n'}, nil
	case 'r':
		return literal{char: '\r'}, nil
	case 'v':
		return literal{char: '\v'}, nil
	case 'x':
		return p.hex(2)
	case 'u':
		return p.hex(4)
	case 'U':
		return p.hex(8)
	case '<', '>':
		return literal{}, invalid("word boundary in a class")
	}
	switch {
	case c < '!' || c > '~':
		// A space, a control character, or no ASCII at all. The first two
		// cannot be: fields are cut at white space.
		return literal{}, invalid("bad escape")
	case '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z':
		return literal{}, invalid("unknown escape \\%c", c)
	}
	return literal{char: rune(c)}, nil
}

// hex parses what follows \x, \u or \U: that many digits, or any number in
// braces. Only two digits behind \x can stand for a byte above 0x7f.
func (p *regexParser) hex(digits int) (literal, error) {
	text := ""
	if p.accept("{") {
		start := p.pos
		for p.more() && p.s[p.pos] != '}' {
			p.pos++
		}
		text = p.s[start:p.pos]
		if !p.accept("}") {
			return literal{}, invalid("hexadecimal escape is not closed")
		}
	} else {
		text = p.s[p.pos:min(p.pos+digits, len(p.s))]
		p.pos += len(text)
		if len(text) < digits {
			return literal{}, invalid("hexadecimal escape is too short")
		}
	}
	for i := range len(text) {
		c := text[i]
		if !('0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f') {
			return literal{}, invalid("bad hexadecimal escape")
		}
	}
	v, err := strconv.ParseUint(text, 16, 32)
	if err != nil || v > unicode.MaxRune || 0xd800 <= v && v < 0xe000 {
		return literal{}, invalid("bad hexadecimal escape")
	}
	raw := digits == 2 && p.s[p.pos-1] != '}' && v >= utf8.RuneSelf
	return literal{char: rune(v), raw: raw}, nil
}

// class parses a class in brackets behind its opening bracket.
func (p *regexParser) class() (*node, error) {
	set, err := p.bracketed()
	if err != nil {
		return nil, err
	}
	return &node{op: opSet, set: &set}, nil
}

// bracketed parses items, nested classes and set operators up to the closing
// bracket. Operators have equal precedence and bind to the left; what stands
// between them is a union.
func (p *regexParser) bracketed() (byteSet, error) {
	var set byteSet // the operand that is being collected
	var left byteSet
	operate := func() { left = set }
	if err := p.enter(); err != nil {
		return set, err
	}
	defer func() { p.depth-- }()

	negated := p.accept("^")
	first := p.pos
	for p.accept("-") {
		set.add('-')
	}
	if p.pos == first && p.accept("]") {
		set.add(']')
	}
	for {
		if !p.more() {
			return set, invalid("class is not closed")
		}
		switch {
		case p.accept("]"):
			operate()
			if p.flags.fold {
				left.fold()
			}
			if negated {
				left.negate()
			}
			return left, nil
		case p.accept("&&"):
			operate()
			operate = p.operator(&left, &set, (*byteSet).intersect)
		case p.accept("--"):
			operate()
			operate = p.operator(&left, &set, (*byteSet).subtract)
		case p.accept("~~"):
			operate()
			operate = p.operator(&left, &set, (*byteSet).symmetric)
		case p.peek(0) == '[':
			if s, ok := p.posix(); ok {
				set.union(s)
				continue
			}
			p.pos++
			nested, err := p.bracketed()
			if err != nil {
				return set, err
			}
			set.union(nested)
		default:
			s, err := p.classRange()
			if err != nil {
				return set, err
			}
			set.union(s)
		}
	}
}

// operator starts the right operand of a set operator in set; the result
// combines it with left.
func (p *regexParser) operator(left, set *byteSet, f func(*byteSet, byteSet)) func() {
	*set = byteSet{}
	return func() {
		if p.flags.fold {
			left.fold()
			set.fold()
		}
		f(left, *set)
	}
}

// posix parses [:name:] or [:^name:] if that is what follows.
func (p *regexParser) posix() (byteSet, bool) {
	rest := p.s[p.pos:]
	if len(rest) < 2 || rest[1] != ':' {
		return byteSet{}, false
	}
	name := rest[2:]
	negated := len(name) > 0 && name[0] == '^'
	if negated {
		name = name[1:]
	}
	for i := range len(name) {
		if name[i] != ':' {
			continue
		}
		s, ok := posixClass(name[:i])
		if !ok || i+1 >= len(name) || name[i+1] != ']' {
			break
		}
		if negated {
			s.negate()
		}
		p.pos += len(rest) - len(name) + i + 2
		return s, true
	}
	return byteSet{}, false
}

// classRange parses an item of a class: a character, a range, or an escape
// that stands for a class.
func (p *regexParser) classRange() (byteSet, error) {
	var s byteSet
	if p.peek(0) == '\\' {
		switch c := p.peek(1); c {
		case 'd', 'D', 's', 'S', 'w', 'W':
			p.pos += 2
			if p.peek(0) == '-' && p.peek(1) != ']' && p.peek(1) != '-' {
				return s, invalid("range from a class")
			}
			return perlClass(c), nil
		}
	}
	lo, err := p.classByte()
	if err != nil {
		return s, err
	}
	if p.peek(0) != '-' || p.peek(1) == ']' || p.peek(1) == '-' {
		s.add(lo)
		return s, nil
	}
	p.pos++
	hi, err := p.classByte()
	if err != nil {
		return s, err
	}
	if lo > hi {
		return s, invalid("range of a class is out of order")
	}
	s.addRange(lo, hi)
	return s, nil
}

// classByte parses a character of a class, which must be a single byte.
func (p *regexParser) classByte() (byte, error) {
	if !p.more() {
		return 0, invalid("class is not closed")
	}
	var l literal
	if p.s[p.pos] == '\\' {
		var err error
		if l, err = p.escapedLiteral(); err != nil {
			return 0, err
		}
	} else {
		c, size := utf8.DecodeRuneInString(p.s[p.pos:])
		p.pos += size
		l.char = c
	}
	if l.char >= utf8.RuneSelf && !l.raw {
		return 0, invalid("class with a character that is not ASCII")
	}
	return byte(l.char), nil
}
