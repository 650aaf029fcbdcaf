// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package dumpfile_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/composefs/dumpfile"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

const (
	rootLine = "/ 0 40755 2 0 0 0 0.0 - - -\n"
	// object is the hex digest that begins with ab.
	object = "abababababababababababababababababababababababababababababababab"
	path   = "ab/ababababababababababababababababababababababababababababababab"
)

// TestParse says for lines after the root whether each mode takes them.
func TestParse(t *testing.T) {
	long := strings.Repeat("n", 256)
	for _, c := range []struct {
		name               string
		lines              string
		strict, compatible bool
	}{
		{"nothing", "", true, true},
		{"all kinds", "/b 0 60660 1 0 0 2049 0.0 - - -\n/c 0 20660 1 0 0 1 0.0 - - -\n/d 0 40755 2 0 0 0 0.0 - - -\n/f 0 10660 1 0 0 0 0.0 - - -\n/l 3 120777 1 0 0 0 0.0 abc - -\n/s 0 140660 1 0 0 0 0.0 - - -\n", true, true},
		{"object", "/a 100 100644 1 0 0 0 0.0 " + path + " - " + object + "\n", true, true},
		{"sparse", "/a 100 100644 1 0 0 0 0.0 - - -\n", true, true},
		{"object of another name", "/a 100 100644 1 0 0 0 0.0 x/y - " + object + "\n", false, true},
		{"object without path", "/a 100 100644 1 0 0 0 0.0 - - " + object + "\n", false, true},
		{"object without digest", "/a 100 100644 1 0 0 0 0.0 " + path + " - -\n", false, true},
		{"object of an empty file", "/a 0 100644 1 0 0 0 0.0 " + path + " - " + object + "\n", false, true},
		{"object and content", "/a 1 100644 1 0 0 0 0.0 " + path + " x " + object + "\n", false, true},
		{"short digest", "/a 100 100644 1 0 0 0 0.0 " + path + " - abab\n", false, false},
		{"digest that is no hex", "/a 100 100644 1 0 0 0 0.0 " + path + " - " + strings.Repeat("z", 64) + "\n", false, false},
		{"digest of a fifo", "/a 0 10644 1 0 0 0 0.0 - - " + object + "\n", false, true},
		{"content", "/a 3 100644 1 0 0 0 0.0 - x\\ny -\n", true, true},
		{"content of another size", "/a 4 100644 1 0 0 0 0.0 - x\\ny -\n", false, false},
		{"much content", "/a 513 100644 1 0 0 0 0.0 - " + strings.Repeat("x", 513) + " -\n", false, true},
		{"too much content", "/a 5001 100644 1 0 0 0 0.0 - " + strings.Repeat("x", 5001) + " -\n", false, false},
		{"payload of a directory", "/a 0 40755 2 0 0 0 0.0 x - -\n", false, true},
		{"device number of a file", "/a 0 100644 1 0 0 7 0.0 - - -\n", false, true},
		{"device number of 33 bits", "/a 0 20644 1 0 0 4294967297 0.0 - - -\n", false, true},
		{"whiteout with two names", "/a 0 20644 2 0 0 0 0.0 - - -\n", false, true},
		{"link to a whiteout", "/a 0 20644 1 0 0 0 0.0 - - -\n/b 0 @20644 - - - - 0.0 /a - -\n", false, true},
		{"hard link", "/a 0 100644 2 0 0 0 0.0 - - -\n/b 0 @120000 - - - - 0.0 /a - -\n", true, true},
		{"hard link to a hard link", "/a 0 100644 3 0 0 0 0.0 - - -\n/b 0 @120000 - - - - 0.0 /a - -\n/c 0 @120000 - - - - 0.0 /b - -\n", true, true},
		{"short hard link", "/a 0 100644 2 0 0 0 0.0 - - -\n/b 0 @120000 - - - - 0.0 /a\n", true, true},
		{"hard link to a later line", "/b 0 @120000 - - - - 0.0 /c - -\n/c 0 100644 2 0 0 0 0.0 - - -\n", false, true},
		{"hard link to nothing", "/b 0 @120000 - - - - 0.0 /c - -\n", false, false},
		{"hard link without target", "/b 0 @120000 - - - - 0.0 - - -\n", false, false},
		{"hard link to itself", "/b 0 @120000 - - - - 0.0 /b - -\n", false, false},
		{"hard links in a circle", "/b 0 @120000 - - - - 0.0 /c - -\n/c 0 @120000 - - - - 0.0 /b - -\n", false, false},
		{"hard link to a directory", "/a 0 40755 2 0 0 0 0.0 - - -\n/b 0 @120000 - - - - 0.0 /a - -\n", false, true},
		{"hard link that is a directory", "/b 0 @40755 - - - - 0.0 / - -\n", false, false},
		{"below a hard link", "/a 0 100644 2 0 0 0 0.0 - - -\n/b 0 @120000 - - - - 0.0 /a - -\n/b/c 0 100644 1 0 0 0 0.0 - - -\n", false, false},
		{"below a file", "/a 0 100644 1 0 0 0 0.0 - - -\n/a/c 0 100644 1 0 0 0 0.0 - - -\n", false, false},
		{"no directory", "/a/c 0 100644 1 0 0 0 0.0 - - -\n", false, false},
		{"twice", "/a 0 100644 1 0 0 0 0.0 - - -\n/a 0 100644 1 0 0 0 0.0 - - -\n", false, false},
		{"relative", "a 0 100644 1 0 0 0 0.0 - - -\n", false, true},
		{"two slashes", "//a 0 100644 1 0 0 0 0.0 - - -\n", false, true},
		{"slash at the end", "/a/ 0 40755 2 0 0 0 0.0 - - -\n", false, false},
		{"dots", "/.. 0 40755 2 0 0 0 0.0 - - -\n", false, false},
		{"dots within", "/../a 0 40755 2 0 0 0 0.0 - - -\n", false, false},
		{"long name", "/" + long + " 0 100644 1 0 0 0 0.0 - - -\n", false, false},
		{"zero byte in a name", "/a\\x00b 0 100644 1 0 0 0 0.0 - - -\n", false, true},
		{"raw zero byte", "/a\x00b 0 100644 1 0 0 0 0.0 - - -\n", false, false},
		{"raw tab", "/a\tb 0 100644 1 0 0 0 0.0 - - -\n", false, true},
		{"not UTF-8", "/a\xff 0 100644 1 0 0 0 0.0 - - -\n", false, true},
		{"escaped byte", "/a\\xff 0 100644 1 0 0 0 0.0 - - -\n", true, true},
		{"escape", "/a\\q 0 100644 1 0 0 0 0.0 - - -\n", false, false},
		{"short escape", "/a\\x4 0 100644 1 0 0 0 0.0 - - -\n", false, false},
		{"backslash at the end", "/a\\ 0 100644 1 0 0 0 0.0 - - -\n", false, false},
		{"blank line", "\n", false, false},
		{"carriage return", "/d 0 40755 2 0 0 0 0.0 - - -\r\n", false, true},
		{"second root", rootLine, false, false},
		{"fields missing", "/a 0 40755 2 0 0 0 0.0\n", false, true},
		{"negative size", "/a -1 40755 2 0 0 0 0.0 - - -\n", false, true},
		{"plus", "/a +0 40755 2 0 0 0 0.0 - - -\n", false, true},
		{"huge number", "/a 99999999999999999999999 40755 2 0 0 0 0.0 - - -\n", false, true},
		{"hexadecimal", "/a 0x0 40755 2 0 0 0 0.0 - - -\n", false, false},
		{"mode that is not octal", "/a 0 40758 2 0 0 0 0.0 - - -\n", false, false},
		{"mode without type", "/a 0 755 2 0 0 0 0.0 - - -\n", false, false},
		{"wide mode", "/a 0 200100644 1 0 0 0 0.0 - - -\n", false, true},
		{"no dot", "/a 0 40755 2 0 0 0 0 - - -\n", false, false},
		{"negative time", "/a 0 40755 2 0 0 0 -1.0 - - -\n", false, true},
		{"many nanoseconds", "/a 0 40755 2 0 0 0 0.1000000000 - - -\n", false, true},
		{"gid, uid not 0", "/a 0 40755 2 5 zz 0 0.0 - - -\n", false, true},
		{"gid, uid 0", "/a 0 40755 2 0 zz 0 0.0 - - -\n", false, false},
		{"attribute", "/a 0 40755 2 0 0 0 0.0 - - - user.a=1 user.b= user.c=1=2\n", true, true},
		{"attribute twice", "/a 0 40755 2 0 0 0 0.0 - - - user.a=1 user.a=2\n", false, true},
		{"attribute without name", "/a 0 40755 2 0 0 0 0.0 - - - =1\n", false, false},
		{"attribute without value", "/a 0 40755 2 0 0 0 0.0 - - - user.a\n", false, false},
		{"space at the end", "/a 0 40755 2 0 0 0 0.0 - - - user.a=1 \n", false, true},
		{"space at the end, no attribute", "/a 0 40755 2 0 0 0 0.0 - - - \n", false, true},
		{"two spaces", "/a 0 40755 2 0 0 0 0.0 - - -  user.a=1\n", false, false},
		{"long attribute name", "/a 0 40755 2 0 0 0 0.0 - - - " + long + "=1\n", false, false},
		{"no target", "/a 0 120777 1 0 0 0 0.0 - - -\n", false, false},
		{"long target", "/a 0 120777 1 0 0 0 0.0 " + strings.Repeat("t", 4095) + " - -\n", true, true},
		{"longer target", "/a 0 120777 1 0 0 0 0.0 " + strings.Repeat("t", 4096) + " - -\n", false, false},
		{"long line", "/a 0 40755 2 0 0 0 0.0 - - - user.a=" + strings.Repeat("t", dumpfile.DefaultMaxLine) + "\n", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, mode := range []struct {
				compatible, ok bool
			}{{false, c.strict}, {true, c.compatible}} {
				_, err := dumpfile.Parse(strings.NewReader(rootLine+c.lines), dumpfile.ParseOptions{Compatible: mode.compatible})
				if (err == nil) != mode.ok {
					t.Errorf("compatible %t: error %v, want acceptance %t", mode.compatible, err, mode.ok)
				}
				var syntax *dumpfile.SyntaxError
				if err != nil && !errors.As(err, &syntax) {
					t.Errorf("compatible %t: %v is no syntax error", mode.compatible, err)
				}
			}
		})
	}
}

