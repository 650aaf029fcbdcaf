// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Mounted lists the EROFS images, in the order of their ids, that are mounted
// with the objects of a repository, by this package, cfsctl or bootc: nothing
// in the repository says so (specification section 5.3). Only what the mount
// namespace of the process has is seen. A mount that does not say where its
// objects are counts, whatever repository it is of.
func Mounted(repo *composefs.Repo) ([]fsverity.Digest, error) {
	objects, err := repo.OpenObjects()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer objects.Close() // a directory
	return MountedWith(objects, repo.Algorithm())
}

// MountedWith is [Mounted] for a directory of objects, for whoever cannot open
// the repository.
func MountedWith(objects *os.File, alg fsverity.Algorithm) ([]fsverity.Digest, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("overlay"))
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var own unix.Stat_t
	if err := unix.Fstat(int(objects.Fd()), &own); err != nil {
		return nil, fmt.Errorf("stat %s: %w", objects.Name(), err)
	}
	found := map[fsverity.Digest]struct{}{}
	for _, m := range mounts {
		hex, ok := strings.CutPrefix(m.Source, sourcePrefix)
		if !ok || isOther(m.VFSOptions, &own) {
			continue
		}
		if id, err := fsverity.ParseDigest(hex); err == nil && id.Algorithm() == alg {
			found[id] = struct{}{}
		}
	}
	return slices.SortedFunc(maps.Keys(found), func(a, b fsverity.Digest) int { return cmp.Compare(a.String(), b.String()) }), nil
}

// isOther reports whether a mount has its data in another directory than the
// one given. It is not, if the directory is not said or cannot be looked at.
func isOther(options string, objects *unix.Stat_t) bool {
	for option := range strings.SplitSeq(options, ",") {
		path, ok := strings.CutPrefix(option, "datadir+=")
		if !ok {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(unescape(path), &st) != nil {
			return false
		}
		return st.Dev != objects.Dev || st.Ino != objects.Ino
	}
	return false
}
