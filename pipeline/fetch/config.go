// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/shortnames"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"
	"go.podman.io/image/v5/version"
)

// nowhere is a path that does not exist and cannot be created.
const nowhere = "/proc/self/nonexistent"

// session is what one Open holds besides the image: configuration for the
// libraries and the credentials.
type session struct {
	sys    *types.SystemContext
	auth   *resolvedAuth
	secret *secretFile
	// realm is the last URL requested that is not part of the registry API: the
	// token server, as long as opened is false. After that, it may be a server
	// that a registry sends us to for blobs.
	realm  atomic.Pointer[string]
	opened atomic.Bool
}

func (s *session) Close() error {
	if s.secret == nil {
		return nil
	}
	return s.secret.Close()
}

// newSession reads credentials and configuration. It contacts nobody.
func newSession(o *Options, registry bool) (*session, error) {
	s := &session{auth: &resolvedAuth{content: []byte("{}")}}
	if registry {
		auth, err := o.Auth.resolve()
		if err != nil {
			return nil, err
		}
		s.auth = auth
	}
	secret, err := newSecretFile(s.auth.content)
	if err != nil {
		return nil, err
	}
	s.secret = secret
	if err := s.configure(o, registry); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *session) configure(o *Options, registry bool) error {
	root := o.Root
	if root == "" {
		root = "/"
	}
	// What containers/image calls itself.
	agent := "containers/" + version.Version + " (github.com/containers/image)"
	if o.UserAgent != "" {
		agent = o.UserAgent + " " + agent
	}
	mode := types.ShortNameModeDisabled // no questions
	s.sys = &types.SystemContext{
		RootForImplicitAbsolutePaths: root,
		AuthFilePath:                 s.secret.path(),
		ArchitectureChoice:           o.Architecture,
		OSChoice:                     o.OS,
		VariantChoice:                o.Variant,
		BigFilesTemporaryDir:         o.TempDir,
		DockerCertPath:               o.CertDir,
		DockerRegistryUserAgent:      agent,
		DockerLogMirrorChoice:        true,
		DockerProxy:                  s.proxy,
		ShortNameMode:                &mode,
	}
	if d := s.auth.direct; d != nil {
		s.sys.DockerAuthConfig = &types.DockerAuthConfig{Username: d.User, Password: string(d.Password)}
	}
	if o.TLSVerify != nil {
		s.sys.DockerInsecureSkipTLSVerify = types.NewOptionalBool(!*o.TLSVerify)
	}
	if !registry {
		return nil
	}
	return s.loadRegistries(o, root)
}

// proxy is the choice of a proxy that net/http makes by itself. It is here
// because it sees every URL, and so the token server, which no error of
// containers/image names.
func (s *session) proxy(u *url.URL) (*url.URL, error) {
	if !strings.HasPrefix(u.Path, "/v2/") && !s.opened.Load() {
		realm := (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
		s.realm.Store(&realm)
	}
	return http.ProxyFromEnvironment(&http.Request{URL: u})
}

// loadRegistries pins every path of the registries configuration, because
// unset ones are looked for in the environment, and loads it.
func (s *session) loadRegistries(o *Options, root string) error {
	s.sys.SystemRegistriesConfPath = o.RegistriesConf
	s.sys.SystemRegistriesConfDirPath = nowhere
	if o.RegistriesConf == "" {
		s.sys.SystemRegistriesConfPath = firstConfig(root, "registries.conf")
		dir, remove, err := dropInDir(root, o.TempDir)
		if err != nil {
			return err
		}
		defer remove()
		s.sys.SystemRegistriesConfDirPath = dir
	}
	if _, err := sysregistriesv2.TryUpdatingCache(s.sys); err != nil {
		return &UsageError{
			Subject: s.sys.SystemRegistriesConfPath,
			Err:     fmt.Errorf("load registries configuration: %w", err),
		}
	}
	return nil
}

// configDirs are the directories of the configuration below root, the one that
// wins first.
func configDirs(root string) []string {
	dirs := []string{
		filepath.Join(root, "etc/containers"),
		filepath.Join(root, "usr/share/containers"),
	}
	// A user's own configuration counts when the user pulls for themselves.
	if home, err := os.UserConfigDir(); err == nil && root == "/" && os.Geteuid() != 0 {
		dirs = append([]string{filepath.Join(home, "containers")}, dirs...)
	}
	return dirs
}

// firstConfig is the path of the file called name, or of an empty file.
func firstConfig(root, name string) string {
	for _, dir := range configDirs(root) {
		path := filepath.Join(dir, name)
		// Anything but absence is for the parser to complain about.
		if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return path
		}
	}
	return os.DevNull
}

