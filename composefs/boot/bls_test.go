// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

func parse(tb testing.TB, text string) *Config {
	tb.Helper()
	c, err := ParseConfig([]byte(text))
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func TestConfigLines(t *testing.T) {
	for _, tt := range []struct {
		in    string
		lines []string
		out   string
	}{
		{"", nil, ""},
		{"\n", []string{""}, "\n"},
		{"a", []string{"a"}, "a\n"},
		{"a\n\n", []string{"a", ""}, "a\n\n"},
		{"title x\r\n# c\n\tindented y\n", []string{"title x\r", "# c", "\tindented y"}, "title x\r\n# c\n\tindented y\n"},
	} {
		c := parse(t, tt.in)
		if diff := cmp.Diff(tt.lines, c.Lines); diff != "" {
			t.Errorf("%q: lines (-want +got):\n%s", tt.in, diff)
		}
		if got := c.String(); got != tt.out {
			t.Errorf("%q is written as %q, want %q", tt.in, got, tt.out)
		}
	}
	if _, err := ParseConfig([]byte("title \xff\n")); !errors.Is(err, ErrNotUTF8) {
		t.Errorf("not UTF-8: got %v", err)
	}
}

func TestConfigValues(t *testing.T) {
	c := parse(t, "linux /a\ninitrd  /b\ninitrd\t/c \n initrd /indented\ninitrd\ninitrdx /d\n#initrd /e\ninitrd \u00a0/f\ninitrd \noptions\v/x\nINITRD /g\n")
	for _, tt := range []struct {
		key  string
		want []string
	}{
		{"linux", []string{"/a"}},
		{"initrd", []string{"/b", "/c ", "/f", ""}},
		{"options", nil},
		{"efi", nil},
	} {
		if diff := cmp.Diff(tt.want, c.Values(tt.key)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.key, diff)
		}
		v, ok := c.Value(tt.key)
		if ok != (tt.want != nil) || ok && v != tt.want[0] {
			t.Errorf("Value(%q) = %q, %v", tt.key, v, ok)
		}
	}
}

