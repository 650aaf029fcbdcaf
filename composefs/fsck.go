// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/splitstream"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// CheckOptions say what a [Checker] looks at. The zero value checks everything.
type CheckOptions struct {
	// Quick leaves out reading the content of objects. Structure, links,
	// tables and chunk streams are checked, and fs-verity is measured.
	Quick bool
	// Workers is how many goroutines check; 0 stands for one a CPU.
	Workers int
	// MaxFindings is how many findings are kept; 0 stands for
	// [DefaultMaxFindings].
	MaxFindings int
	// Rule says what the name of a stream promises; nil: nothing.
	Rule func(stream string) StreamRule
	// Ref is told every ref of streams that can be read, one after the other.
	// The entry that it leads to may be missing.
	Ref func(Ref)
	// Streams limits the check to the streams of these names and to what they
	// lead to; nil stands for everything.
	Streams []string
	// Repair collects repairs for [Checker.Repair]. The caller holds the
	// exclusive lock.
	Repair bool
	// DropDamaged lets Repair remove objects whose content is wrong.
	DropDamaged bool
}

// StreamRule is what the name of a stream promises.
type StreamRule struct {
	// Types are the content types that it may have; nil: any.
	Types []splitstream.ContentType
	// SHA256 is the digest of the reassembled stream, and Mismatch the kind
	// of finding when it has another one.
	SHA256   *[sha256.Size]byte
	Mismatch Kind
	// Padding is the kind of the warning when the stream has that digest with
	// zero bytes at its end that it lacks; empty when that is a mismatch.
	Padding Kind
	// OwnRefs says that the caller checks where named refs lead to.
	OwnRefs bool
}

// Limits on what a check does. A real repository does not come near them.
const (
	// maxEntries bounds the first-level links of a kind.
	maxEntries = 1 << 20

	// Work that is not backed by bytes on disk, such as holes of files or
	// what a few compressed bytes expand to, is bounded: a small repository
	// could keep a check busy for years. The limit is workFloor bytes, and
	// workRatio for each byte that the checked objects take on disk.
	workFloor = 16 << 30
	workRatio = 64

	// checkMemory is how many bytes tables of streams and EROFS images may
	// take at a time.
	checkMemory = 2 << 30

	// streamWorkers bounds how many chunk streams are decompressed at a
	// time: the window of each may be 128 MiB.
	streamWorkers = 8

	// maxRemembered bounds the sets of ids that a check remembers.
	maxRemembered = 1 << 20

	// maxUsers is how many users of an object a finding names.
	maxUsers = 4
)

// Counts is what a check looked at.
type Counts struct {
	ObjectsChecked atomic.Int64
	ObjectsDamaged atomic.Int64
	BytesRead      atomic.Int64 // of objects, to check their content
	StreamsChecked atomic.Int64
	StreamsDamaged atomic.Int64
	ImagesChecked  atomic.Int64
	ImagesDamaged  atomic.Int64
	RefsChecked    atomic.Int64
}

// Checker checks a repository: objects, links, streams and EROFS images. It
// reads only; what it finds wrong is a [Finding], and an error is returned only
// when the check itself cannot go on. A check has bounds on time and memory
// that hold for every repository, also for one that somebody has prepared.
//
// A Checker is for one round: [NewChecker], [Checker.Run], then Report for what
// the caller finds, Findings and, with CheckOptions.Repair, Repair. The next
// round, made with [Checker.Next], does not read again what was found good.
type Checker struct {
	Counts Counts

	repo     *Repo
	o        CheckOptions
	workers  int
	findings *findings
	memory   *semaphore.Weighted

	facts     objectFacts
	workFloor int64
	work      atomic.Int64 // bytes of work that no byte on disk backs
	allocated atomic.Int64 // bytes that the checked objects have on disk

	links   map[string]*linkIndex        // by streamsDir and imagesDir
	streams []*streamItem                // those that were opened
	scope   map[fsverity.Digest]struct{} // objects of a limited check
	images  map[fsverity.Digest]struct{} // EROFS images of a limited check

	mu         sync.Mutex
	damaged    map[fsverity.Digest]Kind // objects
	users      map[fsverity.Digest][]string
	repairable map[fsverity.Digest]struct{}
	tainted    map[fsverity.Digest]struct{} // streams with damaged content
	blind      bool                         // some stream could not be read: what it refers to is unknown
	fixes      []fix

	sums map[fsverity.Digest]streamSum // of reassembled streams, also of rounds before
	past *Checker                      // the round before

	documents map[[sha256.Size]byte]fsverity.Digest // of FindDocument
}

