// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package tarraw

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// summary is what this package and archive/tar can agree on.
type summary struct {
	Type           byte
	Name, Linkname string
	Mode           int64
	UID, GID       int
	Size           int64
	Mtime          int64
	Xattrs         map[string]string
	Body           string
}

// summaries of an archive as this package reads it.
func summaries(t *testing.T, archive []byte) []summary {
	t.Helper()
	entries, pieces, err := frame(bytes.NewReader(archive), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if join(pieces) != string(archive) {
		t.Error("pieces do not make the archive")
	}
	var bodies []string
	for _, p := range pieces {
		if !p.inline {
			bodies = append(bodies, p.data)
		}
	}
	var all []summary
	for _, e := range entries {
		s := summary{
			Type: e.Type, Name: e.Name, Linkname: e.Linkname, Mode: int64(e.Mode), UID: int(e.UID), GID: int(e.GID),
			Size: int64(e.Size), Mtime: time.Unix(e.MtimeSec, int64(e.MtimeNsec)).UnixNano(), Body: string(e.Content),
		}
		if e.External() {
			s.Body, bodies = bodies[0], bodies[1:]
		}
		for _, x := range e.Xattrs {
			if s.Xattrs == nil {
				s.Xattrs = map[string]string{}
			}
			s.Xattrs[x.Name] = string(x.Value)
		}
		all = append(all, s)
	}
	return all
}

// stdSummaries of an archive as archive/tar reads it, with the known
// differences taken back.
func stdSummaries(t *testing.T, archive []byte) []summary {
	t.Helper()
	var all []summary
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		s := summary{
			Type: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Mode: h.Mode, UID: h.Uid, GID: h.Gid,
			Size: h.Size, Mtime: h.ModTime.UnixNano(), Body: string(body),
		}
		for key, value := range h.PAXRecords {
			if name, ok := strings.CutPrefix(key, paxXattr); ok {
				if s.Xattrs == nil {
					s.Xattrs = map[string]string{}
				}
				s.Xattrs[name] = value
			}
		}
		all = append(all, s)
	}
}

func TestAgreesWithArchiveTar(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	text := func(most int) string {
		b := make([]byte, 1+rng.IntN(most))
		for i := range b {
			b[i] = "abcdefgh/._-"[rng.IntN(12)]
		}
		b[0], b[len(b)-1] = 'x', 'y'
		return string(b)
	}
	for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatPAX, tar.FormatGNU} {
		t.Run(format.String(), func(t *testing.T) {
			var buf bytes.Buffer
			w := tar.NewWriter(&buf)
			for range 500 {
				h := &tar.Header{
					Typeflag: "0000001234567"[rng.IntN(13)], Name: text(60), Mode: int64(rng.IntN(0o10000)),
					Uid: rng.IntN(1 << 16), Gid: rng.IntN(1 << 16), ModTime: time.Unix(rng.Int64N(1<<32), 0), Format: format,
				}
				if format != tar.FormatUSTAR {
					h.Name = text([]int{10, 99, 300, 5000}[rng.IntN(4)])
					h.Uid, h.Gid = rng.IntN(1<<32), rng.IntN(1<<32)
				}
				if format == tar.FormatPAX {
					h.ModTime = time.Unix(rng.Int64N(1<<32), rng.Int64N(1e9))
					if rng.IntN(3) == 0 {
						h.PAXRecords = map[string]string{paxXattr + "user.one": text(100), paxXattr + "security.capability": "\x01\x00\xff\n"}
					}
				}
				var content []byte
				switch h.Typeflag {
				case tar.TypeReg, tar.TypeCont:
					content = []byte(strings.Repeat("c", []int{0, 1, 63, 64, 65, 511, 512, 513, 100000}[rng.IntN(9)]))
					h.Size = int64(len(content))
				case tar.TypeSymlink, tar.TypeLink:
					h.Linkname = text(90)
					if format != tar.FormatUSTAR {
						h.Linkname = text(500)
					}
				case tar.TypeChar, tar.TypeBlock:
					h.Devmajor, h.Devminor = rng.Int64N(256), rng.Int64N(256)
				}
				if err := w.WriteHeader(h); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write(content); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			want, got := stdSummaries(t, buf.Bytes()), summaries(t, buf.Bytes())
			for i := range want {
				// archive/tar makes directories of files by their name.
				if got[i].Type == TypeRegular && want[i].Type == TypeDirectory {
					want[i].Type = TypeRegular
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("archive/tar against ours:\n%s", diff)
			}
		})
	}
}

// makeTree writes files with difficult names and returns its root.
func makeTree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	write := func(name string, size int) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.Repeat("x", size)), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, size := range []int{0, 1, 64, 65, 512, 513, 4096, 300000} {
		write(fmt.Sprintf("sizes/%d", size), size)
	}
	write("not-utf8-\xff\xfe", 100)
	write("space and\nnewline", 100)
	must(os.Symlink("sizes/1", filepath.Join(root, "link")))
	must(os.Link(filepath.Join(root, "sizes/65"), filepath.Join(root, "sizes/65-again")))
	must(unix.Mkfifo(filepath.Join(root, "fifo"), 0o600))
	must(os.Chmod(filepath.Join(root, "sizes/1"), 0o755|os.ModeSetuid))
	must(os.Chtimes(filepath.Join(root, "sizes/65"), time.Time{}, time.Unix(1700000000, 123456789)))
	return root
}

