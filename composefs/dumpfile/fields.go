// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package dumpfile

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/erofs"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

var errNumber = errors.New("bad number")

// parseDigits parses a number that consists of digits only.
func parseDigits(field []byte, base, limit uint64) (uint64, error) {
	if len(field) == 0 {
		return 0, fmt.Errorf("%w: an empty field", errNumber)
	}
	var v uint64
	for _, c := range field {
		d := uint64(c - '0')
		hi, lo := bits.Mul64(v, base)
		if d >= base || hi != 0 || lo+d < lo {
			return 0, fmt.Errorf("%w: %q", errNumber, field)
		}
		v = lo + d
	}
	if v > limit {
		return 0, fmt.Errorf("%w: %q is more than %d", errNumber, field, limit)
	}
	return v, nil
}

// parseLoose parses a number as strtoull does: with white space and a sign
// before it, negative numbers wrapped, large ones cut to the largest.
func parseLoose(field []byte, base uint64) (uint64, error) {
	rest := bytes.TrimLeft(field, " \t\n\v\f\r")
	negative := false
	if len(rest) > 0 && (rest[0] == '+' || rest[0] == '-') {
		negative = rest[0] == '-'
		rest = rest[1:]
	}
	if len(rest) == 0 {
		return 0, fmt.Errorf("%w: %q", errNumber, field)
	}
	var v uint64
	overflow := false
	for _, c := range rest {
		d := uint64(c - '0')
		if d >= base {
			return 0, fmt.Errorf("%w: %q", errNumber, field)
		}
		hi, lo := bits.Mul64(v, base)
		overflow = overflow || hi != 0 || lo+d < lo
		v = lo + d
	}
	switch {
	case overflow:
		return math.MaxUint64, nil
	case negative:
		return -v, nil
	}
	return v, nil
}

// optional unescapes a field in which "-" means nothing.
func optional(field []byte) (value []byte, given bool, err error) {
	if len(field) == 1 && field[0] == '-' {
		return nil, false, nil
	}
	value, err = unescape(field)
	return value, err == nil, err
}

