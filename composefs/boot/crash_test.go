// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// memInode is a file or directory of memOps, as processes see it and as it is
// on disk.
type memInode struct {
	dir           bool
	data, synced  []byte
	names, onDisk map[string]*memInode
}

func newMemDir() *memInode {
	return &memInode{dir: true, names: map[string]*memInode{}, onDisk: map[string]*memInode{}}
}

// memOps is a file system in memory that keeps apart what is written and what
// is on disk, and that fails at a chosen operation.
type memOps struct {
	root *memInode
	ops  int // operations that changed something so far
	// failAt is the number of the operation that fails; 0 is none. With crash,
	// none works afterwards.
	failAt int
	crash  bool
	failed bool
}

// step counts an operation that changes something.
func (m *memOps) step() error {
	if m.crash && m.failed {
		return errFault
	}
	if m.ops++; m.ops == m.failAt {
		m.failed = true
		return errFault
	}
	return nil
}

// find is the inode of a name, or nil.
func (m *memOps) find(name string) *memInode {
	n := m.root
	if name == "." {
		return n
	}
	for part := range strings.SplitSeq(name, "/") {
		if n == nil || !n.dir {
			return nil
		}
		n = n.names[part]
	}
	return n
}

type memInfo struct {
	name string
	n    *memInode
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return int64(len(i.n.data)) }
func (i memInfo) ModTime() time.Time { return time.Time{} }
func (i memInfo) IsDir() bool        { return i.n.dir }
func (i memInfo) Sys() any           { return nil }
func (i memInfo) Mode() fs.FileMode {
	if i.n.dir {
		return fs.ModeDir | 0o755
	}
	return 0o644
}

func (m *memOps) Lstat(name string) (fs.FileInfo, error) {
	n := m.find(name)
	if n == nil {
		return nil, fs.ErrNotExist
	}
	return memInfo{path.Base(name), n}, nil
}

func (m *memOps) Open(name string) (io.ReadCloser, error) {
	n := m.find(name)
	if n == nil || n.dir {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(n.data)), nil
}

func (m *memOps) ReadDir(name string) ([]fs.DirEntry, error) {
	n := m.find(name)
	if n == nil || !n.dir {
		return nil, fs.ErrNotExist
	}
	var entries []fs.DirEntry
	for _, name := range slices.Sorted(maps.Keys(n.names)) {
		entries = append(entries, fs.FileInfoToDirEntry(memInfo{name, n.names[name]}))
	}
	return entries, nil
}

// add makes a new name.
func (m *memOps) add(name string, n *memInode) error {
	if err := m.step(); err != nil {
		return err
	}
	parent := m.find(path.Dir(name))
	if parent == nil || !parent.dir {
		return fs.ErrNotExist
	}
	if parent.names[path.Base(name)] != nil {
		return fs.ErrExist
	}
	parent.names[path.Base(name)] = n
	return nil
}

func (m *memOps) Mkdir(name string) error { return m.add(name, newMemDir()) }

func (m *memOps) Create(name string, _ fs.FileMode) (writeFile, error) {
	n := &memInode{}
	if err := m.add(name, n); err != nil {
		return nil, err
	}
	return &memFile{m, n}, nil
}

func (m *memOps) Rename(from, to string) error {
	if err := m.step(); err != nil {
		return err
	}
	n, old := m.find(from), m.find(to)
	if n == nil || m.find(path.Dir(to)) == nil {
		return fs.ErrNotExist
	}
	if old != nil && (old.dir != n.dir || old.dir && len(old.names) > 0) {
		return fs.ErrExist
	}
	delete(m.find(path.Dir(from)).names, path.Base(from))
	m.find(path.Dir(to)).names[path.Base(to)] = n
	return nil
}

func (m *memOps) RemoveAll(name string) error {
	if err := m.step(); err != nil {
		return err
	}
	if parent := m.find(path.Dir(name)); parent != nil {
		delete(parent.names, path.Base(name))
	}
	return nil
}

func (m *memOps) Sync(name string) error {
	if err := m.step(); err != nil {
		return err
	}
	n := m.find(name)
	if n == nil {
		return fs.ErrNotExist
	}
	n.synced = bytes.Clone(n.data)
	n.onDisk = maps.Clone(n.names)
	return nil
}

type memFile struct {
	m *memOps
	n *memInode
}

func (f *memFile) Write(p []byte) (int, error) {
	if err := f.m.step(); err != nil {
		f.n.data = append(f.n.data, p[:len(p)/2]...)
		return len(p) / 2, err
	}
	f.n.data = append(f.n.data, p...)
	return len(p), nil
}

