// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/erofs"
)

// find is Find that must succeed.
func find(tb testing.TB, files image) ([]Entry, objects) {
	tb.Helper()
	root, store := makeTree(tb, files)
	entries, err := Find(root, store)
	if err != nil {
		tb.Fatal(err)
	}
	return entries, store
}

// kernelImage is an image with one kernel and version 42.
func kernelImage(kernel string) image {
	return image{
		"usr/lib/modules/6.13-1/vmlinuz":       big(kernel, 9000),
		"usr/lib/modules/6.13-1/initramfs.img": big(kernel+" initrd", 12000),
		"usr/lib/os-release":                   testOSRelease,
	}
}

func mustExport(tb testing.TB, dir string, files image, o ExportOptions) *ExportResult {
	tb.Helper()
	entries, store := find(tb, files)
	chosen, _ := Choose(entries)
	o.Content = store
	result, err := Export(tb.Context(), dir, chosen, o)
	if err != nil {
		tb.Fatal(err)
	}
	return result
}

// checkLoaderEntries is what must hold after every export and every crash:
// each loader entry names files that exist, and each directory with a kernel
// has an initrd, as bootc takes that for granted.
func checkLoaderEntries(tb testing.TB, dir, prefix string) {
	tb.Helper()
	confs, err := filepath.Glob(filepath.Join(dir, "loader/entries/*.conf"))
	if err != nil {
		tb.Fatal(err)
	}
	for _, conf := range confs {
		text, err := os.ReadFile(conf)
		if err != nil {
			tb.Fatal(err)
		}
		c := parse(tb, string(text))
		if namedImage(c).IsZero() {
			tb.Errorf("%s names no image:\n%s", conf, c)
		}
		named := 0
		for _, key := range []string{"linux", "initrd", "efi", "uki"} {
			for _, value := range c.Values(key) {
				named++
				name, ok := strings.CutPrefix(value, prefix)
				info, err := os.Stat(filepath.Join(dir, name))
				if !ok || err != nil || info.Size() == 0 {
					tb.Errorf("%s names %s %s: %v", conf, key, value, err)
				}
			}
		}
		if named == 0 {
			tb.Errorf("%s starts nothing:\n%s", conf, c)
		}
	}
	kernels, err := filepath.Glob(filepath.Join(dir, artifactPrefix+"*"))
	if err != nil {
		tb.Fatal(err)
	}
	for _, d := range kernels {
		for _, name := range []string{kernelName, initrdName} {
			if _, err := os.Stat(filepath.Join(d, name)); err != nil {
				tb.Errorf("incomplete directory: %v", err)
			}
		}
	}
}

