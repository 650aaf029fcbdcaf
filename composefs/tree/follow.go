// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package tree

import (
	"errors"
	"strings"
)

// ErrTooManyLinks reports a path that leads through more than 40 symbolic
// links, or through so many components that it leads nowhere.
var ErrTooManyLinks = errors.New("too many levels of symbolic links")

const (
	maxLinks = 40   // as in Linux
	maxSteps = 4096 // components of a path and of all links on it
)

// Follow finds path as a process would whose root is this directory: symbolic
// links are followed, absolute ones begin at the root, and ".." stops there.
// A link that is the last component is followed if last is set or a slash
// comes after it. The errors are those of [Node.Lookup] and [ErrTooManyLinks].
func (n *Node) Follow(path string, last bool) (*Node, error) {
	todo := strings.Split(path, "/")
	parents := []*Node{n}
	for links, steps := 0, 0; len(todo) > 0; steps++ {
		if steps == maxSteps {
			return nil, ErrTooManyLinks
		}
		name := todo[0]
		todo = todo[1:]
		dir := parents[len(parents)-1]
		if dir.Kind != Directory {
			return nil, ErrNotDirectory
		}
		switch name {
		case "", ".":
			continue
		case "..":
			if len(parents) > 1 {
				parents = parents[:len(parents)-1]
			}
			continue
		}
		child := dir.Entry(name)
		if child == nil {
			return nil, ErrNotExist
		}
		if child.Kind != Symlink || len(todo) == 0 && !last {
			parents = append(parents, child)
			continue
		}
		if links++; links > maxLinks || len(child.Target) > MaxTarget {
			return nil, ErrTooManyLinks
		}
		if strings.HasPrefix(child.Target, "/") {
			parents = parents[:1]
		}
		todo = append(strings.Split(child.Target, "/"), todo...)
	}
	return parents[len(parents)-1], nil
}
