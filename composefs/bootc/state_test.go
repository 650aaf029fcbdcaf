// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package bootc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// id is the n-th deployment's.
func id(n int) fsverity.Digest {
	return fsverity.Sum(fsverity.SHA512, []byte{byte(n)})
}

func manifest(n int) oci.Digest { return oci.DigestOf([]byte{byte(n)}) }

// origin is a file as bootc writes it.
func origin(m oci.Digest) string {
	return fmt.Sprintf(`[origin]
container-image-reference = ostree-unverified-image:docker://example.com/os:latest

[boot]
boot_type = bls
digest = 00aa

[image]
manifest_digest = %s
`, m)
}

// system is a physical root, a directory for /run and a command line.
type system struct {
	root, run, cmdline string
}

func newSystem(tb testing.TB) *system {
	tb.Helper()
	dir := tb.TempDir()
	s := &system{filepath.Join(dir, "sysroot"), filepath.Join(dir, "run"), filepath.Join(dir, "cmdline")}
	for _, d := range []string{s.root, s.run} {
		must(tb, os.Mkdir(d, 0o755))
	}
	return s
}

func (s *system) options() Options { return Options{RunDir: s.run, Cmdline: s.cmdline} }

func (s *system) write(tb testing.TB, path, text string) {
	tb.Helper()
	must(tb, os.MkdirAll(filepath.Dir(path), 0o755))
	must(tb, os.WriteFile(path, []byte(text), 0o644))
}

// deploy makes a deployment; without text it has no origin.
func (s *system) deploy(tb testing.TB, d fsverity.Digest, text string) {
	tb.Helper()
	dir := filepath.Join(s.root, stateDir, d.String())
	must(tb, os.MkdirAll(filepath.Join(dir, "etc"), 0o755))
	if text != "" {
		s.write(tb, filepath.Join(dir, d.String()+".origin"), text)
	}
}

func (s *system) stage(tb testing.TB, text string) {
	tb.Helper()
	s.write(tb, filepath.Join(s.run, stagedFile), text)
}

// plain is a state without pointers into others' packages.
func plain(s *State) []string {
	var out []string
	for _, d := range s.Deployments {
		out = append(out, fmt.Sprintf("%.8s %.15s %q staged %t booted %t", d.ID, d.Manifest, d.Image, d.Staged, d.Booted))
	}
	return out
}

func TestReadState(t *testing.T) {
	s := newSystem(t)
	for n := range 3 {
		s.deploy(t, id(n), origin(manifest(n)))
	}
	s.deploy(t, id(3), "")                                             // interrupted
	s.deploy(t, id(4), "; old\n[origin]\ncontainer-image-reference=x") // an older release
	s.write(t, filepath.Join(s.root, stateDir, "notes"), "a file is nobody's")
	s.stage(t, fmt.Sprintf(`{"depl_id": %q, "finalization_locked": false}`, id(1)))
	s.write(t, s.cmdline, "root=UUID=1 composefs=?"+id(0).String()+" rw\n")

	got, err := ReadState(s.root, fsverity.SHA512, s.options())
	must(t, err)
	if !got.Managed || len(got.Deployments) != 5 {
		t.Fatalf("state %v", plain(got))
	}
	byID := map[fsverity.Digest]Deployment{}
	for i, d := range got.Deployments {
		byID[d.ID] = d
		if i > 0 && d.ID.String() <= got.Deployments[i-1].ID.String() {
			t.Error("the deployments are not sorted")
		}
	}
	for n := range 5 {
		want := Deployment{ID: id(n), Deployed: true, Staged: n == 1, Booted: n == 0}
		if n < 3 {
			want.Manifest, want.Image = manifest(n), "ostree-unverified-image:docker://example.com/os:latest"
		}
		if n == 4 {
			want.Image = "x"
		}
		if byID[id(n)] != want {
			t.Errorf("deployment %d: %+v, want %+v", n, byID[id(n)], want)
		}
	}
}

// What the running system says counts also where it has no directory.
func TestReadStateOfTheRunningSystem(t *testing.T) {
	s := newSystem(t)
	s.write(t, s.cmdline, "composefs.digest=v1-sha512-12:"+id(1).String())
	s.stage(t, `not read where there is no bootc`)
	got, err := ReadState(s.root, fsverity.SHA512, s.options())
	must(t, err)
	if got.Managed || len(got.Deployments) != 1 || got.Deployments[0] != (Deployment{ID: id(1), Booted: true}) {
		t.Errorf("state %v", plain(got))
	}
	must(t, os.MkdirAll(filepath.Join(s.root, stateDir), 0o755))
	s.stage(t, fmt.Sprintf(`{"depl_id": %q}`, id(2)))
	got, err = ReadState(s.root, fsverity.SHA512, s.options())
	must(t, err)
	if !got.Managed || len(got.Deployments) != 2 {
		t.Errorf("state %v", plain(got))
	}
}

// A system that is none of bootc's has no state.
func TestReadStateNone(t *testing.T) {
	s := newSystem(t)
	for _, cmdline := range []string{"", "root=/dev/sda1", "composefs=no-digest", "composefs=" + strings.Repeat("a", 64)} {
		s.write(t, s.cmdline, cmdline)
		got, err := ReadState(s.root, fsverity.SHA512, s.options())
		if err != nil || got.Managed || len(got.Deployments) > 0 {
			t.Errorf("%s: state %+v, %v", cmdline, got, err)
		}
	}
}

