// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/selinux"
)

const (
	// LabelStamp is the file in the root of a store that says that it has been
	// labelled. bootc uses the same name.
	LabelStamp = ".bootc_labeled"

	// labelReference is where a policy has rules for a store. Nothing in a
	// policy knows the place of the bootc-owned store, so labels are looked up
	// as if the tree were here.
	labelReference = "/var/lib/containers/storage"

	labelXattr = "security.selinux"

	// maxLabel is the longest label that is read, in bytes. The kernel's own
	// limit is a page.
	maxLabel = 4096

	// maxLabelExamples is how many wrong labels a LabelCheck names.
	maxLabelExamples = 20
)

// LabelStatus says how a Label ended.
type LabelStatus string

// The outcomes of Label.
const (
	// LabelDone: every file has the label that the policy gives it.
	LabelDone LabelStatus = "labelled"
	// LabelStamped: the stamp says so, nothing was looked at.
	LabelStamped LabelStatus = "already-labelled"
	// LabelNoPolicy: there is no policy. Nothing was done and no stamp was
	// left, so that labelling happens when there is one.
	LabelNoPolicy LabelStatus = "no-policy"
)

// LabelOptions configure Label. The zero value works.
type LabelOptions struct {
	// Force looks at every file although the stamp says that it was done.
	Force bool
	// NewFiles says that files may have been created since the stamp was
	// written. They have inherited their labels, unless the kernel knows none:
	// it has SELinux turned off, or an installer runs on another system. Then
	// every file is looked at, as with Force.
	NewFiles bool
	// NoStamp leaves no stamp, for a store that is about to be filled: what is
	// created in a labelled directory inherits its label.
	NoStamp bool
	// Workers is the number of directories worked on at once; 0 stands for a
	// default.
	Workers int
}

// LabelResult is what a Label did.
type LabelResult struct {
	Status LabelStatus `json:"status"`
	// Visited counts the names that were looked at, Changed those whose label
	// was written, the stamp included.
	Visited int64 `json:"visited"`
	Changed int64 `json:"changed"`
	// NoContext counts names that the policy has no label for. They keep what
	// they have.
	NoContext int64 `json:"noContext"`
	// Mounts counts names on which something is mounted, such as the root of a
	// running container. They are left alone, with all below them.
	Mounts int64 `json:"mounts"`
}

// Label gives every file of the store at root the SELinux label that policy has
// for it as part of /var/lib/containers/storage, and leaves a stamp that says
// so. A store with the stamp is left alone. policy may be nil: see
// LabelNoPolicy.
//
// The order is that of R-021: labels, a barrier for the whole file system, the
// stamp, the stamp's label, a barrier for the directory. So a stamp that
// survives a crash tells the truth. One that is found with Force goes before
// the first label is written.
//
// On a running system a fresh store is labelled twice: with NoStamp before
// anything is pulled, and again afterwards; one that is there with NewFiles after
// each pull. When a system is installed, once
// after the last pull.
//
// A label is written only where another one is found. Symbolic links are
// labelled, never followed; mounts are not entered; files are not opened, so
// those with fs-verity are labelled like the others. What vanishes meanwhile is
// not missed.
func Label(ctx context.Context, root string, policy *selinux.Policy, o LabelOptions) (*LabelResult, error) {
	if policy == nil {
		return &LabelResult{Status: LabelNoPolicy}, nil
	}
	dir, err := openLabelRoot(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	stamped, err := hasStamp(dir)
	if err != nil {
		return nil, err
	}
	if stamped && !o.Force {
		inherited := true
		if o.NewFiles {
			if inherited, err = kernelLabels(); err != nil {
				return nil, fmt.Errorf("label containers-storage: %w", err)
			}
		}
		if inherited {
			return &LabelResult{Status: LabelStamped}, nil
		}
	}

	l := &labelWriter{root: dir, stamped: stamped}
	w := newLabelWalk(dir, policy, o.Workers, l.set)
	if err := w.run(ctx); err != nil {
		return nil, fmt.Errorf("label containers-storage: %w", err)
	}
	r := &LabelResult{
		Status: LabelDone, Visited: w.visited.Load(), NoContext: w.noContext.Load(), Mounts: w.mounts.Load(), Changed: l.changed.Load(),
	}
	// A stamp that is still there was right: nothing was written.
	if o.NoStamp || stamped && r.Changed == 0 {
		return r, nil
	}
	changed, err := writeStamp(dir, policy)
	if err != nil {
		return nil, fmt.Errorf("label containers-storage: %w", err)
	}
	if changed {
		r.Changed++
	}
	return r, nil
}

// openLabelRoot opens the directory of a store.
func openLabelRoot(root string) (*os.File, error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open containers-storage: %w", &fs.PathError{Op: "open", Path: root, Err: err})
	}
	dir := os.NewFile(uintptr(fd), root)
	// Without /proc, every file would look as if it had just been removed.
	var direct, proc unix.Stat_t
	if err = unix.Fstat(fd, &direct); err == nil {
		err = unix.Stat(procFD(fd), &proc)
	}
	if err == nil && (direct.Dev != proc.Dev || direct.Ino != proc.Ino) {
		err = errors.New("it leads to another file")
	}
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("labelling needs /proc: stat %s: %w", procFD(fd), err)
	}
	return dir, nil
}

// procFD is a path that leads to the file that is open as fd.
func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// kernelLabels reports whether the kernel gives new files a label by itself.
func kernelLabels() (bool, error) {
	list, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return false, err
	}
	// It is registered when SELinux is on, not when it is merely compiled in.
	return bytes.Contains(list, []byte("\tselinuxfs\n")), nil
}

