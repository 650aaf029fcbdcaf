// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

func TestArgs(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want []string
	}{
		{"", nil},
		{"  \t\n", nil},
		{"quiet", []string{"quiet"}},
		{" ro  quiet\n", []string{"ro", "quiet"}},
		{"a\tb\nc\fd\re", []string{"a", "b", "c", "d", "e"}},
		{"a\vb", []string{"a\vb"}},
		{`a="b c" d`, []string{`a="b c"`, "d"}},
		{`"a b" c`, []string{`"a b"`, "c"}},
		{`a="b\" c`, []string{`a="b\"`, "c"}},
		{`a="b c`, []string{`a="b c`}},
		{"a\u00a0b", []string{"a\u00a0b"}},
	} {
		if got := slices.Collect(Args(tt.in)); !cmp.Equal(got, tt.want) {
			t.Errorf("Args(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestFindKarg(t *testing.T) {
	a, b := hex512("a"), hex512("b")
	s := hex256("5")
	for _, tt := range []struct {
		name, cmdline string
		alg           fsverity.Algorithm
		want          Karg
		found, fails  bool
	}{
		{name: "none", cmdline: "root=UUID=1 rw", alg: fsverity.SHA512},
		{name: "empty", cmdline: "", alg: fsverity.SHA512},
		{name: "short", cmdline: "quiet composefs=" + a + " rw", alg: fsverity.SHA512,
			want: Karg{Version: erofs.V2, ID: digest(t, a)}, found: true},
		{name: "short insecure", cmdline: "composefs=?" + a, alg: fsverity.SHA512,
			want: Karg{Version: erofs.V2, ID: digest(t, a), Insecure: true}, found: true},
		{name: "upper case", cmdline: "composefs=" + strings.ToUpper(a), alg: fsverity.SHA512,
			want: Karg{Version: erofs.V2, ID: digest(t, a)}, found: true},
		{name: "short wrong length", cmdline: "composefs=" + s, alg: fsverity.SHA512, fails: true},
		{name: "short not hex", cmdline: "composefs=" + hex512("x"), alg: fsverity.SHA512, fails: true},
		{name: "first short counts", cmdline: "composefs=" + s + " composefs=" + a, alg: fsverity.SHA512, fails: true},
		{name: "two short", cmdline: "composefs=" + b + " composefs=" + a, alg: fsverity.SHA512,
			want: Karg{Version: erofs.V2, ID: digest(t, b)}, found: true},
		{name: "long", cmdline: "composefs.digest=v1-sha512-12:" + a, alg: fsverity.SHA512,
			want: Karg{Version: erofs.V1, ID: digest(t, a)}, found: true},
		{name: "long insecure", cmdline: "composefs.digest=?v1-sha512-12:" + a, alg: fsverity.SHA512,
			want: Karg{Version: erofs.V1, ID: digest(t, a), Insecure: true}, found: true},
		{name: "long v2", cmdline: "composefs.digest=v2-sha512-12:" + a, alg: fsverity.SHA512,
			want: Karg{Version: erofs.V2, ID: digest(t, a)}, found: true},
		{name: "long goes before short", cmdline: "composefs=" + b + " composefs.digest=v1-sha512-12:" + a, alg: fsverity.SHA512,
			want: Karg{Version: erofs.V1, ID: digest(t, a)}, found: true},
		{name: "other algorithm is passed over", cmdline: "composefs.digest=v1-sha512-12:" + a + " composefs.digest=v1-sha256-12:" + s, alg: fsverity.SHA256,
			want: Karg{Version: erofs.V1, ID: digest(t, s)}, found: true},
		{name: "digest of other algorithm is not looked at", cmdline: "composefs.digest=v1-sha512-12:junk", alg: fsverity.SHA256},
		{name: "other algorithm, then short", cmdline: "composefs.digest=v1-sha512-12:" + a + " composefs=" + s, alg: fsverity.SHA256,
			want: Karg{Version: erofs.V2, ID: digest(t, s)}, found: true},
		{name: "long wrong length", cmdline: "composefs.digest=v1-sha512-12:" + s, alg: fsverity.SHA512, fails: true},
		{name: "long without colon", cmdline: "composefs.digest=" + a, alg: fsverity.SHA512, fails: true},
		{name: "long without hyphen", cmdline: "composefs.digest=v1:" + a, alg: fsverity.SHA512, fails: true},
		{name: "unknown version", cmdline: "composefs.digest=v3-sha512-12:" + a, alg: fsverity.SHA512, fails: true},
		{name: "numeral version", cmdline: "composefs.digest=1-sha512-12:" + a, alg: fsverity.SHA512, fails: true},
		{name: "unknown hash", cmdline: "composefs.digest=v1-sha1-12:" + a, alg: fsverity.SHA512, fails: true},
		{name: "other block size", cmdline: "composefs.digest=v1-sha512-16:" + a, alg: fsverity.SHA512, fails: true},
		{name: "mark at the wrong place", cmdline: "composefs.digest=v1-sha512-12:?" + a, alg: fsverity.SHA512, fails: true},
		{name: "malformed before good", cmdline: "composefs.digest=junk composefs.digest=v1-sha512-12:" + a, alg: fsverity.SHA512, fails: true},
		{name: "malformed after good", cmdline: "composefs.digest=v1-sha512-12:" + a + " composefs.digest=junk", alg: fsverity.SHA512,
			want: Karg{Version: erofs.V1, ID: digest(t, a)}, found: true},
		{name: "in quotes is another argument", cmdline: `"composefs=` + a + `"`, alg: fsverity.SHA512},
		{name: "hidden by an open quote", cmdline: `x="y composefs=` + a, alg: fsverity.SHA512},
		{name: "longer key", cmdline: "xcomposefs=" + a, alg: fsverity.SHA512},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, found, err := FindKarg(tt.cmdline, tt.alg)
			if (err != nil) != tt.fails || found != tt.found || got != tt.want {
				t.Errorf("got %+v, %v, %v; want %+v, %v, error %v", got, found, err, tt.want, tt.found, tt.fails)
			}
		})
	}
}