func (f *memFile) Sync() error {
	if err := f.m.step(); err != nil {
		return err
	}
	f.n.synced = bytes.Clone(f.n.data)
	return nil
}

func (f *memFile) Close() error { return nil }

// afterPowerCut is a state that the disk may be in: of everything that was not
// synced, any part may or may not have reached it.
func (m *memOps) afterPowerCut(r *rand.Rand) *memOps {
	var copyInode func(n *memInode) *memInode
	copyInode = func(n *memInode) *memInode {
		if !n.dir {
			data := n.synced
			switch {
			case bytes.Equal(n.data, n.synced):
			case r.IntN(3) == 0:
				data = n.data
			case r.IntN(2) == 0:
				data = n.data[:r.IntN(len(n.data)+1)]
			}
			return &memInode{data: bytes.Clone(data), synced: bytes.Clone(data)}
		}
		d := newMemDir()
		all := maps.Clone(n.names)
		maps.Copy(all, n.onDisk)
		for _, name := range slices.Sorted(maps.Keys(all)) {
			child := n.names[name]
			if old := n.onDisk[name]; old != child && r.IntN(2) == 0 {
				child = old
			}
			if child != nil {
				d.names[name] = copyInode(child)
			}
		}
		d.onDisk = maps.Clone(d.names)
		return d
	}
	return &memOps{root: copyInode(m.root)}
}

// list is every file with its content.
func (m *memOps) list() map[string]string {
	files := map[string]string{}
	var walk func(at string, n *memInode)
	walk = func(at string, n *memInode) {
		for name, child := range n.names {
			if child.dir {
				walk(path.Join(at, name), child)
			} else {
				files[path.Join(at, name)] = string(child.data)
			}
		}
	}
	walk("", m.root)
	return files
}

// scenario is an export onto what earlier exports left.
type scenario struct {
	name string
	// before and after are images by their id.
	before []string
	after  string
	images map[string]image
	addons []string
	// kernelDir is where kernels go.
	kernelDir string
	// damage changes what the earlier exports left.
	damage func(m *memOps)
}

// run exports the image of that id.
func (s *scenario) run(tb testing.TB, m *memOps, id string) error {
	tb.Helper()
	entries, store := find(tb, s.images[id])
	chosen, _ := Choose(entries)
	_, err := export(tb.Context(), m, chosen, ExportOptions{
		Content: store, Candidates: candidates(tb, id), Addons: s.addons, KernelDir: s.kernelDir,
	})
	return err
}

// start is the state before the export.
func (s *scenario) start(tb testing.TB) *memOps {
	tb.Helper()
	m := &memOps{root: newMemDir()}
	for _, id := range s.before {
		if err := s.run(tb, m, id); err != nil {
			tb.Fatal(err)
		}
	}
	if s.damage != nil {
		s.damage(m)
	}
	m.ops = 0
	return m
}

// check tells what is wrong with a state after a crash: every loader entry
// must start its image with exactly the image's files, and what could be
// started before must still be.
func (s *scenario) check(tb testing.TB, m *memOps) error {
	tb.Helper()
	files := m.list()
	starts := map[string]bool{}
	for name, text := range files {
		if !strings.HasPrefix(name, exportConfDir+"/") || !strings.HasSuffix(name, confSuffix) {
			continue
		}
		c := parse(tb, text)
		id := namedImage(c).String()
		img, ok := s.images[id]
		if !ok {
			return fmt.Errorf("%s names image %q:\n%s", name, id, text)
		}
		want := map[string]string{}
		for file, content := range img {
			switch path.Base(file) {
			case "vmlinuz":
				want["linux"] = content
			case "initramfs.img":
				want["initrd"] = content
			case "ex.efi":
				want["efi"] = content
			}
		}
		for key, content := range want {
			value, ok := c.Value(key)
			if !ok || files[strings.TrimPrefix(value, "/")] != content {
				return fmt.Errorf("%s: %s %q has not the content of image %.4s", name, key, value, id)
			}
		}
		starts[id] = true
	}
	if n := len(s.before); n > 0 && !starts[s.before[n-1]] {
		return fmt.Errorf("image %.4s can no longer be started", s.before[n-1])
	}
	return nil
}

