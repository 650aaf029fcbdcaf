// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/rooted"
)

// maxAuthFile bounds a credential file in bytes.
const maxAuthFile = 1 << 20

// Secret is a string that does not show itself in logs, errors and JSON.
// Convert it to a string to use it.
type Secret string

const masked = "***"

// String returns a mask.
func (Secret) String() string { return masked }

// GoString returns a mask.
func (Secret) GoString() string { return masked }

// MarshalText returns a mask.
func (Secret) MarshalText() ([]byte, error) { return []byte(masked), nil }

// LogValue returns a mask.
func (Secret) LogValue() slog.Value { return slog.StringValue(masked) }

// UserPassword is a user name and a password for one registry.
type UserPassword struct {
	User     string
	Password Secret
}

// ParseUserPassword parses "user:password", the form that podman and skopeo
// take. The error is a UsageError and does not repeat s.
func ParseUserPassword(s string) (*UserPassword, error) {
	user, password, ok := strings.Cut(s, ":")
	if !ok || user == "" || password == "" {
		return nil, &UsageError{Subject: "credentials", Err: errors.New("expected USER:PASSWORD")}
	}
	return &UserPassword{User: user, Password: Secret(password)}, nil
}

// Auth says which credentials to use for a registry. The first member that is
// set decides; the zero value searches the running system. Credentials of the
// user's container tools are never used, and neither are REGISTRY_AUTH_FILE
// and DOCKER_CONFIG.
type Auth struct {
	// Anonymous uses no credentials at all.
	Anonymous bool
	// UserPassword is for the registry of the reference, and not for its
	// mirrors.
	UserPassword *UserPassword
	// File is a containers-auth.json(5) file.
	File string
	// Content is the content of such a file, and ContentName says in messages
	// where it comes from.
	Content     []byte
	ContentName string
	// Roots are root directories that are searched in order, each as
	// FindCredentials describes.
	Roots []string
}

// Credentials is a credential file that was found.
type Credentials struct {
	// Path is where it was found, for messages; links were resolved inside its
	// root.
	Path string
	// Content is its content.
	Content []byte
}

// rootedAuthFiles are searched below a root, in this order. They belong to
// bootc and ostree: credentials of the operating system, not of its users.
var rootedAuthFiles = []string{
	"run/ostree/auth.json",
	"etc/ostree/auth.json",
	"usr/lib/ostree/auth.json",
}

// FindCredentials looks for the credential file of the operating system. In
// each of roots, in order, it takes the first of run/ostree/auth.json,
// etc/ostree/auth.json and usr/lib/ostree/auth.json; files are not merged. With
// no roots it searches "/", or, for a user other than root,
// $XDG_RUNTIME_DIR/ostree/auth.json and ~/.config/ostree/auth.json. It returns
// nil and no error when there is none, and in any case the paths that it
// looked at. A file that cannot be read is an error, not an absent file.
func FindCredentials(roots []string) (*Credentials, []string, error) {
	if len(roots) == 0 && os.Geteuid() != 0 {
		return findUserCredentials()
	}
	if len(roots) == 0 {
		roots = []string{"/"}
	}
	var searched []string
	for _, root := range roots {
		for _, path := range rootedAuthFiles {
			name := joinRoot(root, path)
			searched = append(searched, name)
			content, err := rooted.ReadFile(root, path, maxAuthFile)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, searched, fmt.Errorf("read credentials: %w", err)
			}
			return &Credentials{Path: name, Content: content}, searched, nil
		}
	}
	return nil, searched, nil
}

func findUserCredentials() (*Credentials, []string, error) {
	var searched []string
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		searched = append(searched, filepath.Join(dir, "ostree", "auth.json"))
	}
	if home, err := os.UserHomeDir(); err == nil {
		searched = append(searched, filepath.Join(home, ".config", "ostree", "auth.json"))
	}
	for _, path := range searched {
		content, err := readFile(path, maxAuthFile)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, searched, fmt.Errorf("read credentials: %w", err)
		}
		return &Credentials{Path: path, Content: content}, searched, nil
	}
	return nil, searched, nil
}

// resolvedAuth is the outcome of an Auth.
type resolvedAuth struct {
	content  []byte // of a containers-auth.json(5) file, never nil
	source   string // "" when none was found
	searched []string
	direct   *UserPassword // credentials that need no file; both empty: anonymous
}

func (a Auth) resolve() (*resolvedAuth, error) {
	empty := []byte("{}")
	var r *resolvedAuth
	switch {
	case a.Anonymous:
		return &resolvedAuth{content: empty, source: "none, as asked for", direct: &UserPassword{}}, nil
	case a.UserPassword != nil:
		return &resolvedAuth{content: empty, source: "user name and password given", direct: a.UserPassword}, nil
	case a.File != "":
		content, err := readFile(a.File, maxAuthFile)
		if err != nil {
			return nil, &UsageError{Subject: a.File, Err: fmt.Errorf("read credentials: %w", err)}
		}
		r = &resolvedAuth{content: content, source: a.File}
	case a.Content != nil:
		r = &resolvedAuth{content: a.Content, source: a.ContentName}
	default:
		found, searched, err := FindCredentials(a.Roots)
		if err != nil {
			return nil, &UsageError{Subject: searched[len(searched)-1], Err: err}
		}
		if found == nil {
			return &resolvedAuth{content: empty, searched: searched}, nil
		}
		r = &resolvedAuth{content: found.Content, source: found.Path, searched: searched}
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(r.content, &object); err != nil {
		// The error of the JSON decoder may quote the content.
		return nil, &UsageError{Subject: r.source, Err: errors.New("credential file is not a JSON object")}
	}
	return r, nil
}

// secretFile is an anonymous file in memory that has a name for as long as it
// is open. The container libraries take credentials by file name only.
type secretFile struct {
	f    *os.File
	size int
}

func newSecretFile(content []byte) (*secretFile, error) {
	fd, err := unix.MemfdCreate("cfs-pull-auth", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create memory file for credentials: %w", err)
	}
	f := os.NewFile(uintptr(fd), "credentials")
	s := &secretFile{f: f, size: len(content)}
	if err := f.Chmod(0o600); err != nil {
		f.Close()
		return nil, fmt.Errorf("protect credentials: %w", err)
	}
	if _, err := f.Write(content); err != nil {
		f.Close()
		return nil, fmt.Errorf("copy credentials: %w", err)
	}
	return s, nil
}

// path is valid in this process until Close.
func (s *secretFile) path() string { return fmt.Sprintf("/proc/self/fd/%d", s.f.Fd()) }

// Close overwrites the content and gives the memory back.
func (s *secretFile) Close() error {
	_, err := s.f.WriteAt(make([]byte, s.size), 0)
	if cerr := s.f.Close(); err == nil {
		err = cerr
	}
	return err
}
