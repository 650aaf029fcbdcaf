// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/composefs/boot"
	"github.com/cfs-pull/cfs-pull/composefs/oci"
	"github.com/cfs-pull/cfs-pull/cstor"
	"github.com/cfs-pull/cfs-pull/pipeline"
	"github.com/cfs-pull/cfs-pull/pipeline/fetch"
)

// pullOptions are the flags of a pull.
type pullOptions struct {
	direct, unified, check, dryRun bool

	sysroot, root, repo string
	init                bool
	erofs               string
	allowMissingVerity  bool
	force               bool
	lockTimeout         time.Duration

	storage, runRoot, name  string
	policy                  choice[cstor.Policy]
	localCopy               choice[pipeline.LocalCopy]
	allowCopy               bool
	sourceStore             choice[pipeline.SourceStore]
	sourceStorage           string
	selinuxPolicyRoot       string
	noLabel, noVerifyDiffID bool

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
	noSpaceCheck        bool
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
	o := pullOptions{
		minFree: -1,
		policy: newChoice("always", map[string]cstor.Policy{
			"always": cstor.PolicyAlways, "missing": cstor.PolicyMissing, "newer": cstor.PolicyNewer, "never": cstor.PolicyNever,
		}),
		localCopy:   newChoice("zerocopy", sameWords(pipeline.ZeroCopy, pipeline.CopyIfNeeded, pipeline.CopyAlways, pipeline.HardlinkToo)),
		sourceStore: newChoice("auto", sameWords(pipeline.SourceAuto, pipeline.SourceOwned, pipeline.SourceHost)),
	}
	cmd := &cobra.Command{
		Use:   "cfs-pull [options] REF",
		Short: "Pull a bootable OCI image into a composefs repository",
		Long: `Pull a bootable OCI image into a composefs repository: its layers, manifest and
config, the tag localhost/bootc-<manifest digest>, the EROFS images and the boot
entries.

With --unified the image is first brought into a containers-storage of the system,
from which podman runs it, and is imported from there without copying: its files
share their space on disk (reflinks, or hard links where there are none).

REF is a name in a registry (NAME[:TAG][@DIGEST] or docker://NAME), oci:DIR[:TAG],
oci-archive:FILE[:TAG], docker-archive:FILE[:NAME], dir:DIR or
containers-storage:NAME. With --transport it is what follows the transport.

The result is written to stdout, everything else to stderr.
` + exitHelp,
		Example: `    cfs-pull --direct quay.io/example/os:latest
    cfs-pull --unified quay.io/example/os:latest
    cfs-pull --direct --check quay.io/example/os:latest
    cfs-pull --direct --init --allow-missing-verity --repo ./repo oci:./layout:latest`,
		Args:                  usageArgs(1, "one image reference"),
		DisableFlagsInUseLine: true,
		RunE:                  func(cmd *cobra.Command, args []string) error { return runPull(cmd, &o, args[0]) },
	}
	setFlags(cmd, o.modeFlags(), o.repositoryFlags(), o.storageFlags(), o.imageFlags(), o.registryFlags(),
		o.policyFlags(), o.bootFlags(), o.resourceFlags(), o.outputFlags())
	return cmd
}

func (o *pullOptions) modeFlags() flagGroup {
	g := newFlagGroup("MODE")
	f := g.flags
	f.BoolVar(&o.direct, "direct", false, "pull straight into the composefs repository (the default, unless composefs/bootc/cfs-pull.json below --sysroot says otherwise)")
	f.BoolVar(&o.unified, "unified", false, "pull into a containers-storage of the system first, and import the image from there without copying")
	f.BoolVar(&o.check, "check", false, "only say whether the image is another one than the repository has; fetch the manifest, write nothing, and exit with 0 in both cases")
	f.BoolVar(&o.dryRun, "dry-run", false, "only say which layers would be fetched; write nothing")
	return g
}

