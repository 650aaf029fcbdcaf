// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package crashtest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestInspect makes sure that the judge is not blind.
func TestInspect(t *testing.T) {
	t.Parallel()
	s := Scenarios()[0]
	w, err := NewWorld(t.Context(), program(t), memory(t), s)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := w.Copy(t.Context(), "good")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.run(t.Context(), dir, s.Command); err != nil {
		t.Fatal(err)
	}
	repo := filepath.Join(dir, "repo")
	objects, err := filepath.Glob(filepath.Join(repo, "objects", "*", "*"))
	if err != nil || len(objects) < 15 {
		t.Fatalf("%d objects, %v", len(objects), err)
	}
	look := func() []string {
		t.Helper()
		i, err := Inspect(repo)
		if err != nil {
			t.Fatal(err)
		}
		return i.BrokenRefs()
	}
	if broken := look(); len(broken) > 0 {
		t.Fatalf("the good repository is broken: %q", broken)
	}
	// Every object is needed; each kind of damage to it is seen.
	for _, object := range objects {
		content, err := os.ReadFile(object)
		if err != nil {
			t.Fatal(err)
		}
		for name, damage := range map[string]func() error{
			"zeros": func() error { return os.WriteFile(object, make([]byte, len(content)), 0o644) },
			"short": func() error { return os.Truncate(object, int64(len(content)-1)) },
			"gone":  func() error { return os.Remove(object) },
		} {
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			if broken := look(); len(broken) == 0 {
				t.Errorf("%s: %s is not seen", filepath.Base(object), name)
			}
			if err := os.WriteFile(object, content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	// So is a link that is missing or leads elsewhere.
	links, err := filepath.Glob(filepath.Join(repo, "[si]*", "*-*:*"))
	if err != nil || len(links) == 0 {
		t.Fatal(links, err)
	}
	images, err := filepath.Glob(filepath.Join(repo, "images", "*"))
	if err != nil || len(images) == 0 {
		t.Fatal(images, err)
	}
	for _, link := range append(links, images...) {
		target, err := os.Readlink(link)
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range []string{"", "../objects/00/" + strings.Repeat("0", 126)} {
			if err := os.Remove(link); err != nil {
				t.Fatal(err)
			}
			if other != "" {
				if err := os.Symlink(other, link); err != nil {
					t.Fatal(err)
				}
			}
			i, err := Inspect(repo)
			if err != nil {
				t.Fatal(err)
			}
			// A manifest finds its layers and its config without their links.
			needed := !strings.Contains(link, "oci-layer-") && !strings.Contains(link, "oci-config-")
			if broken := i.BrokenLinks(); len(broken) == 0 && (needed || other != "") {
				t.Errorf("%s leads to %q, which is not seen", link, other)
			}
			if other != "" {
				if err := os.Remove(link); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Symlink(target, link); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range []string{".symlink-abcdefghijkl", "objects/.tmp-object-abcdefghijkl"} {
		if err := os.WriteFile(filepath.Join(repo, name), bytes.Repeat([]byte("x"), 10), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if i, err := Inspect(repo); err != nil || len(i.Leftovers) != 2 {
		t.Errorf("leftovers %v, %v", i, err)
	}
}
