// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"log/slog"
	"time"
)

// Options says how Open finds, authorises and reads an image. The zero value
// works: the platform of the host, configuration and credentials of the
// running system.
type Options struct {
	// Transport is the transport of the reference, see ParseReference. Empty:
	// the prefix of the reference.
	Transport string

	// OS, Architecture and Variant choose a manifest from an index, in the
	// words of Go's GOOS and GOARCH. Empty: those of the host.
	OS, Architecture, Variant string

	// Auth says which credentials to use.
	Auth Auth

	// CertDir is a directory with *.crt of certificate authorities, and *.cert
	// and *.key of clients, as in containers-certs.d(5). Empty: certs.d of the
	// configuration.
	CertDir string
	// TLSVerify, when not nil, overrules registries.conf: false accepts any
	// certificate, and plain HTTP where HTTPS is not spoken.
	TLSVerify *bool

	// Root is the directory below which the configuration is read:
	// etc/containers and usr/share/containers with registries.conf,
	// registries.conf.d, registries.d, certs.d and policy.json. Empty: "/".
	// The library also looks for registries.d and certs.d, that is for where
	// signatures lie and whom to trust, in the user's ~/.config/containers.
	Root string
	// RegistriesConf is a containers-registries.conf(5) file that is read
	// instead, without any drop-in files.
	RegistriesConf string

	// SignaturePolicy is a containers-policy.json(5) file. Empty:
	// etc/containers/policy.json or usr/share/containers/policy.json below
	// Root, else of the running system.
	SignaturePolicy string
	// InsecurePolicy accepts every image and reads no policy file.
	InsecurePolicy bool
	// RequireSigned refuses an image unless the policy verifies a signature
	// of it.
	RequireSigned bool

	// UserAgent is put in front of the User-Agent header of the library, for
	// example "cfs-pull/1.0".
	UserAgent string

	// Retries is how often an operation is tried again when the network or the
	// server failed. 0: three times. Negative: never.
	Retries int
	// RetryDelay is the pause before each of them. 0: one second, doubled each
	// time.
	RetryDelay time.Duration
	// StallTimeout is how long a blob may deliver nothing before its connection
	// counts as broken. 0: two minutes.
	StallTimeout time.Duration

	// TempDir holds temporary files. Empty: $TMPDIR, or else /tmp.
	TempDir string
	// UnpackDir holds the unpacked form of compressed archives, which is as
	// large as the image, in a file without a name. Where that is not possible,
	// and when it is empty, TempDir does.
	UnpackDir string

	// Logger receives what Open and the readers have to say. Nil: nobody. What
	// the container libraries say goes where InstallLogging directs it.
	Logger *slog.Logger

	// KnownManifest, when not nil, is asked for a platform manifest before it
	// is requested from the source. It returns the bytes of the manifest with
	// this digest ("sha256:…"), or nil. A wrong answer does no harm. It is not
	// asked when the policy demands a signature, which has to be fetched with
	// the manifest anyway.
	KnownManifest func(digest string) []byte
}

func (o *Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}

func (o *Options) retryPolicy() retryPolicy {
	p := retryPolicy{retries: o.Retries, delay: o.RetryDelay, log: o.logger()}
	if p.retries == 0 {
		p.retries = defaultRetries
	}
	return p
}

func (o *Options) stallTimeout() time.Duration {
	if o.StallTimeout <= 0 {
		return defaultStallTimeout
	}
	return o.StallTimeout
}