func (o *pullOptions) repositoryFlags() flagGroup {
	g := newFlagGroup("REPOSITORY")
	f := g.flags
	f.StringVar(&o.repo, "repo", "", "`DIR` directory of the repository (default: composefs below --sysroot)")
	f.StringVar(&o.sysroot, "sysroot", "/sysroot", "`DIR` physical root of the running system")
	f.StringVar(&o.root, "root", "", "`DIR` physical root of a system that is being installed: the repository is composefs below it and is created if there is none; configuration and credentials are looked for there")
	f.BoolVar(&o.init, "init", false, "create the repository if there is none")
	f.StringVar(&o.erofs, "erofs", "v1", "`FORMAT` format of EROFS images in a repository that is created: v1, v2 or both")
	addVerityFlag(f, &o.allowMissingVerity, "create a repository that does not require fs-verity, or use one")
	f.BoolVar(&o.force, "force", false, "accept --allow-missing-verity for a repository that requires fs-verity")
	addLockTimeoutFlag(f, &o.lockTimeout)
	f.StringVar(&o.tag, "tag", "", "`NAME` tag to write beside localhost/bootc-<manifest digest>")
	return g
}

func (o *pullOptions) storageFlags() flagGroup {
	g := newFlagGroup("CONTAINERS-STORAGE")
	f := g.flags
	f.StringVar(&o.storage, "storage", "", "`DIR` directory of the store (default: composefs/bootc/storage below --sysroot or --root)")
	f.StringVar(&o.runRoot, "run-root", cstor.DefaultRunRoot, "`DIR` directory for what the store may lose at a reboot")
	f.StringVar(&o.name, "name", "", "`NAME` name of the image in the store (default: REF, if it is a name)")
	f.Var(&o.policy, "policy", "`WHEN` when to ask where REF is: always, missing, newer or never")
	f.Var(&o.localCopy, "local-copy", "`HOW` how files of a store get into the repository: zerocopy, auto (copy where that is impossible), copy, or hardlink (also where SELinux is in use)")
	f.BoolVar(&o.allowCopy, "allow-copy", false, "the same as --local-copy auto")
	f.Var(&o.sourceStore, "source-store", "`STORE` where --unified looks for containers-storage:NAME: owned (--storage), host (--source-storage) or auto (the newer of both)")
	f.StringVar(&o.sourceStorage, "source-storage", pipeline.DefaultHostStore, "`DIR` store of the host, which containers-storage:NAME is in")
	f.StringVar(&o.selinuxPolicyRoot, "selinux-policy-root", "", "`DIR` root directory with the SELinux policy for the store's files (default: --root, else /)")
	f.BoolVar(&o.noLabel, "no-label", false, "give the store's files no SELinux labels")
	f.BoolVar(&o.noVerifyDiffID, "no-verify-diffid", false, "do not compare layers with the digests in the config; for measuring only: whoever can write to the store decides then what is booted")
	return g
}

func (o *pullOptions) imageFlags() flagGroup {
	g := newFlagGroup("IMAGE")
	f := g.flags
	f.StringVar(&o.transport, "transport", "", "`NAME` registry, oci, oci-archive, docker-archive, dir or containers-storage; REF has no prefix then")
	f.StringVar(&o.os, "os", "", "`OS` operating system to choose from an index (default: this machine's)")
	f.StringVar(&o.arch, "arch", "", "`ARCH` architecture to choose from an index (default: this machine's)")
	f.StringVar(&o.variant, "variant", "", "`VARIANT` architecture variant to choose from an index (default: this machine's)")
	o.maxLayerSize = oci.DefaultMaxLayerSize
	f.Var(&o.maxLayerSize, "max-layer-size", "`SIZE` largest uncompressed layer to accept")
	f.Int64Var(&o.maxCompressionRatio, "max-compression-ratio", oci.DefaultMaxRatio, "`N` largest ratio of uncompressed to compressed size to accept")
	return g
}

