// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package selinux

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// rootWith makes a root directory. A name that ends with a slash is a
// directory, a content "-> x" a link.
func rootWith(t *testing.T, files map[string]string) Root {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, path)
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o755)
		} else {
			err = os.WriteFile(path, []byte(content), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return Root(root)
}

func TestLoad(t *testing.T) {
	const contexts = "etc/selinux/p/contexts/files/file_contexts"
	for _, test := range []struct {
		name    string
		files   map[string]string
		want    string // context of /etc/passwd; empty for no policy
		enabled bool   // whether LoadEnabled finds the same
		failure string
	}{
		{name: "nothing", files: map[string]string{"etc/": ""}},
		{name: "no directory", files: map[string]string{"etc/selinux": "file"}},
		{name: "no config", files: map[string]string{"etc/selinux/": ""}},
		{name: "no type", files: map[string]string{"etc/selinux/config": "SELINUX=enforcing\n#SELINUXTYPE=p\n"}},
		{
			name: "policy", want: "passwd_t", enabled: true,
			files: map[string]string{"etc/selinux/config": "SELINUX=enforcing\nSELINUXTYPE = p \n", contexts: "/etc/passwd -- passwd_t\n"},
		},
		{
			name: "permissive", want: "passwd_t", enabled: true,
			files: map[string]string{"etc/selinux/config": "SELINUX=permissive\nSELINUXTYPE=p", contexts: "/etc/.* passwd_t"},
		},
		{
			name: "mode not named", want: "passwd_t", enabled: true,
			files: map[string]string{"etc/selinux/config": "SELINUXTYPE=p", contexts: "/etc/.* passwd_t"},
		},
		{
			name: "disabled", want: "passwd_t",
			files: map[string]string{"etc/selinux/config": "# SELINUX=enforcing\nSELINUX=disabled\nSELINUXTYPE=p", contexts: "/etc/.* passwd_t"},
		},
		{
			name: "disabled with a comment", want: "passwd_t",
			files: map[string]string{"etc/selinux/config": "SELINUX= Disabled # for now\nSELINUXTYPE=p", contexts: "/etc/.* passwd_t"},
		},
		{
			name: "all sources", want: "local_t", enabled: true,
			files: map[string]string{
				"etc/selinux/config": "SELINUXTYPE=p", contexts: "/etc/.* etc_t", contexts + ".local": "/etc/passwd local_t",
				contexts + ".homedirs": "/home/.* home_t", contexts + ".subs": "/a /b", contexts + ".subs_dist": "/c /d",
			},
		},
		{
			// Absolute links are those of the root, not of the system that looks.
			name: "links", want: "passwd_t", enabled: true,
			files: map[string]string{
				"etc/selinux/config": "-> /usr/etc/selinux.conf", "usr/etc/selinux.conf": "SELINUXTYPE=p",
				"etc/selinux/p": "-> ../../../../../usr/share/p", "usr/share/p/contexts/files/file_contexts": "/etc/.* passwd_t",
			},
		},
		{
			name: "no file contexts", failure: "file_contexts",
			files: map[string]string{"etc/selinux/config": "SELINUXTYPE=p", "etc/selinux/p/contexts/files/": ""},
		},
		{
			name: "type that leads out", failure: "file_contexts",
			files: map[string]string{"etc/selinux/config": "SELINUXTYPE=../../../../../../../../p"},
		},
		{
			name: "file contexts are a directory", failure: "not a regular file",
			files: map[string]string{"etc/selinux/config": "SELINUXTYPE=p", contexts + "/": ""},
		},
		{
			name: "malformed", failure: "line 1",
			files: map[string]string{"etc/selinux/config": "SELINUXTYPE=p", contexts: "/etc/["},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := rootWith(t, test.files)
			policy, err := Load(root)
			if test.failure != "" {
				if err == nil || !strings.Contains(err.Error(), test.failure) {
					t.Fatalf("error %v, want one about %q", err, test.failure)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := passwdContext(policy); got != test.want {
				t.Errorf("/etc/passwd has context %q, want %q", got, test.want)
			}
			enabled, err := LoadEnabled(root)
			if err != nil {
				t.Fatal(err)
			}
			if got := enabled != nil; got != test.enabled {
				t.Errorf("LoadEnabled found a policy: %v, want %v", got, test.enabled)
			}
		})
	}
}

func passwdContext(p *Policy) string {
	if p == nil {
		return ""
	}
	context, _ := p.Lookup("/etc/passwd", '-')
	return context
}

// A root that is not there must not look like one without a policy: then
// nothing would be labelled, silently.
func TestLoadAbsentRoot(t *testing.T) {
	if _, err := Load(Root(filepath.Join(t.TempDir(), "absent"))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want %v", err, fs.ErrNotExist)
	}
}
