// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package selinux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Limits on the automaton.
const (
	// maxProgram is the greatest number of instructions of one expression.
	maxProgram = 1 << 16
	// maxPrograms is the greatest number of all instructions.
	maxPrograms = 1 << 21
	// maxCache is the size in bytes that the deterministic states may grow
	// to. Then they are dropped and made again as they are needed.
	maxCache = 32 << 20
	// maxWork bounds the instructions looked at to make states, over the
	// life of a policy: some ten seconds. Real policies need a hundredth.
	maxWork = 1 << 32
)

var errWork = errors.New("the policy's expressions are too complex")

// place is what an assertion can tell of a byte beside it.
type place uint8

const (
	other place = iota
	edge        // no byte: the start or the end
	newline
	word
)

func placeOf(c byte) place {
	words := wordBytes()
	switch {
	case c == '\n':
		return newline
	case words.has(c):
		return word
	}
	return other
}

func wordBytes() byteSet { return setOf("09AZaz__") }

// The assertions.
const (
	lookStart = iota
	lookEnd
	lookStartLine
	lookEndLine
	lookWord
	lookNotWord
	lookWordStart
	lookWordEnd
	lookWordStartHalf
	lookWordEndHalf
)

// holds reports whether an assertion holds between two bytes.
func holds(look byte, prev, next place) bool {
	switch look {
	case lookStart:
		return prev == edge
	case lookEnd:
		return next == edge
	case lookStartLine:
		return prev == edge || prev == newline
	case lookEndLine:
		return next == edge || next == newline
	case lookWord:
		return (prev == word) != (next == word)
	case lookNotWord:
		return (prev == word) == (next == word)
	case lookWordStart:
		return prev != word && next == word
	case lookWordEnd:
		return prev == word && next != word
	case lookWordStartHalf:
		return prev != word
	case lookWordEndHalf:
		return next != word
	}
	return false
}

type opcode uint8

const (
	iByte  opcode = iota // the byte b, then x
	iSet                 // a byte of sets[y], then x
	iSplit               // x and y
	iLook                // x, where assertion b holds
	iMatch               // expression y matches if this is the end
)

type inst struct {
	op   opcode
	b    byte
	x, y uint32
}

// trieNode is a node of the tree of literal prefixes. 0 stands for no node.
type trieNode struct {
	b              byte
	child, sibling uint32
	starts         []uint32 // instructions to start behind this prefix
}

const trieRoot = 1

// builder collects expressions.
type builder struct {
	prog   []inst
	limit  int // of len(prog), for the expression being added
	sets   []byteSet
	setIDs map[byteSet]uint32
	trie   []trieNode
	looks  bool // there are assertions
	bytes  *byteNodes
}

func newBuilder() *builder {
	return &builder{bytes: newByteNodes(), setIDs: map[byteSet]uint32{}, trie: make([]trieNode, trieRoot+1)}
}

// add compiles the expression root followed by the type byte: kind, or any
// byte but NUL if kind is 0. The bytes it begins with go into the tree of
// prefixes, the rest becomes a program that starts there.
func (b *builder) add(root *node, kind byte, number int) error {
	last := &b.bytes[kind]
	if kind == 0 {
		set := setOf("\x01\xff")
		last = &node{op: opSet, set: &set}
	}
	parts := concatOf([]*node{root, last}).subs
	at := uint32(trieRoot)
	for len(parts) > 0 && parts[0].op == opByte {
		at = b.child(at, parts[0].b)
		parts = parts[1:]
	}
	b.limit = min(len(b.prog)+maxProgram, maxPrograms)
	start, err := b.emit(inst{op: iMatch, y: uint32(number)})
	if err == nil {
		start, err = b.compileConcat(parts, start)
	}
	if err != nil {
		return err
	}
	b.trie[at].starts = append(b.trie[at].starts, start)
	return nil
}