func (o *pullOptions) registryFlags() flagGroup {
	g := newFlagGroup("REGISTRY")
	f := g.flags
	f.StringVar(&o.authfile, "authfile", "", "`FILE` file with credentials (default: the operating system's ostree/auth.json below /run, /etc or /usr/lib)")
	f.StringVar(&o.creds, "creds", "", "`USER:PASSWORD` credentials")
	f.BoolVar(&o.noCreds, "no-creds", false, "use no credentials")
	f.StringVar(&o.certDir, "cert-dir", "", "`DIR` directory with certificates (default: certs.d of the configuration)")
	f.Var(&o.tlsVerify, "tls-verify", "require HTTPS and verify certificates; better said in registries.conf (default: as it says)")
	f.Lookup("tls-verify").NoOptDefVal = "true"
	f.StringVar(&o.registriesConf, "registries-conf", "", "`FILE` registries.conf to use instead of the system's")
	f.IntVar(&o.retry, "retry", 3, "`N` how often to try again when the network or the registry fails")
	f.DurationVar(&o.retryDelay, "retry-delay", 0, "`TIME` pause between tries (default: one second, doubled each time)")
	f.IntVar(&o.maxParallel, "max-parallel-downloads", pipeline.DefaultParallelLayers, "`N` layers to fetch at once")
	f.StringVar(&o.userAgentPrefix, "user-agent-prefix", "", "`TEXT` put before the User-Agent (default: cfs-pull/VERSION)")
	return g
}

func (o *pullOptions) policyFlags() flagGroup {
	g := newFlagGroup("SIGNATURES")
	f := g.flags
	f.StringVar(&o.signaturePolicy, "signature-policy", "", "`FILE` policy.json to use instead of the system's")
	f.BoolVar(&o.insecurePolicy, "insecure-policy", false, "accept every image, whatever the policy says")
	f.BoolVar(&o.requireSigned, "require-signed", false, "refuse an image unless the policy verifies a signature of it")
	return g
}

func (o *pullOptions) bootFlags() flagGroup {
	g := newFlagGroup("BOOT")
	f := g.flags
	f.BoolVar(&o.noBoot, "no-boot", false, "leave out boot image and boot entries")
	f.BoolVar(&o.allowNoBoot, "allow-no-boot", false, "accept an image without boot entries")
	f.StringVar(&o.exportBoot, "export-boot", "", "`DIR` write kernel, initrd, unified kernel images and loader entries to this directory")
	f.StringVar(&o.kargStyle, "karg-style", "bootc", "`STYLE` kernel argument in exported loader entries: bootc (composefs=ID) or digest (composefs.digest=…)")
	f.BoolVar(&o.untagOnError, "untag-on-error", false, "take back the tags that this pull wrote when the image turns out not to be bootable")
	return g
}

func (o *pullOptions) resourceFlags() flagGroup {
	g := newFlagGroup("RESOURCES")
	f := g.flags
	f.IntVar(&o.jobs, "jobs", 0, "`N` threads that hash and store files (default: one a CPU)")
	f.BoolVar(&o.noSpaceCheck, "no-space-check", false, "do not estimate whether the image will fit")
	f.Var(&o.minFree, "min-free", "`SIZE` space to stay free (default: the larger of 1 % and 512 MiB, at most 5 %)")
	f.StringVar(&o.tmpdir, "tmpdir", "", "`DIR` directory for temporary files (default: $TMPDIR, else /tmp, but compressed archives are unpacked on the repository's file system)")
	f.DurationVar(&o.commandTimeout, "command-timeout", 0, "`TIME` give up after this long, for instance 1h (default: never)")
	return g
}

func (o *pullOptions) outputFlags() flagGroup {
	g := newFlagGroup("OUTPUT")
	f := g.flags
	o.output.addFlags(f)
	f.StringVar(&o.progress, "progress", "auto", "`KIND` progress on stderr: auto, bar, plain or none")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print nothing but the manifest digest, and errors")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "say what is decided on the way")
	f.StringVar(&o.logLevel, "log-level", "", "`LEVEL` debug, info, warn or error (default: $CFS_PULL_LOG, else warn)")
	f.BoolP("help", "h", false, "print this text")
	return g
}

