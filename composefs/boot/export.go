// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// DefaultLockTimeout is how long Export waits for another export to the same
// directory.
const DefaultLockTimeout = 90 * time.Second

// maxVariants is how many directories for one name and different content are
// kept beside each other.
const maxVariants = 16

// ExportOptions say what Export writes. Content and Candidates are needed.
type ExportOptions struct {
	// Content opens the image's files.
	Content Content
	// Candidates are the ids that the boot image has. The first is the one
	// that loader entries for kernels start; a UKI may name any.
	Candidates []Candidate
	// Style is the form of the composefs argument. bootc reads only its own,
	// the default.
	Style KargStyle
	// Insecure makes fs-verity optional when a kernel starts the image.
	Insecure bool
	// ExtraKargs are added to the command line of kernels, one argument each;
	// an argument of the same name is replaced. A UKI's command line is
	// sealed: exporting one with ExtraKargs is an error.
	ExtraKargs []string
	// EntryID is the name of the loader entry, without .conf; an entry of that
	// name is replaced. The default is bootc's name, made of the operating
	// system's ID and version.
	EntryID string
	// KernelDir is where directories with kernels are made: "" for the
	// directory itself, as GRUB has it, or "EFI/Linux" as bootc has it on the
	// EFI system partition for systemd-boot.
	KernelDir string
	// PathPrefix is the path by which the boot loader knows the directory:
	// "/", the default, if it is the root of its file system; "/boot" for a
	// /boot that is part of the root file system.
	PathPrefix string
	// UKIKey is the key by which a loader entry names a UKI: "efi", the
	// default, or "uki" for systemd-boot 258 and later.
	UKIKey string
	// Addons are the names, without .addon.efi, of the addons to export; "*"
	// stands for all. Addons change what a UKI starts, so none is the default.
	Addons []string
	// Keep is the image that runs, if any. Where both existing loader entries
	// of a version have to make room for one, the running image's stays.
	Keep fsverity.Digest
	// LockTimeout is how long to wait for another export; 0 is
	// DefaultLockTimeout.
	LockTimeout time.Duration
}

// Exported is one entry as it is on disk now. Paths are relative to the
// directory.
type Exported struct {
	Entry       *Entry
	ID          fsverity.Digest // the image it starts; zero for global addons
	BootDigest  string          // SHA-256 in hex; empty for addons, and UKIs without a kernel or initrd of their own
	Files       []string
	LoaderEntry string // empty for addons
	Shared      bool   // Files lie in the directory of another image or entry with the same kernel and initrd
	Changed     bool   // something was written
	Insecure    bool   // fs-verity is optional at boot, for a UKI by its own command line
}

// ExportResult is what Export did.
type ExportResult struct {
	Entries []Exported
	Skipped []Skipped // addons that were not asked for or belong nowhere, second copies of a UKI
	Demoted string    // loader entry that an older image's default entry was moved to
}

