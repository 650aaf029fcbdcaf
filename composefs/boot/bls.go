// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Config is the text of a Type 1 entry of the Boot Loader Specification: its
// lines in order, comments and unknown keys included, so that writing it
// changes nothing but what was asked for.
//
// A line has key K if it begins with K, directly followed by ASCII white
// space. The value is the rest without leading white space; trailing white
// space belongs to it. A key may be repeated.
type Config struct {
	Lines []string // without line feeds
}

// ErrNotUTF8 reports a file that must be UTF-8 text and is not.
var ErrNotUTF8 = errors.New("not UTF-8 text")

// ParseConfig splits text into lines at line feeds. A carriage return is part
// of its line. Text that is not UTF-8 is ErrNotUTF8; there is no other error.
func ParseConfig(text []byte) (*Config, error) {
	if !utf8.Valid(text) {
		return nil, ErrNotUTF8
	}
	c := &Config{}
	if len(text) > 0 {
		c.Lines = strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	}
	return c, nil
}

// Clone is a copy that can be changed independently.
func (c *Config) Clone() *Config { return &Config{Lines: slices.Clone(c.Lines)} }

// String is the text, each line ended by a line feed.
func (c *Config) String() string {
	var b strings.Builder
	for _, line := range c.Lines {
		b.WriteString(line)
		b.WriteByte('\n')
	}
	return b.String()
}

// cutKey is the value of line if it has the key.
func cutKey(line, key string) (value string, ok bool) {
	rest, ok := strings.CutPrefix(line, key)
	if !ok || rest == "" || !isSpace(rest[0]) {
		return "", false
	}
	return strings.TrimLeftFunc(rest, unicode.IsSpace), true
}

// Value is the first value of a key.
func (c *Config) Value(key string) (value string, ok bool) {
	for _, line := range c.Lines {
		if v, ok := cutKey(line, key); ok {
			return v, true
		}
	}
	return "", false
}

// Values are all values of a key in order.
func (c *Config) Values(key string) []string {
	var values []string
	for _, line := range c.Lines {
		if v, ok := cutKey(line, key); ok {
			values = append(values, v)
		}
	}
	return values
}

// Set makes value the only value of a key, at the place of the first line that
// has the key, or at the end. Neither may hold a line feed.
func (c *Config) Set(key, value string) {
	set := false
	kept := c.Lines[:0]
	for _, line := range c.Lines {
		if _, ok := cutKey(line, key); ok {
			if set {
				continue
			}
			line, set = key+" "+value, true
		}
		kept = append(kept, line)
	}
	c.Lines = kept
	if !set {
		c.Lines = append(c.Lines, key+" "+value)
	}
}

// SetArg adds a kernel argument to the first line with key options, or
// replaces the first argument there of the same name, which ends at the equals
// sign. An argument without one replaces only itself: "ro" leaves "root=…"
// alone. Without an options line one is appended.
//
// It is an error if arg is not exactly one argument, or if the line has an
// open quote, which would swallow what follows.
func (c *Config) SetArg(arg string) error {
	if err := checkArg(arg); err != nil {
		return err
	}
	for i, line := range c.Lines {
		cmdline, ok := cutKey(line, "options")
		if !ok {
			continue
		}
		if !balanced(cmdline) {
			return fmt.Errorf("options %q: a double quote is not closed", clip(cmdline))
		}
		head := line[:len(line)-len(cmdline)]
		for start, end := range argSpans(cmdline) {
			if sameArg(cmdline[start:end], arg) {
				c.Lines[i] = head + cmdline[:start] + arg + cmdline[end:]
				return nil
			}
		}
		c.Lines[i] = strings.TrimRightFunc(line, unicode.IsSpace) + " " + arg
		return nil
	}
	c.Lines = append(c.Lines, "options "+arg)
	return nil
}

// sameArg reports whether two arguments have the same name and are both with
// or both without a value. A quote may precede the name.
func sameArg(a, b string) bool {
	a, b = strings.TrimPrefix(a, `"`), strings.TrimPrefix(b, `"`)
	name, _, hasValue := strings.Cut(b, "=")
	if hasValue {
		return strings.HasPrefix(a, name+"=")
	}
	return strings.TrimSuffix(a, `"`) == strings.TrimSuffix(b, `"`)
}

// SetKarg makes karg the only composefs argument. All others, of either form
// and on any options line, are removed: the initramfs tries each that it
// finds.
func (c *Config) SetKarg(karg string) error {
	for i, line := range c.Lines {
		cmdline, ok := cutKey(line, "options")
		if !ok {
			continue
		}
		if !balanced(cmdline) {
			return fmt.Errorf("options %q: a double quote is not closed", clip(cmdline))
		}
		var kept []string
		removed := false
		for arg := range Args(cmdline) {
			if isKarg(arg) {
				removed = true
				continue
			}
			kept = append(kept, arg)
		}
		if removed {
			c.Lines[i] = "options " + strings.Join(kept, " ")
		}
	}
	return c.SetArg(karg)
}

// pathKeys are the keys whose values are paths of files that are looked up.
var pathKeys = [...]string{"linux", "initrd", "efi"}

// Relocate moves the files an entry names into a directory of their own, as
// the composefs tools do: every value of linux, initrd and efi that contains a
// slash becomes [/<subdir>]/<id>/<last component>. The result maps each old
// value to /<id>/<last component>. Two files with the same last component are
// an error, and so is an id or subdir that is no plain relative path.
func (c *Config) Relocate(subdir, id string) (map[string]string, error) {
	if !plainName(id) {
		return nil, fmt.Errorf("bad entry id %q", id)
	}
	if subdir != "" && !plainPath(subdir) {
		return nil, fmt.Errorf("bad subdirectory %q", subdir)
	}
	moved := map[string]string{}
	owner := map[string]string{}
	lines := slices.Clone(c.Lines)
	for i, line := range lines {
		for _, key := range pathKeys {
			value, ok := cutKey(line, key)
			slash := strings.LastIndexByte(value, '/')
			if !ok || slash < 0 {
				continue
			}
			to := "/" + id + value[slash:]
			if old, taken := owner[to]; taken && old != value {
				return nil, fmt.Errorf("relocate %q: %q has the same name", clip(value), clip(old))
			}
			owner[to], moved[value] = value, to
			lines[i] = line[:len(line)-len(value)]
			if subdir != "" {
				lines[i] += "/" + subdir
			}
			lines[i] += to
		}
	}
	c.Lines = lines
	return moved, nil
}

// plainName accepts one component of a path.
func plainName(s string) bool {
	return s != "" && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00\n\r")
}

// plainPath accepts a relative path of plain names.
func plainPath(s string) bool {
	for name := range strings.SplitSeq(s, "/") {
		if !plainName(name) {
			return false
		}
	}
	return true
}
