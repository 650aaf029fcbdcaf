// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package dumpfile

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"unicode/utf8"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Limits of the format, in bytes: compatible ones are mkcomposefs's, strict
// ones those of composefs-rs where they are smaller. Links are the exception:
// composefs-rs parses targets of up to 1024 bytes, yet writes longer ones.
const (
	compatibleContent = 5000
	strictContent     = 512
	compatiblePayload = 4095 // a link's target, or an object's path
	strictPath        = 4095
	compatibleXattrs  = 65535 // the text of all attributes of a line
	// mkcomposefs's budget for the attributes of one inode, with its costs
	compatibleXattrBudget = 32767
	xattrBudgetFirst      = 12
	xattrBudgetEach       = 7
)

// Defaults of ParseOptions.
const (
	DefaultMaxLine   = 1 << 20 // bytes
	DefaultMaxInodes = 1 << 22
)

// ParseOptions say how to parse. The zero value is strict.
type ParseOptions struct {
	// Compatible follows mkcomposefs (without CFS_PARSE_STRICT in its
	// environment) in what it accepts and ignores.
	Compatible bool
	// Algorithm is that of every digest; 0 takes the first digest's.
	Algorithm fsverity.Algorithm
	MaxLine   int // bytes of a line; 0 means DefaultMaxLine
	MaxInodes int // lines; 0 means DefaultMaxInodes
}

// Dump is a parsed dumpfile.
type Dump struct {
	inodes []erofs.Inode
}

// SyntaxError reports the line that could not be understood.
type SyntaxError struct {
	Line int // from 1
	Err  error
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("parse dumpfile: line %d: %v", e.Line, e.Err)
}

// Unwrap is the reason.
func (e *SyntaxError) Unwrap() error { return e.Err }

// Parse reads a dumpfile. What it refuses is a [*SyntaxError], unless reading
// fails.
func Parse(r io.Reader, o ParseOptions) (*Dump, error) {
	if o.MaxLine <= 0 {
		o.MaxLine = DefaultMaxLine
	}
	if o.MaxInodes <= 0 {
		o.MaxInodes = DefaultMaxInodes
	}
	p := &parser{o: o, alg: o.Algorithm}
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := p.readLine(in)
		if err == io.EOF {
			break
		}
		p.line++
		if err == nil {
			err = p.parseLine(line)
		} else if !errors.Is(err, errLongLine) {
			return nil, fmt.Errorf("parse dumpfile: %w", err)
		}
		if err != nil {
			return nil, &SyntaxError{Line: p.line, Err: err}
		}
	}
	if len(p.inodes) == 0 {
		return nil, &SyntaxError{Line: p.line + 1, Err: errors.New("no root")}
	}
	if err := p.resolveLinks(); err != nil {
		return nil, err
	}
	return &Dump{inodes: p.inodes}, nil
}

// parser holds the tree so far.
type parser struct {
	o    ParseOptions
	alg  fsverity.Algorithm
	line int
	long []byte // a line that exceeds the reader's buffer

	inodes []erofs.Inode
	dirs   map[int]map[string]name // directories by inode
	links  []link

	// The directory of the line before: most lines are in the same one.
	lastParent []byte
	lastDir    int
}

// name is what a name stands for: an inode, or a link.
type name struct {
	inode int
	link  int // index + 1
}

// link is a hard link's line.
type link struct {
	line     int
	dir      int // inode of the directory
	entry    int // index in its entries
	target   string
	inode    int // once it is resolved
	resolved bool
	busy     bool
}

var errLongLine = errors.New("line is too long")

// readLine reads a line without its end. The result is valid until the next
// call.
func (p *parser) readLine(in *bufio.Reader) ([]byte, error) {
	line, err := in.ReadSlice('\n')
	if err == bufio.ErrBufferFull {
		p.long = append(p.long[:0], line...)
		for err == bufio.ErrBufferFull && len(p.long) <= p.o.MaxLine {
			line, err = in.ReadSlice('\n')
			p.long = append(p.long, line...)
		}
		line = p.long
	}
	if len(line) > p.o.MaxLine {
		return nil, fmt.Errorf("%w: more than %d bytes", errLongLine, p.o.MaxLine)
	}
	if err == io.EOF && len(line) > 0 {
		err = nil
	}
	return bytes.TrimSuffix(line, []byte("\n")), err
}

// The fields of a line.
const (
	fieldPath = iota
	fieldSize
	fieldMode
	fieldNlink
	fieldUID
	fieldGID
	fieldRdev
	fieldMtime
	fieldPayload
	fieldContent
	fieldDigest
	fieldCount
)