func TestExportSurvivesCrashes(t *testing.T) {
	a, b, c := hex512("a"), hex512("b"), hex512("c")
	uki := func(id string) image {
		return image{
			"boot/EFI/Linux/ex.efi":                      ukiBuild("composefs=" + id),
			"boot/EFI/Linux/ex.efi.extra.d/x.addon.efi":  peBuild(".cmdline", "x"),
			"boot/loader/addons/g.addon.efi":             peBuild(".cmdline", "g"),
			"boot/EFI/Linux/ex.efi.extra.d/no.addon.efi": peBuild(".cmdline", "no"),
		}
	}
	for _, s := range []scenario{
		{name: "first", after: a, images: map[string]image{a: kernelImage("k")}},
		{name: "again", before: []string{a}, after: a, images: map[string]image{a: kernelImage("k")}},
		{name: "update with the same kernel", before: []string{a}, after: b,
			images: map[string]image{a: kernelImage("k"), b: kernelImage("k")}},
		{name: "update with another kernel", before: []string{a, b}, after: c,
			images: map[string]image{a: kernelImage("1"), b: kernelImage("2"), c: kernelImage("3")}},
		{name: "first on the EFI system partition", after: a, kernelDir: "EFI/Linux", images: map[string]image{a: kernelImage("k")}},
		{name: "back to the older", before: []string{a, b}, after: a,
			images: map[string]image{a: kernelImage("1"), b: kernelImage("2")}},
		{name: "directory without initrd", before: []string{a}, after: b,
			images: map[string]image{a: kernelImage("1"), b: kernelImage("2")},
			damage: func(m *memOps) {
				d := newMemDir()
				d.names[kernelName] = &memInode{data: []byte("half"), synced: []byte("half")}
				d.onDisk = maps.Clone(d.names)
				m.root.names[artifactPrefix+b] = d
				m.root.onDisk[artifactPrefix+b] = d
			}},
		{name: "first UKI", after: a, images: map[string]image{a: uki(a)}, addons: []string{"x", "g"}},
		{name: "update of a UKI", before: []string{a}, after: b, images: map[string]image{a: uki(a), b: uki(b)}, addons: []string{"x", "g"}},
	} {
		t.Run(s.name, func(t *testing.T) {
			whole := s.start(t)
			if err := s.run(t, whole, s.after); err != nil {
				t.Fatal(err)
			}
			want := whole.list()
			if err := s.check(t, whole); err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(1, 2))
			if whole.ops < 5 {
				t.Fatalf("only %d operations", whole.ops)
			}
			for at := 1; at <= whole.ops+1; at++ {
				m := s.start(t)
				m.failAt, m.crash = at, true
				err := s.run(t, m, s.after)
				if errors.Is(err, errFault) != (at <= whole.ops) {
					t.Fatalf("operation %d of %d failed: error %v", at, whole.ops, err)
				}
				// Only the process dies: what it wrote without syncing is
				// found by the second run, and must be on disk after that.
				again := s.start(t)
				again.failAt, again.crash = at, true
				_ = s.run(t, again, s.after) // fails as above
				again.failAt, again.failed = 0, false
				if err := s.run(t, again, s.after); err != nil {
					t.Fatalf("export after a crash at operation %d: %v", at, err)
				}
				for range 4 {
					if diff := cmp.Diff(want, again.afterPowerCut(r).list()); diff != "" {
						t.Fatalf("crash at operation %d of %d, second run, power cut (-want +got):\n%s", at, whole.ops, diff)
					}
				}
				for range 8 {
					left := m.afterPowerCut(r)
					if err := s.check(t, left); err != nil {
						t.Fatalf("power cut at operation %d of %d: %v", at, whole.ops, err)
					}
					if err := s.run(t, left, s.after); err != nil {
						t.Fatalf("export after a power cut at operation %d: %v", at, err)
					}
					if diff := cmp.Diff(want, left.list()); diff != "" {
						t.Fatalf("power cut at operation %d of %d, second run (-want +got):\n%s", at, whole.ops, diff)
					}
				}
			}
		})
	}
}

// The default entry is the last to appear, so that a boot loader that shows it
// shows all.
func TestExportDefaultEntryLast(t *testing.T) {
	a := hex512("a")
	files := kernelImage("k")
	files["usr/lib/modules/6.9/vmlinuz"] = big("nine", 100)
	files["usr/lib/modules/6.9/initramfs.img"] = big("nine i", 100)
	s := scenario{after: a, images: map[string]image{a: files}}
	whole := s.start(t)
	if err := s.run(t, whole, a); err != nil {
		t.Fatal(err)
	}
	partial := false
	for at := 1; at <= whole.ops; at++ {
		m := s.start(t)
		m.failAt, m.crash = at, true
		_ = s.run(t, m, a) // fails
		left := m.list()
		_, first := left[exportConfDir+"/bootc_example_os-42-1.conf"]
		_, second := left[exportConfDir+"/bootc_example_os-42-0_6.9.conf"]
		if first && !second {
			t.Errorf("crash at operation %d: the default entry is there without the other", at)
		}
		partial = partial || second && !first
	}
	if !partial {
		t.Error("never was only the second entry there")
	}
}