func TestExportKernel(t *testing.T) {
	a := hex512("a")
	dir := t.TempDir()
	files := kernelImage("k")
	result := mustExport(t, dir, files, ExportOptions{Candidates: candidates(t, a), ExtraKargs: []string{"root=UUID=1", "rw"}})
	checkLoaderEntries(t, dir, "/")
	want := map[string]string{
		"bootc_composefs-" + a + "/vmlinuz": files["usr/lib/modules/6.13-1/vmlinuz"],
		"bootc_composefs-" + a + "/initrd":  files["usr/lib/modules/6.13-1/initramfs.img"],
		"loader/entries/bootc_example_os-42-1.conf": "title Example OS 42\n" +
			"version 42\n" +
			"linux /bootc_composefs-" + a + "/vmlinuz\n" +
			"initrd /bootc_composefs-" + a + "/initrd\n" +
			"options composefs=" + a + " root=UUID=1 rw\n" +
			"sort-key bootc-example-os-0\n",
	}
	if diff := cmp.Diff(want, listing(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	got := result.Entries[0]
	if len(result.Entries) != 1 || !got.Changed || got.Shared || got.Insecure || got.ID != digest(t, a) ||
		got.BootDigest != sum256(want["bootc_composefs-"+a+"/vmlinuz"], want["bootc_composefs-"+a+"/initrd"]) ||
		got.LoaderEntry != "loader/entries/bootc_example_os-42-1.conf" || len(got.Files) != 2 {
		t.Errorf("result %+v", result)
	}
	for _, f := range append(got.Files, got.LoaderEntry) {
		if _, ok := want[f]; !ok {
			t.Errorf("result names %s", f)
		}
	}
	sum, err := HashBootDir(t.Context(), filepath.Join(dir, "bootc_composefs-"+a))
	if err != nil || sum != got.BootDigest {
		t.Errorf("HashBootDir: %q, %v", sum, err)
	}
}

func TestExportOptions(t *testing.T) {
	a, s := hex512("a"), hex256("5")
	for _, tt := range []struct {
		name string
		o    ExportOptions
		conf string // name of the loader entry
		line string // that it has
	}{
		{"insecure", ExportOptions{Candidates: candidates(t, a), Insecure: true},
			"bootc_example_os-42-1.conf", "options composefs=?" + a},
		{"digest style", ExportOptions{Candidates: candidates(t, a), Style: KargDigest},
			"bootc_example_os-42-1.conf", "options composefs.digest=v1-sha512-12:" + a},
		{"digest style V0 sha256 insecure", ExportOptions{Candidates: []Candidate{{ID: digest(t, s), Version: erofs.V0}}, Style: KargDigest, Insecure: true},
			"bootc_example_os-42-1.conf", "options composefs.digest=?v1-sha256-12:" + s},
		{"digest style V2", ExportOptions{Candidates: []Candidate{{ID: digest(t, a), Version: erofs.V2}}, Style: KargDigest},
			"bootc_example_os-42-1.conf", "options composefs=" + a},
		{"entry id", ExportOptions{Candidates: candidates(t, a), EntryID: "my-entry"},
			"my-entry.conf", "sort-key bootc-example-os-0"},
		{"boot in the root file system", ExportOptions{Candidates: candidates(t, a), PathPrefix: "/boot"},
			"bootc_example_os-42-1.conf", "linux /boot/bootc_composefs-" + a + "/vmlinuz"},
		{"EFI system partition", ExportOptions{Candidates: candidates(t, a), KernelDir: "EFI/Linux"},
			"bootc_example_os-42-1.conf", "initrd /EFI/Linux/bootc_composefs-" + a + "/initrd"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			mustExport(t, dir, kernelImage("k"), tt.o)
			text := listing(t, dir)["loader/entries/"+tt.conf]
			if !slices.Contains(strings.Split(text, "\n"), tt.line) {
				t.Errorf("no line %q in:\n%s\nfiles: %q", tt.line, text, slices.Collect(maps.Keys(listing(t, dir))))
			}
			checkLoaderEntries(t, dir, tt.o.PathPrefix+"/")
		})
	}
}

func TestExportDescribes(t *testing.T) {
	a := hex512("a")
	for _, tt := range []struct{ name, osRelease, conf, title, version, sort string }{
		{"no os-release", "", "bootc_bootc-" + a + "-1.conf", a, a, "bootc-bootc-0"},
		{"no version", "ID=x\n", "bootc_x-" + a + "-1.conf", "x", a, "bootc-x-0"},
		{"not UTF-8", "ID=\xff\n", "bootc_bootc-" + a + "-1.conf", a, a, "bootc-bootc-0"},
		{"hyphens", "ID=a-b-c\nVERSION_ID=1-2\n", "bootc_a_b_c-1-2-1.conf", "a-b-c", "1-2", "bootc-a-b-c-0"},
		{"slashes", "ID=../../x\nVERSION_ID=/etc\n", "bootc_.._.._x-_etc-1.conf", "../../x", "/etc", "bootc-../../x-0"},
		{"control characters", "ID=\"\x01\"\nVERSION_ID=\"1\r2\x1b\"\n", "bootc_bootc-1 2-1.conf", a, "1 2", "bootc-bootc-0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			files := kernelImage("k")
			delete(files, "usr/lib/os-release")
			if tt.osRelease != "" {
				files["usr/lib/os-release"] = tt.osRelease
			}
			mustExport(t, dir, files, ExportOptions{Candidates: candidates(t, a)})
			text, ok := listing(t, dir)["loader/entries/"+tt.conf]
			if !ok {
				t.Fatalf("files: %q", slices.Collect(maps.Keys(listing(t, dir))))
			}
			c := parse(t, text)
			title, _ := c.Value("title")
			version, _ := c.Value("version")
			sort, _ := c.Value("sort-key")
			if title != tt.title || version != tt.version || sort != tt.sort {
				t.Errorf("got:\n%s", text)
			}
		})
	}
}