// child returns the node below a node, which it makes if it is not there.
func (b *builder) child(at uint32, c byte) uint32 {
	next := b.trie[at].child
	for ; next != 0; next = b.trie[next].sibling {
		if b.trie[next].b == c {
			return next
		}
	}
	next = uint32(len(b.trie))
	b.trie = append(b.trie, trieNode{b: c, sibling: b.trie[at].child})
	b.trie[at].child = next
	return next
}

func (b *builder) emit(i inst) (uint32, error) {
	if len(b.prog) >= b.limit {
		return 0, fmt.Errorf("%w: an expression of more than %d instructions, or all of more than %d", ErrTooLarge, maxProgram, maxPrograms)
	}
	b.prog = append(b.prog, i)
	return uint32(len(b.prog) - 1), nil
}

func (b *builder) compileConcat(parts []*node, next uint32) (uint32, error) {
	for _, n := range slices.Backward(parts) {
		var err error
		if next, err = b.compile(n, next); err != nil {
			return 0, err
		}
	}
	return next, nil
}

// compile emits n so that it goes on to next, and returns where it starts.
func (b *builder) compile(n *node, next uint32) (uint32, error) {
	switch n.op {
	case opByte:
		return b.emit(inst{op: iByte, b: n.b, x: next})
	case opSet:
		id, ok := b.setIDs[*n.set]
		if !ok {
			id = uint32(len(b.sets))
			b.sets = append(b.sets, *n.set)
			b.setIDs[*n.set] = id
		}
		return b.emit(inst{op: iSet, x: next, y: id})
	case opLook:
		b.looks = true
		return b.emit(inst{op: iLook, b: n.b, x: next})
	case opConcat:
		return b.compileConcat(n.subs, next)
	case opAlt:
		return b.compileAlt(n.subs, next)
	}
	return b.compileRepeat(n, next)
}

func (b *builder) compileAlt(subs []*node, next uint32) (uint32, error) {
	start, err := b.compile(subs[len(subs)-1], next)
	for _, n := range slices.Backward(subs[:len(subs)-1]) {
		if err != nil {
			return 0, err
		}
		var x uint32
		if x, err = b.compile(n, next); err == nil {
			start, err = b.emit(inst{op: iSplit, x: x, y: start})
		}
	}
	return start, err
}

func (b *builder) compileRepeat(n *node, next uint32) (uint32, error) {
	if n.min > maxCount || n.max > maxCount {
		return 0, fmt.Errorf("%w: a repetition of more than %d times", ErrTooLarge, maxCount)
	}
	at := next
	copies := n.min
	var err error
	if n.max < 0 {
		if at, err = b.emit(inst{op: iSplit, y: next}); err != nil {
			return 0, err
		}
		body, err := b.compile(n.subs[0], at)
		if err != nil {
			return 0, err
		}
		b.prog[at].x = body
		if copies > 0 { // the loop is entered behind its split
			at = body
			copies--
		}
	} else {
		// Each optional copy may go on to the end or to the copy behind it.
		for range n.max - n.min {
			body, err := b.compile(n.subs[0], at)
			if err != nil {
				return 0, err
			}
			if at, err = b.emit(inst{op: iSplit, x: body, y: next}); err != nil {
				return 0, err
			}
		}
	}
	for range copies {
		// A copy of nothing emits nothing, and would go round for free.
		before := len(b.prog)
		if at, err = b.compile(n.subs[0], at); err != nil {
			return 0, err
		}
		if len(b.prog) == before {
			break
		}
	}
	return at, nil
}

// automaton matches all expressions at once. Its deterministic states are made
// when a path first leads to them, and kept.
type automaton struct {
	prog []inst
	sets []byteSet
	trie []trieNode

	class   [256]byte // bytes of one class are alike for all expressions
	classes int

	ids    map[string]stateID // by state.key
	states []state
	next   []stateID // by state and class
	size   int       // estimate of the bytes that states take
	work   int64

	cacheLimit int   // of size
	workLimit  int64 // of work

	// Scratch space for the making of a state.
	waiting  []uint32 // the instructions that were collected
	resolved []uint32
	mark     []uint32 // mark[pc] == round: pc was visited
	round    uint32
	stack    []uint32
	key      []byte
}

