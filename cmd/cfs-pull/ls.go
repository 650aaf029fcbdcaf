// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"path"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/pipeline"
)

type lsOptions struct {
	viewOptions
	recursive, directory bool
}

// lsJSON is the result of the command ls.
type lsJSON struct {
	APIVersion string    `json:"apiVersion"`
	Entries    []lsEntry `json:"entries"`
}

// lsEntry is a name in an image. Text that is not UTF-8 is there twice: with
// replacement characters, and as the bytes it is.
type lsEntry struct {
	Path        string            `json:"path"`
	PathBytes   []byte            `json:"pathBytes,omitempty"`
	Inode       int               `json:"inode"` // the same for names of the same file
	Type        string            `json:"type"`
	Mode        string            `json:"mode"` // octal, without the type
	Links       int               `json:"links"`
	UID         uint32            `json:"uid"`
	GID         uint32            `json:"gid"`
	Size        *uint64           `json:"size,omitempty"` // of files
	Modified    string            `json:"modified"`       // as in RFC 3339
	Target      string            `json:"target,omitempty"`
	TargetBytes []byte            `json:"targetBytes,omitempty"`
	Major       *uint32           `json:"major,omitempty"`
	Minor       *uint32           `json:"minor,omitempty"`
	Object      fsverity.Digest   `json:"object,omitzero"` // empty for content in the image
	Xattrs      map[string][]byte `json:"xattrs,omitempty"`
}

func newLsCommand() *cobra.Command {
	o := lsOptions{}
	cmd := &cobra.Command{
		Use:   "ls [options] REF [PATH]",
		Short: "List files of an image",
		Long: `List files of an image, as ls -l does. Without PATH it lists the root. Symbolic links on
the way are followed inside the image; PATH itself only if a slash comes after it.

What is shown is the EROFS image in the repository, checked against its id, and the
layers where there is none. Times are in UTC. Names that are not printable are quoted.
` + referenceHelp + exitHelp,
		Args:                  usageArgsBetween(1, 2, "a reference and a path"),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := "/"
			if len(args) > 1 {
				name = args[1]
			}
			return failJSON(cmd, o.json, runLs(cmd, &o, args[0], name))
		},
	}
	g := newFlagGroup("OPTIONS")
	o.addFlags(g.flags)
	o.addBootFlag(g.flags)
	g.flags.BoolVarP(&o.recursive, "recursive", "R", false, "also what is below directories, with paths")
	g.flags.BoolVarP(&o.directory, "directory", "d", false, "a directory itself and not what is in it")
	o.addJSONFlag(g.flags)
	setFlags(cmd, g)
	return cmd
}

// usageArgsBetween accepts from least to most arguments.
func usageArgsBetween(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return usagef("want %s, got %d; see %s --help", what, len(args), cmd.CommandPath())
		}
		return nil
	}
}

// pathError says which path of an image an error of the tree is about.
func pathError(reference, name string, err error) error {
	return fmt.Errorf("%s: %s: %w", printable(reference), printable(path.Join("/", name)), err)
}

func runLs(cmd *cobra.Command, o *lsOptions, reference, name string) error {
	var result []lsEntry
	err := o.withImage(cmd.Context(), reference, func(repo *composefs.Repo, im *oci.Stored) error {
		root, err := im.Tree(cmd.Context(), repo, o.boot)
		if err != nil {
			return err
		}
		n, err := root.Follow(name, false)
		if err != nil {
			return pathError(reference, name, err)
		}
		l := lister{inodes: countLinks(root), recursive: o.recursive}
		if o.directory {
			l.add(path.Join("/", name), n)
		} else {
			err = l.list(cmd.Context(), path.Join("/", name), n)
		}
		result = l.out
		return err
	})
	if err != nil {
		return err
	}
	if o.json {
		return writeJSON(cmd.OutOrStdout(), lsJSON{pipeline.APIVersion, result})
	}
	return writeList(cmd.OutOrStdout(), result, o.recursive)
}

// inodeInfo is what a node does not know about itself.
type inodeInfo struct{ number, links int }

// countLinks numbers the inodes of a tree from 1 on, and counts their names.
func countLinks(root *tree.Node) map[*tree.Node]*inodeInfo {
	inodes := map[*tree.Node]*inodeInfo{root: {1, 2}}
	todo := []*tree.Node{root}
	for len(todo) > 0 {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, name := range dir.Names() {
			child := dir.Entry(name)
			info := inodes[child]
			if info == nil {
				info = &inodeInfo{number: len(inodes) + 1}
				inodes[child] = info
			}
			if child.Kind != tree.Directory {
				info.links++
				continue
			}
			inodes[dir].links++
			info.links = 2
			todo = append(todo, child)
		}
	}
	return inodes
}