// validate refuses options that make no sense, also together.
func (o *pullOptions) validate(f *pflag.FlagSet) error {
	for _, names := range [][]string{
		{"check", "dry-run"}, {"sysroot", "root"}, {"direct", "unified"}, {"local-copy", "allow-copy"},
		{"creds", "no-creds", "authfile"}, {"no-boot", "allow-no-boot"}, {"no-boot", "export-boot"},
		{"signature-policy", "insecure-policy"}, {"require-signed", "insecure-policy"}, {"quiet", "verbose"},
	} {
		if err := exclusive(f, names...); err != nil {
			return err
		}
	}
	for name, others := range map[string][]string{
		"erofs": {"init", "root"}, "force": {"allow-missing-verity", "insecure"}, "karg-style": {"export-boot"},
	} {
		if err := needs(f, name, others...); err != nil {
			return err
		}
	}
	for name, least := range map[string]int{"retry": 0, "max-parallel-downloads": 1, "jobs": 0} {
		if n, err := f.GetInt(name); err != nil || n < least {
			return usagef("--%s %s: want a number from %d on", name, f.Lookup(name).Value, least)
		}
	}
	for _, name := range []string{"retry-delay", "command-timeout"} {
		if d, err := f.GetDuration(name); err != nil || d < 0 {
			return usagef("--%s %s: want no negative time", name, f.Lookup(name).Value)
		}
	}
	if o.maxLayerSize <= 0 || o.maxCompressionRatio <= 0 {
		return usagef("--max-layer-size and --max-compression-ratio must be above zero")
	}
	return nil
}

// timeoutError is the cause of a context that --command-timeout ended.
type timeoutError struct{ after time.Duration }

func (e timeoutError) Error() string {
	return fmt.Sprintf("gave up after %s, as --command-timeout says", e.after)
}

func runPull(cmd *cobra.Command, o *pullOptions, ref string) error {
	if err := o.output.check(); err != nil {
		return err
	}
	to := &console{out: cmd.ErrOrStderr()}
	options, show, err := o.prepare(cmd.Flags(), ref, to)
	if err != nil {
		return o.output.write(cmd.OutOrStdout(), pipeline.NewResult(ref), err, o.quiet)
	}
	options.Events = show.event
	fetch.InstallLogging(options.Log)
	ctx := cmd.Context()
	if o.commandTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.commandTimeout, timeoutError{o.commandTimeout})
		defer cancel()
	}
	do := pipeline.Direct
	if o.unified {
		do = pipeline.Unified
	}
	switch {
	case o.check:
		do = pipeline.Check
	case o.dryRun:
		do = pipeline.MakePlan
	}
	result, err := do(ctx, options)
	show.close()
	if cause := context.Cause(ctx); err != nil && cause != nil {
		// The cause says more than what the interruption broke.
		err = &interruptedError{cause: cause, err: err}
	}
	return o.output.write(cmd.OutOrStdout(), result, err, o.quiet)
}

