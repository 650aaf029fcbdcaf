// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/internal/tarraw"
)

func dir(name string) *tarraw.Entry {
	return &tarraw.Entry{Type: tarraw.TypeDirectory, Name: name, Mode: 0o755}
}

func file(name, content string) *tarraw.Entry {
	return &tarraw.Entry{Type: tarraw.TypeRegular, Name: name, Mode: 0o644, Size: uint64(len(content)), Content: []byte(content)}
}

func link(name, target string) *tarraw.Entry {
	return &tarraw.Entry{Type: tarraw.TypeHardlink, Name: name, Linkname: target}
}

func symlink(name, target string) *tarraw.Entry {
	return &tarraw.Entry{Type: tarraw.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
}

// listing writes a tree as one line a name; hard links share a number.
func listing(root *tree.Node) string {
	var b strings.Builder
	numbers := map[*tree.Node]int{}
	var walk func(path string, n *tree.Node)
	walk = func(path string, n *tree.Node) {
		if numbers[n] == 0 {
			numbers[n] = len(numbers) + 1
		}
		switch n.Kind {
		case tree.Directory:
			fmt.Fprintf(&b, "%s/ %o\n", path, n.Mode)
		case tree.Symlink:
			fmt.Fprintf(&b, "%s -> %s\n", path, n.Target)
		default:
			fmt.Fprintf(&b, "%s #%d %q\n", path, numbers[n], n.Content)
		}
		if n.Kind == tree.Directory {
			for _, name := range n.Names() {
				walk(path+"/"+name, n.Entry(name))
			}
		}
	}
	for _, name := range root.Names() {
		walk(name, root.Entry(name))
	}
	return b.String()
}

func TestMerge(t *testing.T) {
	for _, test := range []struct {
		name    string
		entries []*tarraw.Entry
		want    string
	}{
		{"spellings of a path", []*tarraw.Entry{dir("./"), dir("/a/"), dir("./a/b"), file("a//b/./f", "x")}, "a/ 755\na/b/ 755\na/b/f #3 \"x\"\n"},
		{"replacement both ways", []*tarraw.Entry{dir("a"), file("a/f", "x"), file("a", "y"), dir("a"), file("a/g", "z")}, "a/ 755\na/g #2 \"z\"\n"},
		{"directory keeps its entries", []*tarraw.Entry{dir("a"), file("a/f", "x"), {Type: tarraw.TypeDirectory, Name: "a", Mode: 0o700}}, "a/ 700\na/f #2 \"x\"\n"},
		{"whiteout", []*tarraw.Entry{dir("a"), file("a/f", "x"), file("a/.wh.f", ""), file("a/.wh.absent", "")}, "a/ 755\n"},
		{"whiteout of a directory", []*tarraw.Entry{dir("a"), dir("a/b"), file("a/b/f", "x"), file(".wh.a", "")}, ""},
		{"opaque directory", []*tarraw.Entry{dir("a"), file("a/f", "x"), file("a/.wh..wh..opq", ""), file("a/g", "y")}, "a/ 755\na/g #2 \"y\"\n"},
		{"hard link", []*tarraw.Entry{file("f", "x"), link("g", "./f"), link("h", "/g")}, "f #1 \"x\"\ng #1 \"x\"\nh #1 \"x\"\n"},
		{"hard link to a file of this layer", []*tarraw.Entry{file("f", "x"), link("g", "f"), file("f", "y"), link("h", "f")}, "f #1 \"y\"\ng #2 \"x\"\nh #1 \"y\"\n"},
		{"hard link to a symbolic link", []*tarraw.Entry{symlink("s", "nowhere"), link("t", "s")}, "s -> nowhere\nt -> nowhere\n"},
		{"hard link to itself", []*tarraw.Entry{file("f", "x"), link("f", "f")}, "f #1 \"x\"\n"},
		{"mode with its own file type", []*tarraw.Entry{{Type: tarraw.TypeDirectory, Name: "a", Mode: 0o040755}}, "a/ 755\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := tree.NewDirectory()
			for _, e := range test.entries {
				if rule := mergeEntry(root, e); rule != "" {
					t.Fatalf("entry %q: %s", e.Name, rule)
				}
			}
			if got := listing(root); got != test.want {
				t.Errorf("got\n%swant\n%s", got, test.want)
			}
		})
	}
}