// dropInDir is the directory with the drop-in files of registries.conf. There
// may be several directories, where a file hides those of the same name in
// later ones, but the library takes only one: then it is a temporary directory
// of links. remove must be called after the configuration was loaded.
func dropInDir(root, tempDir string) (dir string, remove func(), err error) {
	files := map[string]string{}
	var used []string
	for _, parent := range configDirs(root) {
		dir := filepath.Join(parent, "registries.conf.d")
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", nil, &UsageError{Subject: dir, Err: fmt.Errorf("load registries configuration: %w", err)}
		}
		used = append(used, dir)
		for _, entry := range entries {
			if _, hidden := files[entry.Name()]; !hidden && strings.HasSuffix(entry.Name(), ".conf") {
				files[entry.Name()] = filepath.Join(dir, entry.Name())
			}
		}
	}
	switch len(used) {
	case 0:
		return nowhere, func() {}, nil
	case 1:
		return used[0], func() {}, nil
	}
	dir, err = os.MkdirTemp(tempDir, "cfs-pull-conf-")
	if err != nil {
		return "", nil, fmt.Errorf("create temporary directory: %w", err)
	}
	remove = func() { os.RemoveAll(dir) }
	for name, target := range files {
		target, err = filepath.Abs(target)
		if err == nil {
			err = os.Symlink(target, filepath.Join(dir, name))
		}
		if err != nil {
			remove()
			return "", nil, fmt.Errorf("collect registries configuration: %w", err)
		}
	}
	return dir, remove, nil
}

// completeShortName turns a name without a registry into a full one, by the
// aliases and the search registries of registries.conf. There is nobody to
// ask, so several candidates are an error; without any configuration the name
// is one of docker.io.
func (s *session) completeShortName(ref Reference, tempDir string) (Reference, error) {
	// The resolver insists on a lock file beside the file of aliases that podman
	// writes; give it an empty place of its own.
	dir, err := os.MkdirTemp(tempDir, "cfs-pull-names-")
	if err != nil {
		return ref, fmt.Errorf("create temporary directory: %w", err)
	}
	defer os.RemoveAll(dir)
	sys := *s.sys
	sys.UserShortNameAliasConfPath = filepath.Join(dir, "aliases.conf")

	search, err := sysregistriesv2.UnqualifiedSearchRegistries(&sys)
	if err != nil {
		return ref, &UsageError{Subject: ref.Original, Err: err}
	}
	resolved, err := shortnames.Resolve(&sys, ref.Name)
	if err != nil {
		if len(search) > 0 {
			return ref, &UsageError{Subject: ref.Original, Err: err}
		}
		full, err := parseRegistry(ref.Original, ref.Name, false)
		if err != nil {
			return ref, &UsageError{Subject: ref.Original, Err: err}
		}
		return full, nil
	}
	if len(resolved.PullCandidates) != 1 {
		var names []string
		for _, c := range resolved.PullCandidates {
			names = append(names, reference.TagNameOnly(c.Value).String())
		}
		return ref, &UsageError{
			Subject: ref.Original,
			Err:     fmt.Errorf("short name is ambiguous: it may be %s", strings.Join(names, " or ")),
			Hint:    "write the full name",
		}
	}
	full, err := parseRegistry(ref.Original, resolved.PullCandidates[0].Value.String(), false)
	if err != nil {
		return ref, &UsageError{Subject: ref.Original, Err: err}
	}
	return full, nil
}