// stateSize is an estimate of the bytes a state takes besides its
// instructions, which are kept twice, and its row of next.
const stateSize = 160

type stateID uint32

const (
	unknown stateID = iota // not made yet
	dead                   // nothing can match any more
	start
)

// state is a place in the tree of prefixes and the instructions that wait for
// the next byte.
type state struct {
	trie    uint32
	threads []uint32 // sorted
	looks   bool     // some threads wait at assertions
	prev    place    // the byte before, if looks
	accept  int32    // the expression that matches if this is the end, or -1
}

func (b *builder) finish() *automaton {
	if b.looks {
		// Assertions tell these from other bytes.
		b.sets = append(b.sets, wordBytes(), setOf("\n\n"))
	}
	a := &automaton{prog: b.prog, sets: b.sets, trie: b.trie, mark: make([]uint32, len(b.prog)), cacheLimit: maxCache, workLimit: maxWork}
	a.classify()
	a.states = make([]state, start)
	a.next = make([]stateID, int(start)*a.classes)
	a.ids = map[string]stateID{}
	a.begin()
	a.spawn(trieRoot, true)
	a.intern(trieRoot, edge) // becomes start
	return a
}

// classify gives each byte that expressions name a class of its own, and the
// others one for each combination of sets they are in.
func (a *automaton) classify() {
	var named byteSet
	for _, n := range a.trie[trieRoot+1:] {
		named.add(n.b)
	}
	for _, i := range a.prog {
		if i.op == iByte {
			named.add(i.b)
		}
	}
	members := map[string]byte{}
	signature := make([]byte, (len(a.sets)+7)/8)
	for c := range 256 {
		if !named.has(byte(c)) {
			clear(signature)
			for i := range a.sets {
				if a.sets[i].has(byte(c)) {
					signature[i/8] |= 1 << (i % 8)
				}
			}
			if class, ok := members[string(signature)]; ok {
				a.class[c] = class
				continue
			}
			members[string(signature)] = byte(a.classes)
		}
		a.class[c] = byte(a.classes)
		a.classes++
	}
}

// reset forgets all states but the fixed ones. It leaves the instructions
// that are being collected alone.
func (a *automaton) reset() {
	a.ids = map[string]stateID{}
	a.states = append(a.states[:0], a.states[:3]...)
	a.next = a.next[:3*a.classes]
	clear(a.next)
	a.size = 0
}

// match returns the highest number of an expression that matches, or -1.
func (a *automaton) match(path string, kind byte) (int, error) {
	s := start
	for i := 0; i <= len(path); i++ {
		c := kind
		if i < len(path) {
			c = path[i]
		}
		t := a.next[int(s)*a.classes+int(a.class[c])]
		if t == unknown {
			var err error
			if t, err = a.step(s, c); err != nil {
				return -1, err
			}
		}
		if s = t; s == dead {
			return -1, nil
		}
	}
	return int(a.states[s].accept), nil
}

// step makes the state that byte c leads to from state s.
func (a *automaton) step(s stateID, c byte) (stateID, error) {
	a.begin()
	from := &a.states[s]
	threads := from.threads
	if from.looks {
		threads = a.resolve(threads, from.prev, placeOf(c))
		a.newRound()
	}
	for _, pc := range threads {
		a.work++
		i := &a.prog[pc]
		if i.op == iByte && i.b == c || i.op == iSet && a.sets[i.y].has(c) {
			a.follow(i.x, false)
		}
	}
	trie := uint32(0)
	if from.trie != 0 {
		for trie = a.trie[from.trie].child; trie != 0 && a.trie[trie].b != c; trie = a.trie[trie].sibling {
			a.work++
		}
	}
	if trie != 0 {
		a.spawn(trie, false)
	}
	if a.work > a.workLimit {
		return dead, errWork
	}
	if a.size > a.cacheLimit {
		a.reset()
		return a.intern(trie, placeOf(c)), nil
	}
	t := a.intern(trie, placeOf(c))
	a.next[int(s)*a.classes+int(a.class[c])] = t
	return t, nil
}