// NewChecker prepares a check of a repository, which must stay open.
func NewChecker(r *Repo, o CheckOptions) *Checker {
	c := &Checker{
		repo: r, o: o, workers: o.Workers,
		findings:   newFindings(o.MaxFindings),
		facts:      objectFacts{seed: maphash.MakeSeed()},
		memory:     semaphore.NewWeighted(checkMemory),
		workFloor:  workFloor,
		links:      map[string]*linkIndex{},
		damaged:    map[fsverity.Digest]Kind{},
		users:      map[fsverity.Digest][]string{},
		repairable: map[fsverity.Digest]struct{}{},
		tainted:    map[fsverity.Digest]struct{}{},
		sums:       map[fsverity.Digest]streamSum{},
	}
	if c.workers <= 0 {
		c.workers = runtime.GOMAXPROCS(0)
	}
	return c
}

// Next prepares the next round, after a repair.
func (c *Checker) Next() *Checker {
	n := NewChecker(c.repo, c.o)
	n.sums, n.past = c.sums, c
	c.past = nil
	return n
}

// Run checks. The error says why the check could not be finished.
func (c *Checker) Run(ctx context.Context) error {
	if err := c.repo.enter(); err != nil {
		return err
	}
	defer c.repo.leave()
	if c.o.Streams != nil {
		c.scope, c.images = map[fsverity.Digest]struct{}{}, map[fsverity.Digest]struct{}{}
	}
	for _, step := range []func(context.Context) error{
		c.checkRoot, c.checkLinks, c.checkTables, c.checkImages, c.checkContents,
	} {
		if err := step(ctx); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// Report adds a finding.
func (c *Checker) Report(f Finding) {
	f.Path = printable(f.Path)
	f.Stream = printable(f.Stream)
	f.Message = printable(f.Message)
	c.findings.add(f)
}

func (c *Checker) report(kind Kind, severity Severity, path, format string, args ...any) {
	c.Report(Finding{Kind: kind, Severity: severity, Path: path, Message: fmt.Sprintf(format, args...)})
}

// Findings returns the findings in order, at most CheckOptions.MaxFindings, and
// how many there were of each kind.
func (c *Checker) Findings() ([]Finding, map[Kind]int) {
	list, byKind := c.findings.sorted()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range list {
		f := &list[i]
		f.UsedBy = slices.Clone(c.users[f.Object])
		if _, ok := c.repairable[f.Object]; ok && !f.Object.IsZero() {
			f.Repairable = true
		}
		if _, ok := c.repairable[f.Image]; ok && f.Kind == ImageLinkMismatch {
			f.Repairable = true
		}
		if f.Help == "" {
			f.Help = help(f)
		}
	}
	return list, byKind
}

// Total is how many findings there are, and how many of them are errors.
func (c *Checker) Total() (all, errors int) { return c.findings.total() }

// Damaged reports whether an object was found to be missing or not to be what
// its name says.
func (c *Checker) Damaged(id fsverity.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.damaged[id]
	return ok
}

// Tainted reports whether something that a stream is made of was found to be
// damaged, or is not what the stream's name promises.
func (c *Checker) Tainted(stream fsverity.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.tainted[stream]
	return ok
}

func (c *Checker) taint(stream fsverity.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	remember(c.tainted, stream, struct{}{})
}

// SetRepairable notes that the object of an image can be made again, for the
// findings about it.
func (c *Checker) SetRepairable(id fsverity.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	remember(c.repairable, id, struct{}{})
}

// damage notes a damaged object.
func (c *Checker) damage(id fsverity.Digest, kind Kind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.damaged[id]; !ok {
		remember(c.damaged, id, kind)
	}
}

// usedBy notes a user of a damaged object.
func (c *Checker) usedBy(id fsverity.Digest, stream string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if u := c.users[id]; len(u) < maxUsers && !slices.Contains(u, stream) {
		remember(c.users, id, append(u, stream))
	}
}

func remember[V any](m map[fsverity.Digest]V, id fsverity.Digest, v V) {
	if len(m) < maxRemembered {
		m[id] = v
	}
}

// charge spends work that no byte on disk backs; false when there is none left.
func (c *Checker) charge(n int64) bool {
	if n <= 0 {
		return true
	}
	limit := c.workFloor + workRatio*min(c.allocated.Load(), 1<<50)
	for {
		// What is refused must not, for a moment, count against others.
		spent := c.work.Load()
		if n > limit-spent {
			return false
		}
		if c.work.CompareAndSwap(spent, spent+n) {
			return true
		}
	}
}

// parallel calls f for 0 to n-1, several at a time, until ctx ends.
func parallel(ctx context.Context, workers, n int, f func(int)) error {
	var next atomic.Int64
	var group sync.WaitGroup
	for range min(workers, n) {
		group.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				f(i)
			}
		})
	}
	group.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// maxText is the longest text of a finding, in bytes.