// A fault that is no crash, such as a full disk, leaves no rubbish behind.
func TestExportCleansUpAfterFaults(t *testing.T) {
	a, b := hex512("a"), hex512("b")
	s := scenario{before: []string{a}, after: b, images: map[string]image{a: kernelImage("1"), b: kernelImage("2")}}
	whole := s.start(t)
	if err := s.run(t, whole, s.after); err != nil {
		t.Fatal(err)
	}
	for at := 1; at <= whole.ops; at++ {
		m := s.start(t)
		m.failAt = at
		if err := s.run(t, m, s.after); !errors.Is(err, errFault) {
			t.Fatalf("operation %d failed: error %v", at, err)
		}
		if err := s.check(t, m); err != nil {
			t.Errorf("fault at operation %d: %v", at, err)
		}
		for name := range m.list() {
			if strings.Contains(name, tempPrefix) {
				t.Errorf("fault at operation %d left %s", at, name)
			}
		}
	}
}

// loaderView is what a boot loader makes of an entry: it strips lines, takes
// carriage returns for line ends, the last kernel for the kernel, and all
// options together.
func loaderView(text string) (linux string, initrds, options []string) {
	for _, line := range strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }) {
		line = strings.Trim(line, " \t\v\f")
		i := strings.IndexAny(line, " \t\v\f")
		if i < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		value := strings.Trim(line[i:], " \t\v\f")
		switch line[:i] {
		case "linux":
			linux = value
		case "initrd":
			initrds = append(initrds, value)
		case "options":
			options = append(options, value)
		}
	}
	return linux, initrds, options
}

// Whatever a Type 1 entry of an image says, once exported it starts the
// exported files and no others, with one composefs argument.
func FuzzExportConf(f *testing.F) {
	f.Add("title Example\nversion 1\nlinux /k\ninitrd /i\noptions a \"b c\" composefs=x\nsort-key ex\n")
	f.Add("linux k\r\ninitrd\t/i\noptions\n options x\n")
	f.Add("linux /k\ninitrd /i\nlinux\v/x\n\u00a0linux /x\ninitrd /i\noptions a\noptions b\noptions composefs.digest=v1\n")
	id := digest(f, hex512("a"))
	f.Fuzz(func(t *testing.T, text string) {
		root, store := makeTree(t, image{"boot/loader/entries/a.conf": text, "k": "kernel", "i": "initrd"})
		entries, err := Find(root, store)
		if err != nil {
			return
		}
		m := &memOps{root: newMemDir()}
		result, err := export(t.Context(), m, entries, ExportOptions{
			Content: store, Candidates: []Candidate{{ID: id}}, ExtraKargs: []string{"extra=1"}, EntryID: "e",
		})
		if err != nil {
			if files := m.list(); len(files) != 0 {
				t.Fatalf("refused with %v, but wrote %q", err, files)
			}
			return
		}
		files := m.list()
		got := files[result.Entries[0].LoaderEntry]
		linux, initrds, options := loaderView(got)
		if linux != "/"+result.Entries[0].Files[0] || len(initrds) == 0 {
			t.Fatalf("%q becomes %q: kernel %q, initrds %q", text, got, linux, initrds)
		}
		for _, i := range initrds {
			// The image's file may be the kernel; what counts is that it is
			// one of ours.
			if _, ok := files[strings.TrimPrefix(i, "/")]; !ok || !strings.HasPrefix(i, "/"+artifactPrefix) {
				t.Fatalf("%q becomes %q: initrd %q", text, got, i)
			}
		}
		count, extra := 0, 0
		for arg := range Args(strings.Join(options, " ")) {
			if isKarg(arg) {
				count++
			}
			if arg == "extra=1" {
				extra++
			}
		}
		if count != 1 || extra == 0 || len(options) != 1 || !strings.Contains(options[0], "composefs="+id.String()) {
			t.Fatalf("%q becomes %q: options %q", text, got, options)
		}
	})
}