// prepare checks the options and turns them into those of the pipeline.
func (o *pullOptions) prepare(f *pflag.FlagSet, ref string, to *console) (pipeline.Options, progress, error) {
	if err := o.validate(f); err != nil {
		return pipeline.Options{}, nil, err
	}
	level, err := o.parseLogLevel()
	if err != nil {
		return pipeline.Options{}, nil, err
	}
	// What can be known to fail in the end is better refused now.
	for option, dir := range map[string]string{
		"export-boot": o.exportBoot, "tmpdir": o.tmpdir, "cert-dir": o.certDir, "root": o.root,
		"selinux-policy-root": o.selinuxPolicyRoot,
	} {
		if err := isDirectory(dir); dir != "" && err != nil {
			return pipeline.Options{}, nil, usagef("--%s: %w", option, err)
		}
	}
	if file := o.output.digestFile; file != "" {
		if err := isDirectory(filepath.Dir(file)); err != nil {
			return pipeline.Options{}, nil, usagef("--digestfile: %w", err)
		}
	}
	show, err := newProgress(o.progress, o.quiet, to)
	if err != nil {
		return pipeline.Options{}, nil, err
	}
	if err := o.chooseMode(); err != nil {
		return pipeline.Options{}, nil, err
	}
	options, err := o.pipelineOptions(ref, slog.New(&logHandler{out: to, level: level}))
	if err == nil && !f.Changed("erofs") {
		options.Formats = composefs.FormatConfig{} // no wish
	}
	if !o.unified && !f.Changed("local-copy") && !o.allowCopy {
		options.LocalCopy = pipeline.CopyIfNeeded
	}
	return options, show, err
}

// physicalRoot is the directory that repository and store are below.
func (o *pullOptions) physicalRoot() string { return cmp.Or(o.root, o.sysroot) }

// chooseMode sets unified where only the system says so.
func (o *pullOptions) chooseMode() error {
	if o.direct || o.unified {
		return nil
	}
	mode, err := pipeline.DefaultMode(o.physicalRoot())
	if err != nil {
		return &pipeline.StageError{Stage: pipeline.StageOpen, Err: err}
	}
	o.unified = mode == pipeline.ModeUnified
	return nil
}

// interruptedError is what a pull returns after its context ended.
type interruptedError struct{ cause, err error }

func (e *interruptedError) Error() string   { return e.cause.Error() }
func (e *interruptedError) Unwrap() []error { return []error{e.cause, e.err} }

func isDirectory(path string) error {
	info, err := os.Stat(path)
	if err == nil && !info.IsDir() {
		err = &fs.PathError{Op: "open", Path: path, Err: unix.ENOTDIR}
	}
	return err
}

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
	lockTimeout, err := waitTime("--lock-timeout", o.lockTimeout)
	if err != nil {
		return pipeline.Options{}, err
	}
	f, err := o.fetchOptions(log)
	if err != nil {
		return pipeline.Options{}, err
	}
	localCopy := o.localCopy.value
	if o.allowCopy {
		localCopy = pipeline.CopyIfNeeded
	}
	return pipeline.Options{
		Reference: ref, Fetch: f,
		Store: cstor.Options{
			Sysroot: o.physicalRoot(), GraphRoot: o.storage, RunRoot: o.runRoot, LockTimeout: lockTimeout, Log: log,
		},
		Policy: o.policy.value, StoreName: o.name, LocalCopy: localCopy,
		SourceStore: o.sourceStore.value, HostStore: o.sourceStorage,
		PolicyRoot: cmp.Or(o.selinuxPolicyRoot, o.root), NoLabel: o.noLabel, SkipDiffID: o.noVerifyDiffID,
		Repo: cmp.Or(o.repo, filepath.Join(o.physicalRoot(), "composefs")), Init: o.init || o.root != "", Formats: formats,
		AllowMissingVerity: o.allowMissingVerity, Force: o.force, LockTimeout: lockTimeout,
		Tag: o.tag, UntagOnError: o.untagOnError,
		NoBoot: o.noBoot, AllowNoBoot: o.allowNoBoot, ExportBoot: o.exportBoot, KargStyle: kargStyle,
		Jobs: o.jobs, ParallelLayers: o.maxParallel,
		Limits:  oci.Limits{MaxLayerSize: int64(o.maxLayerSize), MaxRatio: o.maxCompressionRatio},
		MinFree: int64(o.minFree), SkipSpaceCheck: o.noSpaceCheck,
		Log: log,
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
		TempDir: cmp.Or(o.tmpdir, os.Getenv("TMPDIR")), Logger: log,
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
