// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"

	"github.com/cfs-pull/cfs-pull/internal/rooted"
)

// maxPolicyFile bounds a policy file in bytes.
const maxPolicyFile = 4 << 20

// policy is a loaded signature policy.
type policy struct {
	policy        *signature.Policy
	source        string
	requireSigned bool
}

// loadPolicy reads the policy that o asks for. That there is none is an error:
// what to trust is not ours to guess.
func loadPolicy(o *Options) (*policy, error) {
	p := &policy{requireSigned: o.RequireSigned}
	if o.InsecurePolicy {
		p.source = "(insecure policy asked for)"
		p.policy = &signature.Policy{
			Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()},
		}
		return p, nil
	}
	content, err := p.read(o)
	if err != nil {
		return nil, err
	}
	p.policy, err = signature.NewPolicyFromBytes(content)
	if err != nil {
		return nil, &UsageError{Subject: p.source, Err: fmt.Errorf("parse signature policy: %w", err)}
	}
	return p, nil
}

// read finds the policy file and sets p.source.
func (p *policy) read(o *Options) ([]byte, error) {
	if o.SignaturePolicy != "" {
		p.source = o.SignaturePolicy
		content, err := readFile(o.SignaturePolicy, maxPolicyFile)
		if err != nil {
			return nil, &UsageError{Subject: o.SignaturePolicy, Err: fmt.Errorf("read signature policy: %w", err)}
		}
		return content, nil
	}
	roots := []string{"/"}
	if o.Root != "" && filepath.Clean(o.Root) != "/" {
		roots = []string{o.Root, "/"}
	}
	return p.find(roots)
}

// find takes the first policy file below roots.
func (p *policy) find(roots []string) ([]byte, error) {
	for _, root := range roots {
		for _, dir := range configDirs(root) {
			p.source = filepath.Join(dir, "policy.json")
			var content []byte
			path, err := filepath.Rel(root, p.source)
			if err == nil {
				content, err = rooted.ReadFile(root, path, maxPolicyFile)
			}
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, &UsageError{Subject: p.source, Err: fmt.Errorf("read signature policy: %w", err)}
			}
			return content, nil
		}
	}
	return nil, &UsageError{
		Subject: filepath.Join(roots[0], "etc/containers/policy.json"),
		Err:     errors.New("there is no signature policy"),
		Hint: "install one, for example from package containers-common; or name a file with --signature-policy; " +
			"or accept unsigned images with --insecure-policy",
	}
}

// requirementKinds are the "type" values of the requirements that apply to ref,
// found as containers-policy.json(5) says: the exact scope, then the enclosing
// ones, then the transport, then the default.
func (p *policy) requirementKinds(ref types.ImageReference) ([]string, error) {
	requirements := p.policy.Default
	if scopes, ok := p.policy.Transports[ref.Transport().Name()]; ok {
		names := append([]string{ref.PolicyConfigurationIdentity()}, ref.PolicyConfigurationNamespaces()...)
		for _, name := range append(names, "") {
			if r, ok := scopes[name]; ok {
				requirements = r
				break
			}
		}
	}
	var kinds []string
	for _, r := range requirements {
		// The types of requirements are not exported, their JSON form is.
		text, err := json.Marshal(r)
		if err != nil {
			return nil, fmt.Errorf("read signature policy: %w", err)
		}
		var common struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(text, &common); err != nil {
			return nil, fmt.Errorf("read signature policy: %w", err)
		}
		kinds = append(kinds, common.Type)
	}
	return kinds, nil
}

// precheck refuses what no signature could change, before anybody is
// contacted. It says whether the policy looks at signatures of ref at all.
func (p *policy) precheck(ref types.ImageReference, name string) (wantsSignatures bool, err error) {
	kinds, err := p.requirementKinds(ref)
	if err != nil {
		return false, err
	}
	for _, kind := range kinds {
		switch kind {
		case "reject":
			return false, &PolicyError{Reference: name, Policy: p.source, Err: errors.New("the policy rejects it")}
		case "insecureAcceptAnything":
		default:
			wantsSignatures = true
		}
	}
	if p.requireSigned && !wantsSignatures {
		return false, &PolicyError{
			Reference: name, Policy: p.source,
			Err: errors.New("a signature is required, but the policy accepts the image without one"),
		}
	}
	return wantsSignatures, nil
}

// check evaluates the policy on the manifest of src, or on the instance of the
// index that src has. manifest is what the caller is going to use; the policy
// must have looked at the same bytes.
func (p *policy) check(ctx context.Context, src types.ImageSource, instance *digest.Digest, manifest []byte, name string) error {
	pc, err := signature.NewPolicyContext(p.policy)
	if err != nil {
		return fmt.Errorf("evaluate signature policy: %w", err)
	}
	defer pc.Destroy() //nolint:errcheck // it only changes a state variable
	pc.RequireSignatureVerification(p.requireSigned)

	unparsed := image.UnparsedInstance(src, instance)
	if allowed, err := pc.IsRunningImageAllowed(ctx, unparsed); !allowed {
		var requirement signature.PolicyRequirementError
		var invalid signature.InvalidSignatureError
		// A signature that could not be fetched is the network's fault.
		if !errors.As(err, &requirement) && !errors.As(err, &invalid) && (IsRetryable(err) || ctx.Err() != nil) {
			return fmt.Errorf("fetch signatures: %w", err)
		}
		return &PolicyError{Reference: name, Policy: p.source, Err: err}
	}
	seen, _, err := unparsed.Manifest(ctx)
	if err != nil {
		return fmt.Errorf("read manifest again: %w", err)
	}
	if !bytes.Equal(seen, manifest) {
		return &IntegrityError{
			Reference: name, Layer: PartManifest, Digest: digest.FromBytes(manifest),
			Reason: "the source changed while it was being read",
		}
	}
	return nil
}
