// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package tree

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// link is a symbolic link.
func link(target string) *Node { return &Node{Kind: Symlink, Target: target} }

func TestFollow(t *testing.T) {
	root, usr, lib := NewDirectory(), NewDirectory(), NewDirectory()
	file := &Node{Kind: Regular}
	root.SetEntry("usr", usr)
	root.SetEntry("lib", link("usr/lib"))
	root.SetEntry("out", link("../../../usr"))
	root.SetEntry("abs", link("/usr/lib/file"))
	root.SetEntry("loop", link("loop"))
	root.SetEntry("dangling", link("nowhere"))
	root.SetEntry("long", link(strings.Repeat("./", MaxTarget)))
	usr.SetEntry("lib", lib)
	lib.SetEntry("file", file)
	lib.SetEntry("up", link("../.."))
	last := file
	for i := range 41 {
		name := fmt.Sprintf("chain%d", i)
		if i == 0 {
			root.SetEntry(name, link("usr/lib/file"))
			continue
		}
		root.SetEntry(name, link(fmt.Sprintf("chain%d", i-1)))
	}
	for _, c := range []struct {
		path string
		last bool
		want *Node
		err  error
	}{
		{"", true, root, nil},
		{"/", false, root, nil},
		{"..", false, root, nil},
		{"../../usr/./lib//file", false, file, nil},
		{"lib", true, lib, nil},
		{"lib", false, root.Entry("lib"), nil},
		{"lib/", false, lib, nil},
		{"lib/file", false, file, nil},
		{"out/lib/file", true, file, nil},
		{"abs", true, file, nil},
		{"usr/lib/up/usr/lib/up/abs", true, file, nil},
		{"chain39", true, last, nil},
		{"chain40", true, nil, ErrTooManyLinks},
		{"loop", true, nil, ErrTooManyLinks},
		{"loop", false, root.Entry("loop"), nil},
		{"long", true, nil, ErrTooManyLinks},
		{"dangling", true, nil, ErrNotExist},
		{"nothing", false, nil, ErrNotExist},
		{"usr/lib/file/x", false, nil, ErrNotDirectory},
		{"usr/lib/file/", false, nil, ErrNotDirectory},
		{strings.Repeat("x/../", maxSteps), false, nil, ErrNotExist},
		{strings.Repeat("usr/../", maxSteps), false, nil, ErrTooManyLinks},
	} {
		got, err := root.Follow(c.path, c.last)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("Follow(%.40q, %t) = %v, %v, want %v, %v", c.path, c.last, got, err, c.want, c.err)
		}
	}
}