func TestParseAlgorithm(t *testing.T) {
	text := rootLine + "/a 100 100644 1 0 0 0 0.0 " + path + " - " + object + "\n"
	for alg, ok := range map[fsverity.Algorithm]bool{0: true, fsverity.SHA256: true, fsverity.SHA512: false} {
		for _, compatible := range []bool{false, true} {
			_, err := dumpfile.Parse(strings.NewReader(text), dumpfile.ParseOptions{Algorithm: alg, Compatible: compatible})
			if (err == nil) != ok {
				t.Errorf("algorithm %v, compatible %t: %v", alg, compatible, err)
			}
		}
	}
}

func TestParseLimits(t *testing.T) {
	text := rootLine + "/a 0 40755 2 0 0 0 0.0 - - -\n/b 0 40755 2 0 0 0 0.0 - - -\n"
	if _, err := dumpfile.Parse(strings.NewReader(text), dumpfile.ParseOptions{MaxInodes: 3}); err != nil {
		t.Error(err)
	}
	if _, err := dumpfile.Parse(strings.NewReader(text), dumpfile.ParseOptions{MaxInodes: 2}); err == nil {
		t.Error("a third line was accepted")
	}
	if _, err := dumpfile.Parse(strings.NewReader(text), dumpfile.ParseOptions{MaxLine: 20}); err == nil {
		t.Error("a long line was accepted")
	}
	want := errors.New("broken")
	if _, err := dumpfile.Parse(&brokenReader{strings.NewReader(text), want}, dumpfile.ParseOptions{}); !errors.Is(err, want) {
		t.Errorf("error %v, want %v", err, want)
	}
}

