// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFindCredentials(t *testing.T) {
	const run, etc, usr = "run/ostree/auth.json", "etc/ostree/auth.json", "usr/lib/ostree/auth.json"
	for _, test := range []struct {
		name  string
		files []string          // with their name as content
		links map[string]string // name to target
		want  string            // content
		fails bool
	}{
		{name: "none"},
		{name: "run first", files: []string{run, etc, usr}, want: run},
		{name: "then etc", files: []string{etc, usr}, want: etc},
		{name: "then usr", files: []string{usr}, want: usr},
		{name: "relative link", files: []string{"a/b"}, links: map[string]string{etc: "../../a/b"}, want: "a/b"},
		{name: "absolute link stays inside", files: []string{"a/b"}, links: map[string]string{etc: "/a/b"}, want: "a/b"},
		{name: "link of a directory", files: []string{"new/ostree/auth.json"}, links: map[string]string{"run": "new"}, want: "new/ostree/auth.json"},
		{name: "dangling link", files: []string{usr}, links: map[string]string{etc: "/absent"}, want: usr},
		{name: "file in place of a directory", files: []string{"run/ostree", usr}, want: usr},
		{name: "directory in place of the file", files: []string{run + "/x", usr}, fails: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			for _, name := range test.files {
				writeFile(t, filepath.Join(root, name), []byte(name))
			}
			for name, target := range test.links {
				must(t, os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755))
				must(t, os.Symlink(target, filepath.Join(root, name)))
			}
			found, searched, err := FindCredentials([]string{root})
			if (err != nil) != test.fails {
				t.Fatalf("error %v, want one: %v", err, test.fails)
			}
			var got string
			if found != nil {
				got = string(found.Content)
				if searched[len(searched)-1] != found.Path {
					t.Errorf("Path = %q, searched %q", found.Path, searched)
				}
			}
			if got != test.want {
				t.Errorf("content %q, want %q", got, test.want)
			}
			if found == nil && err == nil {
				want := []string{filepath.Join(root, run), filepath.Join(root, etc), filepath.Join(root, usr)}
				if diff := cmp.Diff(want, searched); diff != "" {
					t.Errorf("searched (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestFindUserCredentials(t *testing.T) {
	runtime, home := t.TempDir(), t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", runtime)
	t.Setenv("HOME", home)
	if found, searched, err := findUserCredentials(); found != nil || err != nil || len(searched) != 2 {
		t.Errorf("found %v, searched %q, error %v", found, searched, err)
	}
	for _, path := range []string{filepath.Join(home, ".config/ostree/auth.json"), filepath.Join(runtime, "ostree/auth.json")} {
		writeFile(t, path, []byte(path))
		found, _, err := findUserCredentials()
		must(t, err)
		if found == nil || found.Path != path || string(found.Content) != path {
			t.Errorf("found %+v, want %s", found, path)
		}
	}
}

func TestBrokenCredentials(t *testing.T) {
	for name, content := range map[string]string{
		"not JSON": "user:hunter2", "no object": `["hunter2"]`, "too large": strings.Repeat(" ", maxAuthFile+1),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "auth.json")
			writeFile(t, path, []byte(content))
			for _, auth := range []Auth{{File: path}, {File: path + "-absent"}} {
				o := testOptions(t)
				o.Auth = auth
				_, err := Open(t.Context(), "registry.test.invalid/image", o)
				if e := wantError[*UsageError](t, err); e.Subject != auth.File {
					t.Errorf("Subject = %q, want %q", e.Subject, auth.File)
				}
				if strings.Contains(err.Error(), "hunter2") {
					t.Errorf("error %q shows the content", err)
				}
			}
		})
	}
}

func TestParseUserPassword(t *testing.T) {
	got, err := ParseUserPassword("me:pass:word")
	must(t, err)
	if got.User != "me" || string(got.Password) != "pass:word" {
		t.Errorf("%q, %q", got.User, string(got.Password))
	}
	for _, s := range []string{"", "hunter2", ":hunter2", "me:"} {
		_, err := ParseUserPassword(s)
		wantError[*UsageError](t, err)
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("error %q shows the password", err)
		}
	}
}

