// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"strings"
	"testing"
)

func TestUnquote(t *testing.T) {
	for _, tt := range []struct {
		in, want string
		fails    bool
	}{
		{in: "", want: ""},
		{in: "  plain\t", want: "plain"},
		{in: "a b", want: "a b"},
		{in: `""`, want: ""},
		{in: `''""''`, want: ""},
		{in: `"two words"`, want: "two words"},
		{in: `'two words'`, want: "two words"},
		{in: `"a"'b'c`, want: "abc"},
		{in: `"\""`, want: `"`},
		{in: `"\\"`, want: `\`},
		{in: "\"\\$x \\`\"", want: "$x `"},
		{in: `"\n"`, want: "n"},
		{in: `"\ä"`, want: "ä"},
		{in: `'\'`, want: `\`},
		{in: `'\n'`, want: `\n`},
		{in: `\'x\'`, want: `\x\`},
		{in: `a\ b`, want: `a\ b`},
		{in: `"`, fails: true},
		{in: `'`, fails: true},
		{in: `"open`, fails: true},
		{in: `"open\"`, fails: true},
		{in: `"open\`, fails: true},
		{in: `'a'b'`, fails: true},
	} {
		got, ok := unquote(tt.in)
		if ok == tt.fails || got != tt.want {
			t.Errorf("unquote(%q) = %q, %v; want %q, %v", tt.in, got, ok, tt.want, !tt.fails)
		}
	}
}

func TestOSReleaseLabel(t *testing.T) {
	for _, tt := range []struct {
		name, in, want string
		none           bool
	}{
		{name: "empty", none: true},
		{name: "all", in: testOSRelease, want: "Example OS 42 42"},
		{name: "name and version", in: "NAME=N\nID=i\nVERSION=\"9 (nine)\"\n", want: "N 9 (nine)"},
		{name: "id only", in: "ID=i\n", want: "i"},
		{name: "version only", in: "VERSION_ID=1\n", none: true},
		{name: "open quote falls through", in: "PRETTY_NAME=\"open\nNAME=N\nVERSION_ID='1\nVERSION=2", want: "N 2"},
		{name: "last counts", in: "ID=a\nID=b\n", want: "b"},
		{name: "last counts even if broken", in: "NAME=a\nNAME='b\nID=c\n", want: "c"},
		{name: "comments", in: "#ID=a\n  # ID=b\nID=c # no comment\n", want: "c # no comment"},
		{name: "names are not trimmed", in: " ID=a\nID =b\nID=c\n", want: "c"},
		{name: "carriage returns", in: "ID=a\r\nVERSION_ID=\"1\"\r\n", want: "a 1"},
		{name: "equals sign in the value", in: "ID=a=b\n", want: "a=b"},
		{name: "no assignment", in: "ID\nNAME\n", none: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := ParseOSRelease(tt.in).Label()
			if ok == tt.none || got != tt.want {
				t.Errorf("got %q, %v; want %q, %v", got, ok, tt.want, !tt.none)
			}
		})
	}
}

func FuzzOSRelease(f *testing.F) {
	f.Add(testOSRelease)
	f.Add("NAME='a'\"b\\\"\"c\r\n# x\nVERSION='")
	f.Add("=\n==\nID=\"\\")
	f.Fuzz(func(t *testing.T, text string) {
		o := ParseOSRelease(text)
		for name, quoted := range o {
			value, ok := unquote(quoted)
			if len(value) > len(quoted) || !ok && value != "" {
				t.Fatalf("%q is unquoted to %q, %v", quoted, value, ok)
			}
			if strings.Contains(name, "=") || strings.Contains(quoted, "\n") {
				t.Fatalf("bad assignment %q, %q", name, quoted)
			}
		}
		if label, ok := o.Label(); !ok && label != "" {
			t.Fatalf("label %q", label)
		}
		a := describe(o, digest(t, hex256("a")))
		for _, s := range []string{a.osID, a.title, a.version, confName(a.osID, a.version, "1")} {
			if s == "" || strings.ContainsAny(s, "\n\r\x00") || len(confName(a.osID, a.version, "1")) > 255 {
				t.Fatalf("bad text %q for a loader entry", s)
			}
		}
		if name := confName(a.osID, a.version, "1"); !plainName(name) {
			t.Fatalf("bad file name %q", name)
		}
	})
}