type brokenReader struct {
	r   *strings.Reader
	err error
}

func (b *brokenReader) Read(p []byte) (int, error) {
	if b.r.Len() == 0 {
		return 0, b.err
	}
	return b.r.Read(p)
}

// TestTreeRefuses covers what mkcomposefs knows and a tree does not.
func TestTreeRefuses(t *testing.T) {
	for _, line := range []string{
		"/a 100 100644 1 0 0 0 0.0 - - -\n",
		"/a 100 100644 1 0 0 0 0.0 x/y - " + object + "\n",
		"/a 100 100644 1 0 0 0 0.0 " + path + " - -\n",
		"/a 0 40755 2 0 0 0 0.0 - - -\n/b 0 @120000 - - - - 0.0 /a - -\n",
	} {
		d, err := dumpfile.Parse(strings.NewReader(rootLine+line), dumpfile.ParseOptions{Compatible: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Tree(); err == nil {
			t.Errorf("%q was made a tree", line)
		}
	}
}

func TestWrite(t *testing.T) {
	root := tree.NewDirectory()
	root.Mode = 0o755
	root.Mtime = tree.Time{Sec: -5, Nsec: 7}
	sub := tree.NewDirectory()
	file := &tree.Node{Kind: tree.Regular, Mode: 0o4644, Size: 4, Content: []byte("=\\\n\xff")}
	file.SetXattr("user.=", []byte("-"))
	file.SetXattr("user.\t", []byte("a=b c"))
	root.SetEntry("z", file)
	root.SetEntry("d d", sub)
	sub.SetEntry("f", file)
	sub.SetEntry("l", &tree.Node{Kind: tree.Symlink, Mode: 0o777, Target: "-"})
	sub.SetEntry("m", &tree.Node{Kind: tree.Regular, Size: 1, Content: []byte("-")})
	digest, err := fsverity.ParseDigest(object)
	if err != nil {
		t.Fatal(err)
	}
	sub.SetEntry("o", &tree.Node{Kind: tree.Regular, Size: 99, Object: digest})
	sub.SetEntry("p", &tree.Node{Kind: tree.BlockDevice, Rdev: 2049, UID: 1, GID: 2})
	want := `/ 0 40755 3 0 0 0 -5.7 - - -
/d\x20d 0 40000 2 0 0 0 0.0 - - -
/d\x20d/f 4 104644 2 0 0 0 0.0 - =\\\n\xff - user.\t=a\x3db\x20c user.\x3d=-
/d\x20d/l 1 120777 1 0 0 0 0.0 \x2d - -
/d\x20d/m 1 100000 1 0 0 0 0.0 - \x2d -
/d\x20d/o 99 100000 1 0 0 0 0.0 ` + path + " - " + object + `
/d\x20d/p 0 60000 1 1 2 2049 0.0 - - -
/z 0 @120000 - - - - 0.0 /d\x20d/f - -
`
	var got strings.Builder
	if err := dumpfile.Write(&got, root, fsverity.SHA256); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("dump differs (-want +got):\n%s", diff)
	}
	if err := dumpfile.Write(&got, root, fsverity.SHA512); err == nil {
		t.Error("an object of another algorithm was accepted")
	}
}

func TestWriteRefuses(t *testing.T) {
	loop := tree.NewDirectory()
	loop.SetEntry("x", loop)
	deep := tree.NewDirectory()
	for range tree.MaxDepth {
		up := tree.NewDirectory()
		up.SetEntry("d", deep)
		deep = up
	}
	for name, n := range map[string]*tree.Node{
		"loop": loop, "deep": deep, "a/b": {Kind: tree.FIFO}, "nil": nil,
		"content": {Kind: tree.Regular, Size: 3}, "kind": {Kind: 99},
	} {
		root := tree.NewDirectory()
		root.SetEntry(name, n)
		if err := dumpfile.Write(&strings.Builder{}, root, 0); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := dumpfile.Write(&strings.Builder{}, &tree.Node{Kind: tree.FIFO}, 0); err == nil {
		t.Error("a root that is no directory was accepted")
	}
}

// FuzzParse: no panic in either mode; what is strictly valid and a tree is
// written, parsed and written to the same text, and has an image.
func FuzzParse(f *testing.F) {
	f.Add([]byte(rootLine))
	f.Add([]byte(rootLine + "/a 100 100644 2 0 0 0 0.0 " + path + " - " + object + " user.a=1 user.b=\\x00\n/b 0 @120000 - - - - 0.0 /a - -\n"))
	f.Add([]byte(rootLine + "/d 0 40755 2 1 2 0 5.6 - - -\n/d/l 1 120777 1 0 0 0 0.0 \\x2d - -\n/d/c 2 100644 1 0 0 0 0.0 - a\\n -\n/w 0 20644 1 0 0 0 0.0 - - -\n"))
	f.Add([]byte(rootLine + "/b 0 @100644 1 0 0 0 0.0 /c - -\n/c 0 @100644 1 0 0 0 0.0 /b - -\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if d, err := dumpfile.Parse(bytes.NewReader(text), dumpfile.ParseOptions{Compatible: true}); err == nil {
			var image bytes.Buffer
			if err := d.WriteImage(&image, erofs.V0, erofs.V1); err == nil && image.Len()%4096 != 0 {
				t.Fatalf("an image of %d bytes", image.Len())
			}
		}
		root, err := dumpfile.ParseTree(bytes.NewReader(text), dumpfile.ParseOptions{})
		if err != nil {
			return
		}
		var once, twice bytes.Buffer
		if err := dumpfile.Write(&once, root, 0); err != nil {
			t.Fatal(err)
		}
		again, err := dumpfile.ParseTree(bytes.NewReader(once.Bytes()), dumpfile.ParseOptions{})
		if err != nil {
			t.Fatalf("what was written cannot be parsed: %v\n%s", err, once.Bytes())
		}
		if err := dumpfile.Write(&twice, again, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(once.Bytes(), twice.Bytes()) {
			t.Fatalf("the dump changed:\n%s\n%s", once.Bytes(), twice.Bytes())
		}
	})
}

func BenchmarkDump(b *testing.B) {
	root := tree.NewDirectory()
	for i := range 200 {
		dir := tree.NewDirectory()
		root.SetEntry(fmt.Sprint("directory-", i), dir)
		for k := range 200 {
			d := fsverity.Sum(fsverity.SHA512, []byte{byte(i), byte(k)})
			n := &tree.Node{Kind: tree.Regular, Mode: 0o644, Size: 1000, Object: d}
			n.SetXattr("security.selinux", []byte("system_u:object_r:lib_t:s0"))
			dir.SetEntry(fmt.Sprint("file-", k), n)
		}
	}
	var text bytes.Buffer
	if err := dumpfile.Write(&text, root, 0); err != nil {
		b.Fatal(err)
	}
	b.Run("Write", func(b *testing.B) {
		b.SetBytes(int64(text.Len()))
		b.ReportAllocs()
		for b.Loop() {
			var out bytes.Buffer
			out.Grow(text.Len())
			if err := dumpfile.Write(&out, root, 0); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Parse", func(b *testing.B) {
		b.SetBytes(int64(text.Len()))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := dumpfile.ParseTree(bytes.NewReader(text.Bytes()), dumpfile.ParseOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
