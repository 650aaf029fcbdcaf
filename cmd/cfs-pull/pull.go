// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cfs-pull/cfs-pull/composefs/boot"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/pipeline"
	"github.com/cfs-pull/cfs-pull/pipeline/fetch"
)

// pullOptions are the flags of a pull.
type pullOptions struct {
	direct bool

	sysroot, root, repo string
	init                bool
	erofs               string
	allowMissingVerity  bool
	force               bool
	lockTimeout         time.Duration

	transport           string
	authfile, creds     string
	noCreds             bool
	certDir             string
	tlsVerify           optionalBool
	registriesConf      string
	signaturePolicy     string
	insecurePolicy      bool
	requireSigned       bool
	arch, os, variant   string
	retry               int
	retryDelay          time.Duration
	userAgentPrefix     string
	tmpdir              string
	commandTimeout      time.Duration
	maxParallel, jobs   int
	minFree             byteSize
	maxLayerSize        byteSize
	maxCompressionRatio int64

	tag                   string
	untagOnError          bool
	noBoot, allowNoBoot   bool
	exportBoot, kargStyle string
	output                outputOptions
	progress              string
	quiet, verbose        bool
	logLevel              string
}

func newPullCommand() *cobra.Command {
	o := pullOptions{minFree: -1}
	cmd := &cobra.Command{
		Use:   "cfs-pull [--direct] [options] REF",
		Short: "Pull a bootable OCI image into a composefs repository",
		Long: `Pull a bootable OCI image into a composefs repository: its layers, manifest and
config, the tag localhost/bootc-<manifest digest>, the EROFS images and the boot
entries.

REF is a name in a registry, docker://NAME, oci:DIR[:TAG], oci-archive:FILE,
docker-archive:FILE or dir:DIR. With --transport it is the part behind the
transport.

The result is written to stdout, everything else to stderr.
` + exitHelp,
		Example: `  cfs-pull --direct --repo /sysroot/composefs quay.io/example/os:latest
  cfs-pull --direct --init --allow-missing-verity --repo ./repo oci:./layout:latest`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return runPull(cmd, &o, args[0]) },
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&o.direct, "direct", false, "pull straight into the composefs repository (the default)")

	f.StringVar(&o.sysroot, "sysroot", "/sysroot", "physical root of the running system; the repository is composefs below it")
	f.StringVar(&o.root, "root", "", "physical root of a system that is being installed; implies --init, and configuration is read below it")
	f.StringVar(&o.repo, "repo", "", "directory of the repository (default SYSROOT/composefs)")
	f.BoolVar(&o.init, "init", false, "create the repository if there is none")
	f.StringVar(&o.erofs, "erofs", "v1", "format of EROFS images in a repository that is created: v1, v2 or both")
	addVerityFlag(f, &o.allowMissingVerity, "create a repository that does not require fs-verity, or use one")
	f.BoolVar(&o.force, "force", false, "accept --allow-missing-verity for a repository that requires fs-verity")
	f.DurationVar(&o.lockTimeout, "lock-timeout", defaultLockTimeout, "how long to wait for a lock")

	f.StringVar(&o.transport, "transport", "", "registry, oci, oci-archive, docker-archive or dir; REF has no prefix then")
	f.StringVar(&o.authfile, "authfile", "", "file with registry credentials (default: those of the operating system)")
	f.StringVar(&o.creds, "creds", "", "USER:PASSWORD for the registry")
	f.BoolVar(&o.noCreds, "no-creds", false, "use no credentials")
	f.StringVar(&o.certDir, "cert-dir", "", "directory with certificates for the registry")
	f.Var(&o.tlsVerify, "tls-verify", "require HTTPS and verify certificates (default: as registries.conf says)")
	f.Lookup("tls-verify").NoOptDefVal = "true"
	f.StringVar(&o.registriesConf, "registries-conf", "", "registries.conf to use instead of the system's")
	f.StringVar(&o.signaturePolicy, "signature-policy", "", "policy.json to use instead of the system's")
	f.BoolVar(&o.insecurePolicy, "insecure-policy", false, "accept every image, whatever the policy says")
	f.BoolVar(&o.requireSigned, "require-signed", false, "refuse an image unless the policy verifies a signature of it")
	f.StringVar(&o.arch, "arch", "", "architecture to choose from an index (default: this machine's)")
	f.StringVar(&o.os, "os", "", "operating system to choose from an index (default: this machine's)")
	f.StringVar(&o.variant, "variant", "", "architecture variant to choose from an index")
	f.IntVar(&o.retry, "retry", 3, "how often to try again when the network or the registry fails")
	f.DurationVar(&o.retryDelay, "retry-delay", 0, "pause between tries (default: one second, doubled each time)")
	f.StringVar(&o.userAgentPrefix, "user-agent-prefix", "", "put before the User-Agent (default cfs-pull/VERSION)")
	f.StringVar(&o.tmpdir, "tmpdir", "", "directory for temporary files (default $TMPDIR)")
	f.DurationVar(&o.commandTimeout, "command-timeout", 0, "give up after this long (default: never)")
	f.IntVar(&o.maxParallel, "max-parallel-downloads", pipeline.DefaultParallelLayers, "layers to fetch at once")
	f.IntVar(&o.jobs, "jobs", 0, "threads that hash and store files (default: one a CPU)")
	f.Var(&o.minFree, "min-free", "space to stay free (default: the larger of 1 % and 512 MiB, at most 5 %)")
	o.maxLayerSize = oci.DefaultMaxLayerSize
	f.Var(&o.maxLayerSize, "max-layer-size", "largest uncompressed layer to accept")
	f.Int64Var(&o.maxCompressionRatio, "max-compression-ratio", oci.DefaultMaxRatio, "largest ratio of uncompressed to compressed size to accept")

	f.StringVar(&o.tag, "tag", "", "tag to write beside localhost/bootc-<manifest digest>")
	f.BoolVar(&o.untagOnError, "untag-on-error", false, "remove the tags again when the image turns out not to be bootable")
	f.BoolVar(&o.noBoot, "no-boot", false, "leave out boot image and boot entries")
	f.BoolVar(&o.allowNoBoot, "allow-no-boot", false, "accept an image without boot entries")
	f.StringVar(&o.exportBoot, "export-boot", "", "write kernel, initrd, unified kernel images and loader entries to this directory")
	f.StringVar(&o.kargStyle, "karg-style", "bootc", "form of the composefs kernel argument in exported entries: bootc (composefs=ID) or digest (composefs.digest=…)")

	o.output.addFlags(f)
	f.StringVar(&o.progress, "progress", "auto", "progress on stderr: auto, bar, plain or none")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print the manifest digest only")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log what is decided on the way")
	f.StringVar(&o.logLevel, "log-level", "", "debug, info, warn or error (default warn, or $CFS_PULL_LOG)")
	cmd.MarkFlagsMutuallyExclusive("creds", "no-creds", "authfile")
	cmd.MarkFlagsMutuallyExclusive("no-boot", "allow-no-boot")
	cmd.MarkFlagsMutuallyExclusive("no-boot", "export-boot")
	cmd.MarkFlagsMutuallyExclusive("signature-policy", "insecure-policy")
	return cmd
}

