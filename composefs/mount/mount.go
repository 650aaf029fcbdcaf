// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// The names of composefs mounts. Ours have the image's id behind sourcePrefix,
// as those of cfsctl and bootc; mount.composefs of the C tools has sourceOfC.
const (
	sourcePrefix = "composefs:"
	sourceOfC    = "composefs"
)

// Options say how an image is mounted. The zero value is a read-only mount
// with the protection that the repository requires.
type Options struct {
	// RequireVerity requires fs-verity of the image and of every file, also
	// where the repository does not.
	RequireVerity bool
	// Upper is a directory that keeps changes, in upper/ and work/, which are
	// made; it is made itself if the directory above it is there. Without it
	// the mount is read-only.
	Upper string
	// Usual restrictions. A root file system has none of them.
	NoSuid, NoDev, NoExec bool
}

func (o *Options) attributes() int {
	attributes := 0
	for _, a := range []struct {
		set bool
		bit int
	}{
		{o.Upper == "", unix.MOUNT_ATTR_RDONLY}, {o.NoSuid, unix.MOUNT_ATTR_NOSUID},
		{o.NoDev, unix.MOUNT_ATTR_NODEV}, {o.NoExec, unix.MOUNT_ATTR_NOEXEC},
	} {
		if a.set {
			attributes |= a.bit
		}
	}
	return attributes
}

// mounter knows what the kernel is not to be asked for. Tests set it to get the
// ways of older kernels.
type mounter struct {
	noFileBacked bool // EROFS from a file
	noLayerFiles bool // layers of overlayfs by descriptor
}

// Image mounts the image with a link in the repository on the directory
// target, which must not be a symbolic link. An image whose content does not
// have that digest is [composefs.ErrIntegrity]. The mount needs the repository
// for as long as it lives, but no lock of it: what keeps the files from being
// collected is a tag or a ref, or [Mounted].
func Image(repo *composefs.Repo, id fsverity.Digest, target string, o Options) error {
	return (&mounter{}).image(repo, id, target, o)
}

func (m *mounter) image(repo *composefs.Repo, id fsverity.Digest, target string, o Options) error {
	at, err := openTarget(target)
	if err != nil {
		return err
	}
	defer at.Close() // only a path
	detached, err := m.detached(repo, id, o)
	if err != nil {
		return fmt.Errorf("mount image %s: %w", id, err)
	}
	defer detached.Close() // takes the mount away unless it was attached
	err = unix.MoveMount(int(detached.Fd()), "", int(at.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("mount image %s: %w", id, kernelError("attach it to "+target, "", "", err))
	}
	return nil
}

// detached makes the mount, attached nowhere.
func (m *mounter) detached(repo *composefs.Repo, id fsverity.Digest, o Options) (*os.File, error) {
	image, measured, err := repo.OpenVerifiedImage(id)
	if err != nil {
		return nil, err
	}
	defer image.Close() // read-only
	if o.RequireVerity && !measured {
		return nil, fmt.Errorf("%w: the image itself does not have it", composefs.ErrVerityUnavailable)
	}
	if err := checkStructure(image); err != nil {
		return nil, err
	}
	objects, err := repo.OpenObjects()
	if err != nil {
		return nil, err
	}
	defer objects.Close() // a directory
	metadata, err := m.mountErofs(image)
	if err != nil {
		return nil, err
	}
	defer metadata.Close() // the overlay keeps it
	l := &layers{
		source: sourcePrefix + id.String(), erofs: metadata, objects: objects,
		verity: repo.Enforcing() || o.RequireVerity,
	}
	if o.Upper != "" {
		root, err := openDirectory(int(metadata.Fd()), ".", "root of the image")
		if err != nil {
			return nil, err
		}
		defer root.Close() // a directory
		if l.upper, err = openUpper(o.Upper, root); err != nil {
			return nil, err
		}
		defer l.upper.close()
	}
	return m.mountOverlay(l, o.attributes())
}

// checkStructure reads the whole image with our own reader, before the kernel
// is to believe it.
func checkStructure(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	image, err := erofs.Open(f, info.Size())
	if err != nil {
		return err
	}
	_, err = image.Objects()
	return err
}

// openTarget opens the directory to mount on.
func openTarget(target string) (*os.File, error) {
	target = filepath.Clean(target) // "link/" would be followed
	fd, err := unix.Open(target, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTarget, &os.PathError{Op: "open", Path: target, Err: err})
	}
	f := os.NewFile(uintptr(fd), target)
	if err := checkTarget(f); err != nil {
		f.Close() // only a path
		return nil, fmt.Errorf("%s: %w: %w", target, ErrTarget, err)
	}
	return f, nil
}

func checkTarget(f *os.File) error {
	info, err := f.Stat()
	switch {
	case err != nil:
		return err
	case info.Mode().Type() == os.ModeSymlink:
		return errors.New("it is a symbolic link; name the directory itself")
	case !info.IsDir():
		return errors.New("it is not a directory")
	}
	path, err := os.Readlink(procPath(f))
	if err != nil {
		return err
	}
	top, err := topMount(path)
	if err != nil {
		return err
	}
	if top != nil && isComposefs(top) {
		return fmt.Errorf("%s is mounted there already; unmount it first", top.Source)
	}
	return nil
}

// topMount is what is mounted on a path, the last of several, or nil.
func topMount(path string) (*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != path, false })
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	if len(mounts) == 0 {
		return nil, nil
	}
	return mounts[len(mounts)-1], nil
}

func isComposefs(m *mountinfo.Info) bool {
	return m.FSType == "overlay" && (strings.HasPrefix(m.Source, sourcePrefix) || m.Source == sourceOfC)
}

// Unmount unmounts the composefs image that is mounted on a directory, and
// nothing else: what is no such mount is [ErrNotMounted]. One that is in use is
// [ErrBusy], unless it is unmounted lazily: then it is out of sight at once and
// gone when it is not in use any more.
func Unmount(target string, lazy bool) error {
	path, err := filepath.Abs(target)
	if err == nil {
		var parent string
		// The last component is not followed.
		parent, err = filepath.EvalSymlinks(filepath.Dir(path))
		path = filepath.Join(parent, filepath.Base(path))
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	top, err := topMount(path)
	switch {
	case err != nil:
		return fmt.Errorf("unmount %s: %w", target, err)
	case top == nil:
		return fmt.Errorf("unmount %s: %w: it is not a mount point", target, ErrNotMounted)
	case !isComposefs(top):
		return fmt.Errorf("unmount %s: %w: it is a mount of %q with file system %s", target, ErrNotMounted, top.Source, top.FSType)
	}
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err = unix.Unmount(path, flags)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("unmount %s: %w", target, ErrBusy)
	}
	if err != nil {
		return kernelError("unmount "+target, "", "", err)
	}
	return nil
}
