// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Candidate is an id that a boot image of the image at hand can have. The same
// tree has several, by the extended attributes that are kept and by the format
// version; a UKI is sealed with one of them.
type Candidate struct {
	Mode    string // how extended attributes were filtered, for messages
	Version erofs.Version
	ID      fsverity.Digest
}

func (c Candidate) String() string {
	if c.Mode == "" {
		return fmt.Sprintf("%s (%s)", c.ID, c.Version)
	}
	return fmt.Sprintf("%s (%s, %s)", c.ID, c.Version, c.Mode)
}

// MismatchError reports a UKI that would not boot the image it came with: its
// command line names another boot image, or none, or cannot be understood.
type MismatchError struct {
	UKI   string          // path of the UKI, where known
	Found fsverity.Digest // zero if the command line names no image
	Tried []Candidate     // what the command line was compared with
	Err   error           // why the command line could not be parsed, or nil
}

// Error lists every id that was tried, as the reader will want to know which
// of the ways to make the image was meant.
func (e *MismatchError) Error() string {
	var b strings.Builder
	b.WriteString("check UKI")
	if e.UKI != "" {
		fmt.Fprintf(&b, " %q", e.UKI)
	}
	switch {
	case e.Err != nil:
		fmt.Fprintf(&b, ": %v", e.Err)
		return b.String()
	case e.Found.IsZero():
		b.WriteString(": no composefs argument on its command line")
	default:
		fmt.Fprintf(&b, ": its command line names image %s", e.Found)
	}
	b.WriteString("; tried")
	for i, c := range e.Tried {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, " %s", c)
	}
	if len(e.Tried) == 0 {
		b.WriteString(" none")
	}
	return b.String()
}

// Unwrap is the parse error, if that was the reason.
func (e *MismatchError) Unwrap() error { return e.Err }

// MatchUKI finds the candidate that a UKI's command line names. The form of
// the argument does not matter, only its digest. Every other outcome is a
// *MismatchError.
func MatchUKI(s *Sections, candidates []Candidate) (Candidate, Karg, error) {
	mismatch := &MismatchError{Tried: candidates}
	if !s.HasCmdline {
		mismatch.Err = fmt.Errorf("section .cmdline: %w", ErrNoSection)
		return Candidate{}, Karg{}, mismatch
	}
	var errs []error
	for _, alg := range []fsverity.Algorithm{fsverity.SHA512, fsverity.SHA256} {
		if !hasAlgorithm(candidates, alg) {
			continue
		}
		karg, found, err := FindKarg(s.Cmdline, alg)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !found {
			continue
		}
		for _, c := range candidates {
			if c.ID == karg.ID {
				return c, karg, nil
			}
		}
		mismatch.Found = karg.ID
	}
	if mismatch.Found.IsZero() {
		mismatch.Err = errors.Join(errs...)
	}
	return Candidate{}, Karg{}, mismatch
}

// CheckUKI is MatchUKI for who needs only the verdict.
func CheckUKI(s *Sections, candidates []Candidate) error {
	_, _, err := MatchUKI(s, candidates)
	return err
}

func hasAlgorithm(candidates []Candidate, alg fsverity.Algorithm) bool {
	for _, c := range candidates {
		if c.ID.Algorithm() == alg {
			return true
		}
	}
	return false
}
