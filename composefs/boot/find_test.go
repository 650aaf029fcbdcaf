// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
)

// show is one line for an entry: kind, name, kernel version and files.
func show(e *Entry) string {
	var files []string
	for _, f := range e.Files {
		files = append(files, fmt.Sprintf("%s=%s", f.Role, f.Path))
	}
	return fmt.Sprintf("%s %s [%s] %s", e.Type, e.Name, e.Kver, strings.Join(files, " "))
}

func showAll(entries []Entry) []string {
	var lines []string
	for i := range entries {
		lines = append(lines, show(&entries[i]))
	}
	return lines
}

func TestFind(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files image
		want  []string
	}{
		{"empty", image{}, nil},
		{"empty directories", image{"boot/loader/entries/": "", "boot/EFI/Linux/": "", "usr/lib/modules/6.1/": ""}, nil},
		{"order of kinds and names", image{
			"boot/loader/entries/b.conf":     "linux boot/k\ninitrd /boot/i2\ninitrd //boot/./i1/\n",
			"boot/loader/entries/B.conf":     "efi /boot/e\n",
			"boot/loader/entries/a.conf.bak": "linux /absent\n",
			"boot/k":                         "k",
			"boot/i1":                        "1",
			"boot/i2":                        "2",
			"boot/e":                         "e",
			"boot/EFI/Linux/z.efi":           "z",
			"boot/EFI/Linux/a/b/c.efi":       "c",
			"boot/EFI/Linux/z.efi.extra.d/x.addon.efi":  "x",
			"boot/EFI/Linux/a.EFI":                      "no",
			"boot/EFI/Linux/dir.efi/y.efi":              "y",
			"boot/loader/addons/g.addon.efi":            "g",
			"boot/loader/addons/u.efi":                  "u",
			"usr/lib/modules/6.2/vmlinuz":               "k",
			"usr/lib/modules/6.2/initramfs.img":         "i",
			"usr/lib/modules/6.10/vmlinuz":              "k",
			"usr/lib/modules/6.10/6.10.efi":             "u",
			"usr/lib/modules/6.10/kernel/deep/x.efi":    "u",
			"usr/lib/modules/6.10/m.addon.efi":          "a",
			"usr/lib/modules/empty/":                    "",
			"usr/lib/modules/plain":                     "a file",
			"usr/lib/modules/link":                      "-> 6.2",
			"usr/lib/modules/6.9/initramfs.img":         "i",
			"usr/lib/modules/6.8/vmlinuz":               "-> ../6.2/vmlinuz",
			"usr/lib/modules/6.7/vmlinuz/":              "",
			"usr/lib/modules/6.6/vmlinuz":               "k",
			"usr/lib/modules/6.6/initramfs.img":         "-> ../6.2/initramfs.img",
			"usr/lib/os-release":                        "-> ./os.d/../os.d/x",
			"usr/lib/os.d/x":                            "-> /etc/o",
			"etc/o":                                     testOSRelease,
			"boot/loader/entries/UPPER.CONF":            "linux /absent\n",
			"boot/loader/entries/comments.conf":         "# linux /absent\n linux /absent\nlinuxx /absent\n",
			"boot/loader/entries/devicetree.conf":       "devicetree /absent\nuki /absent\n",
			"boot/EFI/Linux/a/readme":                   "-> /absent",
			"boot/loader/entries/directory.conf.d/file": "x",
		}, []string{
			"bls B.conf [] efi=/boot/e",
			"bls b.conf [] vmlinuz=boot/k initrd=/boot/i2 initrd=//boot/./i1/",
			"bls comments.conf [] ",
			"bls devicetree.conf [] ",
			"uki a/b/c.efi [] uki=/boot/EFI/Linux/a/b/c.efi",
			"uki dir.efi/y.efi [] uki=/boot/EFI/Linux/dir.efi/y.efi",
			"uki z.efi [] uki=/boot/EFI/Linux/z.efi",
			"uki-addon z.efi.extra.d/x.addon.efi [] addon=/boot/EFI/Linux/z.efi.extra.d/x.addon.efi",
			"global-addon g.addon.efi [] addon=/boot/loader/addons/g.addon.efi",
			"uki u.efi [] uki=/boot/loader/addons/u.efi",
			"uki 6.10.efi [6.10] uki=/usr/lib/modules/6.10/6.10.efi",
			"uki kernel/deep/x.efi [6.10] uki=/usr/lib/modules/6.10/kernel/deep/x.efi",
			"uki-addon m.addon.efi [6.10] addon=/usr/lib/modules/6.10/m.addon.efi",
			"usr-lib-modules 6.10 [6.10] vmlinuz=/usr/lib/modules/6.10/vmlinuz os-release=/usr/lib/os-release",
			"usr-lib-modules 6.2 [6.2] vmlinuz=/usr/lib/modules/6.2/vmlinuz initrd=/usr/lib/modules/6.2/initramfs.img os-release=/usr/lib/os-release",
			"usr-lib-modules 6.6 [6.6] vmlinuz=/usr/lib/modules/6.6/vmlinuz os-release=/usr/lib/os-release",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root, store := makeTree(t, tt.files)
			entries, err := Find(root, store)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, showAll(entries)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			for i := range entries {
				e := &entries[i]
				wantFlag := e.Type == UsrLibModules && e.Name != "6.2"
				if e.MissingInitrd() != wantFlag {
					t.Errorf("%s: MissingInitrd is %v", show(e), e.MissingInitrd())
				}
				if o, err := e.ReadOSRelease(store); err != nil || o["ID"] != "example-os" {
					t.Errorf("%s: os-release %v, %v", show(e), o, err)
				}
			}
		})
	}
}

