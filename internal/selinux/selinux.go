// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package selinux finds the SELinux context of a path in a policy's
// file_contexts files, as composefs-rs does for boot images: two
// implementations must label every file alike, or their images differ.
//
// # Format
//
// A line of file_contexts, file_contexts.local or file_contexts.homedirs is
//
//	regex [-type] context
//
// with fields separated by white space; empty lines and lines that start with
// # are skipped. A type is one of b c d p l s and -, as in selabel_file(5).
// The regular expression must match the whole path. The three files are read
// in that order and the last line that matches wins; unlike in libselinux,
// nothing else counts, not even that an expression is a literal path. The
// context <<none>> stands for no label.
//
// A line of file_contexts.subs or file_contexts.subs_dist is "alias original".
// A path that equals an alias is looked up as the original. The files are read
// in that order and the last line for an alias wins.
//
// # Regular expressions
//
// Paths are bytes, in no encoding. Expressions have the syntax of Rust's regex
// crate with Unicode off: a dot is any byte but NUL, classes are sets of
// bytes, a character that is not ASCII stands for its UTF-8 bytes. Those that
// this syntax lacks, such as look-around, are in the syntax of PCRE2, whose
// dot does not match a newline either.
//
// All expressions of the first kind make one automaton, which is turned into
// a deterministic one state by state as paths ask for it. A lookup costs one
// table access for each byte of the path, however large the policy is.
//
// # Limits
//
// Policies come out of images and may be hostile. Sizes are bounded when a
// policy is parsed, the memory of the automaton always, and the time of all
// lookups together by a budget: see [Policy.Err].
package selinux

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"
)

// Limits on a policy. Those of real distributions have 6000 lines in 0.5 MB.
const (
	// MaxPolicySize is the greatest size of all sources together, in bytes.
	MaxPolicySize = 8 << 20
	// MaxSpecs is the greatest number of lines with an expression.
	MaxSpecs = 1 << 17
	// MaxRegexSize is the greatest length of an expression in bytes.
	MaxRegexSize = 8 << 10
	// MaxFallbacks is the greatest number of expressions that need the
	// syntax of PCRE2, each of which is tried on its own.
	MaxFallbacks = 1 << 10
)

// ErrTooLarge reports a policy beyond one of the limits.
var ErrTooLarge = errors.New("policy is too large")

// none is the context that means no label.
const none = "<<none>>"

// Sources are the contents of the files below contexts/files of a policy. A
// file that does not exist is empty; only FileContexts is mandatory, which is
// for the caller to check.
type Sources struct {
	FileContexts []byte // file_contexts
	Local        []byte // file_contexts.local
	Homedirs     []byte // file_contexts.homedirs
	Subs         []byte // file_contexts.subs
	SubsDist     []byte // file_contexts.subs_dist
}