func TestExportTwiceWritesNothing(t *testing.T) {
	dir := t.TempDir()
	o := ExportOptions{Candidates: candidates(t, hex512("a"))}
	mustExport(t, dir, kernelImage("k"), o)
	old := time.Unix(1000000000, 0)
	before := listing(t, dir)
	for name := range before {
		if err := os.Chtimes(filepath.Join(dir, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	result := mustExport(t, dir, kernelImage("k"), o)
	if result.Entries[0].Changed || result.Entries[0].Shared {
		t.Errorf("result %+v", result.Entries[0])
	}
	for name := range before {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || !info.ModTime().Equal(old) {
			t.Errorf("%s was written again (%v)", name, err)
		}
	}
	if diff := cmp.Diff(before, listing(t, dir)); diff != "" {
		t.Errorf("(-first +second):\n%s", diff)
	}
	// With other arguments only the loader entry changes, and it stays the
	// one entry of this image.
	o.ExtraKargs = []string{"quiet"}
	result = mustExport(t, dir, kernelImage("k"), o)
	if !result.Entries[0].Changed || result.Demoted != "" || len(listing(t, dir)) != 3 {
		t.Errorf("result %+v, files %d", result, len(listing(t, dir)))
	}
}

// An update with the same kernel refers to the files that are there; one with
// another kernel gets its own. The older image's entry is kept in both.
func TestExportUpdate(t *testing.T) {
	a, b, c := hex512("a"), hex512("b"), hex512("c")
	dir := t.TempDir()
	mustExport(t, dir, kernelImage("k"), ExportOptions{Candidates: candidates(t, a)})
	first := listing(t, dir)["loader/entries/bootc_example_os-42-1.conf"]

	result := mustExport(t, dir, kernelImage("k"), ExportOptions{Candidates: candidates(t, b)})
	checkLoaderEntries(t, dir, "/")
	if e := result.Entries[0]; !e.Shared || e.Files[0] != "bootc_composefs-"+a+"/vmlinuz" || !e.Changed {
		t.Errorf("result %+v", e)
	}
	if result.Demoted != "loader/entries/bootc_example_os-42-0.conf" {
		t.Errorf("demoted %q", result.Demoted)
	}
	files := listing(t, dir)
	if len(files) != 4 {
		t.Errorf("%d files", len(files))
	}
	if got, want := files[result.Demoted], strings.Replace(first, "example-os-0", "example-os-1", 1); got != want {
		t.Errorf("demoted entry is\n%s\nwant\n%s", got, want)
	}
	if got := files["loader/entries/bootc_example_os-42-1.conf"]; !strings.Contains(got, "composefs="+b) || !strings.Contains(got, "linux /bootc_composefs-"+a+"/") {
		t.Errorf("new entry is\n%s", got)
	}

	result = mustExport(t, dir, kernelImage("other"), ExportOptions{Candidates: candidates(t, c)})
	checkLoaderEntries(t, dir, "/")
	files = listing(t, dir)
	if e := result.Entries[0]; e.Shared || e.Files[0] != "bootc_composefs-"+c+"/vmlinuz" || len(files) != 6 {
		t.Errorf("result %+v, %d files", e, len(files))
	}
	if !strings.Contains(files["loader/entries/bootc_example_os-42-0.conf"], "composefs="+b) {
		t.Errorf("secondary entry is\n%s", files["loader/entries/bootc_example_os-42-0.conf"])
	}
}

func TestExportKeepsRunningImage(t *testing.T) {
	a, b, c := hex512("a"), hex512("b"), hex512("c")
	for _, tt := range []struct{ name, keep, secondary string }{
		{"nothing known", "", b},
		{"the default runs", b, b},
		{"the secondary runs", a, a},
		{"something else runs", hex512("d"), b},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			o := ExportOptions{}
			if tt.keep != "" {
				o.Keep = digest(t, tt.keep)
			}
			for _, id := range []string{a, b, c} {
				o.Candidates = candidates(t, id)
				mustExport(t, dir, kernelImage(id), o)
				checkLoaderEntries(t, dir, "/")
			}
			files := listing(t, dir)
			if got := files["loader/entries/bootc_example_os-42-1.conf"]; !strings.Contains(got, "composefs="+c) {
				t.Errorf("default entry is\n%s", got)
			}
			if got := files["loader/entries/bootc_example_os-42-0.conf"]; !strings.Contains(got, "composefs="+tt.secondary) {
				t.Errorf("secondary entry is\n%s\nwant %s", got, tt.secondary)
			}
		})
	}
}

// A directory of the right name whose files are others is never touched while
// an entry may start it.
func TestExportExistingDirectory(t *testing.T) {
	a := hex512("a")
	name := "bootc_composefs-" + a
	files := kernelImage("k")
	kernel, initrd := files["usr/lib/modules/6.13-1/vmlinuz"], files["usr/lib/modules/6.13-1/initramfs.img"]
	for _, tt := range []struct {
		name    string
		has     map[string]string
		want    string // directory that is used
		changed bool
	}{
		{"complete", map[string]string{kernelName: kernel, initrdName: initrd}, name, false},
		{"with something else", map[string]string{kernelName: kernel, initrdName: initrd, "x": "x"}, name, false},
		{"empty", map[string]string{}, name, true},
		{"kernel only", map[string]string{kernelName: kernel}, name, true},
		{"kernel only, truncated", map[string]string{kernelName: kernel[:100]}, name, true},
		{"initrd only", map[string]string{initrdName: initrd}, name, true},
		{"other initrd", map[string]string{kernelName: kernel, initrdName: "other"}, name + "_1", true},
		{"other kernel of that size", map[string]string{kernelName: big("x", len(kernel)), initrdName: initrd}, name + "_1", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
			for n, content := range tt.has {
				if err := os.WriteFile(filepath.Join(dir, name, n), []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				result := mustExport(t, dir, files, ExportOptions{Candidates: candidates(t, a)})
				if e := result.Entries[0]; e.Files[0] != tt.want+"/vmlinuz" || e.Shared {
					t.Errorf("result %+v", e)
				}
			}
			checkLoaderEntries(t, dir, "/")
			got := listing(t, dir)
			if got[tt.want+"/vmlinuz"] != kernel || got[tt.want+"/initrd"] != initrd {
				t.Errorf("%s has other content", tt.want)
			}
			if tt.want != name {
				for n, content := range tt.has {
					if got[name+"/"+n] != content {
						t.Errorf("%s/%s was changed", name, n)
					}
				}
			}
			if tt.changed == (len(got) == len(tt.has)+1) {
				t.Errorf("files: %q", slices.Sorted(maps.Keys(got)))
			}
		})
	}
}

func TestExportBLS(t *testing.T) {
	a := hex512("a")
	files := image{
		"boot/loader/entries/a.conf": "title Example\r\n# comment\nversion 1\nlinux /boot/k\ninitrd  /boot/ucode\ninitrd\t/boot/i\n" +
			"options root=UUID=1 composefs=" + hex512("b") + "\nmachine-id 0\noptions \tquiet x=\"a b\"\nsort-key ex\ninitrd /boot/ucode\n",
		"boot/k": big("k", 100), "boot/i": big("i", 200), "boot/ucode": big("u", 300),
		"usr/lib/os-release": testOSRelease,
	}
	dir := t.TempDir()
	result := mustExport(t, dir, files, ExportOptions{Candidates: candidates(t, a), ExtraKargs: []string{"x=1", "ro"}})
	checkLoaderEntries(t, dir, "/")
	d := "bootc_composefs-" + a
	want := map[string]string{
		d + "/vmlinuz": files["boot/k"], d + "/initrd": files["boot/ucode"], d + "/initrd-2": files["boot/i"],
		"loader/entries/bootc_example_os-42-1.conf": "title Example\n# comment\nversion 1\nlinux /" + d + "/vmlinuz\n" +
			"initrd /" + d + "/initrd\ninitrd /" + d + "/initrd-2\n" +
			"options root=UUID=1 quiet x=1 composefs=" + a + " ro\nmachine-id 0\nsort-key bootc-example-os-0\ninitrd /" + d + "/initrd\n",
	}
	if diff := cmp.Diff(want, listing(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if got := result.Entries[0].BootDigest; got != sum256(files["boot/k"], files["boot/ucode"], files["boot/i"], files["boot/ucode"]) {
		t.Errorf("boot digest %s", got)
	}
	if again := mustExport(t, dir, files, ExportOptions{Candidates: candidates(t, a), ExtraKargs: []string{"x=1", "ro"}}); again.Entries[0].Changed {
		t.Error("a second run wrote something")
	}

	// What the entry does not say comes from os-release.
	files["boot/loader/entries/a.conf"] = "linux /boot/k\ninitrd /boot/i\n"
	dir = t.TempDir()
	mustExport(t, dir, files, ExportOptions{Candidates: candidates(t, a)})
	text := listing(t, dir)["loader/entries/bootc_example_os-42-1.conf"]
	if wantText := "linux /" + d + "/vmlinuz\ninitrd /" + d + "/initrd\nversion 42\ntitle Example OS 42\noptions composefs=" + a + "\nsort-key bootc-example-os-0\n"; text != wantText {
		t.Errorf("got\n%s\nwant\n%s", text, wantText)
	}
}

func TestExportSeveralKernels(t *testing.T) {
	a := hex512("a")
	files := kernelImage("k")
	files["usr/lib/modules/6.9/vmlinuz"] = big("nine", 100)
	files["usr/lib/modules/6.9/initramfs.img"] = big("nine i", 100)
	files["usr/lib/modules/6.13-2/vmlinuz"] = files["usr/lib/modules/6.13-1/vmlinuz"]
	files["usr/lib/modules/6.13-2/initramfs.img"] = files["usr/lib/modules/6.13-1/initramfs.img"]
	dir := t.TempDir()
	result := mustExport(t, dir, files, ExportOptions{Candidates: candidates(t, a)})
	checkLoaderEntries(t, dir, "/")
	got := listing(t, dir)
	want := []string{
		"bootc_composefs-" + a + "/initrd", "bootc_composefs-" + a + "/vmlinuz",
		"bootc_composefs-" + a + "_6.9/initrd", "bootc_composefs-" + a + "_6.9/vmlinuz",
		"loader/entries/bootc_example_os-42-0_6.13_2.conf",
		"loader/entries/bootc_example_os-42-0_6.9.conf",
		"loader/entries/bootc_example_os-42-1.conf",
	}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(got))); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if len(result.Entries) != 3 || !result.Entries[1].Shared || result.Entries[2].Shared {
		t.Errorf("result %+v", result.Entries)
	}
	for name, sort := range map[string]string{want[4]: "1", want[5]: "1", want[6]: "0"} {
		if !strings.Contains(got[name], "\nsort-key bootc-example-os-"+sort+"\n") {
			t.Errorf("%s:\n%s", name, got[name])
		}
	}
}

func TestExportUKI(t *testing.T) {
	a, b := hex512("a"), hex512("b")
	uki := ukiBuild("composefs=?" + b)
	con, glob := peBuild(".cmdline", "console=ttyS0"), peBuild(".cmdline", "debug")
	files := image{
		"boot/EFI/Linux/ex.efi":                         uki,
		"boot/EFI/Linux/ex.efi.extra.d/con.addon.efi":   con,
		"boot/EFI/Linux/ex.efi.extra.d/other.addon.efi": glob,
		"boot/EFI/Linux/stray.addon.efi":                con,
		"boot/loader/addons/glob.addon.efi":             glob,
		"boot/loader/addons/nested/glob.addon.efi":      con,
		"usr/lib/modules/6.13/6.13.efi":                 uki,
		"usr/lib/modules/6.13/vmlinuz":                  "k",
		"usr/lib/os-release":                            "ID=wrong\n",
	}
	name := "EFI/Linux/bootc/bootc_composefs-" + b + ".efi"
	conf := "loader/entries/bootc_example_os-42-1.conf"
	text := "title Example OS 42 42\nversion 42\nefi /" + name + "\nsort-key bootc-example-os-0\n"
	for _, tt := range []struct {
		name    string
		o       ExportOptions
		want    map[string]string
		skipped int
	}{
		{"without addons", ExportOptions{}, map[string]string{name: uki, conf: text}, 6},
		{"with one", ExportOptions{Addons: []string{"con"}}, map[string]string{name: uki, conf: text, name + ".extra.d/con.addon.efi": con}, 5},
		{"with all", ExportOptions{Addons: []string{"*"}, UKIKey: "uki", PathPrefix: "/boot"}, map[string]string{name: uki,
			conf:                              strings.Replace(text, "efi /", "uki /boot/", 1),
			name + ".extra.d/con.addon.efi":   con,
			name + ".extra.d/other.addon.efi": glob,
			"loader/addons/glob.addon.efi":    glob,
		}, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			tt.o.Candidates = candidates(t, a, b)
			for i := range 2 {
				result := mustExport(t, dir, files, tt.o)
				if diff := cmp.Diff(tt.want, listing(t, dir)); diff != "" {
					t.Errorf("files (-want +got):\n%s", diff)
				}
				if e := result.Entries[0]; e.ID != digest(t, b) || !e.Insecure || e.Changed != (i == 0) || e.LoaderEntry != conf ||
					e.BootDigest != sum256(big("uki kernel", 5000), big("uki initrd", 7000)) {
					t.Errorf("result %+v", e)
				}
				if len(result.Skipped) != tt.skipped {
					t.Errorf("skipped %+v", result.Skipped)
				}
			}
			checkLoaderEntries(t, dir, tt.o.PathPrefix+"/")
		})
	}
}