const maxText = 2000

// printable makes a foreign text safe to print.
func printable(s string) string {
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	plain := utf8.ValidString(s)
	for _, r := range s {
		plain = plain && strconv.IsPrint(r)
	}
	if plain {
		return s
	}
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}

// checkRoot looks at the root and meta.json.
func (c *Checker) checkRoot(ctx context.Context) error {
	if c.o.Streams != nil {
		return nil
	}
	r := c.repo
	if unknown := r.meta.unknownReadOnly(); len(unknown) > 0 {
		c.report(MetadataUnknownFeature, Warning, "meta.json", "unknown features %q: the repository can be read but not written to", unknown)
	}
	var st unix.Stat_t
	if err := unix.Fstat(r.rootfd(), &st); err != nil {
		return fmt.Errorf("stat repository %s: %w", r.path, err)
	}
	owner := st.Uid
	if perm := st.Mode & 0o7777; perm&0o077 != 0 {
		c.report(ModeUnexpected, Warning, ".", "the directory has mode %04o, which lets others in; it should be 0700", perm)
	}
	for _, name := range []string{"meta.json", "objects", streamsDir, imagesDir} {
		err := unix.Fstatat(r.rootfd(), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			c.report(StatFailed, Error, name, "%v", err)
			continue
		}
		c.checkAttributes(name, &st)
		if st.Uid != owner {
			c.report(OwnerUnexpected, Warning, name, "it belongs to user %d, the repository to user %d", st.Uid, owner)
		}
		if name != "meta.json" && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			c.report(UnexpectedType, Error, name, "it is not a directory")
		}
	}
	return c.eachEntry(ctx, ".", func(_ int, name string, kind uint8) {
		if isLeaked(".", name, kind) {
			c.reportLeaked(".", name)
		}
	})
}

// isLeaked reports whether a name in a directory is that of an unfinished file
// or link.
func isLeaked(dir, name string, kind uint8) bool {
	return slices.ContainsFunc(leaked, func(l leakedName) bool {
		return l.dir == dir && l.kind == kind && isTemporary(name, l.prefix)
	})
}

// reportLeaked reports an unfinished file or link.
func (c *Checker) reportLeaked(dir, name string) {
	path := strings.TrimPrefix(dir+"/"+name, "./")
	c.Report(Finding{
		Kind: LeakedTemporary, Severity: Warning, Path: path, Repairable: true,
		Message: "an unfinished file or link of a program that was interrupted, or that is running",
	})
	c.fix(stageClean, path, "removed an unfinished file", func(context.Context) error { return c.repo.unlink(dir, name) })
}

// checkAttributes looks at the mode of something that is not a link.
func (c *Checker) checkAttributes(path string, st *unix.Stat_t) {
	if st.Mode&unix.S_IFMT != unix.S_IFLNK && st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0 {
		c.report(ModeUnexpected, Warning, path, "it has mode %04o: others than its owner can write to it", st.Mode&0o7777)
	}
}
