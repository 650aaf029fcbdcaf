// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cfs-pull/cfs-pull/internal/rooted"
)

// Mode is the way of an image into the repository.
type Mode string

// The modes.
const (
	ModeDirect  Mode = "direct"
	ModeUnified Mode = "unified"
)

// ModeFile is the file below a sysroot that says how a system pulls when
// nothing else does: {"mode":"unified"}.
const ModeFile = "composefs/bootc/cfs-pull.json"

// maxModeFile bounds the file in bytes.
const maxModeFile = 64 << 10

// DefaultMode is what the ModeFile of a sysroot says, or ModeDirect where there
// is none.
func DefaultMode(sysroot string) (Mode, error) {
	raw, err := rooted.ReadFile(sysroot, ModeFile, maxModeFile)
	if errors.Is(err, fs.ErrNotExist) {
		return ModeDirect, nil
	}
	if err != nil {
		return "", fmt.Errorf("read the default mode: %w", err)
	}
	var settings struct {
		Mode Mode `json:"mode"`
	}
	if err := json.Unmarshal(raw, &settings); err != nil {
		return "", fmt.Errorf("read the default mode: %s/%s: %w", sysroot, ModeFile, err)
	}
	switch settings.Mode {
	case ModeDirect, ModeUnified:
		return settings.Mode, nil
	}
	return "", fmt.Errorf("read the default mode: %s/%s: mode %q is neither %s nor %s",
		sysroot, ModeFile, settings.Mode, ModeDirect, ModeUnified)
}