func TestExportRefuses(t *testing.T) {
	a := hex512("a")
	kernel := kernelImage("k")
	conf := func(text string) image {
		return image{"boot/loader/entries/a.conf": text, "k": "k", "i": "i"}
	}
	good := ExportOptions{Candidates: candidates(t, a)}
	for _, tt := range []struct {
		name  string
		files image
		o     ExportOptions
		want  string
	}{
		{"no id", kernel, ExportOptions{}, "no image id"},
		{"empty id", kernel, ExportOptions{Candidates: make([]Candidate, 1)}, "empty image id"},
		{"nothing", image{}, good, "no entry"},
		{"no initramfs", image{"usr/lib/modules/6.1/vmlinuz": "k"}, good, "no initramfs"},
		{"whole and broken kernel", image{"usr/lib/modules/6.1/vmlinuz": "k", "usr/lib/modules/6.2/vmlinuz": "k", "usr/lib/modules/6.2/initramfs.img": "i"}, good, "no initramfs"},
		{"entry id that is a path", kernel, ExportOptions{Candidates: good.Candidates, EntryID: "../x"}, "entry id"},
		{"entry id for no FAT", kernel, ExportOptions{Candidates: good.Candidates, EntryID: "a:b"}, "entry id"},
		{"entry id with a control character", kernel, ExportOptions{Candidates: good.Candidates, EntryID: "a\x01b"}, "entry id"},
		{"kernel directory outside", kernel, ExportOptions{Candidates: good.Candidates, KernelDir: "../x"}, "kernel directory"},
		{"absolute kernel directory", kernel, ExportOptions{Candidates: good.Candidates, KernelDir: "/x"}, "kernel directory"},
		{"path prefix with a space", kernel, ExportOptions{Candidates: good.Candidates, PathPrefix: "/a b"}, "path prefix"},
		{"path prefix with a line feed", kernel, ExportOptions{Candidates: good.Candidates, PathPrefix: "/a\nb"}, "path prefix"},
		{"unknown UKI key", kernel, ExportOptions{Candidates: good.Candidates, UKIKey: "linux"}, "for UKIs"},
		{"two arguments in one", kernel, ExportOptions{Candidates: good.Candidates, ExtraKargs: []string{"a b"}}, "more than one"},
		{"argument with a line feed", kernel, ExportOptions{Candidates: good.Candidates, ExtraKargs: []string{"a\nlinux"}}, "bad kernel argument"},
		{"argument that names an image", kernel, ExportOptions{Candidates: good.Candidates, ExtraKargs: []string{"composefs=x"}}, "names an image"},
		{"Type 1 without kernel", conf("title x\n"), good, "no kernel"},
		{"Type 1 without initrd", conf("linux /k\n"), good, "no initramfs"},
		{"Type 1 with two kernels", conf("linux /k\nlinux /i\ninitrd /i\n"), good, "more than one kernel"},
		{"Type 1 with an EFI binary", conf("efi /k\n"), good, "key efi"},
		{"Type 1 with a devicetree", conf("linux /k\ninitrd /i\ndevicetree /x\n"), good, "key devicetree"},
		{"indented line", conf("linux /k\ninitrd /i\n linux /i\n"), good, "white space before"},
		{"carriage return inside", conf("linux /k\ninitrd /i\noptions a\rlinux /i\n"), good, "control character"},
		{"open quote", conf("linux /k\ninitrd /i\noptions a=\"b\n"), good, "not closed"},
		{"UKI with arguments", image{"boot/EFI/Linux/a.efi": ukiBuild("composefs=" + a)}, ExportOptions{Candidates: good.Candidates, ExtraKargs: []string{"a"}}, "cannot be added"},
		{"UKI that is none", image{"boot/EFI/Linux/a.efi": "text"}, good, "not a PE"},
		{"UKI of another image", image{"boot/EFI/Linux/a.efi": ukiBuild("composefs=" + hex512("e"))}, good, "names image"},
		{"addon for another image", image{"boot/EFI/Linux/a.efi": ukiBuild("composefs=" + a),
			"boot/loader/addons/x.addon.efi": peBuild(".cmdline", "composefs="+hex512("e"))},
			ExportOptions{Candidates: good.Candidates, Addons: []string{"x"}}, "names image"},
		{"addon that is none", image{"boot/EFI/Linux/a.efi": ukiBuild("composefs=" + a), "boot/loader/addons/x.addon.efi": "text"},
			ExportOptions{Candidates: good.Candidates, Addons: []string{"x"}}, "not a PE"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			entries, store := find(t, tt.files)
			tt.o.Content = store
			result, err := Export(t.Context(), dir, entries, tt.o)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %+v, error %v; want error with %q", result, err, tt.want)
			}
			if got := listing(t, dir); len(got) != 0 {
				t.Errorf("wrote %q", slices.Collect(maps.Keys(got)))
			}
		})
	}
}