func runPull(cmd *cobra.Command, o *pullOptions, ref string) error {
	log, err := o.logger(cmd)
	if err != nil {
		return err
	}
	options, err := o.pipelineOptions(ref, log)
	if err != nil {
		return err
	}
	progress, err := newProgress(o.progress, o.quiet, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	options.Events = progress.event
	fetch.InstallLogging(log)
	ctx := cmd.Context()
	if o.commandTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.commandTimeout)
		defer cancel()
	}
	result, err := pipeline.Direct(ctx, options)
	progress.close()
	if cause := context.Cause(ctx); err != nil && cause != nil {
		// The cause says more than what the interruption broke.
		err = &interruptedError{cause: cause, err: err}
	}
	return o.output.write(cmd, result, err, o.quiet)
}

// interruptedError is what a pull returns after its context ended.
type interruptedError struct{ cause, err error }

func (e *interruptedError) Error() string   { return e.cause.Error() }
func (e *interruptedError) Unwrap() []error { return []error{e.cause, e.err} }

// pipelineOptions turns flags into options.
func (o *pullOptions) pipelineOptions(ref string, log *slog.Logger) (pipeline.Options, error) {
	formats, err := parseFormats(o.erofs)
	if err != nil {
		return pipeline.Options{}, err
	}
	kargStyle, ok := map[string]boot.KargStyle{"bootc": boot.KargBootc, "digest": boot.KargDigest}[o.kargStyle]
	if !ok {
		return pipeline.Options{}, usagef("--karg-style %s: want bootc or digest", o.kargStyle)
	}
	f, err := o.fetchOptions(log)
	if err != nil {
		return pipeline.Options{}, err
	}
	sysroot := o.sysroot
	if o.root != "" {
		sysroot = o.root
	}
	repo := o.repo
	if repo == "" {
		repo = filepath.Join(sysroot, "composefs")
	}
	return pipeline.Options{
		Reference: ref, Fetch: f,
		Repo: repo, Init: o.init || o.root != "", Formats: formats,
		AllowMissingVerity: o.allowMissingVerity, Force: o.force, LockTimeout: o.lockTimeout,
		Tag: o.tag, UntagOnError: o.untagOnError,
		NoBoot: o.noBoot, AllowNoBoot: o.allowNoBoot, ExportBoot: o.exportBoot, KargStyle: kargStyle,
		Jobs: o.jobs, ParallelLayers: o.maxParallel,
		Limits:  oci.Limits{MaxLayerSize: int64(o.maxLayerSize), MaxRatio: o.maxCompressionRatio},
		MinFree: int64(o.minFree),
		Log:     log,
	}, nil
}