// begin starts a new set of instructions.
func (a *automaton) begin() {
	a.waiting = a.waiting[:0]
	a.newRound()
}

// newRound makes all instructions unvisited.
func (a *automaton) newRound() {
	if a.round++; a.round == 0 {
		clear(a.mark)
		a.round = 1
	}
}

// spawn adds the programs that start at a node of the tree of prefixes.
func (a *automaton) spawn(trie uint32, first bool) {
	for _, pc := range a.trie[trie].starts {
		a.follow(pc, first)
	}
}

// follow adds the instructions that wait for a byte, or for the end, and can
// be reached from pc without one. first says that no byte was read yet.
func (a *automaton) follow(pc uint32, first bool) {
	a.stack = append(a.stack[:0], pc)
	for len(a.stack) > 0 {
		pc := a.stack[len(a.stack)-1]
		a.stack = a.stack[:len(a.stack)-1]
		if a.mark[pc] == a.round {
			continue
		}
		a.mark[pc] = a.round
		a.work++
		switch i := &a.prog[pc]; i.op {
		case iSplit:
			a.stack = append(a.stack, i.y, i.x)
		case iLook:
			switch {
			case i.b != lookStart:
				a.waiting = append(a.waiting, pc)
			case first:
				a.stack = append(a.stack, i.x)
			}
		default:
			a.waiting = append(a.waiting, pc)
		}
	}
}

// resolve returns the instructions that wait for a byte, or for the end, once
// the assertions among threads are decided by the bytes around them. The
// result is valid until the next call.
func (a *automaton) resolve(threads []uint32, prev, next place) []uint32 {
	a.newRound()
	a.resolved = a.resolved[:0]
	a.stack = append(a.stack[:0], threads...)
	for len(a.stack) > 0 {
		pc := a.stack[len(a.stack)-1]
		a.stack = a.stack[:len(a.stack)-1]
		if a.mark[pc] == a.round {
			continue
		}
		a.mark[pc] = a.round
		a.work++
		switch i := &a.prog[pc]; i.op {
		case iSplit:
			a.stack = append(a.stack, i.y, i.x)
		case iLook:
			if holds(i.b, prev, next) {
				a.stack = append(a.stack, i.x)
			}
		default:
			a.resolved = append(a.resolved, pc)
		}
	}
	return a.resolved
}

// intern returns the state of a node of the tree of prefixes and the collected
// instructions, behind a byte of kind prev.
func (a *automaton) intern(trie uint32, prev place) stateID {
	if trie == 0 && len(a.waiting) == 0 {
		return dead
	}
	looks := slices.ContainsFunc(a.waiting, func(pc uint32) bool { return a.prog[pc].op == iLook })
	if !looks {
		prev = 0 // makes no difference
	}
	slices.Sort(a.waiting)
	a.key = append(a.key[:0], byte(prev))
	a.key = binary.NativeEndian.AppendUint32(a.key, trie)
	for _, pc := range a.waiting {
		a.key = binary.NativeEndian.AppendUint32(a.key, pc)
	}
	if id, ok := a.ids[string(a.key)]; ok {
		return id
	}
	id := stateID(len(a.states))
	a.ids[string(a.key)] = id
	new := state{trie: trie, threads: slices.Clone(a.waiting), looks: looks, prev: prev, accept: -1}
	end := new.threads
	if looks {
		end = a.resolve(end, prev, edge)
	}
	for _, pc := range end {
		if i := &a.prog[pc]; i.op == iMatch {
			new.accept = max(new.accept, int32(i.y))
		}
	}
	a.states = append(a.states, new)
	a.next = slices.Grow(a.next, a.classes)[:len(a.next)+a.classes]
	clear(a.next[len(a.next)-a.classes:])
	a.size += stateSize + 4*a.classes + 8*len(a.waiting)
	return id
}