func TestExportErrorsCanBeToldApart(t *testing.T) {
	o := ExportOptions{Candidates: candidates(t, hex512("a"))}
	entries, store := find(t, image{"usr/lib/modules/6.1/vmlinuz": "k"})
	o.Content = store
	if _, err := Export(t.Context(), t.TempDir(), entries, o); !errors.Is(err, ErrNoInitrd) {
		t.Errorf("no initramfs: %v", err)
	}
	entries, store = find(t, image{"boot/EFI/Linux/a.efi": ukiBuild("composefs=" + hex512("e"))})
	o.Content = store
	_, err := Export(t.Context(), t.TempDir(), entries, o)
	var mismatch *MismatchError
	if !errors.As(err, &mismatch) || mismatch.UKI != "/boot/EFI/Linux/a.efi" || mismatch.Found != digest(t, hex512("e")) {
		t.Errorf("mismatch: %+v", err)
	}
	if _, err := Export(t.Context(), filepath.Join(t.TempDir(), "absent"), entries, o); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

func TestExportDamagedObject(t *testing.T) {
	entries, store := find(t, kernelImage("k"))
	for id, data := range store {
		changed := []byte(string(data))
		changed[0] ^= 1
		store[id] = changed
	}
	dir := t.TempDir()
	_, err := Export(t.Context(), dir, entries, ExportOptions{Content: store, Candidates: candidates(t, hex512("a"))})
	if err == nil || len(listing(t, dir)) != 0 {
		t.Errorf("error %v, files %d", err, len(listing(t, dir)))
	}
}

func TestExportCancelled(t *testing.T) {
	entries, store := find(t, kernelImage("k"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	_, err := Export(ctx, dir, entries, ExportOptions{Content: store, Candidates: candidates(t, hex512("a"))})
	if !errors.Is(err, context.Canceled) || len(listing(t, dir)) != 0 {
		t.Errorf("error %v, files %d", err, len(listing(t, dir)))
	}
}

func TestExportLocked(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	lock, err := lockDir(t.Context(), root, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	entries, store := find(t, kernelImage("k"))
	o := ExportOptions{Content: store, Candidates: candidates(t, hex512("a")), LockTimeout: 60 * time.Millisecond}
	if _, err := Export(t.Context(), dir, entries, o); err == nil || !strings.Contains(err.Error(), "another export") {
		t.Errorf("locked: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Export(t.Context(), dir, entries, o); err != nil {
		t.Errorf("unlocked: %v", err)
	}
}

// Links that the directory's owner made are followed, but never outside.
func TestExportStaysInside(t *testing.T) {
	outside := t.TempDir()
	dir := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "loader")); err != nil {
		t.Fatal(err)
	}
	entries, store := find(t, kernelImage("k"))
	if _, err := Export(t.Context(), dir, entries, ExportOptions{Content: store, Candidates: candidates(t, hex512("a"))}); err == nil {
		t.Error("no error for a directory that leads outside")
	}
	if got := listing(t, outside); len(got) != 0 {
		t.Errorf("wrote outside: %d files", len(got))
	}

	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "loader.0"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loader.0", filepath.Join(dir, "loader")); err != nil {
		t.Fatal(err)
	}
	mustExport(t, dir, kernelImage("k"), ExportOptions{Candidates: candidates(t, hex512("a"))})
	if _, err := os.Stat(filepath.Join(dir, "loader.0/entries/bootc_example_os-42-1.conf")); err != nil {
		t.Error(err)
	}
}

func TestExportKeepsPermissions(t *testing.T) {
	entries, store := find(t, kernelImage("k"))
	for _, f := range entries[0].Files {
		if f.Role == RoleInitrd {
			f.Node.Mode = 0o600
		}
	}
	dir := t.TempDir()
	if _, err := Export(t.Context(), dir, entries, ExportOptions{Content: store, Candidates: candidates(t, hex512("a"))}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, artifactPrefix+hex512("a"), initrdName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("initrd: %v, %v", info.Mode(), err)
	}
}