func TestAgreesWithGNUTar(t *testing.T) {
	program := testutil.RequireTool(t, "tar", "tar")
	root := makeTree(t)
	long := filepath.Join(root, strings.Repeat("d", 120), strings.Repeat("e", 140), strings.Repeat("f", 200))
	for _, format := range []string{"v7", "ustar", "gnu", "oldgnu", "posix"} {
		t.Run(format, func(t *testing.T) {
			if format == "gnu" || format == "posix" {
				// The other formats cannot hold these.
				if err := os.MkdirAll(long, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(strings.Repeat("t", 300), filepath.Join(long, "link")); err != nil {
					t.Fatal(err)
				}
				if err := unix.Setxattr(filepath.Join(root, "sizes/65"), "user.test", []byte("a\x00=b\n"), 0); err != nil {
					t.Logf("no extended attributes here: %v", err)
				}
				defer os.RemoveAll(filepath.Join(root, strings.Repeat("d", 120)))
			}
			args := []string{"--format=" + format, "--sort=name", "--xattrs", "--xattrs-include=*", "--owner=3000000", "--group=4000000", "-cf", "-", "-C", root, "."}
			switch format {
			case "v7", "ustar", "oldgnu":
				args = append(args[:2:2], "--exclude=./fifo", "--owner=1000", "--group=1000", "-cf", "-", "-C", root, ".")
			}
			var stderr bytes.Buffer
			cmd := exec.CommandContext(t.Context(), program, args...)
			cmd.Stderr = &stderr
			archive, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, &stderr)
			}
			want, got := stdSummaries(t, archive), summaries(t, archive)
			if len(got) < 14 {
				t.Errorf("only %d members", len(got))
			}
			for i := range want {
				if got[i].Type == TypeRegular && want[i].Type == TypeDirectory {
					want[i].Type = TypeRegular
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("archive/tar against ours:\n%s", diff)
			}
		})
	}
}

func TestRefusesSparseOfGNUTar(t *testing.T) {
	program := testutil.RequireTool(t, "tar", "tar")
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("data"), 10<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"--format=gnu"}, {"--format=posix", "--sparse-version=0.0"}, {"--format=posix", "--sparse-version=0.1"}, {"--format=posix", "--sparse-version=1.0"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			archive, err := exec.CommandContext(t.Context(), program, append(args, "-S", "-cf", "-", "-C", dir, "sparse")...).Output()
			if err != nil {
				t.Fatal(err)
			}
			if len(archive) > 1<<20 {
				t.Skip("this file system has no holes")
			}
			_, _, err = frame(bytes.NewReader(archive), Limits{})
			if e := wantRule(t, err, RuleSparse); !strings.Contains(e.Entry, "sparse") {
				t.Errorf("error does not name the member: %v", err)
			}
		})
	}
}

func TestAgreesWithBSDTar(t *testing.T) {
	program := testutil.RequireTool(t, "bsdtar", "libarchive-tools")
	root := makeTree(t)
	for _, format := range []string{"ustar", "pax", "gnutar", "v7"} {
		t.Run(format, func(t *testing.T) {
			args := []string{"--format=" + format, "-cf", "-", "-C", root}
			if format == "v7" {
				args = append(args, "sizes", "link")
			} else {
				args = append(args, ".")
			}
			cmd := exec.CommandContext(t.Context(), program, args...)
			cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
			archive, _ := cmd.Output() // fails for names that are not UTF-8, after it wrote them
			if len(archive) == 0 {
				t.Fatal("no archive")
			}
			want, got := stdSummaries(t, archive), summaries(t, archive)
			for i := range want {
				if got[i].Type == TypeRegular && want[i].Type == TypeDirectory {
					want[i].Type = TypeRegular
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("archive/tar against ours:\n%s", diff)
			}
		})
	}
}
