// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Subject is what a reference names in a repository: the manifest of an image,
// a config whose manifest is not there, or an EROFS image.
type Subject struct {
	Reference string          // as the user wrote it
	Tag       string          // if it is one
	Manifest  Digest          // or zero
	Config    Digest          // or zero
	Image     fsverity.Digest // or zero
	ImageRef  string          // if the reference is one, without "refs/"
}

const (
	// minDigestPrefix and minImagePrefix are the fewest hex digits that may
	// stand for a digest, or for the id of an EROFS image, which has no sign
	// of its own before it.
	minDigestPrefix = 4
	minImagePrefix  = 8

	digestSign     = "sha256:"
	imageRefSign   = "refs/"
	maxCandidates  = 10    // that an error lists
	maxNear        = 5     // names that an error proposes
	maxNearCompare = 10000 // names that a proposal is looked for in
	maxNearEdits   = 3
)

// NotFoundError reports a reference to nothing.
type NotFoundError struct {
	Reference string
	Sought    string   // what was looked for
	Near      []string // names that may have been meant
}

func (e *NotFoundError) Error() string {
	text := fmt.Sprintf("%s: there is no %s", quote(e.Reference), e.Sought)
	if len(e.Near) > 0 {
		text += "; near it are " + strings.Join(e.Near, ", ")
	}
	return text
}

// AmbiguousError reports the beginning of several digests.
type AmbiguousError struct {
	Reference  string
	Candidates []string
	More       int // candidates that are not listed
}

func (e *AmbiguousError) Error() string {
	text := fmt.Sprintf("%s: it is the beginning of %s", quote(e.Reference), strings.Join(e.Candidates, ", "))
	if e.More > 0 {
		text += fmt.Sprintf(" and %d others", e.More)
	}
	return text
}

// ErrReference reports text that cannot be a reference.
var ErrReference = errors.New("malformed reference")

// Resolve finds what a reference names. It is
//
//   - "sha256:…" or "@sha256:…": the digest of a manifest, or of a config if no
//     manifest has it. The beginning is enough if it is that of only one.
//   - "refs/…": a ref of an EROFS image
//   - the id of an EROFS image in full, or a beginning of at least eight digits
//     that no tag is named by
//   - anything else: a tag, exactly, or a ref of an EROFS image, without
//     "refs/", that no tag is named by
//
// A digest and an id in full are never taken for a tag: who writes one wants
// that and nothing else, whoever named the tags. The errors are
// [*NotFoundError], [*AmbiguousError] and [ErrReference], beside those of
// reading the repository.
func Resolve(repo *composefs.Repo, reference string) (*Subject, error) {
	s := &Subject{Reference: reference}
	text, digest := strings.CutPrefix(reference, "@")
	switch {
	case text == "":
		return nil, fmt.Errorf("%w: it is empty", ErrReference)
	case digest || strings.HasPrefix(text, digestSign):
		return s, s.findDigest(repo, text)
	case strings.HasPrefix(text, imageRefSign):
		return s, s.findImageRef(repo)
	case len(text) == 2*repo.Algorithm().Size() && isHex(text):
		return s, s.findImage(repo, text)
	}
	err := s.findTag(repo)
	absent, isAbsent := errors.AsType[*NotFoundError](err)
	if isAbsent {
		if name, refErr := repo.ImageRef(text); refErr == nil {
			s.ImageRef = text
			return s, s.setImage(name)
		}
	}
	if isAbsent && len(text) >= minImagePrefix && isHex(text) {
		if imageErr := s.findImage(repo, text); !is[*NotFoundError](imageErr) {
			return s, imageErr
		}
		absent.Sought += ", and no EROFS image whose id begins so"
	}
	return s, err
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func isHex(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'f') }) < 0
}

// findDigest looks for a manifest, then for a config.
func (s *Subject) findDigest(repo *composefs.Repo, text string) error {
	hex, ok := strings.CutPrefix(text, digestSign)
	if !ok || len(hex) < minDigestPrefix || len(hex) > 2*sha256.Size || !isHex(hex) {
		return fmt.Errorf("%w %s: want sha256: and %d to %d lower-case hex digits", ErrReference, quote(s.Reference), minDigestPrefix, 2*sha256.Size)
	}
	names, err := repo.StreamNames()
	if err != nil {
		return err
	}
	for _, kind := range []struct {
		prefix string
		to     *Digest
	}{{manifestPrefix, &s.Manifest}, {configPrefix, &s.Config}} {
		found, err := s.oneOf(namesWith(names, kind.prefix, text))
		if err != nil {
			return err
		}
		if found == "" {
			continue
		}
		*kind.to, err = ParseDigest(found)
		return err
	}
	return &NotFoundError{Reference: s.Reference, Sought: "manifest or config with that digest"}
}

// namesWith are the names that begin with prefix and then with beginning,
// without prefix.
func namesWith(names []string, prefix, beginning string) []string {
	var out []string
	for _, name := range names {
		if rest, ok := strings.CutPrefix(name, prefix); ok && strings.HasPrefix(rest, beginning) {
			out = append(out, rest)
		}
	}
	return out
}

