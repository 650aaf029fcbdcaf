// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"strings"
	"testing"

	"github.com/cfs-pull/cfs-pull/erofs"
)

// The pairs are those that composefs-rs pins for its tag codec.
func TestTagCodec(t *testing.T) {
	for tag, want := range map[string]string{
		"library/nginx":                       "library%2Fnginx",
		"docker://busybox":                    "docker:%2F%2Fbusybox",
		"test%2F":                             "test%252F",
		"a/b%c":                               "a%2Fb%25c",
		"100%":                                "100%25",
		"%25already-encoded":                  "%2525already-encoded",
		"double%%percent":                     "double%25%25percent",
		"localhost/bootc-sha256:abc123def456": "localhost%2Fbootc-sha256:abc123def456",
	} {
		got, err := EncodeTag(tag)
		if err != nil || got != "oci/"+want {
			t.Errorf("EncodeTag(%q) = %q, %v, want oci/%s", tag, got, err, want)
		}
		if back := DecodeTag(want); back != tag {
			t.Errorf("DecodeTag(%q) = %q, want %q", want, back, tag)
		}
	}
	if got := DecodeTag("a%2fb%zz"); got != "a%2fb%zz" {
		t.Errorf("unknown escapes became %q", got)
	}
	for _, tag := range []string{"", ".", "..", "@sha256:abc", "a\x00b", "a\xff", strings.Repeat("a", 256), strings.Repeat("/", 86)} {
		if name, err := EncodeTag(tag); err == nil {
			t.Errorf("EncodeTag(%q) = %q, want an error", tag, name)
		}
	}
}

func FuzzTagCodec(f *testing.F) {
	f.Add("docker://quay.io/a/b:c")
	f.Add("%2F%25/")
	f.Fuzz(func(t *testing.T, tag string) {
		name, err := EncodeTag(tag)
		if err != nil {
			return
		}
		name = strings.TrimPrefix(name, "oci/")
		if strings.Contains(name, "/") || DecodeTag(name) != tag {
			t.Errorf("%q became %q and then %q", tag, name, DecodeTag(name))
		}
	})
}

func TestImageKey(t *testing.T) {
	for _, test := range []struct {
		boot bool
		v    erofs.Version
		mode XattrMode
		want string
	}{
		{false, erofs.V2, AllowlistOnly, "composefs.image"},
		{false, erofs.V1, AllowlistOnly, "composefs.image.v1"},
		{false, erofs.V0, AllowlistOnly, "composefs.image.v1"},
		{true, erofs.V2, AllowlistOnly, "composefs.image.boot"},
		{true, erofs.V1, AllowlistOnly, "composefs.image.boot.v1"},
		{true, erofs.V2, KeepUser, "composefs.image.boot.xattrs=keep-user-xattrs"},
		{true, erofs.V1, KeepUser, "composefs.image.boot.v1.xattrs=keep-user-xattrs"},
	} {
		if got := ImageKey(test.boot, test.v, test.mode); got != test.want {
			t.Errorf("ImageKey(%v, %v, %v) = %q, want %q", test.boot, test.v, test.mode, got, test.want)
		}
	}
}

func TestParseDigest(t *testing.T) {
	good := "sha256:" + strings.Repeat("0a", 32)
	d, err := ParseDigest(good)
	if err != nil || d.String() != good || d.IsZero() {
		t.Errorf("ParseDigest(%q) = %v, %v", good, d, err)
	}
	for _, bad := range []string{
		"", "sha256:", good[:70], good + "0", strings.ToUpper(good), "sha512:" + strings.Repeat("0a", 64),
		"sha256:" + strings.Repeat("0A", 32), "sha256:" + strings.Repeat("0g", 32), "sha256:../" + strings.Repeat("0a", 31),
	} {
		if d, err := ParseDigest(bad); err == nil {
			t.Errorf("ParseDigest(%q) = %v, want an error", bad, d)
		}
	}
}