// Whatever cannot be understood is an error, never fewer deployments.
func TestReadStateFailsClosed(t *testing.T) {
	in := func(s *system, name string) string { return filepath.Join(s.root, stateDir, name) }
	originPath := func(s *system) string { return in(s, id(0).String()+"/"+id(0).String()+".origin") }
	tests := map[string]func(testing.TB, *system){
		"no sysroot": func(tb testing.TB, s *system) { must(tb, os.RemoveAll(s.root)) },
		"state is a file": func(tb testing.TB, s *system) {
			must(tb, os.RemoveAll(filepath.Join(s.root, "state")))
			s.write(tb, filepath.Join(s.root, "state"), "")
		},
		"state leads out": func(tb testing.TB, s *system) {
			must(tb, os.Rename(filepath.Join(s.root, "state"), filepath.Join(s.root, "../elsewhere")))
			must(tb, os.Symlink("../elsewhere", filepath.Join(s.root, "state")))
		},
		"deployment without an id": func(tb testing.TB, s *system) { must(tb, os.Mkdir(in(s, "backup"), 0o755)) },
		"deployment in upper case": func(tb testing.TB, s *system) {
			must(tb, os.Mkdir(in(s, strings.Repeat("AB", 64)), 0o755))
		},
		"deployment is a link": func(tb testing.TB, s *system) {
			must(tb, os.Symlink(id(0).String(), in(s, id(1).String())))
		},
		"deployment is a pipe": func(tb testing.TB, s *system) { must(tb, unix.Mkfifo(in(s, id(1).String()), 0o644)) },
		"origin without digest": func(tb testing.TB, s *system) {
			s.deploy(tb, id(0), "[image]\nmanifest_digest =\n")
		},
		"origin with a wrong digest": func(tb testing.TB, s *system) {
			s.deploy(tb, id(0), "[image]\nmanifest_digest = sha256:00\n")
		},
		"origin with two digests": func(tb testing.TB, s *system) {
			s.deploy(tb, id(0), origin(manifest(0))+"manifest_digest = "+manifest(1).String()+"\n")
		},
		"origin that is no INI":          func(tb testing.TB, s *system) { s.deploy(tb, id(0), "what\n") },
		"origin with an open section":    func(tb testing.TB, s *system) { s.deploy(tb, id(0), "[image\n") },
		"origin of a megabyte":           func(tb testing.TB, s *system) { s.deploy(tb, id(0), strings.Repeat("#\n", 1<<19)) },
		"origin is a directory":          func(tb testing.TB, s *system) { replace(tb, originPath(s), os.Mkdir) },
		"origin is a pipe":               func(tb testing.TB, s *system) { replace(tb, originPath(s), mkfifo) },
		"origin is a link":               func(tb testing.TB, s *system) { replace(tb, originPath(s), link) },
		"staged is no JSON":              func(tb testing.TB, s *system) { s.stage(tb, "{") },
		"staged without id":              func(tb testing.TB, s *system) { s.stage(tb, "{}") },
		"staged with a wrong id":         func(tb testing.TB, s *system) { s.stage(tb, `{"depl_id": "00"}`) },
		"staged with an id of no text":   func(tb testing.TB, s *system) { s.stage(tb, `{"depl_id": 1}`) },
		"staged is a directory":          func(tb testing.TB, s *system) { must(tb, os.MkdirAll(filepath.Join(s.run, stagedFile), 0o755)) },
		"command line is a directory":    func(tb testing.TB, s *system) { must(tb, os.Mkdir(s.cmdline, 0o755)) },
		"staged in a run that is a pipe": func(tb testing.TB, s *system) { replace(tb, s.run, mkfifo) },
	}
	for name, breakIt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newSystem(t)
			s.deploy(t, id(0), origin(manifest(0)))
			if got, err := ReadState(s.root, fsverity.SHA512, s.options()); err != nil || len(got.Deployments) != 1 {
				t.Fatalf("before: %+v, %v", got, err)
			}
			breakIt(t, s)
			if got, err := ReadState(s.root, fsverity.SHA512, s.options()); !errors.Is(err, ErrState) || got != nil {
				t.Errorf("state %+v, error %v", got, err)
			}
		})
	}
}

func replace(tb testing.TB, path string, with func(string, os.FileMode) error) {
	tb.Helper()
	must(tb, os.RemoveAll(path))
	must(tb, with(path, 0o755))
}

func mkfifo(path string, mode os.FileMode) error { return unix.Mkfifo(path, uint32(mode)) }

func link(path string, _ os.FileMode) error { return os.Symlink("/etc/passwd", path) }

func TestParseINI(t *testing.T) {
	got, err := parseINI("# c\n ; c\na=1\r\n[ s ]\n b = x = y \nc=\n")
	must(t, err)
	want := map[originKey]string{{"", "a"}: "1", {"s", "b"}: "x = y", {"s", "c"}: ""}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(originKey{})); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
}

func FuzzParseINI(f *testing.F) {
	f.Add(origin(manifest(1)))
	f.Add("[image]\nmanifest_digest = sha256:00")
	f.Fuzz(func(t *testing.T, text string) {
		var d Deployment
		if err := d.readOrigin(text); err == nil && !d.Manifest.IsZero() && !strings.Contains(text, d.Manifest.String()) {
			t.Errorf("%q has the manifest %s", text, d.Manifest)
		}
	})
}