func TestSecretIsMasked(t *testing.T) {
	auth := Auth{UserPassword: &UserPassword{User: "me", Password: "hunter2"}}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "auth", auth.UserPassword, "secret", auth.UserPassword.Password)
	data, err := json.Marshal(auth)
	must(t, err)
	for _, text := range []string{
		log.String(), string(data),
		fmt.Sprintf("%v %+v %#v %s %q", auth.UserPassword, auth.UserPassword, auth.UserPassword, auth.UserPassword.Password, auth.UserPassword.Password),
	} {
		if strings.Contains(text, "hunter2") || !strings.Contains(text, masked) {
			t.Errorf("not masked: %s", text)
		}
	}
}

func TestSecretFile(t *testing.T) {
	s, err := newSecretFile([]byte("hunter2"))
	must(t, err)
	data, err := os.ReadFile(s.path())
	must(t, err)
	if string(data) != "hunter2" {
		t.Errorf("content %q", data)
	}
	info, err := os.Stat(s.path())
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	// What anybody who still has the memory sees after Close.
	other, err := os.Open(s.path())
	must(t, err)
	defer other.Close()
	must(t, s.Close())
	buf := make([]byte, 20)
	n, _ := other.Read(buf)
	if want := make([]byte, 7); !bytes.Equal(buf[:n], want) {
		t.Errorf("content after Close: %q", buf[:n])
	}
}

// TestOpenLeavesNoFiles pins that neither success nor failure leaks a file
// descriptor.
func TestOpenLeavesNoFiles(t *testing.T) {
	image, blobs := layoutImage(t, "a", `{}`, "layer")
	dir := writeLayout(t, image)
	for _, data := range blobs {
		putLayoutBlob(t, dir, "", data)
	}
	path := packDir(t, dir, true)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(entries)
	}
	before := count()
	for _, ref := range []string{"oci:" + dir, "oci:" + dir + ":absent", "oci-archive:" + path, "oci-archive:" + path + ":absent", "docker-archive:" + path} {
		img, err := Open(t.Context(), ref, testOptions(t))
		if err == nil {
			readAll(t, img)
			must(t, img.Close())
		}
	}
	if after := count(); after != before {
		t.Errorf("%d files before, %d after", before, after)
	}
}

func TestFindPolicy(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	var p policy
	_, err := p.find([]string{first, second})
	wantError[*UsageError](t, err)
	if !strings.Contains(err.Error(), filepath.Join(first, "etc/containers/policy.json")) || !strings.Contains(err.Error(), "--insecure-policy") {
		t.Errorf("error %q does not say what to do", err)
	}
	// From the last choice to the first.
	for _, path := range []string{
		filepath.Join(second, "usr/share/containers/policy.json"),
		filepath.Join(second, "etc/containers/policy.json"),
		filepath.Join(first, "usr/share/containers/policy.json"),
		filepath.Join(first, "etc/containers/policy.json"),
	} {
		writeFile(t, path, []byte(path))
		content, err := p.find([]string{first, second})
		must(t, err)
		if string(content) != path || p.source != path {
			t.Errorf("content of %s, source %s, want %s", content, p.source, path)
		}
	}
}

func TestConfigDirOfRootIsNotHome(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	for _, dir := range configDirs("/") {
		if os.Geteuid() == 0 && strings.HasPrefix(dir, os.Getenv("XDG_CONFIG_HOME")) {
			t.Errorf("root's configuration is looked for in %s", dir)
		}
	}
	if got := firstConfig(t.TempDir(), "absent.conf"); got != os.DevNull {
		t.Errorf("firstConfig = %q", got)
	}
	if _, err := os.Stat(nowhere); !os.IsNotExist(err) {
		t.Errorf("%s: %v, want %v", nowhere, err, fs.ErrNotExist)
	}
}
