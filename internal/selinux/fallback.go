// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package selinux

import (
	"fmt"
	"strings"
	"time"

	"github.com/dlclark/regexp2"
)

// fallbackTimeout bounds the time of one expression on one path. Backtracking
// takes microseconds for any expression that means well.
const fallbackTimeout = time.Second

// maxNesting bounds the parentheses of an expression in PCRE2 syntax, whose
// own limit it is.
const maxNesting = 250

// fallback is an expression for a backtracking engine.
type fallback struct {
	number int
	kind   byte
	prefix string // what every match begins with
	regex  *regexp2.Regexp
}

// newFallback compiles an expression in the syntax of PCRE2.
//
// The engine works on characters, so each byte is made the character of the
// same number. In its RE2 mode classes such as \w are of ASCII only.
func newFallback(regex string, kind byte, number int) (fallback, error) {
	if depth := strings.Count(regex, "(") + strings.Count(regex, "["); depth > maxNesting {
		return fallback{}, fmt.Errorf("%w: %d parentheses in an expression", ErrTooLarge, depth)
	}
	last := "."
	if kind != 0 {
		last = string(kind)
	}
	translated, err := translatePCRE(regex)
	if err != nil {
		return fallback{}, err
	}
	re, err := regexp2.Compile("^("+string(latin1(translated))+")"+last+"$", regexp2.RE2)
	if err != nil {
		return fallback{}, err
	}
	re.MatchTimeout = fallbackTimeout
	return fallback{number: number, kind: kind, prefix: literalPrefix(regex), regex: re}, nil
}

// literalPrefix returns bytes that all matches of an expression begin with:
// what is in front of its first special character, without the last byte,
// which could be repeated. An alternative may begin in another way.
func literalPrefix(regex string) string {
	if strings.Contains(regex, "|") {
		return ""
	}
	n := strings.IndexAny(regex, `\.[](){}*+?^$#`)
	if n < 0 {
		n = len(regex)
	}
	return regex[:max(n-1, 0)]
}

// latin1 makes a character of each byte.
func latin1(s string) []rune {
	runes := make([]rune, len(s))
	for i := range len(s) {
		runes[i] = rune(s[i])
	}
	return runes
}

// matchFallbacks returns the highest number of a match, given the best so far.
// The expressions are sorted by falling number.
func matchFallbacks(fallbacks []fallback, path string, kind byte, best int) (int, error) {
	var text []rune
	for i := range fallbacks {
		f := &fallbacks[i]
		if f.number <= best {
			break
		}
		if f.kind != 0 && f.kind != kind || !strings.HasPrefix(path, f.prefix) {
			continue
		}
		if text == nil {
			text = append(latin1(path), rune(kind))
		}
		ok, err := f.regex.MatchRunes(text)
		if err != nil {
			return -1, fmt.Errorf("match an expression: %w", err)
		}
		if ok {
			return f.number, nil
		}
	}
	return best, nil
}