func TestMergeRefuses(t *testing.T) {
	base := []*tarraw.Entry{dir("d"), file("d/f", "x"), symlink("s", "d"), symlink("out", "/etc")}
	for _, test := range []struct {
		entry *tarraw.Entry
		want  string
	}{
		{file("../f", ""), ".."},
		{file("d/../f", ""), ".."},
		{dir(".."), ".."},
		{link("l", "../../etc/shadow"), ".."},
		{file("absent/f", ""), "in no layer"},
		{file("s/f", ""), "not a directory"},
		{file("out/passwd", ""), "not a directory"},
		{file("d/f/g", ""), "not a directory"},
		{file("absent/.wh.f", ""), "in no layer"},
		{link("l", "d"), "directory"},
		{link("l", "/"), "directory"},
		{link("l", "absent"), "does not exist"},
		{link("l", "s/f"), "not a directory"},
		{file("/", "x"), "must be a directory"},
		{file("d/"+strings.Repeat("n", 256), ""), "longer than 255"},
		{file("a\x00b", ""), "NUL"},
		{file(strings.Repeat("a/", 3000), ""), "components"},
		{symlink("l", ""), "1 to 4095"},
		{symlink("l", strings.Repeat("x", 4096)), "1 to 4095"},
		{symlink("l", "a\x00b"), "1 to 4095"},
		{&tarraw.Entry{Type: 'X', Name: "x"}, "not supported"},
		{&tarraw.Entry{Type: tarraw.TypeCharDevice, Name: "x"}, "device numbers"},
		{&tarraw.Entry{Type: tarraw.TypeBlock, Name: "x", HasDev: true, Devmajor: 4096}, "device number 4096:0 is too large"},
		{&tarraw.Entry{Type: tarraw.TypeCharDevice, Name: "x", HasDev: true, Devminor: 1 << 20}, "too large"},
		{&tarraw.Entry{Type: tarraw.TypeRegular, Name: "x", Mode: 0o120777}, "another file type"},
		{&tarraw.Entry{Type: tarraw.TypeDirectory, Name: "d", Mode: 0o100755}, "another file type"},
	} {
		root := tree.NewDirectory()
		for _, e := range base {
			if rule := mergeEntry(root, e); rule != "" {
				t.Fatal(rule)
			}
		}
		before := listing(root)
		if rule := mergeEntry(root, test.entry); !strings.Contains(rule, test.want) {
			t.Errorf("entry %.40q: rule %q, want one about %q", test.entry.Name, rule, test.want)
		}
		if after := listing(root); after != before {
			t.Errorf("entry %.40q changed the tree to\n%s", test.entry.Name, after)
		}
	}
}

func TestTransform(t *testing.T) {
	build := func() *tree.Node {
		root := tree.NewDirectory()
		for _, e := range []*tarraw.Entry{
			{Type: tarraw.TypeDirectory, Name: "usr", Mode: 0o750, UID: 1, GID: 2, MtimeSec: 100, MtimeNsec: 5, Xattrs: xattrs("security.capability", "user.u")},
			{Type: tarraw.TypeDirectory, Name: "run", Mode: 0o700, MtimeSec: 7, MtimeNsec: 8, Xattrs: xattrs("user.r")},
			file("run/pid", "1"),
			{Type: tarraw.TypeDirectory, Name: "boot", Mode: 0o755, MtimeSec: 1, MtimeNsec: 9},
			file("boot/vmlinuz", "k"),
			{Type: tarraw.TypeDirectory, Name: "sysroot", Mode: 0o755, MtimeSec: 1, MtimeNsec: 3},
			{Type: tarraw.TypeRegular, Name: "usr/f", Xattrs: xattrs("security.capability", "security.ima", "security.selinux", "trusted.t", "user.f")},
		} {
			if rule := mergeEntry(root, e); rule != "" {
				t.Fatal(rule)
			}
		}
		return root
	}
	for mode, want := range map[XattrMode][]string{
		AllowlistOnly: {"security.capability"},
		KeepUser:      {"security.capability", "user.f"},
	} {
		root := build()
		if err := Transform(root, mode); err != nil {
			t.Fatal(err)
		}
		if root.Mode != 0o750 || root.UID != 1 || root.GID != 2 || root.Mtime != (tree.Time{Sec: 100, Nsec: 5}) {
			t.Errorf("root is %+v, want the stat of /usr", root)
		}
		run := root.Entry("run")
		if run.Len() != 0 || run.Mode != 0o700 || run.Mtime != (tree.Time{Sec: 100, Nsec: 5}) {
			t.Errorf("/run is %+v", run)
		}
		if got := names(root.Entry("usr").Entry("f")); !slices.Equal(got, want) {
			t.Errorf("%v keeps %v, want %v", mode, got, want)
		}
		if err := TransformBoot(root, nil); err != nil {
			t.Fatal(err)
		}
		boot := root.Entry("boot")
		if boot.Len() != 0 || boot.Mtime != (tree.Time{Sec: 100, Nsec: 9}) {
			t.Errorf("/boot is %+v, want it empty with its own nanoseconds", boot)
		}
	}
	for _, missing := range []string{"usr", "boot", "sysroot"} {
		root := build()
		root.RemoveEntry(missing)
		err := Transform(root, AllowlistOnly)
		if err == nil {
			err = TransformBoot(root, nil)
		}
		if err == nil || !strings.Contains(err.Error(), "/"+missing) {
			t.Errorf("without /%s: %v", missing, err)
		}
	}
}

func xattrs(names ...string) []tree.Xattr {
	var xs []tree.Xattr
	for _, name := range names {
		xs = append(xs, tree.Xattr{Name: name, Value: []byte("v")})
	}
	return xs
}

func names(n *tree.Node) []string {
	var names []string
	for _, x := range n.Xattrs {
		names = append(names, x.Name)
	}
	return names
}