func TestFindRefuses(t *testing.T) {
	deep := strings.Repeat("d/", 3000)
	for _, tt := range []struct {
		name  string
		files image
		text  string // part of the error
	}{
		{"conf is a directory", image{"boot/loader/entries/a.conf/": ""}, "not a regular file"},
		{"conf is a link", image{"boot/loader/entries/a.conf": "-> b"}, "not a regular file"},
		{"conf is not UTF-8", image{"boot/loader/entries/a.conf": "title \xff\n"}, "not UTF-8"},
		{"conf too large", image{"boot/loader/entries/a.conf": strings.Repeat("#", maxConfSize+1)}, "limit"},
		{"path absent", image{"boot/loader/entries/a.conf": "linux /boot/k\n", "boot/": ""}, "no such entry"},
		{"initrd absent", image{"boot/loader/entries/a.conf": "linux /k\ninitrd /i\n", "k": "k"}, `initrd "/i"`},
		{"efi absent", image{"boot/loader/entries/a.conf": "efi /e\n"}, `efi "/e"`},
		{"trailing space is part of the path", image{"boot/loader/entries/a.conf": "linux /k \n", "k": "k"}, "no such entry"},
		{"carriage return is part of the path", image{"boot/loader/entries/a.conf": "linux /k\r\n", "k": "k"}, "no such entry"},
		{"path is a directory", image{"boot/loader/entries/a.conf": "linux /d\n", "d/": ""}, "not a regular file"},
		{"path is a link", image{"boot/loader/entries/a.conf": "linux /l\n", "l": "-> k", "k": "k"}, "not a regular file"},
		{"path through a link", image{"boot/loader/entries/a.conf": "linux /l/k\n", "l": "-> d", "d/k": "k"}, "not a directory"},
		{"path through a file", image{"boot/loader/entries/a.conf": "linux /k/k\n", "k": "k"}, "not a directory"},
		{"path with ..", image{"boot/loader/entries/a.conf": "linux /boot/../k\n", "k": "k"}, "leaves the image"},
		{"path that is ..", image{"boot/loader/entries/a.conf": "linux ..\n"}, "leaves the image"},
		{"path that begins with .", image{"boot/loader/entries/a.conf": "linux ./k\n", "k": "k"}, "leaves the image"},
		{"root", image{"boot/loader/entries/a.conf": "linux /\n"}, "not a path"},
		{"empty path", image{"boot/loader/entries/a.conf": "linux \n"}, "not a path"},
		{"too many files", image{"boot/loader/entries/a.conf": strings.Repeat("initrd /k\n", maxConfFiles+1), "k": "k"}, "more than"},
		{"efi is a link", image{"boot/EFI/Linux/a.efi": "-> b"}, "not a regular file"},
		{"addon is a link", image{"boot/loader/addons/a.addon.efi": "-> b"}, "not a regular file"},
		{"efi below modules is a link", image{"usr/lib/modules/6.1/x/a.efi": "-> b"}, "not a regular file"},
		{"boot is a link", image{"boot": "-> usr/boot"}, "not a directory"},
		{"entries is a file", image{"boot/loader/entries": "x"}, "not a directory"},
		{"EFI is a file", image{"boot/EFI": "x"}, "not a directory"},
		{"modules is a link", image{"usr/lib/modules": "-> /lib"}, "not a directory"},
		{"kernel version is not UTF-8", image{"usr/lib/modules/6\xff/vmlinuz": "k"}, "not UTF-8"},
		{"too deep", image{"boot/EFI/Linux/" + deep + "a.efi": "x"}, "too deep"},
		{"path too long", image{"boot/EFI/Linux/" + strings.Repeat(strings.Repeat("n", 200)+"/", 21) + "a.efi": "x"}, "too long"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root, store := makeTree(t, tt.files)
			entries, err := Find(root, store)
			if err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, error %v; want error with %q", showAll(entries), err, tt.text)
			}
		})
	}
}