// record is a line that was cut into fields.
type record struct {
	fields [fieldCount][]byte
	count  int    // of the fields that are there; the others are empty
	rest   []byte // the attributes
	last   bool   // nothing follows the last field
}

func cut(line []byte) (rec record) {
	for rec.count < fieldCount {
		field, rest, found := bytes.Cut(line, []byte(" "))
		rec.fields[rec.count] = field
		rec.count++
		line = rest
		if !found {
			rec.last = true
			break
		}
	}
	rec.rest = line
	return rec
}

func (p *parser) parseLine(line []byte) error {
	if bytes.IndexByte(line, 0) >= 0 {
		return errors.New("a zero byte")
	}
	if !p.o.Compatible {
		if !utf8.Valid(line) {
			return errors.New("not UTF-8")
		}
		for _, c := range line {
			if c < ' ' {
				return fmt.Errorf("control character %#x", c)
			}
		}
	}
	if len(p.inodes)+len(p.links) >= p.o.MaxInodes {
		return fmt.Errorf("more than %d lines", p.o.MaxInodes)
	}
	rec := cut(line)
	path, err := unescape(rec.fields[fieldPath])
	if err != nil {
		return fmt.Errorf("path: %w", err)
	}
	mode := rec.fields[fieldMode]
	isLink := len(mode) > 0 && mode[0] == '@'
	if isLink {
		mode = mode[1:]
	}
	kind, perm, err := p.parseMode(mode)
	if err != nil {
		return err
	}
	dir, base, err := p.locate(path, kind, isLink)
	if err != nil {
		return err
	}
	if isLink {
		return p.addLink(&rec, kind, dir, base)
	}
	ino := erofs.Inode{Kind: kind, Mode: perm}
	if p.o.Compatible {
		err = p.fillCompatible(&ino, &rec)
	} else {
		err = p.fillStrict(&ino, &rec)
	}
	if err != nil {
		return err
	}
	index := len(p.inodes)
	if len(p.inodes) == cap(p.inodes) {
		// append's smaller steps would copy a long dump a dozen times.
		p.inodes = slices.Grow(p.inodes, max(64, len(p.inodes)))
	}
	p.inodes = append(p.inodes, ino)
	if base != "" {
		p.inodes[dir].Entries = append(p.inodes[dir].Entries, erofs.Entry{Name: base, Inode: index})
		p.dirs[dir][base] = name{inode: index}
	}
	if kind == tree.Directory {
		if p.dirs == nil {
			p.dirs = map[int]map[string]name{}
		}
		p.dirs[index] = map[string]name{}
	}
	return nil
}

func (p *parser) parseMode(field []byte) (tree.Kind, uint32, error) {
	var v uint64
	var err error
	if p.o.Compatible {
		v, err = parseLoose(field, 8)
		v &= 0xffffffff
	} else {
		v, err = parseDigits(field, 8, 0o177777)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("mode: %w", err)
	}
	kind, ok := tree.KindOfMode(uint32(v))
	if !ok {
		return 0, 0, fmt.Errorf("mode %o has no known file type", v)
	}
	return kind, uint32(v) & 0o7777, nil
}

var errNoDirectory = errors.New("the path's directory is not there")

// locate finds the directory of a path and its last name; the name of the root
// is empty.
func (p *parser) locate(path []byte, kind tree.Kind, isLink bool) (dir int, base string, err error) {
	if i := bytes.IndexByte(path, 0); i >= 0 {
		if !p.o.Compatible {
			return 0, "", errors.New("path: a zero byte")
		}
		path = path[:i]
	}
	switch {
	case len(path) == 0:
		return 0, "", errors.New("path: it is empty")
	case len(path) == 1 && path[0] == '/':
		if len(p.inodes) > 0 {
			return 0, "", errors.New("a second root")
		}
		if kind != tree.Directory || isLink {
			return 0, "", errors.New("the root is no directory")
		}
		return 0, "", nil
	case len(p.inodes) == 0:
		return 0, "", errors.New("the root is not the first line")
	case !p.o.Compatible && (len(path) > strictPath || path[0] != '/'):
		return 0, "", errors.New("path: it is not absolute, or too long")
	}
	slash := bytes.LastIndexByte(path, '/')
	parent := path[:slash+1]
	if dir, err = p.directory(parent); err != nil {
		return 0, "", err
	}
	base = string(path[slash+1:])
	if err := tree.CheckName(base); err != nil {
		return 0, "", fmt.Errorf("path: %w", err)
	}
	if _, ok := p.dirs[dir][base]; ok {
		return 0, "", fmt.Errorf("path: %q is there already", path)
	}
	return dir, base, nil
}

