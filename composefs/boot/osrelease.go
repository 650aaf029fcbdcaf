// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"strings"
	"unicode"
)

// OSRelease holds the assignments of an os-release file, values still quoted.
type OSRelease map[string]string

// ParseOSRelease reads assignments, one a line. Lines that begin with # after
// white space are comments, lines without an equals sign are ignored, and the
// last of several assignments counts. Names are taken as they stand, white
// space included.
func ParseOSRelease(text string) OSRelease {
	o := OSRelease{}
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSuffix(line, "\r")
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		if name, value, ok := strings.Cut(line, "="); ok {
			o[name] = value
		}
	}
	return o
}

// Value is the unquoted value of the first of the names that has one. A value
// with an open quote does not count.
func (o OSRelease) Value(names ...string) (value string, ok bool) {
	for _, name := range names {
		quoted, ok := o[name]
		if !ok {
			continue
		}
		if value, ok := unquote(quoted); ok {
			return value, true
		}
	}
	return "", false
}

// Name is the name to show: PRETTY_NAME, NAME or ID.
func (o OSRelease) Name() (string, bool) { return o.Value("PRETTY_NAME", "NAME", "ID") }

// Version is VERSION_ID or VERSION.
func (o OSRelease) Version() (string, bool) { return o.Value("VERSION_ID", "VERSION") }

// Label is the boot label of a Type 2 entry of the Boot Loader Specification:
// the name, and the version if there is one. ok is false without a name.
func (o OSRelease) Label() (label string, ok bool) {
	label, ok = o.Name()
	if version, has := o.Version(); ok && has {
		label += " " + version
	}
	return label, ok
}

// unquote removes shell quoting. Inside double quotes a backslash stands for
// the character that follows, whichever it is; inside single quotes and outside
// of quotes it is an ordinary character. Quoted and unquoted parts may follow
// each other. ok is false if a quote is not closed.
func unquote(s string) (value string, ok bool) {
	s = strings.TrimFunc(s, unicode.IsSpace)
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		quote := s[i]
		if quote != '"' && quote != '\'' {
			b.WriteByte(quote)
			continue
		}
		for i++; ; i++ {
			if i < len(s) && s[i] == '\\' && quote == '"' {
				i++
			} else if i < len(s) && s[i] == quote {
				break
			}
			if i >= len(s) {
				return "", false
			}
			b.WriteByte(s[i])
		}
	}
	return b.String(), true
}