type lister struct {
	inodes    map[*tree.Node]*inodeInfo
	recursive bool
	out       []lsEntry
}

// list lists what is in a directory, or what is none.
func (l *lister) list(ctx context.Context, name string, n *tree.Node) error {
	l.out = []lsEntry{}
	if n.Kind != tree.Directory {
		l.add(name, n)
		return nil
	}
	return l.directory(ctx, name, n)
}

func (l *lister) directory(ctx context.Context, name string, dir *tree.Node) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, entry := range dir.Names() {
		child := dir.Entry(entry)
		at := path.Join(name, entry)
		l.add(at, child)
		if l.recursive && child.Kind == tree.Directory {
			if err := l.directory(ctx, at, child); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lister) add(name string, n *tree.Node) {
	e := lsEntry{
		Path: name, Type: kindNames[n.Kind], Mode: fmt.Sprintf("%04o", n.Mode),
		Inode: l.inodes[n].number, Links: l.inodes[n].links, UID: n.UID, GID: n.GID,
		Modified: time.Unix(n.Mtime.Sec, int64(n.Mtime.Nsec)).UTC().Format(time.RFC3339Nano),
		Target:   n.Target, Object: n.Object,
	}
	if !utf8.ValidString(name) {
		e.PathBytes = []byte(name)
	}
	if !utf8.ValidString(n.Target) {
		e.TargetBytes = []byte(n.Target)
	}
	switch n.Kind {
	case tree.Regular:
		e.Size = &n.Size
	case tree.CharDevice, tree.BlockDevice:
		major, minor := unix.Major(n.Rdev), unix.Minor(n.Rdev)
		e.Major, e.Minor = &major, &minor
	}
	for _, x := range n.Xattrs {
		if e.Xattrs == nil {
			e.Xattrs = map[string][]byte{}
		}
		e.Xattrs[x.Name] = x.Value
	}
	l.out = append(l.out, e)
}

// typeLetters begin the mode of a file in ls -l.
var typeLetters = map[string]byte{
	"directory": 'd', "file": '-', "symlink": 'l', "char-device": 'c', "block-device": 'b', "fifo": 'p', "socket": 's',
}

// modeText is a mode as ls -l writes it.
func modeText(kind, octal string) string {
	mode, _ := strconv.ParseUint(octal, 8, 32) // it was written by us
	text := []byte{typeLetters[kind]}
	for shift := 6; shift >= 0; shift -= 3 {
		for i, letter := range []byte("rwx") {
			if mode>>(shift+2-i)&1 == 0 {
				letter = '-'
			}
			text = append(text, letter)
		}
	}
	for _, special := range []struct {
		bit uint64
		at  int
		set byte
	}{{0o4000, 3, 's'}, {0o2000, 6, 's'}, {0o1000, 9, 't'}} {
		if mode&special.bit == 0 {
			continue
		}
		if text[special.at] == '-' {
			special.set -= 'a' - 'A' // without the execute bit
		}
		text[special.at] = special.set
	}
	return string(text)
}

func writeList(out io.Writer, entries []lsEntry, paths bool) error {
	sizes := make([]string, len(entries))
	var width struct{ links, uid, gid, size int }
	for i := range entries {
		e := &entries[i]
		switch {
		case e.Major != nil:
			sizes[i] = fmt.Sprintf("%d, %d", *e.Major, *e.Minor)
		case e.Size != nil:
			sizes[i] = strconv.FormatUint(*e.Size, 10)
		default:
			sizes[i] = strconv.Itoa(len(e.Target))
		}
		width.links = max(width.links, len(strconv.Itoa(e.Links)))
		width.uid = max(width.uid, len(strconv.FormatUint(uint64(e.UID), 10)))
		width.gid = max(width.gid, len(strconv.FormatUint(uint64(e.GID), 10)))
		width.size = max(width.size, len(sizes[i]))
	}
	w := bufio.NewWriter(out)
	for i := range entries {
		e := &entries[i]
		name := e.Path
		if !paths && len(entries) > 1 {
			name = path.Base(name)
		}
		modified, _ := time.Parse(time.RFC3339Nano, e.Modified) // it was written by us
		fmt.Fprintf(w, "%s %*d %*d %*d %*s %s %s", modeText(e.Type, e.Mode), width.links, e.Links, width.uid, e.UID,
			width.gid, e.GID, width.size, sizes[i], modified.Format("2006-01-02 15:04"), printable(name))
		if e.Type == "symlink" {
			fmt.Fprintf(w, " -> %s", printable(e.Target))
		}
		fmt.Fprintln(w)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}
