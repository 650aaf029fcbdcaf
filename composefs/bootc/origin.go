// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package bootc

import (
	"fmt"
	"strings"

	"github.com/cfs-pull/cfs-pull/composefs/oci"
)

// The keys of an origin file that are read.
var (
	manifestKey = originKey{"image", "manifest_digest"}
	imageKey    = originKey{"origin", "container-image-reference"}
)

type originKey struct{ section, name string }

// readOrigin reads an origin file. A file without a manifest's digest is one
// of an older release; one with a digest that is none is an error.
func (d *Deployment) readOrigin(text string) error {
	values, err := parseINI(text)
	if err != nil {
		return fmt.Errorf("parse its origin: %w", err)
	}
	d.Image = values[imageKey]
	digest, ok := values[manifestKey]
	if !ok {
		return nil
	}
	if d.Manifest, err = oci.ParseDigest(digest); err != nil {
		return fmt.Errorf("parse its origin: %s: %w", manifestKey.name, err)
	}
	return nil
}

// parseINI reads lines "[section]" and "key = value"; lines that begin with
// "#" or ";" are comments. A key that is given twice is an error: readers
// differ in which one counts.
func parseINI(text string) (map[originKey]string, error) {
	values := map[originKey]string{}
	section := ""
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if line[0] == '[' {
			name, ok := strings.CutSuffix(line[1:], "]")
			if !ok {
				return nil, fmt.Errorf("line %d: %.200q is no section", i+1, line)
			}
			section = strings.TrimSpace(name)
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			return nil, fmt.Errorf("line %d: %.200q has no =", i+1, line)
		}
		key := originKey{section, strings.TrimSpace(name)}
		if _, again := values[key]; again {
			return nil, fmt.Errorf("line %d: %s is given twice", i+1, key.name)
		}
		values[key] = strings.TrimSpace(value)
	}
	return values, nil
}
