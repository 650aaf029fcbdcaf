// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package selinux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/cfs-pull/cfs-pull/internal/rooted"
)

// MaxPolicyFile is the largest single file of a policy that is read, in bytes.
// Parse has a limit of its own for all of them together.
const MaxPolicyFile = 64 << 20

// Files reads the files of a root directory, such as an image's.
type Files interface {
	// ReadFile returns the content of a regular file of at most MaxPolicyFile
	// bytes. The path is relative to the root. An absent file is
	// [fs.ErrNotExist], also when something above it is absent.
	ReadFile(path string) ([]byte, error)
	// IsDir reports whether path is a directory.
	IsDir(path string) (bool, error)
}

// Load reads the policy that etc/selinux/config of a root directory names. It
// returns nil when the root has none: no config, or one without a policy type.
// A policy that is named but has no file_contexts is an error.
//
// What the config says about the mode is ignored: an image is labelled even if
// SELinux is off in it. See [LoadEnabled].
func Load(files Files) (*Policy, error) {
	config, err := readConfig(files)
	if err != nil || config == nil {
		return nil, err
	}
	return loadNamed(files, config)
}

// LoadEnabled is Load for the root of a system whose files on disk are to be
// labelled: it returns nil also when the config turns SELinux off.
func LoadEnabled(files Files) (*Policy, error) {
	config, err := readConfig(files)
	if err != nil || config == nil || Disabled(config) {
		return nil, err
	}
	return loadNamed(files, config)
}

const selinuxDir = "etc/selinux"

// readConfig returns nil if there is none.
func readConfig(files Files) ([]byte, error) {
	isDir, err := files.IsDir(selinuxDir)
	if err != nil || !isDir {
		return nil, err
	}
	config, err := files.ReadFile(selinuxDir + "/config")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return config, err
}

func loadNamed(files Files, config []byte) (*Policy, error) {
	name, ok := ParseConfig(config)
	if !ok {
		return nil, nil
	}
	var src Sources
	for _, f := range []struct {
		name string
		to   *[]byte
		must bool
	}{
		{"file_contexts", &src.FileContexts, true},
		{"file_contexts.local", &src.Local, false},
		{"file_contexts.homedirs", &src.Homedirs, false},
		{"file_contexts.subs", &src.Subs, false},
		{"file_contexts.subs_dist", &src.SubsDist, false},
	} {
		var err error
		*f.to, err = files.ReadFile(selinuxDir + "/" + name + "/contexts/files/" + f.name)
		if err != nil && (f.must || !errors.Is(err, fs.ErrNotExist)) {
			return nil, fmt.Errorf("policy %q: %s: %w", name, f.name, err)
		}
	}
	return Parse(src)
}

// Disabled reports whether the content of /etc/selinux/config turns SELinux
// off: whether the value of the last line whose key is SELINUX is "disabled".
// A config that does not say is not taken for off.
func Disabled(config []byte) bool {
	disabled := false
	for line := range strings.Lines(string(config)) {
		key, value, found := strings.Cut(line, "=")
		if found && equalFoldASCII(strings.TrimSpace(key), "SELINUX") {
			// libselinux compares the beginning only.
			value = strings.TrimSpace(value)
			disabled = len(value) >= len("disabled") && equalFoldASCII(value[:len("disabled")], "DISABLED")
		}
	}
	return disabled
}

// Root is the root directory of a system on disk, as [Files]. Links in it are
// resolved as if it were "/".
type Root string

// ReadFile implements [Files].
func (r Root) ReadFile(path string) ([]byte, error) {
	return rooted.ReadFile(string(r), path, MaxPolicyFile)
}

// IsDir implements [Files].
func (r Root) IsDir(path string) (bool, error) {
	f, err := rooted.OpenFile(string(r), path)
	if errors.Is(err, fs.ErrNotExist) {
		// Either way the root itself has to be there: a mistyped one would
		// otherwise look like one without a policy.
		_, err = os.Stat(string(r))
		return false, err
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	info, err := f.Stat()
	return err == nil && info.IsDir(), err
}