func hasStamp(dir *os.File) (bool, error) {
	var stat unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), LabelStamp, &stat, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return false, &fs.PathError{Op: "stat", Path: dir.Name() + "/" + LabelStamp, Err: err}
	}
	return err == nil, nil
}

// writeStamp makes what was written so far durable, and then the stamp. It
// reports whether the stamp's label had to be written.
func writeStamp(dir *os.File, policy *selinux.Policy) (changed bool, err error) {
	name := dir.Name() + "/" + LabelStamp
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return false, &fs.PathError{Op: "syncfs", Path: dir.Name(), Err: err}
	}
	fd, err := unix.Openat(int(dir.Fd()), LabelStamp, unix.O_CREAT|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return false, &fs.PathError{Op: "create", Path: name, Err: err}
	}
	stamp := os.NewFile(uintptr(fd), name)
	defer stamp.Close()
	context, ok := policy.Lookup(referenceBase(policy)+"/"+LabelStamp, '-')
	if err := policy.Err(); err != nil {
		return false, err
	}
	if ok {
		value := make([]byte, maxLabel)
		n, err := unix.Fgetxattr(fd, labelXattr, value)
		have, err := parseLabel(value, n, err)
		if changed = err == nil && have != context; changed {
			err = unix.Fsetxattr(fd, labelXattr, []byte(context), 0)
		}
		if err != nil {
			return false, &fs.PathError{Op: "label", Path: name, Err: err}
		}
	}
	for _, f := range []*os.File{stamp, dir} {
		if err := f.Sync(); err != nil {
			return false, err
		}
	}
	return changed, nil
}

// referenceBase is labelReference after the policy's substitutions, which are
// looked up from the root downwards.
func referenceBase(policy *selinux.Policy) string {
	base := ""
	for _, name := range strings.Split(strings.TrimPrefix(labelReference, "/"), "/") {
		base += "/" + name
		if alias, ok := policy.Alias(base); ok {
			base = alias
		}
	}
	return base
}

// parseLabel turns the answer to a getxattr call into a label, without the NUL
// that libselinux puts at its end; empty if there is none.
func parseLabel(value []byte, n int, err error) (string, error) {
	switch {
	case errors.Is(err, unix.ENODATA):
		return "", nil
	case errors.Is(err, unix.ERANGE):
		return "(longer than a page)", nil
	case err != nil:
		return "", err
	}
	return string(bytes.TrimSuffix(value[:n], []byte{0})), nil
}

// labelWriter writes labels where they differ.
type labelWriter struct {
	root    *os.File
	stamped bool // when the walk began
	changed atomic.Int64

	unstamp    sync.Once
	unstampErr error
}

// set implements labelVisit.
func (l *labelWriter) set(f labelFile) error {
	have, err := f.label()
	if err != nil || have == f.context {
		return err
	}
	if mounted, err := f.mounted(); err != nil || mounted {
		return err
	}
	if err := l.removeStamp(); err != nil {
		return err
	}
	if err := f.setLabel(); err != nil {
		return err
	}
	l.changed.Add(1)
	return nil
}

// removeStamp takes back the stamp, once, before the first label is written:
// it was wrong, and would be so if the rest of the walk did not come.
func (l *labelWriter) removeStamp() error {
	if !l.stamped {
		return nil
	}
	l.unstamp.Do(func() {
		err := unix.Unlinkat(int(l.root.Fd()), LabelStamp, 0)
		if err == nil || errors.Is(err, unix.ENOENT) {
			err = unix.Fsync(int(l.root.Fd()))
		}
		if err != nil {
			l.unstampErr = fmt.Errorf("remove the stamp that is wrong: %w", err)
		}
	})
	return l.unstampErr
}

// LabelMismatch is a file with a label other than that of the policy.
type LabelMismatch struct {
	Path string `json:"path"` // below the store's root
	Have string `json:"have"` // empty for none
	Want string `json:"want"`
}

// LabelCheck is what CheckLabels found.
type LabelCheck struct {
	// Policy is false when there is no policy. Then nothing was looked at.
	Policy bool `json:"policy"`
	// Stamped says whether the store has the stamp.
	Stamped bool  `json:"stamped"`
	Visited int64 `json:"visited"`
	// Wrong counts names with another label than the policy has for them.
	// Examples are some of them, in no order.
	Wrong    int64           `json:"wrong"`
	Examples []LabelMismatch `json:"examples,omitempty"`
}

// StampIsWrong reports whether the stamp promises what is not so. A
// store that has no stamp may have any labels.
func (c *LabelCheck) StampIsWrong() bool { return c.Stamped && c.Wrong > 0 }

// CheckLabels compares the labels of the store at root with those that Label
// would give. It writes nothing.
func CheckLabels(ctx context.Context, root string, policy *selinux.Policy) (*LabelCheck, error) {
	dir, err := openLabelRoot(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	stamped, err := hasStamp(dir)
	if err != nil {
		return nil, err
	}
	c := &LabelCheck{Policy: policy != nil, Stamped: stamped}
	if policy == nil {
		return c, nil
	}
	var mu sync.Mutex
	w := newLabelWalk(dir, policy, 0, func(f labelFile) error {
		have, err := f.label()
		if err != nil || have == f.context {
			return err
		}
		if mounted, err := f.mounted(); err != nil || mounted {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		c.Wrong++
		if len(c.Examples) < maxLabelExamples {
			c.Examples = append(c.Examples, LabelMismatch{Path: f.path(), Have: have, Want: f.context})
		}
		return nil
	})
	if err := w.run(ctx); err != nil {
		return nil, fmt.Errorf("check labels of containers-storage: %w", err)
	}
	c.Visited = w.visited.Load()
	return c, nil
}
