// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// Names that bootc gives to what it installs.
const (
	artifactPrefix  = "bootc_composefs-" // kernel directories and UKIs
	kernelName      = "vmlinuz"
	initrdName      = "initrd"
	exportUKIDir    = "EFI/Linux/bootc"
	exportAddonsDir = "loader/addons"
	exportConfDir   = "loader/entries"
	extraSuffix     = ".extra.d"

	// defaultOSID stands for an operating system that does not say its ID.
	defaultOSID = "bootc"
)

// What distinguishes the default entry from the others: the release in the
// file name, which GRUB sorts in descending order, and the end of the
// sort-key, which systemd-boot sorts in ascending order.
const (
	primaryRelease   = "1"
	secondaryRelease = "0"
	primarySort      = "0"
	secondarySort    = "1"
)

func sortKey(osID, rank string) string { return "bootc-" + cleanText(osID) + "-" + rank }

// confName is the file name of a loader entry. GRUB takes it for
// name-version-release, so the id may not have a hyphen.
func confName(osID, version, release string) string {
	id := strings.ReplaceAll(safeName(osID, 64), "-", "_")
	return "bootc_" + id + "-" + safeName(version, 128) + "-" + release + confSuffix
}

// initrdFile is the name of the i-th initrd in a kernel directory. The first
// is the one that bootc knows.
func initrdFile(i int) string {
	if i == 0 {
		return initrdName
	}
	return fmt.Sprintf("%s-%d", initrdName, i+1)
}

// safeName makes text part of a file name that every boot file system takes:
// characters that FAT forbids become underscores, and it is cut to limit
// bytes.
func safeName(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || unicode.IsControl(r) || strings.ContainsRune("\"*/:<>?\\|", r) {
			return '_'
		}
		return r
	}, s)
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "")
	}
	return s
}

// cleanText makes text fit for one line of a loader entry.
func cleanText(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s))
}

// suffixOf distinguishes the entries of one image by what they are called
// there. It has no hyphen, as it becomes part of the release in a file name.
func suffixOf(e *Entry) string {
	name := e.Kver
	if name == "" {
		name = path.Base(e.Name)
		name = strings.TrimSuffix(strings.TrimSuffix(name, efiSuffix), confSuffix)
	}
	return strings.ReplaceAll(safeName(name, 40), "-", "_")
}

// namedImage is the image that a loader entry starts: the digest of its
// composefs argument, or that in the name of its UKI. It is zero where neither
// is there.
func namedImage(c *Config) fsverity.Digest {
	for _, options := range c.Values("options") {
		for _, alg := range []fsverity.Algorithm{fsverity.SHA512, fsverity.SHA256} {
			if k, found, err := FindKarg(options, alg); err == nil && found {
				return k.ID
			}
		}
	}
	for _, key := range []string{"efi", "uki"} {
		value, _ := c.Value(key)
		name, ok := strings.CutPrefix(path.Base(strings.TrimSpace(value)), artifactPrefix)
		if !ok {
			continue
		}
		name, _, _ = strings.Cut(strings.TrimSuffix(name, efiSuffix), "_")
		if id, err := fsverity.ParseDigest(name); err == nil {
			return id
		}
	}
	return fsverity.Digest{}
}
