// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package erofs_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/erofs/internal/erofstest"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// mount mounts an image from a file, which the kernel can since 6.12.
func mount(t *testing.T, image []byte) string {
	t.Helper()
	dir := t.TempDir()
	file, point := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	if err := os.WriteFile(file, image, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(point, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(file, point, "erofs", unix.MS_RDONLY, ""); err != nil {
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOTBLK) || errors.Is(err, unix.EPERM) {
			t.Skipf("the kernel does not mount EROFS images from files: %v", err)
		}
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(point, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return point
}

// TestKernel compares what the kernel shows with the tree.
func TestKernel(t *testing.T) {
	testutil.RequireRoot(t)
	for _, c := range []struct {
		name string
		root *tree.Node
	}{
		{"os", erofstest.OS(1500)},
		{"random", erofstest.Random(rand.New(rand.NewPCG(2, 2)).IntN)},
		{"random2", erofstest.Random(rand.New(rand.NewPCG(8, 2)).IntN)},
	} {
		for _, v := range []erofs.Version{erofs.V1, erofs.V2} {
			t.Run(c.name+"/"+v.String(), func(t *testing.T) {
				k := &kernelCheck{t: t, version: v, inodes: map[*tree.Node]uint64{}, names: map[*tree.Node]uint64{}}
				k.count(c.root)
				k.compare(mount(t, marshal(t, c.root, v)), c.root, true)
			})
		}
	}
}

type kernelCheck struct {
	t       *testing.T
	version erofs.Version
	inodes  map[*tree.Node]uint64 // inode numbers
	names   map[*tree.Node]uint64
}

// count counts names. It also removes access control lists: those of random
// trees are none, and the kernel then refuses the file.
func (k *kernelCheck) count(dir *tree.Node) {
	dir.RemoveXattr("system.posix_acl_access")
	for _, child := range dir.Entries() {
		child.RemoveXattr("system.posix_acl_access")
		if k.names[child]++; child.Kind == tree.Directory {
			k.count(child)
		}
	}
}

func (k *kernelCheck) compare(path string, n *tree.Node, root bool) {
	t := k.t
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Errorf("stat %q: %v", path, err)
		return
	}
	escaped := k.version == erofs.V1 && n.Kind == tree.CharDevice && n.Rdev == 0
	kind, rdev, size := n.Kind, uint64(0), uint64(0)
	switch {
	case escaped:
		kind = tree.Regular
	case n.Kind == tree.Regular:
		size = n.Size
	case n.Kind == tree.Symlink:
		size = uint64(len(n.Target))
	case n.Kind == tree.CharDevice || n.Kind == tree.BlockDevice:
		rdev = n.Rdev
	case n.Kind == tree.Directory:
		size = uint64(st.Size)
	}
	nsec := int64(n.Mtime.Nsec)
	if k.version == erofs.V2 {
		nsec = 0
	}
	type stat struct {
		Mode, UID, GID uint32
		Size, Rdev     uint64
		Sec, Nsec      int64
	}
	want := stat{kind.TypeBits() | n.Mode, n.UID, n.GID, size, rdev, n.Mtime.Sec, nsec}
	got := stat{st.Mode, st.Uid, st.Gid, uint64(st.Size), st.Rdev, st.Mtim.Sec, st.Mtim.Nsec}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stat %q differs (-want +got):\n%s", path, diff)
	}
	if ino, ok := k.inodes[n]; ok && ino != st.Ino {
		t.Errorf("%q is inode %d, another name of it %d", path, st.Ino, ino)
	}
	k.inodes[n] = st.Ino
	if n.Kind != tree.Directory && st.Nlink != k.names[n] {
		t.Errorf("%q has %d links, want %d", path, st.Nlink, k.names[n])
	}
	k.compareAttrs(path, n, escaped, root)
	switch n.Kind {
	case tree.Symlink:
		if target, err := os.Readlink(path); err != nil || target != n.Target {
			t.Errorf("link %q leads to %q (%v), want %q", path, target, err, n.Target)
		}
	case tree.Regular:
		if n.Object.IsZero() {
			if content, err := os.ReadFile(path); err != nil || !bytes.Equal(content, n.Content) {
				t.Errorf("file %q has %q (%v), want %q", path, content, err, n.Content)
			}
		}
	case tree.Directory:
		k.compareEntries(path, n, root)
	}
}

func (k *kernelCheck) compareEntries(path string, n *tree.Node, root bool) {
	entries, err := os.ReadDir(path)
	if err != nil {
		k.t.Errorf("read directory %q: %v", path, err)
		return
	}
	var got []string
	for _, e := range entries {
		if root && k.version == erofs.V1 && len(e.Name()) == 2 && n.Entry(e.Name()) == nil {
			continue // one of the whiteouts that hide the objects
		}
		got = append(got, e.Name())
	}
	slices.Sort(got)
	if diff := cmp.Diff(n.Names(), append([]string{}, got...)); diff != "" {
		k.t.Errorf("directory %q differs (-want +got):\n%s", path, diff)
		return
	}
	if st := (unix.Stat_t{}); unix.Lstat(path, &st) == nil && root && k.version == erofs.V1 && len(entries) < 256 {
		k.t.Errorf("the root has %d entries", len(entries))
	}
	for _, name := range got {
		k.compare(path+"/"+name, n.Entry(name), false)
	}
}

// compareAttrs looks for every attribute by its name: the kernel asks the name
// filter first, so that this finds errors in it.
func (k *kernelCheck) compareAttrs(path string, n *tree.Node, escaped, root bool) {
	want := map[string]string{}
	for _, x := range n.Xattrs {
		name := x.Name
		if rest, ok := strings.CutPrefix(name, "trusted.overlay."); ok {
			name = "trusted.overlay.overlay." + rest
		}
		want[name] = string(x.Value)
	}
	if !n.Object.IsZero() {
		d := n.Object
		want["trusted.overlay.metacopy"] = "\x00\x44\x00\x02" + string(d.Bytes())
		want["trusted.overlay.redirect"] = "/" + d.ObjectPath()
	}
	if escaped {
		want["trusted.overlay.overlay.whiteout"] = ""
	}
	if root && k.version == erofs.V1 {
		want["trusted.overlay.opaque"] = "y"
	}
	buf := make([]byte, 1<<16)
	for name, value := range want {
		if namespace, _, _ := strings.Cut(name, "."); namespace != "user" && namespace != "trusted" && name != "security.capability" {
			continue // other namespaces depend on how the kernel is configured
		}
		size, err := unix.Lgetxattr(path, name, buf)
		switch {
		case strings.HasPrefix(name, "user.") && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENODATA)) && n.Kind != tree.Regular && n.Kind != tree.Directory:
			// The kernel has them for files and directories only.
		case name == "security.capability":
			// The kernel interprets the value.
			if err != nil && !errors.Is(err, unix.EINVAL) {
				k.t.Errorf("attribute %s of %q: %v", name, path, err)
			}
		case err != nil:
			k.t.Errorf("attribute %s of %q: %v", name, path, err)
		case string(buf[:size]) != value && name != "user.overlay.whiteout":
			k.t.Errorf("attribute %s of %q is %q, want %q", name, path, buf[:size], value)
		}
	}
}
