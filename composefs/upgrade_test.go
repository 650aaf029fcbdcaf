// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// oldRepo is a repository of the old format that was written on the kernel v.
// The objects without fs-verity are those of plain.
func oldRepo(tb testing.TB, v verity, alg fsverity.Algorithm, objects, plain int) string {
	tb.Helper()
	path := newRepoPath(tb, v, InitOptions{Algorithm: alg, AllowMissingVerity: true})
	r := check(open(tb.Context(), path, OpenOptions{}, v))(tb)
	for i := range objects {
		putObject(tb, r, strings.Repeat("x", i))
	}
	must(tb, r.Close())
	r = check(open(tb.Context(), path, OpenOptions{}, noVerity()))(tb)
	for i := range plain {
		putObject(tb, r, strings.Repeat("y", i))
	}
	must(tb, r.Close())
	must(tb, os.Remove(path+"/meta.json"))
	must(tb, os.Chmod(path, 0o755))
	return path
}

func TestUpgrade(t *testing.T) {
	kernel := testVerity(t)
	tests := []struct {
		name           string
		alg            fsverity.Algorithm
		kernel         verity
		objects, plain int
		options        OpenOptions
		secure         bool
		want           error
	}{
		{name: "with fs-verity", alg: fsverity.SHA512, kernel: kernel, objects: 3, secure: true},
		{name: "with fs-verity, SHA-256", alg: fsverity.SHA256, kernel: kernel, objects: 1, secure: true},
		{name: "without fs-verity", alg: fsverity.SHA512, kernel: noVerity(), plain: 3},
		{name: "without fs-verity, SHA-256", alg: fsverity.SHA256, kernel: kernel, plain: 1},
		{name: "mixed", alg: fsverity.SHA512, kernel: kernel, objects: 20, plain: 20, want: ErrMixedVerity},
		{name: "mixed and allowed", alg: fsverity.SHA512, kernel: kernel, objects: 20, plain: 20, options: OpenOptions{AllowMissingVerity: true}},
		{name: "secure but not wanted so", alg: fsverity.SHA512, kernel: kernel, objects: 3, options: OpenOptions{AllowMissingVerity: true}, want: ErrSecure},
		{name: "no objects", alg: fsverity.SHA512, kernel: kernel, want: ErrOldFormat},
		{name: "for reading", alg: fsverity.SHA512, kernel: kernel, objects: 1, options: OpenOptions{ReadOnly: true}, want: ErrOldFormat},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := oldRepo(t, tt.kernel, tt.alg, tt.objects, tt.plain)
			must(t, os.MkdirAll(path+"/objects", 0o755))
			o := tt.options
			if _, err := open(t.Context(), path, o, tt.kernel); !errors.Is(err, ErrOldFormat) {
				t.Errorf("without upgrade: %v", err)
			}
			o.Upgrade = true
			r, err := open(t.Context(), path, o, tt.kernel)
			if !errors.Is(err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			_, statErr := os.Stat(path + "/meta.json")
			if tt.want != nil {
				if wrote := statErr == nil; wrote != errors.Is(tt.want, ErrSecure) {
					t.Errorf("meta.json was written: %t", wrote)
				}
				return
			}
			if !r.Upgraded() || r.Secure() != tt.secure || r.Algorithm() != tt.alg {
				t.Errorf("upgraded %t, secure %t, %s", r.Upgraded(), r.Secure(), r.Algorithm())
			}
			// What composefs-rs writes: format 1 and the flag.
			want := check(NewMeta(tt.alg, FormatConfig{Default: 1}).Encode())(t)
			if diff := cmp.Diff(string(want), string(check(os.ReadFile(path+"/meta.json"))(t))); diff != "" {
				t.Errorf("meta.json (-want +got):\n%s", diff)
			}
			if info := check(os.Stat(path))(t); info.Mode().Perm() != 0o755 {
				t.Errorf("the directory has mode %s now", info.Mode())
			}
			must(t, r.Close())
			again := openRepo(t, path, tt.kernel, o)
			if again.Upgraded() {
				t.Error("upgraded a second time")
			}
			if temporaries := check(again.findTemporaries())(t); len(temporaries) > 0 {
				t.Errorf("left %v", temporaries)
			}
		})
	}
}

// What cannot be told is not guessed.
func TestUpgradeRefuses(t *testing.T) {
	t.Run("two algorithms", func(t *testing.T) {
		path := oldRepo(t, noVerity(), fsverity.SHA512, 0, 30)
		other := oldRepo(t, noVerity(), fsverity.SHA256, 0, 30)
		must(t, os.Rename(path+"/objects", path+"/first"))
		must(t, os.CopyFS(path+"/first", os.DirFS(other+"/objects")))
		must(t, os.Rename(path+"/first", path+"/objects"))
		if _, err := open(t.Context(), path, OpenOptions{Upgrade: true}, noVerity()); !errors.Is(err, ErrIntegrity) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("no repository", func(t *testing.T) {
		path := t.TempDir()
		must(t, os.MkdirAll(filepath.Join(path, "streams"), 0o755))
		if _, err := open(t.Context(), path, OpenOptions{Upgrade: true}, noVerity()); !errors.Is(err, ErrNotRepository) {
			t.Errorf("error %v", err)
		}
		if got := files(t, path); len(got) > 0 {
			t.Errorf("wrote %v", got)
		}
	})
}

// An existing meta.json is respected, however it came to be.
func TestUpgradeRespectsMeta(t *testing.T) {
	path := newRepoPath(t, noVerity(), InitOptions{AllowMissingVerity: true})
	meta := `{"version":1,"algorithm":"fsverity-sha512-12"}` // hence format 2
	must(t, os.WriteFile(path+"/meta.json", []byte(meta), 0o644))
	r := openRepo(t, path, noVerity(), OpenOptions{Upgrade: true})
	if got := check(os.ReadFile(path + "/meta.json"))(t); string(got) != meta || r.Upgraded() || r.Versions()[0] != 2 {
		t.Errorf("meta.json %s, formats %v", got, r.Versions())
	}
}