func TestKargFormat(t *testing.T) {
	a, s := hex512("a"), hex256("5")
	for _, tt := range []struct {
		karg  Karg
		style KargStyle
		want  string
	}{
		{Karg{ID: digest(t, a), Version: erofs.V1}, KargBootc, "composefs=" + a},
		{Karg{ID: digest(t, a), Version: erofs.V1, Insecure: true}, KargBootc, "composefs=?" + a},
		{Karg{ID: digest(t, a), Version: erofs.V2}, KargBootc, "composefs=" + a},
		{Karg{ID: digest(t, a), Version: erofs.V0}, KargDigest, "composefs.digest=v1-sha512-12:" + a},
		{Karg{ID: digest(t, a), Version: erofs.V1}, KargDigest, "composefs.digest=v1-sha512-12:" + a},
		{Karg{ID: digest(t, s), Version: erofs.V1, Insecure: true}, KargDigest, "composefs.digest=?v1-sha256-12:" + s},
		{Karg{ID: digest(t, a), Version: erofs.V2}, KargDigest, "composefs=" + a},
		{Karg{ID: digest(t, a), Version: erofs.V2, Insecure: true}, KargDigest, "composefs=?" + a},
	} {
		got := tt.karg.Format(tt.style)
		if got != tt.want {
			t.Errorf("Format(%d) = %q, want %q", tt.style, got, tt.want)
		}
		back, found, err := FindKarg("a "+got+" b", tt.karg.ID.Algorithm())
		if err != nil || !found || back.ID != tt.karg.ID || back.Insecure != tt.karg.Insecure {
			t.Errorf("%q parses as %+v, %v, %v", got, back, found, err)
		}
	}
}

func FuzzFindKarg(f *testing.F) {
	f.Add("composefs=" + hex512("a"))
	f.Add("composefs.digest=?v1-sha512-12:" + hex512("b") + " composefs=?" + hex256("c"))
	f.Add(`a="b c" composefs.digest=v1-sha256-12:` + hex256("c"))
	f.Add("composefs.digest=::-:? composefs=")
	f.Fuzz(func(t *testing.T, cmdline string) {
		// Arguments are what lies between white space, in order.
		rest := cmdline
		for arg := range Args(cmdline) {
			if arg == "" {
				t.Fatal("empty argument")
			}
			before, after, ok := strings.Cut(rest, arg)
			if !ok || strings.Trim(before, " \t\n\f\r") != "" {
				t.Fatalf("argument %q is not next in %q", arg, rest)
			}
			rest = after
		}
		if strings.Trim(rest, " \t\n\f\r") != "" {
			t.Fatalf("%q is in no argument", rest)
		}
		for _, alg := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
			k, found, err := FindKarg(cmdline, alg)
			if found != !k.ID.IsZero() || found && err != nil {
				t.Fatalf("found %v with %v and error %v", found, k, err)
			}
			if !found {
				continue
			}
			again, _, err := FindKarg(k.Format(KargDigest), alg)
			if err != nil || again != k {
				t.Fatalf("%+v is written as %q, which is %+v, %v", k, k.Format(KargDigest), again, err)
			}
		}
	})
}
