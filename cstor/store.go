// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Store is a containers-storage. Its methods may be called by several
// goroutines, but one operation at a time should change it: hold
// composefs.LockOperation meanwhile.
type Store struct {
	options   Options
	graphRoot string
	created   bool
	lib       library
}

// OpenExisting opens a store that exists; ErrNoStore if it does not. It creates
// nothing at all, neither do the methods that only read, so it works on a
// read-only file system too.
func OpenExisting(ctx context.Context, o Options) (*Store, error) {
	o = o.withDefaults()
	place, err := locate(o)
	if err != nil {
		return nil, err
	}
	if err := place.isStore(); err != nil {
		return nil, err
	}
	return newStore(o, place)
}

// newStore is the handle of a store that is there.
func newStore(o Options, p *place) (*Store, error) {
	additional := make([]string, 0, len(o.AdditionalImageStores))
	for _, root := range o.AdditionalImageStores {
		resolved, err := realPath(root)
		if err != nil {
			return nil, fmt.Errorf("open additional image store: %w", err)
		}
		if err := (&place{graphRoot: resolved}).isStore(); err != nil {
			return nil, fmt.Errorf("open additional image store: %w", err)
		}
		additional = append(additional, resolved)
	}
	o.AdditionalImageStores = additional
	runRoot, err := filepath.Abs(o.RunRoot)
	if err != nil {
		return nil, fmt.Errorf("open containers-storage %s: %w", p.graphRoot, err)
	}
	o.RunRoot = runRoot
	return &Store{options: o, graphRoot: p.graphRoot}, nil
}

// Close gives everything back. The mount table and the open files are as they
// were before the store was opened.
func (s *Store) Close() error {
	s.lib.close()
	return nil
}

// GraphRoot is the one path by which the store is used: no component of it is
// a symbolic link.
func (s *Store) GraphRoot() string { return s.graphRoot }

// Created reports whether Ensure made the store.
func (s *Store) Created() bool { return s.created }

// isStore is nil if the directory holds a containers-storage of the overlay
// driver.
func (p *place) isStore() error {
	for _, dir := range []string{driverDir, imagesDir} {
		info, err := os.Lstat(filepath.Join(p.graphRoot, dir))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return fmt.Errorf("open %s: %w with the overlay driver there", p.graphRoot, ErrNoStore)
		}
		if err != nil {
			return fmt.Errorf("open containers-storage %s: %w", p.graphRoot, err)
		}
		if !info.IsDir() {
			return fmt.Errorf("open containers-storage %s: %w: %s is not a directory", p.graphRoot, ErrCorrupt, dir)
		}
	}
	return nil
}