func (o *pullOptions) fetchOptions(log *slog.Logger) (fetch.Options, error) {
	f := fetch.Options{
		Transport: o.transport,
		OS:        o.os, Architecture: o.arch, Variant: o.variant,
		CertDir: o.certDir, TLSVerify: o.tlsVerify.value,
		Root: o.root, RegistriesConf: o.registriesConf,
		SignaturePolicy: o.signaturePolicy, InsecurePolicy: o.insecurePolicy, RequireSigned: o.requireSigned,
		UserAgent: o.userAgentPrefix,
		Retries:   o.retry, RetryDelay: o.retryDelay,
		TempDir: o.tmpdir, Logger: log,
	}
	if f.UserAgent == "" {
		f.UserAgent = "cfs-pull/" + version
	}
	if o.retry == 0 {
		f.Retries = -1
	}
	f.Auth.Anonymous, f.Auth.File = o.noCreds, o.authfile
	if o.root != "" {
		f.Auth.Roots = []string{o.root}
	}
	if o.creds != "" {
		creds, err := fetch.ParseUserPassword(o.creds)
		if err != nil {
			return f, err
		}
		f.Auth.UserPassword = creds
	}
	return f, nil
}

// logger writes to stderr from the level on that flags and environment name.
func (o *pullOptions) logger(cmd *cobra.Command) (*slog.Logger, error) {
	name := o.logLevel
	if name == "" {
		name = os.Getenv("CFS_PULL_LOG")
	}
	if name == "" {
		name = "warn"
		if o.verbose {
			name = "info"
		}
		if o.quiet {
			name = "error"
		}
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(strings.ToUpper(name))); err != nil {
		return nil, usagef("log level %q: want debug, info, warn or error", name)
	}
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level})), nil
}