// What is no kernel, and names that only look odd, must not stop a pull.
func TestFindTolerates(t *testing.T) {
	for name, files := range map[string]image{
		"directory of no kernel is not UTF-8": {"usr/lib/modules/6\xff/readme": "x"},
		"os-release is a loop":                {"usr/lib/os-release": "-> os-release"},
		"os-release dangles":                  {"usr/lib/os-release": "-> ../../../../../absent"},
		"os-release is a directory":           {"usr/lib/os-release/": ""},
		"os-release through a file":           {"usr/lib/os-release": "-> /a/b", "a": "x"},
		"os-release names a long way":         {"usr/lib/os-release": "-> " + strings.Repeat("./", 2000) + "os-release"},
	} {
		root, store := makeTree(t, files)
		if entries, err := Find(root, store); err != nil || len(entries) != 0 {
			t.Errorf("%s: %v, %v", name, showAll(entries), err)
		}
		if n := lookupFollowing(root, osReleaseAt); n != nil {
			t.Errorf("%s: found %+v", name, n)
		}
	}
}

func TestFindBoundsConfs(t *testing.T) {
	files := image{}
	for i := range 1 + maxConfTotal/maxConfSize {
		files[fmt.Sprintf("boot/loader/entries/%d.conf", i)] = strings.Repeat("#", maxConfSize)
	}
	root, store := makeTree(t, files)
	if _, err := Find(root, store); err == nil || !strings.Contains(err.Error(), "together") {
		t.Errorf("got %v", err)
	}
	delete(files, "boot/loader/entries/0.conf")
	root, store = makeTree(t, files)
	if entries, err := Find(root, store); err != nil || len(entries) != maxConfTotal/maxConfSize {
		t.Errorf("got %d entries, %v", len(entries), err)
	}
}

func TestFindReportsReadErrors(t *testing.T) {
	root, store := makeTree(t, image{"boot/loader/entries/a.conf": "title " + strings.Repeat("x", 100) + "\n"})
	clear(store)
	if _, err := Find(root, store); err == nil {
		t.Error("no error for a .conf whose object is gone")
	}
	root, store = makeTree(t, image{"boot/loader/entries/a.conf": "title " + strings.Repeat("x", 100) + "\n"})
	for id, data := range store {
		store[id] = data[:len(data)-1]
	}
	if _, err := Find(root, store); err == nil {
		t.Error("no error for a .conf whose object is short")
	}
}

