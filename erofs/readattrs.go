// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
	"github.com/cfs-pull/cfs-pull/fsverity"
)

// attrKey is an attribute name as it is stored.
type attrKey struct {
	index  uint8
	suffix string
}

// attrReader decodes attributes. It keeps the names that it met, of which an
// image has few.
type attrReader struct {
	im    *Image
	names map[attrKey]attrName
	found []tree.Xattr // of the inode at hand
	// The extent of the shared attributes that were used.
	sharedMin, sharedMax uint64
}

// maxNames bounds the names that are kept; the rest are decoded every time.
const maxNames = 4096

// read decodes the attributes of an inode, references first, in the order of
// the image. The result is valid until the next call; the values are the
// image's memory.
func (r *attrReader) read(n *diskInode) ([]tree.Xattr, error) {
	r.found = r.found[:0]
	if n.tail == n.attrs {
		return nil, nil
	}
	area := r.im.data[n.attrs:n.tail]
	shared := int(area[4])
	filter := le32(area, 0)
	area = area[xattrAreaHeader:]
	if shared*xattrRefSize > len(area) {
		return nil, corrupt("inode %d has %d shared attributes in %d bytes", n.nid, shared, len(area))
	}
	var present uint32
	for k := range shared {
		at := r.im.xattrs + uint64(le32(area, k*xattrRefSize))*xattrAlign
		if at < metaStart || at >= uint64(len(r.im.data)) {
			return nil, corrupt("inode %d has a shared attribute outside", n.nid)
		}
		size, bit, err := r.entry(n, r.im.data[at:])
		if err != nil {
			return nil, err
		}
		present |= bit
		if r.sharedMax == 0 {
			r.sharedMin = at
		}
		r.sharedMin, r.sharedMax = min(r.sharedMin, at), max(r.sharedMax, at+size)
	}
	for area = area[shared*xattrRefSize:]; len(area) > 0; {
		size, bit, err := r.entry(n, area)
		if err != nil {
			return nil, err
		}
		present |= bit
		area = area[size:]
	}
	// The kernel does not find what the filter hides.
	if r.im.filter && filter != ^present {
		return nil, corrupt("inode %d has a wrong filter of attribute names", n.nid)
	}
	return r.found, nil
}

// entry decodes one entry and appends it to r.found.
func (r *attrReader) entry(n *diskInode, b []byte) (size uint64, bit uint32, err error) {
	if len(b) < xattrEntryHeader {
		return 0, 0, corrupt("an attribute of inode %d is cut off", n.nid)
	}
	nameLen, index, valueLen := int(b[0]), b[1], int(le16(b, 2))
	size = alignUp(uint64(xattrEntryHeader+nameLen+valueLen), xattrAlign)
	if size > uint64(len(b)) {
		return 0, 0, corrupt("an attribute of inode %d is cut off", n.nid)
	}
	suffix := b[xattrEntryHeader : xattrEntryHeader+nameLen]
	name, ok := r.names[attrKey{index, string(suffix)}]
	if !ok {
		if name, err = r.decodeName(n, index, string(suffix)); err != nil {
			return 0, 0, err
		}
	}
	from := xattrEntryHeader + nameLen
	r.found = append(r.found, tree.Xattr{Name: name.full, Value: b[from : from+valueLen : from+valueLen]})
	return size, name.filter, nil
}

func (r *attrReader) decodeName(n *diskInode, index uint8, suffix string) (attrName, error) {
	if int(index) >= len(xattrPrefixes) || index == indexLustre && r.im.version.epoch1() {
		return attrName{}, corrupt("inode %d has an attribute with prefix %d", n.nid, index)
	}
	full := xattrPrefixes[index] + suffix
	if err := checkXattr(tree.Xattr{Name: full}); err != nil {
		return attrName{}, corrupt("inode %d: %v", n.nid, err)
	}
	// One name, one form: otherwise the kernel and we could see different
	// names.
	if i, s := splitXattrName(full, r.im.version); i != index || s != suffix {
		return attrName{}, corrupt("inode %d has attribute %q with prefix %d", n.nid, full, index)
	}
	name := attrName{full: full, suffix: suffix, index: index, filter: filterBit(index, suffix)}
	if r.names == nil {
		r.names = map[attrKey]attrName{}
	}
	if len(r.names) < maxNames {
		r.names[attrKey{index, suffix}] = name
	}
	return name, nil
}

// objectRef is what the overlay attributes of an inode say about its content.
type objectRef struct {
	metacopy, redirect bool
	digest             fsverity.Digest // of metacopy; zero if that is empty
	path               []byte          // of redirect; the image's memory
}

func findObject(attrs []tree.Xattr) (ref objectRef, err error) {
	for _, x := range attrs {
		switch x.Name {
		case attrMetacopy:
			if ref.metacopy {
				return ref, corrupt("attribute %s is given twice", x.Name)
			}
			ref.metacopy = true
			if ref.digest, err = parseMetacopy(x.Value); err != nil {
				return ref, err
			}
		case attrRedirect:
			if ref.redirect {
				return ref, corrupt("attribute %s is given twice", x.Name)
			}
			ref.redirect = true
			ref.path = x.Value
		}
	}
	return ref, nil
}

func parseMetacopy(v []byte) (fsverity.Digest, error) {
	if len(v) == 0 {
		return fsverity.Digest{}, nil
	}
	if len(v) < 4 || v[0] != 0 || int(v[1]) != len(v) || v[2] != 0 {
		return fsverity.Digest{}, corrupt("attribute %s has value %x", attrMetacopy, v)
	}
	alg := fsverity.Algorithm(v[3])
	if !alg.Valid() {
		return fsverity.Digest{}, corrupt("attribute %s has algorithm %d", attrMetacopy, v[3])
	}
	d, err := fsverity.DigestFromBytes(alg, v[4:])
	if err != nil {
		return d, corrupt("attribute %s: %v", attrMetacopy, err)
	}
	return d, nil
}

// pathIsDigest reports whether the redirect is the path of the object that
// metacopy names.
func (ref *objectRef) pathIsDigest() bool {
	if ref.digest.IsZero() || len(ref.path) == 0 || ref.path[0] != '/' {
		return false
	}
	var want [2*fsverity.MaxDigestSize + 1]byte
	return bytes.Equal(ref.path[1:], appendObjectPath(want[:0], ref.digest))
}

// redirectDigest is the object that a redirect names, if it names one.
func (ref *objectRef) redirectDigest() (fsverity.Digest, bool) {
	path, ok := strings.CutPrefix(string(ref.path), "/")
	if !ok {
		return fsverity.Digest{}, false
	}
	d, err := fsverity.ParseObjectPath(path)
	return d, err == nil && d.ObjectPath() == path
}
