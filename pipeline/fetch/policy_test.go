// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cfs-pull/cfs-pull/internal/testregistry"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

func TestPolicy(t *testing.T) {
	reg, o := startRegistry(t, testregistry.Options{})
	reg.PutImage(t, "os/image", "v1", randomImage(t, 100, 1))
	ref := reg.Host() + "/os/image:v1"
	o.InsecurePolicy = false

	scoped := func(scope, requirement string) string {
		return fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{%q:[%s]}}}`, scope, requirement)
	}
	const accept, reject = `{"type":"insecureAcceptAnything"}`, `{"type":"reject"}`
	signed := fmt.Sprintf(`{"type":"signedBy","keyType":"GPGKeys","keyData":%q}`, "AAAA")
	for _, test := range []struct {
		name     string
		policy   string
		require  bool
		refused  bool
		requests int // of manifests; -1: any
	}{
		{"accept", `{"default":[` + accept + `]}`, false, false, 1},
		{"reject", `{"default":[` + reject + `]}`, false, true, 0},
		{"accept, signature required", `{"default":[` + accept + `]}`, true, true, 0},
		{"scope of the registry", scoped(reg.Host(), accept), false, false, 1},
		{"scope of the repository", scoped(reg.Host()+"/os/image", accept), false, false, 1},
		{"scope of the image", scoped(reg.Host()+"/os/image:v1", accept), false, false, 1},
		{"scope of the transport", scoped("", accept), false, false, 1},
		{"scope of another image", scoped(reg.Host()+"/os/other", accept), false, true, 0},
		{"signature wanted, none there", scoped("", signed), false, true, -1},
		{"signature wanted and required, none there", scoped("", signed), true, true, -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := o
			o.RequireSigned = test.require
			for _, below := range []string{"", "etc/containers/policy.json", "usr/share/containers/policy.json"} {
				o.Root = t.TempDir()
				path := filepath.Join(o.Root, below)
				o.SignaturePolicy = ""
				if below == "" {
					path = filepath.Join(t.TempDir(), "policy.json")
					o.SignaturePolicy = path
				}
				writeFile(t, path, []byte(test.policy))
				reg.ResetLog()
				img, err := Open(t.Context(), ref, o)
				if n := reg.Count(testregistry.Manifest); test.requests >= 0 && n != test.requests {
					t.Errorf("%d manifest requests, want %d", n, test.requests)
				}
				if !test.refused {
					must(t, err)
					img.Close()
					continue
				}
				if e := wantError[*PolicyError](t, err); e.Policy != path {
					t.Errorf("Policy = %q, want %q", e.Policy, path)
				}
			}
		})
	}

	t.Run("broken", func(t *testing.T) {
		for _, content := range []string{"", "{}", `{"default":[{"type":"unheard-of"}]}`} {
			o := o
			o.SignaturePolicy = filepath.Join(t.TempDir(), "policy.json")
			writeFile(t, o.SignaturePolicy, []byte(content))
			_, err := Open(t.Context(), ref, o)
			if e := wantError[*UsageError](t, err); e.Subject != o.SignaturePolicy {
				t.Errorf("Subject = %q, want %q", e.Subject, o.SignaturePolicy)
			}
		}
	})
	t.Run("absent", func(t *testing.T) {
		o := o
		o.SignaturePolicy = filepath.Join(t.TempDir(), "absent.json")
		_, err := Open(t.Context(), ref, o)
		wantError[*UsageError](t, err)
	})
	t.Run("link inside the root", func(t *testing.T) {
		o := o
		o.Root = t.TempDir()
		writeFile(t, filepath.Join(o.Root, "usr/policy.json"), []byte(`{"default":[`+reject+`]}`))
		must(t, os.MkdirAll(filepath.Join(o.Root, "etc/containers"), 0o755))
		must(t, os.Symlink("/usr/policy.json", filepath.Join(o.Root, "etc/containers/policy.json")))
		_, err := Open(t.Context(), ref, o)
		wantError[*PolicyError](t, err)
	})
	t.Run("insecure but signature required", func(t *testing.T) {
		o := o
		o.InsecurePolicy, o.RequireSigned = true, true
		_, err := Open(t.Context(), ref, o)
		wantError[*PolicyError](t, err)
	})
	t.Run("layout", func(t *testing.T) {
		image, blobs := layoutImage(t, "a", `{}`, "layer")
		dir := writeLayout(t, image)
		for _, data := range blobs {
			putLayoutBlob(t, dir, "", data)
		}
		resolved, err := filepath.EvalSymlinks(dir)
		must(t, err)
		for requirement, refused := range map[string]bool{accept: false, reject: true, signed: true} {
			o := testOptions(t)
			o.InsecurePolicy = false
			o.SignaturePolicy = filepath.Join(t.TempDir(), "policy.json")
			writeFile(t, o.SignaturePolicy, fmt.Appendf(nil, `{"default":[`+reject+`],"transports":{"oci":{%q:[%s]}}}`, resolved, requirement))
			img, err := Open(t.Context(), "oci:"+dir, o)
			if refused {
				wantError[*PolicyError](t, err)
				continue
			}
			must(t, err)
			img.Close()
		}
	})
}

// TestSignedImage lets skopeo sign images, and checks that the policy is
// enforced on what we read: a signature in a registry, below an index, and in
// a directory.
func TestSignedImage(t *testing.T) {
	skopeo := testutil.RequireTool(t, "skopeo", "skopeo")
	gpg := testutil.RequireTool(t, "gpg", "gnupg")
	home := t.TempDir()
	must(t, os.Chmod(home, 0o700))
	run := func(name string, args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = append(os.Environ(), "GNUPGHOME="+home, "XDG_RUNTIME_DIR="+home)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Skipf("%s %s: %v: %s", name, strings.Join(args, " "), err, stderr.Bytes())
		}
		return out
	}
	run(gpg, "--batch", "--passphrase", "", "--quick-generate-key", "signer@os.test", "rsa2048", "sign", "never")
	t.Cleanup(func() { exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run() })
	key := filepath.Join(home, "key.gpg")
	writeFile(t, key, run(gpg, "--batch", "--export", "signer@os.test"))

	image, blobs := layoutImage(t, "a", `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["`+testregistry.Sum([]byte("layer"))+`"]}}`, "layer")
	layout := writeLayout(t, image)
	for _, data := range blobs {
		putLayoutBlob(t, layout, "", data)
	}
	signedDir := t.TempDir()
	// A dir: image has no name of its own, so the signature is for another.
	run(skopeo, "--insecure-policy", "copy", "--sign-by", "signer@os.test", "--sign-identity", "os.test/image:v1", "oci:"+layout, "dir:"+signedDir)

	o := testOptions(t)
	o.InsecurePolicy, o.RequireSigned = false, true
	o.SignaturePolicy = filepath.Join(t.TempDir(), "policy.json")
	writeFile(t, o.SignaturePolicy, fmt.Appendf(nil, `{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":%q,
		"signedIdentity":{"type":"exactReference","dockerReference":"os.test/image:v1"}}]}`, key))
	img := mustOpen(t, "dir:"+signedDir, o)
	readAll(t, img)

	manifest := filepath.Join(signedDir, "manifest.json")
	data, err := os.ReadFile(manifest)
	must(t, err)
	writeFile(t, manifest, append(data, '\n'))
	_, err = Open(t.Context(), "dir:"+signedDir, o)
	wantError[*PolicyError](t, err)
	_, err = Open(t.Context(), "oci:"+layout, o)
	wantError[*PolicyError](t, err)
	writeFile(t, manifest, data)

	// The registry: the signature lies in a lookaside directory.
	reg, ro := startRegistry(t, testregistry.Options{})
	reg.PutLayout(t, "os/image", layout)
	index := putIndexIn(t, reg, "os/image", "index", entry(image, "linux", "amd64", ""))
	lookaside := t.TempDir()
	ro.InsecurePolicy, ro.RequireSigned, ro.SignaturePolicy = false, true, o.SignaturePolicy
	writeFile(t, filepath.Join(ro.Root, "etc/containers/registries.d/test.yaml"),
		fmt.Appendf(nil, "docker:\n  %s:\n    lookaside: file://%s\n", reg.Host(), lookaside))
	for _, tag := range []string{"a", "index"} {
		_, err = Open(t.Context(), reg.Host()+"/os/image:"+tag, ro)
		wantError[*PolicyError](t, err)
	}
	signature, err := os.ReadFile(filepath.Join(signedDir, "signature-1"))
	must(t, err)
	writeFile(t, filepath.Join(lookaside, "os/image@"+strings.Replace(image.Digest, ":", "=", 1), "signature-1"), signature)
	for _, tag := range []string{"a", "index"} {
		img := mustOpen(t, reg.Host()+"/os/image:"+tag, ro)
		if img.ManifestDigest.String() != image.Digest {
			t.Errorf("ManifestDigest = %s, want %s", img.ManifestDigest, image.Digest)
		}
		if want := map[string]string{"a": "", "index": index.Digest}[tag]; img.IndexDigest.String() != want {
			t.Errorf("IndexDigest = %s, want %s", img.IndexDigest, want)
		}
	}
}