func TestBootDigest(t *testing.T) {
	k, i1, i2 := big("k", 5000), big("i1", 3<<20), "small initrd"
	root, store := makeTree(t, image{
		"boot/loader/entries/one.conf":     "linux /k\ninitrd /i1\n",
		"boot/loader/entries/two.conf":     "initrd /i2\nlinux /k\ninitrd /i1\n",
		"boot/loader/entries/bare.conf":    "linux /k\n",
		"boot/loader/entries/nothing.conf": "title x\ninitrd /i1\n",
		"k":                                k, "i1": i1, "i2": i2,
		"boot/EFI/Linux/u.efi":              ukiBuild("composefs=" + hex512("a")),
		"boot/EFI/Linux/empty.efi":          peBuild(".cmdline", "x"),
		"boot/EFI/Linux/kernel.efi":         peBuild(".linux", "x"),
		"boot/EFI/Linux/text.efi":           "text",
		"boot/loader/addons/a.addon.efi":    peBuild(".cmdline", "x"),
		"usr/lib/modules/6.1/vmlinuz":       k,
		"usr/lib/modules/6.1/initramfs.img": i1,
		"usr/lib/modules/6.2/vmlinuz":       k,
		"usr/lib/os-release":                testOSRelease,
	})
	entries, err := Find(root, store)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]struct {
		digest string
		err    error
	}{
		"one.conf":     {digest: sum256(k, i1)},
		"two.conf":     {digest: sum256(k, i2, i1)},
		"bare.conf":    {err: ErrNoInitrd},
		"nothing.conf": {err: ErrNoKernel},
		"u.efi":        {digest: sum256(big("uki kernel", 5000), big("uki initrd", 7000))},
		"empty.efi":    {err: ErrNoKernel},
		"kernel.efi":   {err: ErrNoInitrd},
		"text.efi":     {err: ErrNotPE},
		"a.addon.efi":  {err: ErrNoKernel},
		"6.1":          {digest: sum256(k, i1)},
		"6.2":          {err: ErrNoInitrd},
	}
	if len(entries) != len(want) {
		t.Errorf("found %q", showAll(entries))
	}
	for i := range entries {
		e := &entries[i]
		w := want[e.Name]
		got, err := e.BootDigest(t.Context(), store)
		if got != w.digest || !errors.Is(err, w.err) {
			t.Errorf("%s: got %q, %v; want %q, %v", e.Name, got, err, w.digest, w.err)
		}
	}
	// The bytes are checked against the digest that the tree names.
	for id, data := range store {
		changed := []byte(string(data))
		changed[len(changed)/2] ^= 1
		store[id] = changed
	}
	for i := range entries {
		if e := &entries[i]; e.Name == "6.1" {
			if got, err := e.BootDigest(t.Context(), store); err == nil {
				t.Errorf("damaged kernel: got %q and no error", got)
			}
		}
	}
}

func TestChoose(t *testing.T) {
	k := image{"usr/lib/modules/6.1/vmlinuz": "k", "usr/lib/modules/6.1/initramfs.img": "i"}
	old := image{"usr/lib/modules/5.1/vmlinuz": "k"}
	uki := image{"boot/EFI/Linux/a.efi": "u", "boot/EFI/Linux/a.efi.extra.d/x.addon.efi": "x", "boot/loader/addons/g.addon.efi": "g"}
	bls := image{"boot/loader/entries/a.conf": "linux /k\ninitrd /k\n", "k": "k"}
	for _, tt := range []struct {
		name    string
		images  []image
		chosen  []string
		skipped []string
	}{
		{"nothing", nil, nil, nil},
		{"kernel", []image{k}, []string{"6.1"}, nil},
		{"kernel without initramfs beside a whole one", []image{k, old}, []string{"6.1"}, []string{"5.1"}},
		{"only a kernel without initramfs", []image{old}, []string{"5.1"}, nil},
		{"UKI beside kernel", []image{uki, k}, []string{"a.efi", "a.efi.extra.d/x.addon.efi", "g.addon.efi"}, []string{"6.1"}},
		{"Type 1 goes first", []image{uki, k, bls}, []string{"a.conf"}, []string{"a.efi", "a.efi.extra.d/x.addon.efi", "g.addon.efi", "6.1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all := image{}
			for _, i := range tt.images {
				for name, content := range i {
					all[name] = content
				}
			}
			root, store := makeTree(t, all)
			entries, err := Find(root, store)
			if err != nil {
				t.Fatal(err)
			}
			chosen, skipped := Choose(entries)
			var c, s []string
			for _, e := range chosen {
				c = append(c, e.Name)
			}
			for _, e := range skipped {
				s = append(s, e.Entry.Name)
			}
			if diff := cmp.Diff([][]string{tt.chosen, tt.skipped}, [][]string{c, s}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestOpenNodeBounds(t *testing.T) {
	for name, n := range map[string]*tree.Node{
		"directory":       tree.NewDirectory(),
		"size of 2^63":    {Kind: tree.Regular, Size: 1 << 63},
		"size of nothing": {Kind: tree.Regular, Size: 10},
		"no source":       {Kind: tree.Regular, Size: 10, Object: digest(t, hex512("a"))},
	} {
		if r, _, err := openNode(nil, n); err == nil {
			t.Errorf("%s: opened %v", name, r)
		}
	}
}
