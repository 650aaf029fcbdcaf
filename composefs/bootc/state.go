// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package bootc reads what bootc keeps beside a composefs repository: which
// deployments a system has, and so which images must stay. It writes nothing.
//
// # Layout
//
// Below the physical root of a system, which holds the repository as
// composefs/:
//
//	state/deploy/<id>/                a deployment; <id> is its EROFS image
//	state/deploy/<id>/<id>.origin     INI: where its image came from
//
// Below /run of a running system:
//
//	composefs/staged-deployment       JSON: the deployment of the next boot
//
// and on its kernel command line composefs=<id>, the image that is mounted.
//
// # Invariants
//
// A caller deletes what this package does not report. So everything that is
// there and cannot be understood is an error, and what is not there is said to
// be absent. Nothing is followed out of the physical root; sizes are bounded.
package bootc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs/boot"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/fsverity"
	"github.com/cfs-pull/cfs-pull/internal/rooted"
)

const (
	stateDir   = "state/deploy"
	stagedFile = "composefs/staged-deployment"

	// maxFile bounds the files that are read, in bytes; real ones have a few
	// hundred.
	maxFile = 64 << 10
	// maxDeployments bounds their number. A system has two to four.
	maxDeployments = 10000
)

// Deployment is a root file system that a machine may boot.
type Deployment struct {
	// ID is the EROFS image.
	ID fsverity.Digest
	// Manifest is that of the image; zero when the deployment does not say,
	// as those of older releases.
	Manifest oci.Digest
	// Image is the reference the image was pulled by, or empty.
	Image string
	// Deployed is set when there is a directory for it. Staged is set for that
	// of the next boot, Booted for the running one.
	Deployed, Staged, Booted bool
}

// State is what bootc knows of a system.
type State struct {
	// Managed is set when the system is one of bootc's composefs systems: it
	// has the directory state/deploy.
	Managed bool
	// Deployments are sorted by ID.
	Deployments []Deployment
}

// Options say where the running system is described. The zero value is where
// it really is.
type Options struct {
	RunDir  string // instead of /run
	Cmdline string // instead of /proc/cmdline
}

// ErrState reports state of bootc that cannot be understood.
var ErrState = errors.New("cannot read the deployments of bootc")

// ReadState reads the deployments of the system whose physical root is at
// sysroot. alg is the algorithm of its repository. What runs may be another
// system; so a deployment that is staged or booted but not deployed matters
// only if the repository has its image. All errors are [ErrState].
func ReadState(sysroot string, alg fsverity.Algorithm, o Options) (*State, error) {
	s, err := readState(sysroot, alg, o)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	return s, nil
}

func readState(sysroot string, alg fsverity.Algorithm, o Options) (*State, error) {
	if o.RunDir == "" {
		o.RunDir = "/run"
	}
	if o.Cmdline == "" {
		o.Cmdline = "/proc/cmdline"
	}
	s := &State{}
	if err := s.readDeployments(sysroot); err != nil {
		return nil, err
	}
	if s.Managed {
		if err := s.readStaged(o.RunDir); err != nil {
			return nil, err
		}
	}
	if err := s.readBooted(o.Cmdline, alg); err != nil {
		return nil, err
	}
	slices.SortFunc(s.Deployments, func(a, b Deployment) int { return strings.Compare(a.ID.String(), b.ID.String()) })
	return s, nil
}

// readDeployments reads state/deploy.
func (s *State) readDeployments(sysroot string) error {
	root, err := unix.Open(sysroot, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: sysroot, Err: err}
	}
	defer unix.Close(root)
	path := filepath.Join(sysroot, stateDir)
	fd, err := rooted.Open(root, stateDir, unix.O_RDONLY|unix.O_DIRECTORY, 0, rooted.Beneath)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close() // read-only
	s.Managed = true
	entries, err := dir.ReadDir(maxDeployments + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if len(entries) > maxDeployments {
		return fmt.Errorf("%s has more than %d entries", path, maxDeployments)
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			continue // bootc passes over them, too
		}
		d, err := readDeployment(dir, e)
		if err != nil {
			return fmt.Errorf("%s/%.200q: %w", path, e.Name(), err)
		}
		s.Deployments = append(s.Deployments, d)
	}
	return nil
}

func readDeployment(dir *os.File, e fs.DirEntry) (Deployment, error) {
	if !e.IsDir() {
		return Deployment{}, errors.New("it is not a directory")
	}
	id, err := fsverity.ParseDigest(e.Name())
	if err != nil || id.String() != e.Name() {
		return Deployment{}, errors.New("its name is not the id of a deployment")
	}
	d := Deployment{ID: id, Deployed: true}
	name := e.Name() + "/" + e.Name() + ".origin"
	fd, err := rooted.Open(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0, rooted.NoLinks)
	if errors.Is(err, unix.ENOENT) {
		return d, nil // it was being made when something interrupted bootc
	}
	if err != nil {
		return d, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close() // read-only
	text, err := rooted.ReadRegular(f, maxFile)
	if err != nil {
		return d, err
	}
	return d, d.readOrigin(string(text))
}

// readStaged reads which deployment is to be booted next.
func (s *State) readStaged(run string) error {
	text, err := rooted.ReadFile(run, stagedFile, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	path := filepath.Join(run, stagedFile)
	var doc struct {
		ID *string `json:"depl_id"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return fmt.Errorf("parse %s: %w", path, err)
	}
	if doc.ID == nil {
		return fmt.Errorf("parse %s: it has no depl_id", path)
	}
	id, err := fsverity.ParseDigest(*doc.ID)
	if err != nil {
		return fmt.Errorf("parse %s: depl_id: %w", path, err)
	}
	s.deployment(id).Staged = true
	return nil
}

// readBooted reads which image is the root of the running system.
func (s *State) readBooted(cmdline string, alg fsverity.Algorithm) error {
	f, err := os.Open(cmdline)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // without /proc nothing is known
	}
	if err != nil {
		return err
	}
	defer f.Close() // read-only
	text, err := rooted.ReadLimited(f, cmdline, maxFile)
	if err != nil {
		return err
	}
	// A malformed argument, or one for another algorithm, cannot have led to
	// an image of this repository.
	if karg, found, err := boot.FindKarg(string(text), alg); found && err == nil {
		s.deployment(karg.ID).Booted = true
	}
	return nil
}

// deployment is that with an id; it is added if there is none.
func (s *State) deployment(id fsverity.Digest) *Deployment {
	for i := range s.Deployments {
		if s.Deployments[i].ID == id {
			return &s.Deployments[i]
		}
	}
	s.Deployments = append(s.Deployments, Deployment{ID: id})
	return &s.Deployments[len(s.Deployments)-1]
}