// Export writes entries to the existing directory dir so that a boot loader
// can start them; the package comment shows the layout. Everything is checked
// before anything is written: a kernel without initramfs is ErrNoInitrd, a UKI
// that names another image a *MismatchError.
//
// Data files come first, then the loader entries, that of the first entry
// last. Each file appears complete or not at all, and is on disk before
// anything refers to it. An existing directory whose kernel and initrds are
// the same bytes is referred to instead of a copy. Files that are right
// already are not written. If the name of the default loader entry belongs to
// another image of the same version, that entry is kept under the name of a
// secondary one first.
//
// Export never removes anything but its own temporary files.
func Export(ctx context.Context, dir string, entries []Entry, o ExportOptions) (result *ExportResult, err error) {
	if o.LockTimeout == 0 {
		o.LockTimeout = DefaultLockTimeout
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("export boot files: %w", err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	lock, err := lockDir(ctx, root, o.LockTimeout)
	if err != nil {
		return nil, fmt.Errorf("export boot files to %q: %w", dir, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if result, err = export(ctx, rootOps{root}, entries, o); err != nil {
		return nil, fmt.Errorf("export boot files to %q: %w", dir, err)
	}
	return result, nil
}

// export is Export on an open and locked directory.
func export(ctx context.Context, ops fileOps, entries []Entry, o ExportOptions) (*ExportResult, error) {
	x := &exporter{
		target: target{fileOps: ops, clean: map[string]bool{}},
		o:      o,
		result: &ExportResult{},

		names:        map[string]bool{},
		globalAddons: map[string]bool{},
	}
	if err := x.checkOptions(); err != nil {
		return nil, err
	}
	if err := x.plan(entries); err != nil {
		return nil, err
	}
	for _, j := range x.jobs {
		if err := j.writeData(ctx); err != nil {
			return nil, fmt.Errorf("%q: %w", j.e.Path, err)
		}
	}
	// The default entry comes last.
	for _, j := range slices.Backward(x.jobs) {
		if err := x.writeEntry(ctx, j); err != nil {
			return nil, fmt.Errorf("loader entry of %q: %w", j.e.Path, err)
		}
	}
	for _, j := range x.jobs {
		x.result.Entries = append(x.result.Entries, j.done)
	}
	return x.result, nil
}

type exporter struct {
	target
	o      ExportOptions
	result *ExportResult
	jobs   []*job

	names        map[string]bool // loader entries of this export
	globalAddons map[string]bool // file names of global addons of this export
}

// job is one entry to be exported.
type job struct {
	e    *Entry
	done Exported

	// writeData writes all but the loader entry.
	writeData func(ctx context.Context) error
	// config makes the loader entry; nil for addons.
	config  func(about) (*Config, error)
	about   about
	primary bool
}

// about is what a loader entry says of the system it starts.
type about struct {
	osID, title, version string
	sortKey              string
}

func (x *exporter) checkOptions() error {
	o := &x.o
	if len(o.Candidates) == 0 {
		return errors.New("no image id")
	}
	for _, c := range o.Candidates {
		if c.ID.IsZero() {
			return errors.New("empty image id")
		}
	}
	for _, arg := range o.ExtraKargs {
		if err := checkArg(arg); err != nil {
			return err
		}
		if isKarg(arg) {
			return fmt.Errorf("kernel argument %q names an image", arg)
		}
	}
	if o.EntryID != "" && (!plainName(o.EntryID) || safeName(o.EntryID, 200) != o.EntryID) {
		return fmt.Errorf("bad entry id %q", o.EntryID)
	}
	if o.KernelDir != "" && (!plainPath(o.KernelDir) || !oneWord(o.KernelDir)) {
		return fmt.Errorf("bad kernel directory %q", o.KernelDir)
	}
	if !oneWord(o.PathPrefix) {
		return fmt.Errorf("bad path prefix %q", o.PathPrefix)
	}
	switch o.UKIKey {
	case "":
		o.UKIKey = "efi"
	case "efi", "uki":
	default:
		return fmt.Errorf("bad key %q for UKIs: want efi or uki", o.UKIKey)
	}
	return nil
}

// oneWord accepts text without white space and control characters.
func oneWord(s string) bool {
	return cleanText(s) == s && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x80 && isSpace(byte(r)) })
}

// loaderPath is how a loader entry names a file of the directory.
func (x *exporter) loaderPath(elem ...string) string {
	return path.Join("/", x.o.PathPrefix, path.Join(elem...))
}

// plan checks everything and makes the jobs.
func (x *exporter) plan(entries []Entry) error {
	var ukis []*job
	for i := range entries {
		e := &entries[i]
		var j *job
		var err error
		switch e.Type {
		case BLS, UsrLibModules:
			j, err = x.planKernel(e)
		case UKI:
			if j, err = x.planUKI(e, ukis); j != nil {
				ukis = append(ukis, j)
			}
		case UKIAddon, GlobalAddon:
			continue // after the UKIs they belong to
		default:
			err = fmt.Errorf("unknown kind of entry %s", e.Type)
		}
		if err != nil {
			return fmt.Errorf("%q: %w", e.Path, err)
		}
		if j != nil {
			j.primary = len(x.jobs) == 0
			x.jobs = append(x.jobs, j)
		}
	}
	for i := range entries {
		e := &entries[i]
		if e.Type != UKIAddon && e.Type != GlobalAddon {
			continue
		}
		if err := x.planAddon(e, ukis); err != nil {
			return fmt.Errorf("%q: %w", e.Path, err)
		}
	}
	if len(x.jobs) == 0 {
		return errors.New("no entry to export")
	}
	return nil
}

func (x *exporter) skip(e *Entry, reason string) {
	x.result.Skipped = append(x.result.Skipped, Skipped{e, reason})
}

// describe fills in what is known of the system, with the image's id in place
// of what is not.
func describe(o OSRelease, id fsverity.Digest) about {
	a := about{osID: defaultOSID, title: id.String(), version: id.String()}
	for _, v := range []struct {
		to   *string
		keys []string
	}{
		{&a.osID, []string{"ID"}},
		{&a.title, []string{"PRETTY_NAME", "NAME", "ID"}},
		{&a.version, []string{"VERSION_ID", "VERSION"}},
	} {
		if value, ok := o.Value(v.keys...); ok && cleanText(value) != "" {
			*v.to = cleanText(value)
		}
	}
	return a
}

// nodeSource is a file of the image. Its read permissions are kept: an
// initramfs may hold secrets.
func (x *exporter) nodeSource(n *tree.Node) (source, error) {
	if n.Size > math.MaxInt64 {
		return source{}, fmt.Errorf("size %d is too large", n.Size)
	}
	return source{
		size: int64(n.Size),
		mode: fs.FileMode(n.Mode&0o666 | 0o600),
		copy: func(ctx context.Context, w io.Writer) error { return copyNode(ctx, w, x.o.Content, n) },
	}, nil
}

// planKernel plans a kernel with its initrds.
func (x *exporter) planKernel(e *Entry) (*job, error) {
	if e.Type == BLS {
		if err := checkConf(e.Config); err != nil {
			return nil, err
		}
	}
	kernel := e.file(RoleKernel)
	switch {
	case kernel == nil:
		return nil, ErrNoKernel
	case len(e.filesOf(RoleKernel)) > 1:
		return nil, errors.New("more than one kernel")
	case e.MissingInitrd():
		return nil, fmt.Errorf("%w beside the kernel", ErrNoInitrd)
	}
	osRelease, err := e.ReadOSRelease(x.o.Content)
	if err != nil {
		return nil, err
	}
	first := x.o.Candidates[0]
	j := &job{e: e, about: describe(osRelease, first.ID)}
	j.done = Exported{Entry: e, ID: first.ID, Insecure: x.o.Insecure}

	src, err := x.nodeSource(kernel.Node)
	if err != nil {
		return nil, err
	}
	files := []namedSource{{kernelName, src}}
	var initrds []string // name of each line's file
	seen := map[*tree.Node]string{}
	for _, f := range e.filesOf(RoleInitrd) {
		name, ok := seen[f.Node]
		if !ok {
			name = initrdFile(len(seen))
			seen[f.Node] = name
			if src, err = x.nodeSource(f.Node); err != nil {
				return nil, err
			}
			files = append(files, namedSource{name, src})
		}
		initrds = append(initrds, name)
	}

	dir := "" // below KernelDir, known once the data is written
	j.writeData = func(ctx context.Context) (err error) {
		if j.done.BootDigest, err = e.BootDigest(ctx, x.o.Content); err != nil {
			return err
		}
		var sum []byte
		if len(initrds)+1 == len(files) {
			// No initrd is named twice, so the digest is that of the files.
			if sum, err = hex.DecodeString(j.done.BootDigest); err != nil {
				return err
			}
		}
		want := artifactName(j)
		dir, j.done.Changed, err = x.placeKernel(ctx, want, files, sum)
		j.done.Shared = !isVariant(dir, want)
		for _, f := range files {
			j.done.Files = append(j.done.Files, path.Join(x.o.KernelDir, dir, f.name))
		}
		return err
	}
	karg := Karg{ID: first.ID, Version: first.Version, Insecure: x.o.Insecure}.Format(x.o.Style)
	j.config = func(a about) (*Config, error) {
		linux := x.loaderPath(x.o.KernelDir, dir, kernelName)
		var paths []string
		for _, name := range initrds {
			paths = append(paths, x.loaderPath(x.o.KernelDir, dir, name))
		}
		c := newKernelConfig(a, linux, paths)
		if e.Type == BLS {
			c = movedConfig(e.Config, a, linux, paths)
		}
		if err := c.SetKarg(karg); err != nil {
			return nil, err
		}
		for _, arg := range x.o.ExtraKargs {
			if err := c.SetArg(arg); err != nil {
				return nil, err
			}
		}
		c.Set("sort-key", a.sortKey)
		return c, nil
	}
	// What is wrong with the text shows before anything is written.
	_, err = j.config(j.about)
	return j, err
}

// artifactName is the name of what belongs to an entry, without suffix. The
// default entry's is the one that bootc uses.
func artifactName(j *job) string {
	name := artifactPrefix + j.done.ID.String()
	if !j.primary {
		name += "_" + suffixOf(j.e)
	}
	return name
}

// newKernelConfig is a loader entry for a kernel; keys are in bootc's order.
func newKernelConfig(a about, linux string, initrds []string) *Config {
	c := &Config{Lines: []string{"title " + a.title, "version " + a.version, "linux " + linux}}
	for _, p := range initrds {
		c.Lines = append(c.Lines, "initrd "+p)
	}
	return c
}

// movedConfig is an image's Type 1 entry with the files at their new place.
// Several options lines, which count as one, become one: not every reader
// knows that.
func movedConfig(old *Config, a about, linux string, initrds []string) *Config {
	c := &Config{}
	var options []string
	for _, line := range old.Lines {
		line = strings.TrimRight(line, "\r")
		if _, ok := cutKey(line, "linux"); ok {
			line = "linux " + linux
		}
		if _, ok := cutKey(line, "initrd"); ok {
			line = "initrd " + initrds[0]
			initrds = initrds[1:]
		}
		if value, ok := cutKey(line, "options"); ok {
			options = append(options, value)
		}
		c.Lines = append(c.Lines, line)
	}
	if len(options) > 0 {
		c.Set("options", strings.Join(options, " "))
	}
	// bootc does without a title, but not without a version.
	if v, ok := c.Value("version"); !ok || v == "" {
		c.Set("version", a.version)
	}
	if v, ok := c.Value("title"); !ok || v == "" {
		c.Set("title", a.title)
	}
	return c
}

// checkConf accepts a Type 1 entry that can be exported. Boot loaders accept
// more forms of lines than the composefs tools do; where the two would
// disagree about which files are meant, there is no right answer.
func checkConf(c *Config) error {
	files := map[string]bool{"linux": true, "initrd": true, "options": true}
	other := map[string]bool{"efi": true, "uki": true, "uki-url": true, "devicetree": true, "devicetree-overlay": true}
	for _, line := range c.Lines {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		key := words[0]
		if other[key] {
			return fmt.Errorf("entries with the key %s cannot be exported", key)
		}
		if _, ok := cutKey(line, key); files[key] && !ok {
			return fmt.Errorf("line %q: white space before the key", clip(line))
		}
		if strings.ContainsAny(strings.TrimRight(line, "\r"), "\r\x00") {
			return fmt.Errorf("line %q: control character", clip(line))
		}
	}
	return nil
}

// variant is the name of the i-th directory that is called for by one name.
func variant(name string, i int) string {
	if i == 0 {
		return name
	}
	return fmt.Sprintf("%s_%d", name, i)
}

func isVariant(dir, name string) bool {
	for i := range maxVariants {
		if dir == variant(name, i) {
			return true
		}
	}
	return false
}

// placeKernel finds or makes a directory with exactly these bytes and returns
// its name below KernelDir. sum is the SHA-256 over the files, or nil if it is
// not known.
func (x *exporter) placeKernel(ctx context.Context, want string, files []namedSource, sum []byte) (dir string, changed bool, err error) {
	parent := path.Join(".", x.o.KernelDir)
	if err := x.prepare(parent); err != nil {
		return "", false, err
	}
	entries, err := x.ReadDir(parent)
	if err != nil {
		return "", false, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), artifactPrefix) {
			names = append(names, e.Name())
		}
	}
	// The own directory first, so that a second run finds what it made.
	slices.SortFunc(names, func(a, b string) int {
		if (a == want) != (b == want) {
			if a == want {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	for _, name := range names {
		fits, err := x.sizesFit(path.Join(parent, name), files)
		if err != nil {
			return "", false, err
		}
		if !fits {
			continue
		}
		if sum == nil {
			if sum, err = hashSources(ctx, files); err != nil {
				return "", false, err
			}
		}
		got, err := x.hashDir(ctx, path.Join(parent, name), files)
		if err != nil {
			return "", false, err
		}
		if !bytes.Equal(got, sum) {
			continue
		}
		for _, f := range files {
			if err := x.settle(path.Join(parent, name), f.name); err != nil {
				return "", false, err
			}
		}
		return name, false, x.Sync(parent)
	}

	for i := range maxVariants {
		name := variant(want, i)
		full := path.Join(parent, name)
		_, err := x.Lstat(full)
		if errors.Is(err, fs.ErrNotExist) {
			return name, true, x.putDir(ctx, parent, name, files)
		}
		if err != nil {
			return "", false, err
		}
		// A directory that lacks a file starts nothing, so it may be
		// completed. One that has both may be what some entry starts.
		incomplete, err := x.incomplete(full)
		if err != nil {
			return "", false, err
		}
		if !incomplete {
			continue
		}
		for _, f := range files {
			if _, err := x.put(ctx, full, f.name, f.source); err != nil {
				return "", false, err
			}
		}
		return name, true, nil
	}
	return "", false, fmt.Errorf("%q: there are %d directories of that name with other content", want, maxVariants)
}

// incomplete reports a directory without a kernel or without an initrd.
func (x *exporter) incomplete(dir string) (bool, error) {
	info, err := x.Lstat(dir)
	if err != nil || !info.IsDir() {
		return false, err
	}
	for _, name := range []string{kernelName, initrdName} {
		if size, err := x.regularSize(path.Join(dir, name)); err != nil || size < 0 {
			return err == nil, err
		}
	}
	return false, nil
}

func (x *exporter) sizesFit(dir string, files []namedSource) (bool, error) {
	for _, f := range files {
		if size, err := x.regularSize(path.Join(dir, f.name)); err != nil || size != f.size {
			return false, err
		}
	}
	return true, nil
}

func hashSources(ctx context.Context, files []namedSource) ([]byte, error) {
	h := sha256.New()
	for _, f := range files {
		if err := f.copy(ctx, h); err != nil {
			return nil, err
		}
	}
	return h.Sum(nil), nil
}

func (x *exporter) hashDir(ctx context.Context, dir string, files []namedSource) ([]byte, error) {
	h := sha256.New()
	for _, f := range files {
		if err := x.read(ctx, path.Join(dir, f.name), h, f.size); err != nil {
			return nil, err
		}
	}
	return h.Sum(nil), nil
}

// planUKI plans a UKI, unless the same one is planned already.
func (x *exporter) planUKI(e *Entry, ukis []*job) (*job, error) {
	node := e.Files[0].Node
	for _, other := range ukis {
		if sameFile(other.e.Files[0].Node, node) {
			x.skip(e, fmt.Sprintf("the same file as %q", other.e.Path))
			return nil, nil
		}
	}
	if len(x.o.ExtraKargs) > 0 {
		return nil, errors.New("kernel arguments cannot be added to a UKI")
	}
	sections, err := e.Sections(x.o.Content)
	if err != nil {
		return nil, err
	}
	match, karg, err := MatchUKI(sections, x.o.Candidates)
	if err != nil {
		if mismatch := (*MismatchError)(nil); errors.As(err, &mismatch) {
			mismatch.UKI = e.Path
		}
		return nil, err
	}
	src, err := x.nodeSource(node)
	if err != nil {
		return nil, err
	}
	osRelease := ParseOSRelease(sections.OSRelease)
	if !sections.HasOSRelease {
		if osRelease, err = e.ReadOSRelease(x.o.Content); err != nil {
			return nil, err
		}
	}
	j := &job{e: e, about: describe(osRelease, match.ID)}
	if label, ok := osRelease.Label(); ok && cleanText(label) != "" {
		j.about.title = cleanText(label)
	}
	j.done = Exported{Entry: e, ID: match.ID, Insecure: karg.Insecure}
	j.writeData = func(ctx context.Context) (err error) {
		j.done.BootDigest, err = e.BootDigest(ctx, x.o.Content)
		if err != nil && !errors.Is(err, ErrNoKernel) && !errors.Is(err, ErrNoInitrd) {
			return err
		}
		name := artifactName(j) + efiSuffix
		j.done.Files = []string{path.Join(exportUKIDir, name)}
		j.done.Changed, err = x.put(ctx, exportUKIDir, name, src)
		return err
	}
	j.config = func(a about) (*Config, error) {
		return &Config{Lines: []string{
			"title " + a.title,
			"version " + a.version,
			x.o.UKIKey + " " + x.loaderPath(exportUKIDir, artifactName(j)+efiSuffix),
			"sort-key " + a.sortKey,
		}}, nil
	}
	return j, nil
}

// planAddon plans an addon that was asked for and has a place.
func (x *exporter) planAddon(e *Entry, ukis []*job) error {
	base := path.Base(e.Path)
	name := strings.TrimSuffix(base, addonSuffix)
	if !slices.Contains(x.o.Addons, name) && !slices.Contains(x.o.Addons, "*") {
		x.skip(e, "addon was not asked for")
		return nil
	}
	var owner *job
	if e.Type == GlobalAddon {
		if x.globalAddons[base] {
			x.skip(e, "an addon of the same name is exported")
			return nil
		}
		x.globalAddons[base] = true
	}
	if e.Type == UKIAddon {
		at, scoped := strings.CutSuffix(path.Dir(e.Path), extraSuffix)
		i := slices.IndexFunc(ukis, func(j *job) bool { return scoped && j.e.Path == at })
		if i < 0 {
			x.skip(e, "addon of no exported UKI")
			return nil
		}
		owner = ukis[i]
	}
	// An addon's command line is added to the UKI's, so it must not name
	// another image.
	sections, err := e.Sections(x.o.Content)
	if err != nil {
		return err
	}
	for arg := range Args(sections.Cmdline) {
		if !isKarg(arg) {
			continue
		}
		if _, _, err := MatchUKI(sections, x.o.Candidates); err != nil {
			if mismatch := (*MismatchError)(nil); errors.As(err, &mismatch) {
				mismatch.UKI = e.Path
			}
			return err
		}
		break
	}
	src, err := x.nodeSource(e.Files[0].Node)
	if err != nil {
		return err
	}
	j := &job{e: e, done: Exported{Entry: e}}
	if owner != nil {
		j.done.ID = owner.done.ID
	}
	j.writeData = func(ctx context.Context) (err error) {
		dir := exportAddonsDir
		if owner != nil {
			dir = path.Join(exportUKIDir, artifactName(owner)+efiSuffix+extraSuffix)
		}
		j.done.Files = []string{path.Join(dir, base)}
		j.done.Changed, err = x.put(ctx, dir, base, src)
		return err
	}
	x.jobs = append(x.jobs, j)
	return nil
}

// writeEntry writes the loader entry of a job whose data is on disk.
func (x *exporter) writeEntry(ctx context.Context, j *job) error {
	if j.config == nil {
		return nil
	}
	a := j.about
	name := x.confNameOf(j)
	a.sortKey = sortKey(a.osID, secondarySort)
	if j.primary {
		a.sortKey = sortKey(a.osID, primarySort)
	}
	c, err := j.config(a)
	if err != nil {
		return err
	}
	if j.primary && x.o.EntryID == "" {
		if err := x.demote(ctx, j, name); err != nil {
			return err
		}
	}
	j.done.LoaderEntry = path.Join(exportConfDir, name)
	changed, err := x.put(ctx, exportConfDir, name, textSource(c.String()))
	j.done.Changed = j.done.Changed || changed
	return err
}

// confNameOf is the name of the job's loader entry, different for every job.
func (x *exporter) confNameOf(j *job) string {
	for i := 0; ; i++ {
		extra := ""
		if !j.primary {
			extra = "_" + suffixOf(j.e)
		}
		if i > 0 {
			extra += fmt.Sprintf("_%d", i)
		}
		var name string
		switch {
		case x.o.EntryID != "":
			name = x.o.EntryID + extra + confSuffix
		case j.primary:
			name = confName(j.about.osID, j.about.version, primaryRelease)
		default:
			name = confName(j.about.osID, j.about.version, secondaryRelease+extra)
		}
		if !x.names[name] {
			x.names[name] = true
			return name
		}
	}
}

// demote keeps the default entry of another image, whose name is about to be
// taken, as the secondary entry. If the secondary entry starts the running
// image, it stays, as it is the one known to work.
func (x *exporter) demote(ctx context.Context, j *job, name string) error {
	old, err := x.readConf(ctx, name)
	if old == nil || err != nil {
		return err
	}
	oldID := namedImage(old)
	if oldID == j.done.ID {
		return nil
	}
	secondary := confName(j.about.osID, j.about.version, secondaryRelease)
	if !x.o.Keep.IsZero() && oldID != x.o.Keep {
		kept, err := x.readConf(ctx, secondary)
		if err != nil {
			return err
		}
		if kept != nil && namedImage(kept) == x.o.Keep {
			return nil
		}
	}
	old.Set("sort-key", sortKey(j.about.osID, secondarySort))
	if _, err := x.put(ctx, exportConfDir, secondary, textSource(old.String())); err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	x.result.Demoted = path.Join(exportConfDir, secondary)
	return nil
}

// readConf reads a loader entry of the directory, or nil if there is none that
// can be understood.
func (x *exporter) readConf(ctx context.Context, name string) (*Config, error) {
	full := path.Join(exportConfDir, name)
	size, err := x.regularSize(full)
	if err != nil || size < 0 || size > maxConfSize {
		return nil, err
	}
	var text bytes.Buffer
	if err := x.read(ctx, full, &text, size); err != nil {
		return nil, err
	}
	c, err := ParseConfig(text.Bytes())
	if err != nil {
		return nil, nil
	}
	return c, nil
}

// HashBootDir is the boot digest of an installed kernel directory: SHA-256, in
// hex, over its vmlinuz and initrd.
func HashBootDir(ctx context.Context, dir string) (digest string, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", fmt.Errorf("digest boot directory: %w", err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	t := &target{fileOps: rootOps{root}}
	h := sha256.New()
	for _, name := range []string{kernelName, initrdName} {
		size, err := t.regularSize(name)
		if err == nil && size < 0 {
			err = fmt.Errorf("%s: %w", name, errNotRegular)
		}
		if err == nil {
			err = t.read(ctx, name, h, size)
		}
		if err != nil {
			return "", fmt.Errorf("digest boot directory %q: %w", dir, err)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