// Error is a line that cannot be parsed.
type Error struct {
	File string // the file's name, such as "file_contexts.local"
	Line int    // from 1
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("%s, line %d: %v", e.File, e.Line, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// Policy maps paths to contexts. It is safe for concurrent use.
type Policy struct {
	aliases  map[string]string
	contexts []string // by the number of the line with an expression

	mu        sync.Mutex
	automaton *automaton
	fallbacks []fallback // by descending number
	err       error
}

// Parse reads a policy. Errors are of type *[Error], or wrap [ErrTooLarge].
func Parse(src Sources) (*Policy, error) {
	size := 0
	for _, b := range [][]byte{src.FileContexts, src.Local, src.Homedirs, src.Subs, src.SubsDist} {
		size += len(b)
	}
	if size > MaxPolicySize {
		return nil, fmt.Errorf("parse SELinux policy: %w: %d bytes, limit %d", ErrTooLarge, size, MaxPolicySize)
	}
	p := &Policy{aliases: map[string]string{}}
	b := newBuilder()
	interned := map[string]string{}
	for _, f := range []struct {
		name    string
		content []byte
	}{
		{"file_contexts", src.FileContexts}, {"file_contexts.local", src.Local}, {"file_contexts.homedirs", src.Homedirs},
	} {
		err := eachLine(f.name, f.content, func(fields []string) error {
			s, err := parseSpec(fields)
			if err != nil {
				return err
			}
			context, ok := interned[s.context]
			if !ok {
				context = strings.Clone(s.context)
				interned[context] = context
			}
			return p.add(b, s.regex, s.kind, context)
		})
		if err != nil {
			return nil, fmt.Errorf("parse SELinux policy: %w", err)
		}
	}
	for _, f := range []struct {
		name    string
		content []byte
	}{
		{"file_contexts.subs", src.Subs}, {"file_contexts.subs_dist", src.SubsDist},
	} {
		err := eachLine(f.name, f.content, func(fields []string) error {
			if len(fields) != 2 {
				return fmt.Errorf("%d fields, want an alias and a path", len(fields))
			}
			p.aliases[strings.Clone(fields[0])] = strings.Clone(fields[1])
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("parse SELinux policy: %w", err)
		}
	}
	p.automaton = b.finish()
	slices.Reverse(p.fallbacks)
	return p, nil
}

// eachLine calls do with the fields of each line that has some.
func eachLine(file string, content []byte, do func(fields []string) error) error {
	for line := 1; len(content) > 0; line++ {
		text, rest, _ := bytes.Cut(content, []byte{'\n'})
		content = rest
		if !utf8.Valid(text) {
			return &Error{file, line, errors.New("not UTF-8")}
		}
		fields := strings.Fields(string(text))
		if len(fields) == 0 || fields[0][0] == '#' {
			continue
		}
		if err := do(fields); err != nil {
			return &Error{file, line, err}
		}
	}
	return nil
}

// spec is a line with an expression. kind is 0 for any type.
type spec struct {
	regex, context string
	kind           byte
}

func parseSpec(fields []string) (spec, error) {
	s := spec{regex: fields[0]}
	fields = fields[1:]
	if len(fields) > 0 && fields[0][0] == '-' {
		if len(fields[0]) != 2 || !strings.Contains("bcdpls-", fields[0][1:]) {
			return spec{}, fmt.Errorf("unknown file type %.20q", fields[0])
		}
		s.kind = fields[0][1]
		fields = fields[1:]
	}
	switch len(fields) {
	case 0:
		return spec{}, errors.New("no context")
	case 1:
		s.context = fields[0]
		return s, nil
	}
	return spec{}, errors.New("more fields than expression, type and context")
}

// add gives the next number to an expression and puts it where it belongs.
func (p *Policy) add(b *builder, regex string, kind byte, context string) error {
	if len(p.contexts) >= MaxSpecs {
		return fmt.Errorf("%w: more than %d expressions", ErrTooLarge, MaxSpecs)
	}
	if len(regex) > MaxRegexSize {
		return fmt.Errorf("%w: expression of %d bytes, limit %d", ErrTooLarge, len(regex), MaxRegexSize)
	}
	number := len(p.contexts)
	p.contexts = append(p.contexts, context)
	root, err := parseRegex(regex, b.bytes)
	if err == nil {
		return b.add(root, kind, number)
	}
	var syntax *syntaxError
	if !errors.As(err, &syntax) || syntax.fatal {
		return err
	}
	if len(p.fallbacks) >= MaxFallbacks {
		return fmt.Errorf("%w: more than %d expressions in PCRE2 syntax", ErrTooLarge, MaxFallbacks)
	}
	f, ferr := newFallback(regex, kind, number)
	if ferr != nil {
		return fmt.Errorf("expression %.100q: %w (and %w)", regex, err, ferr)
	}
	p.fallbacks = append(p.fallbacks, f)
	return nil
}

// Lookup returns the context of a path of the given type: d for a directory,
// - for a regular file, l, c, b, p or s. The path is absolute, without a
// trailing slash. It reports false if no line matches, or if the one that
// matches says <<none>>.
func (p *Policy) Lookup(path string, kind byte) (context string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return "", false
	}
	number, err := p.match(path, kind)
	if err != nil {
		p.err = fmt.Errorf("look up the SELinux context of %.200q: %w", path, err)
		return "", false
	}
	if number < 0 || p.contexts[number] == none {
		return "", false
	}
	return p.contexts[number], true
}

// match returns the highest number of an expression that matches, or -1.
func (p *Policy) match(path string, kind byte) (int, error) {
	number, err := p.automaton.match(path, kind)
	if err == nil && len(p.fallbacks) > 0 {
		number, err = matchFallbacks(p.fallbacks, path, kind, number)
	}
	return number, err
}

// Err returns the error that ended the use of the policy, if there is one: an
// expression took too long. Every Lookup after that reports false, so a caller
// must ask for Err before it trusts what it was told.
func (p *Policy) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Alias returns what a path is replaced by, if it is an alias. Paths below an
// alias are for the caller to build from the replacement.
func (p *Policy) Alias(path string) (string, bool) {
	original, ok := p.aliases[path]
	return original, ok
}

// ParseConfig returns the policy type that the content of /etc/selinux/config
// names: the value of the first line whose key is SELINUXTYPE in any case.
// Quotes and comments behind the value are part of it.
func ParseConfig(config []byte) (policyType string, ok bool) {
	for line := range strings.Lines(string(config)) {
		key, value, found := strings.Cut(line, "=")
		if found && equalFoldASCII(strings.TrimSpace(key), "SELINUXTYPE") {
			return strings.TrimSpace(value), true
		}
	}
	return "", false
}

// equalFoldASCII compares with a string of ASCII capitals. The rules of
// Unicode would take the long s for an S.
func equalFoldASCII(s, capitals string) bool {
	if len(s) != len(capitals) {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		if c != capitals[i] {
			return false
		}
	}
	return true
}