// directory finds a directory by its path, which is empty or ends in a slash.
func (p *parser) directory(path []byte) (int, error) {
	if len(p.lastParent) > 0 && bytes.Equal(path, p.lastParent) {
		return p.lastDir, nil
	}
	n, err := p.lookup(path)
	if err != nil {
		return 0, err
	}
	if n.link > 0 || p.inodes[n.inode].Kind != tree.Directory {
		return 0, fmt.Errorf("%w: %q", errNoDirectory, path)
	}
	p.lastParent, p.lastDir = append(p.lastParent[:0], path...), n.inode
	return n.inode, nil
}

// lookup walks a path. Compatible parsing skips repeated slashes.
func (p *parser) lookup(path []byte) (name, error) {
	var at name
	rest := bytes.TrimPrefix(path, []byte("/"))
	for len(rest) > 0 {
		component, more, _ := bytes.Cut(rest, []byte("/"))
		rest = more
		if len(component) == 0 {
			if p.o.Compatible {
				continue
			}
			return at, fmt.Errorf("path %q: an empty name", path)
		}
		if at.link > 0 {
			return at, fmt.Errorf("%w: %q", errNoDirectory, path)
		}
		next, ok := p.dirs[at.inode][string(component)]
		if !ok {
			return at, fmt.Errorf("%w: %q", errNoDirectory, path)
		}
		at = next
	}
	return at, nil
}

// addLink adds a hard link's line. Only its path, mode and payload matter.
func (p *parser) addLink(rec *record, kind tree.Kind, dir int, base string) error {
	if kind == tree.Directory {
		return errors.New("a hard link to a directory")
	}
	if !p.o.Compatible {
		if rec.count <= fieldPayload {
			return errors.New("fields are missing")
		}
		if _, err := parseDigits(rec.fields[fieldSize], 10, 1<<64-1); err != nil {
			return fmt.Errorf("size: %w", err)
		}
	}
	target, given, err := optional(rec.fields[fieldPayload])
	if err != nil {
		return fmt.Errorf("payload: %w", err)
	}
	if !given {
		return errors.New("a hard link without a target")
	}
	l := link{line: p.line, dir: dir, entry: len(p.inodes[dir].Entries), target: string(cString(target))}
	if !p.o.Compatible {
		if err := p.resolveEarlier(&l, target); err != nil {
			return err
		}
	}
	p.links = append(p.links, l)
	p.inodes[dir].Entries = append(p.inodes[dir].Entries, erofs.Entry{Name: base, Inode: l.inode, Link: true})
	p.dirs[dir][base] = name{link: len(p.links)}
	return nil
}

// resolveEarlier resolves a link by the strict rule: the target is an earlier
// line, and no directory.
func (p *parser) resolveEarlier(l *link, target []byte) error {
	if len(target) == 0 || target[0] != '/' || bytes.IndexByte(target, 0) >= 0 {
		return fmt.Errorf("hard link to %q, which is no absolute path", target)
	}
	n, err := p.lookup(target)
	if err != nil {
		return fmt.Errorf("hard link: %w", err)
	}
	if n.link > 0 {
		n.inode = p.links[n.link-1].inode
	}
	ino := &p.inodes[n.inode]
	switch {
	case ino.Kind == tree.Directory:
		return fmt.Errorf("hard link to %q, a directory", target)
	case ino.Kind == tree.CharDevice && ino.Rdev == 0:
		return fmt.Errorf("hard link to %q, a whiteout", target)
	case target[len(target)-1] == '/':
		return fmt.Errorf("hard link to %q", target)
	}
	l.inode, l.resolved = n.inode, true
	return nil
}

// resolveLinks resolves the links that compatible parsing left for the end:
// they may refer to later lines and to each other.
func (p *parser) resolveLinks() error {
	var chain []int
	for i := range p.links {
		chain = chain[:0]
		at := i
		inode := -1
		for inode < 0 {
			l := &p.links[at]
			if l.resolved {
				inode = l.inode
				break
			}
			if l.busy {
				return &SyntaxError{Line: l.line, Err: errors.New("hard links that refer to each other")}
			}
			l.busy = true
			chain = append(chain, at)
			n, err := p.lookup([]byte(l.target))
			if err != nil {
				return &SyntaxError{Line: l.line, Err: fmt.Errorf("hard link: %w", err)}
			}
			if n.link > 0 {
				at = n.link - 1
			} else {
				inode = n.inode
			}
		}
		for _, at := range chain {
			l := &p.links[at]
			l.inode, l.resolved, l.busy = inode, true, false
			p.inodes[l.dir].Entries[l.entry].Inode = inode
		}
	}
	return nil
}