// oneOf is the only one of candidates; empty if there is none.
func (s *Subject) oneOf(candidates []string) (string, error) {
	switch n := len(candidates); n {
	case 0:
		return "", nil
	case 1:
		return candidates[0], nil
	default:
		shown := min(n, maxCandidates)
		return "", &AmbiguousError{Reference: s.Reference, Candidates: candidates[:shown], More: n - shown}
	}
}

// findImage looks for an EROFS image by its id or the beginning of that.
func (s *Subject) findImage(repo *composefs.Repo, hex string) error {
	names, err := repo.ImageNames()
	if err != nil {
		return err
	}
	found, err := s.oneOf(namesWith(names, "", hex))
	if err != nil {
		return err
	}
	if found == "" {
		return &NotFoundError{Reference: s.Reference, Sought: "EROFS image with that id"}
	}
	return s.setImage(found)
}

func (s *Subject) setImage(name string) error {
	id, err := fsverity.ParseDigest(name)
	if err != nil {
		return fmt.Errorf("%w: images/%s is not named by a digest: %w", composefs.ErrIntegrity, name, err)
	}
	s.Image = id
	return nil
}

func (s *Subject) findImageRef(repo *composefs.Repo) error {
	s.ImageRef = strings.TrimPrefix(s.Reference, imageRefSign)
	name, err := repo.ImageRef(s.ImageRef)
	if errors.Is(err, composefs.ErrBadName) {
		return fmt.Errorf("%w: %w", ErrReference, err)
	}
	if errors.Is(err, fs.ErrNotExist) {
		var near []string
		if refs, err := repo.ImageRefs(""); err == nil { // a proposal, no more
			for _, r := range refs {
				near = append(near, imageRefSign+r.Name)
			}
		}
		return &NotFoundError{Reference: s.Reference, Sought: "ref of an EROFS image of that name", Near: nearNames(s.Reference, near)}
	}
	if err != nil {
		return err
	}
	return s.setImage(name)
}

func (s *Subject) findTag(repo *composefs.Repo) error {
	manifest, err := TagTarget(repo, s.Reference)
	if err != nil {
		return err
	}
	s.Tag, s.Manifest = s.Reference, manifest
	return nil
}

// TagTarget is the manifest that a tag leads to. The repository may not have
// it. Without such a tag the error is a [*NotFoundError].
func TagTarget(repo *composefs.Repo, tag string) (Digest, error) {
	ref, err := EncodeTag(tag)
	if err != nil {
		return Digest{}, fmt.Errorf("%w: %w", ErrReference, err)
	}
	stream, err := repo.StreamRef(ref)
	if errors.Is(err, fs.ErrNotExist) {
		var near []string
		if tags, err := Tags(repo); err == nil { // a proposal, no more
			for _, t := range tags {
				near = append(near, t.Name)
			}
		}
		return Digest{}, &NotFoundError{Reference: tag, Sought: "tag of that name", Near: nearNames(tag, near)}
	}
	if err != nil {
		return Digest{}, err
	}
	return manifestOfStream(tag, stream)
}

// manifestOfStream is the manifest that a tag's target names.
func manifestOfStream(tag, stream string) (Digest, error) {
	text, ok := strings.CutPrefix(stream, manifestPrefix)
	if !ok {
		return Digest{}, fmt.Errorf("%w: tag %s leads to stream %s, which is no manifest", ErrMalformed, quote(tag), quote(stream))
	}
	d, err := ParseDigest(text)
	if err != nil {
		return Digest{}, fmt.Errorf("%w: tag %s leads to stream %s: %w", ErrMalformed, quote(tag), quote(stream), err)
	}
	return d, nil
}

// nearNames are those of names that may have been meant by name, the nearest
// first.
func nearNames(name string, names []string) []string {
	type candidate struct {
		name  string
		score int
	}
	var found []candidate
	lower := strings.ToLower(name)
	for _, other := range names[:min(len(names), maxNearCompare)] {
		l := strings.ToLower(other)
		// A part of a name says more than a typing error.
		if strings.Contains(l, lower) || len(l) >= 3 && strings.Contains(lower, l) {
			found = append(found, candidate{other, 0})
			continue
		}
		if n := editDistance(lower, l); n <= maxNearEdits && n <= len(name)/3 {
			found = append(found, candidate{other, n})
		}
	}
	slices.SortStableFunc(found, func(a, b candidate) int { return cmp.Compare(a.score, b.score) })
	var out []string
	for _, c := range found[:min(len(found), maxNear)] {
		out = append(out, quote(c.name))
	}
	return out
}

// editDistance is the number of bytes to insert, remove or replace to make b
// of a; any number above maxNearEdits stands for "many".
func editDistance(a, b string) int {
	if d := len(a) - len(b); d > maxNearEdits || -d > maxNearEdits {
		return maxNearEdits + 1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