func TestConfigSet(t *testing.T) {
	c := parse(t, "title A\nversion 1\ntitle B\n# end\n")
	c.Set("title", "C")
	c.Set("sort-key", "k")
	if got, want := c.String(), "title C\nversion 1\n# end\nsort-key k\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSetArg(t *testing.T) {
	for _, tt := range []struct{ name, in, arg, want string }{
		{"no options line", "title x\n", "a=b", "title x\noptions a=b\n"},
		{"append", "options rw quiet\n", "a=b", "options rw quiet a=b\n"},
		{"append after white space", "options rw \r\n", "a=b", "options rw a=b\n"},
		{"append to empty", "options \n", "a=b", "options a=b\n"},
		{"replace", "options rw a=1 quiet\n", "a=b", "options rw a=b quiet\n"},
		{"replace first of two", "options a=1 a=2\n", "a=b", "options a=b a=2\n"},
		{"replace quoted value", `options x a="1 2" y` + "\n", "a=b", "options x a=b y\n"},
		{"replace quoted argument", `options x "a=1 2" y` + "\n", "a=b", "options x a=b y\n"},
		{"by quoted argument", "options x a=1 y\n", `"a=1 2"`, `options x "a=1 2" y` + "\n"},
		{"only the first options line", "options a\noptions k=1\n", "k=2", "options a k=2\noptions k=1\n"},
		{"key is no prefix", "options ab=1\n", "a=b", "options ab=1 a=b\n"},
		{"word replaces itself", "options rw quiet\n", "rw", "options rw quiet\n"},
		{"word is no prefix of a name", "options root=UUID=1 rwfoo\n", "ro", "options root=UUID=1 rwfoo ro\n"},
		{"spacing of the rest is kept", "options   a  b=1   c\n", "b=2", "options   a  b=2   c\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := parse(t, tt.in)
			if err := c.SetArg(tt.arg); err != nil {
				t.Fatal(err)
			}
			if got := c.String(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestSetArgRefuses(t *testing.T) {
	for _, tt := range []struct{ name, in, arg string }{
		{"empty", "options a\n", ""},
		{"white space", "options a\n", " "},
		{"two arguments", "options a\n", "b c"},
		{"space around", "options a\n", " b"},
		{"line feed in quotes", "options a\n", "b=\"c\nd\""},
		{"NUL", "options a\n", "b\x00"},
		{"open quote in the argument", "options a\n", `b="c`},
		{"open quote in the line", `options a="b` + "\n", "c"},
	} {
		c := parse(t, tt.in)
		if err := c.SetArg(tt.arg); err == nil {
			t.Errorf("%s: no error, and %q", tt.name, c)
		}
		if c.String() != tt.in {
			t.Errorf("%s: changed to %q", tt.name, c)
		}
	}
}

func TestSetKarg(t *testing.T) {
	a, b := hex512("a"), hex512("b")
	for _, tt := range []struct{ name, in, want string }{
		{"first", "options rw\n", "options rw composefs=" + a + "\n"},
		{"other forms go", "options composefs.digest=v1-sha512-12:" + b + " rw composefs=" + b + " composefs=?" + b + "\n",
			"options rw composefs=" + a + "\n"},
		{"later lines too", "options rw\ntitle x\noptions composefs=" + b + " quiet\n",
			"options rw composefs=" + a + "\ntitle x\noptions quiet\n"},
		{"alone", "options composefs=" + b + "\n", "options composefs=" + a + "\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := parse(t, tt.in)
			if err := c.SetKarg("composefs=" + a); err != nil {
				t.Fatal(err)
			}
			if got := c.String(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	if err := parse(t, `options x="y`+"\n").SetKarg("composefs=" + a); err == nil {
		t.Error("no error for an open quote")
	}
}

func TestRelocate(t *testing.T) {
	const in = "linux /boot/a/vmlinuz\ninitrd\t/boot/a/initrd\n# initrd /x/y\ninitrd nodir\nefi /E/b.efi \noptions a/b\n"
	c := parse(t, in)
	moved, err := c.Relocate("", "id")
	if err != nil {
		t.Fatal(err)
	}
	want := "linux /id/vmlinuz\ninitrd\t/id/initrd\n# initrd /x/y\ninitrd nodir\nefi /id/b.efi \noptions a/b\n"
	if diff := cmp.Diff(want, c.String()); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{
		"/boot/a/vmlinuz": "/id/vmlinuz", "/boot/a/initrd": "/id/initrd", "/E/b.efi ": "/id/b.efi ",
	}, moved); diff != "" {
		t.Errorf("moved (-want +got):\n%s", diff)
	}

	c = parse(t, "linux /boot/vmlinuz\n")
	if moved, err = c.Relocate("sub/dir", "id"); err != nil {
		t.Fatal(err)
	}
	if c.String() != "linux /sub/dir/id/vmlinuz\n" || moved["/boot/vmlinuz"] != "/id/vmlinuz" {
		t.Errorf("with subdirectory: %q, %q", c, moved)
	}

	for _, bad := range []struct{ text, subdir, id string }{
		{"linux /a/x\ninitrd /b/x\n", "", "id"},
		{"linux /a/x\n", "", ""},
		{"linux /a/x\n", "", ".."},
		{"linux /a/x\n", "", "a/b"},
		{"linux /a/x\n", "../up", "id"},
		{"linux /a/x\n", "/abs", "id"},
		{"linux /a/x\n", "a\nb", "id"},
	} {
		c := parse(t, bad.text)
		if _, err := c.Relocate(bad.subdir, bad.id); err == nil {
			t.Errorf("%+v: no error", bad)
		}
		if c.String() != bad.text {
			t.Errorf("%+v: changed to %q", bad, c)
		}
	}
	// One file that is named twice does not collide with itself.
	if _, err := parse(t, "initrd /a/x\ninitrd /a/x\n").Relocate("", "id"); err != nil {
		t.Error(err)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte("title Example\nversion 1\nlinux /boot/vmlinuz-1\ninitrd  /boot/ucode\ninitrd\t/boot/initrd-1\noptions root=UUID=1 quiet rw\n# comment\nsort-key ex\n"))
	f.Add([]byte("options a=\"b c\" composefs=x\r\noptions \"\n"))
	f.Add([]byte("options"))
	f.Add([]byte("\n\nlinux \xc2\xa0/\n"))
	karg := "composefs=" + hex512("a")
	id := digest(f, hex512("a"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseConfig(text)
		if err != nil {
			return
		}
		if want := strings.TrimSuffix(string(text), "\n"); strings.TrimSuffix(c.String(), "\n") != want {
			t.Fatalf("%q became %q", text, c)
		}
		before := len(c.Lines)
		if err := c.Clone().SetArg("k=v"); err == nil {
			d := c.Clone()
			if err := d.SetArg("k=v"); err != nil || len(d.Lines) < before {
				t.Fatalf("SetArg is not repeatable: %v", err)
			}
		}
		d := c.Clone()
		if err := d.SetKarg(karg); err != nil {
			return
		}
		var all []string
		for _, options := range d.Values("options") {
			for arg := range Args(options) {
				if isKarg(arg) {
					all = append(all, arg)
				}
			}
		}
		if len(all) != 1 || all[0] != karg {
			t.Fatalf("composefs arguments %q in %q", all, d)
		}
		options, _ := d.Value("options")
		if k, found, err := FindKarg(options, fsverity.SHA512); err != nil || !found || k.ID != id {
			t.Fatalf("%q names %v, %v, %v", options, k, found, err)
		}
		_ = namedImage(d)
		_ = checkConf(d)
	})
}