// cString cuts b where a C string ends.
func cString(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

// texts are the last three fields of a line, unescaped; nil means nothing.
type texts struct {
	payload, content, digest          []byte
	hasPayload, hasContent, hasDigest bool
}

func parseTexts(rec *record) (t texts, err error) {
	if t.payload, t.hasPayload, err = optional(rec.fields[fieldPayload]); err != nil {
		return t, fmt.Errorf("payload: %w", err)
	}
	if t.content, t.hasContent, err = optional(rec.fields[fieldContent]); err != nil {
		return t, fmt.Errorf("content: %w", err)
	}
	if t.digest, t.hasDigest, err = optional(rec.fields[fieldDigest]); err != nil {
		return t, fmt.Errorf("digest: %w", err)
	}
	return t, nil
}

// fillStrict reads a line that both reference tools understand in one way.
func (p *parser) fillStrict(ino *erofs.Inode, rec *record) error {
	if rec.count < fieldCount {
		return fmt.Errorf("%d fields, want %d", rec.count, fieldCount)
	}
	size, err := parseDigits(rec.fields[fieldSize], 10, math.MaxUint64)
	if err != nil {
		return fmt.Errorf("size: %w", err)
	}
	for _, f := range [...]struct {
		field int
		name  string
		to    *uint32
	}{
		{fieldNlink, "link count", &ino.Nlink}, {fieldUID, "uid", &ino.UID},
		{fieldGID, "gid", &ino.GID}, {fieldRdev, "device", &ino.Rdev},
	} {
		v, err := parseDigits(rec.fields[f.field], 10, math.MaxUint32)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		*f.to = uint32(v)
	}
	sec, nsec, found := bytes.Cut(rec.fields[fieldMtime], []byte("."))
	if !found {
		return fmt.Errorf("modification time: %w: no dot", errNumber)
	}
	s, err := parseDigits(sec, 10, math.MaxInt64)
	if err != nil {
		return fmt.Errorf("modification time: %w", err)
	}
	ns, err := parseDigits(nsec, 10, 1e9-1)
	if err != nil {
		return fmt.Errorf("modification time: %w", err)
	}
	ino.Mtime = tree.Time{Sec: int64(s), Nsec: uint32(ns)}
	t, err := parseTexts(rec)
	if err != nil {
		return err
	}
	device := ino.Kind == tree.CharDevice || ino.Kind == tree.BlockDevice
	switch {
	case ino.Rdev != 0 && !device:
		return errors.New("a device number on what is no device")
	case ino.Kind == tree.CharDevice && ino.Rdev == 0 && ino.Nlink > 1:
		return errors.New("a whiteout with several names")
	case ino.Kind != tree.Regular && (t.hasContent || t.hasDigest):
		return errors.New("content or digest of what is no regular file")
	case ino.Kind != tree.Regular && ino.Kind != tree.Symlink && t.hasPayload:
		return errors.New("payload of what is neither a file nor a link")
	}
	switch ino.Kind {
	case tree.Symlink:
		if len(t.payload) == 0 || len(t.payload) > tree.MaxTarget || bytes.IndexByte(t.payload, 0) >= 0 {
			return fmt.Errorf("a link target of %d bytes, want 1 to %d and no zero byte", len(t.payload), tree.MaxTarget)
		}
		ino.Target = string(t.payload)
	case tree.Regular:
		ino.Size = size
		if err := p.fillStrictRegular(ino, t); err != nil {
			return err
		}
	}
	return p.fillStrictXattrs(ino, rec)
}

func (p *parser) fillStrictRegular(ino *erofs.Inode, t texts) error {
	if !t.hasPayload {
		switch {
		case t.hasDigest:
			return errors.New("a digest without a payload")
		case !t.hasContent:
			return nil // empty, or a hole
		case uint64(len(t.content)) != ino.Size:
			return fmt.Errorf("%d bytes of content, and size %d", len(t.content), ino.Size)
		case len(t.content) > strictContent:
			return fmt.Errorf("%d bytes of content, at most %d are allowed", len(t.content), strictContent)
		}
		ino.Content = bytes.Clone(t.content)
		return nil
	}
	switch {
	case t.hasContent:
		return errors.New("both a payload and content")
	case !t.hasDigest:
		return errors.New("a payload without a digest")
	case ino.Size == 0:
		return errors.New("a payload of an empty file")
	}
	d, err := fsverity.ParseDigest(string(t.digest))
	if err != nil {
		return err
	}
	if p.alg == 0 {
		p.alg = d.Algorithm()
	}
	if d.Algorithm() != p.alg {
		return fmt.Errorf("a digest of %s, want %s", d.Algorithm(), p.alg)
	}
	object := d.ObjectPath()
	if string(t.payload) != object {
		return fmt.Errorf("payload %q is not the path of object %s", t.payload, d)
	}
	ino.Digest, ino.Redirect = d, object
	return nil
}

func (p *parser) fillStrictXattrs(ino *erofs.Inode, rec *record) error {
	if rec.last {
		return nil
	}
	var xattrs []tree.Xattr
	for item := range bytes.SplitSeq(rec.rest, []byte(" ")) {
		key, value, err := parseXattr(item)
		if err != nil {
			return err
		}
		if bytes.IndexByte(key, 0) >= 0 {
			return fmt.Errorf("attribute %q: a zero byte in the name", key)
		}
		xattrs = append(xattrs, tree.Xattr{Name: string(key), Value: bytes.Clone(value)})
	}
	slices.SortFunc(xattrs, func(a, b tree.Xattr) int { return cmp.Compare(a.Name, b.Name) })
	for i := 1; i < len(xattrs); i++ {
		if xattrs[i-1].Name == xattrs[i].Name {
			return fmt.Errorf("attribute %q is given twice", xattrs[i].Name)
		}
	}
	ino.Xattrs = xattrs
	return nil
}

func parseXattr(item []byte) (key, value []byte, err error) {
	k, v, found := bytes.Cut(item, []byte("="))
	if !found {
		return nil, nil, fmt.Errorf("attribute %q has no value", item)
	}
	if key, err = unescape(k); err != nil {
		return nil, nil, fmt.Errorf("attribute name: %w", err)
	}
	if value, err = unescape(v); err != nil {
		return nil, nil, fmt.Errorf("attribute %q: %w", key, err)
	}
	if len(cString(key)) == 0 || len(cString(key)) > tree.MaxXattrName || len(value) > tree.MaxXattrValue {
		return nil, nil, fmt.Errorf("attribute with a name of %d and a value of %d bytes", len(key), len(value))
	}
	return key, value, nil
}

// fillCompatible reads a line as mkcomposefs does.
func (p *parser) fillCompatible(ino *erofs.Inode, rec *record) error {
	size, err := parseLoose(rec.fields[fieldSize], 10)
	if err != nil {
		return fmt.Errorf("size: %w", err)
	}
	nlink, err := parseLoose(rec.fields[fieldNlink], 10)
	if err != nil {
		return fmt.Errorf("link count: %w", err)
	}
	uid, err := parseLoose(rec.fields[fieldUID], 10)
	if err != nil {
		return fmt.Errorf("uid: %w", err)
	}
	ino.Size, ino.Nlink, ino.UID = size, uint32(nlink), uint32(uid)
	// mkcomposefs looks at the uid to see whether these two could be parsed.
	gid, err := parseLoose(rec.fields[fieldGID], 10)
	if err != nil && ino.UID == 0 {
		return fmt.Errorf("gid: %w", err)
	}
	rdev, err := parseLoose(rec.fields[fieldRdev], 10)
	if err != nil && ino.UID == 0 {
		return fmt.Errorf("device: %w", err)
	}
	ino.GID = uint32(gid)
	if ino.Kind == tree.CharDevice || ino.Kind == tree.BlockDevice {
		ino.Rdev = uint32(rdev)
	}
	sec, nsec, _ := bytes.Cut(rec.fields[fieldMtime], []byte("."))
	s, err := parseLoose(sec, 10)
	if err != nil {
		return fmt.Errorf("modification time: %w", err)
	}
	ns, err := parseLoose(nsec, 10)
	if err != nil {
		return fmt.Errorf("modification time: %w", err)
	}
	ino.Mtime = tree.Time{Sec: int64(s), Nsec: uint32(ns)}
	t, err := parseTexts(rec)
	if err != nil {
		return err
	}
	if err := p.fillCompatibleData(ino, t); err != nil {
		return err
	}
	return p.fillCompatibleXattrs(ino, rec)
}

func (p *parser) fillCompatibleData(ino *erofs.Inode, t texts) error {
	t.payload = cString(t.payload)
	if t.hasContent && uint64(len(t.content)) != ino.Size {
		return fmt.Errorf("%d bytes of content, and size %d", len(t.content), ino.Size)
	}
	if len(t.payload) > compatiblePayload {
		return fmt.Errorf("a payload of %d bytes, at most %d are allowed", len(t.payload), compatiblePayload)
	}
	if ino.Kind == tree.Symlink {
		if len(t.payload) == 0 {
			return errors.New("a link without a target")
		}
		ino.Target = string(t.payload)
		return nil
	}
	if t.hasContent && len(t.content) > compatibleContent {
		return fmt.Errorf("%d bytes of content, at most %d are allowed", len(t.content), compatibleContent)
	}
	if ino.Kind != tree.Regular || ino.Size == 0 {
		return nil
	}
	if len(t.content) > 0 {
		ino.Content = bytes.Clone(t.content)
		return nil
	}
	ino.Redirect = string(t.payload)
	if !t.hasDigest {
		return nil
	}
	// mkcomposefs reads 64 digits, and does not look whether they are. What
	// are none would end up as arbitrary bytes in the image.
	digits := cString(t.digest)
	if len(digits) != 2*fsverity.SHA512.Size() && len(digits) > 2*fsverity.SHA256.Size() {
		digits = digits[:2*fsverity.SHA256.Size()]
	}
	d, err := fsverity.ParseDigest(string(digits))
	if err != nil {
		return err
	}
	if p.o.Algorithm != 0 && d.Algorithm() != p.o.Algorithm {
		return fmt.Errorf("a digest of %s, want %s", d.Algorithm(), p.o.Algorithm)
	}
	ino.Digest = d
	return nil
}

func (p *parser) fillCompatibleXattrs(ino *erofs.Inode, rec *record) error {
	if len(rec.rest) > compatibleXattrs {
		return fmt.Errorf("%d characters of attributes, at most %d are allowed", len(rec.rest), compatibleXattrs)
	}
	set := tree.Node{}
	budget := 0
	for rest := rec.rest; len(rest) > 0; {
		var item []byte
		item, rest, _ = bytes.Cut(rest, []byte(" "))
		key, value, err := parseXattr(item)
		if err != nil {
			return err
		}
		k := string(cString(key))
		if old, ok := set.Xattr(k); ok {
			set.RemoveXattr(k)
			budget -= xattrBudgetEach + len(k) + len(old)
			if len(set.Xattrs) == 0 {
				budget = 0
			}
		}
		if len(set.Xattrs) == 0 {
			budget += xattrBudgetFirst
		}
		budget += xattrBudgetEach + len(k) + len(value)
		if budget > compatibleXattrBudget {
			return fmt.Errorf("more than %d bytes of attributes", compatibleXattrBudget)
		}
		set.SetXattr(k, bytes.Clone(value))
	}
	ino.Xattrs = set.Xattrs
	return nil
}
