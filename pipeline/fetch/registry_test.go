// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/cfs-pull/cfs-pull/internal/testregistry"
)

func TestRegistryTLS(t *testing.T) {
	reg, o := startRegistry(t, testregistry.Options{})
	want := randomImage(t, 5000, 3)
	reg.PutImage(t, "os/image", "v1", want)
	o.UserAgent = "cfs-pull/test"

	img := mustOpen(t, "docker://"+reg.Host()+"/os/image:v1", o)
	manifest, err := want.RawManifest()
	must(t, err)
	if !bytes.Equal(img.Manifest, manifest) {
		t.Errorf("manifest is not that of the registry")
	}
	wantDigest, err := want.Digest()
	must(t, err)
	if img.ManifestDigest.String() != wantDigest.String() {
		t.Errorf("ManifestDigest = %s, want %s", img.ManifestDigest, wantDigest)
	}
	if img.IndexDigest != "" || img.Index != nil {
		t.Errorf("IndexDigest = %s of an image without an index", img.IndexDigest)
	}
	config, layers := readAll(t, img)
	wantConfig, err := want.RawConfigFile()
	must(t, err)
	if !bytes.Equal(config, wantConfig) {
		t.Errorf("config is not that of the registry")
	}
	for i, layer := range layers {
		if digest.FromBytes(layer) != img.Layers[i].Digest {
			t.Errorf("layer %d has other content", i)
		}
	}
	if got := reg.Count(testregistry.Manifest); got != 1 {
		t.Errorf("%d manifest requests, want 1", got)
	}
	if got := reg.Count(testregistry.Blob); got != 4 {
		t.Errorf("%d blob requests, want 4", got)
	}
	for _, req := range reg.Requests() {
		if !strings.HasPrefix(req.UserAgent, "cfs-pull/test containers/5.") {
			t.Errorf("User-Agent %q", req.UserAgent)
		}
	}

	t.Run("unknown authority", func(t *testing.T) {
		o := o
		o.CertDir = t.TempDir()
		reg.ResetLog()
		_, err := Open(t.Context(), reg.Host()+"/os/image:v1", o)
		if err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("error %v does not speak of the certificate", err)
		}
		if IsRetryable(err) {
			t.Errorf("retryable: %v", err)
		}
	})
	t.Run("tls-verify=false", func(t *testing.T) {
		o := o
		o.CertDir = ""
		o.TLSVerify = new(bool)
		mustOpen(t, reg.Host()+"/os/image:v1", o)
	})
	t.Run("by digest", func(t *testing.T) {
		img := mustOpen(t, reg.Host()+"/os/image:ignored@"+wantDigest.String(), o)
		if img.ManifestDigest.String() != wantDigest.String() {
			t.Errorf("ManifestDigest = %s, want %s", img.ManifestDigest, wantDigest)
		}
	})
}

func TestRegistryPlainHTTP(t *testing.T) {
	reg := testregistry.New(t, testregistry.Options{})
	reg.PutImage(t, "image", "latest", randomImage(t, 100, 1))
	o := testOptions(t)
	if _, err := Open(t.Context(), reg.Host()+"/image", o); err == nil {
		t.Errorf("plain HTTP was accepted without being allowed")
	}
	o.RegistriesConf = reg.InsecureConf(t)
	readAll(t, mustOpen(t, reg.Host()+"/image", o))
}

func TestRegistriesConfBelowRoot(t *testing.T) {
	reg := testregistry.New(t, testregistry.Options{})
	reg.PutImage(t, "image", "latest", randomImage(t, 100, 1))
	conf := fmt.Appendf(nil, "[[registry]]\nlocation = %q\ninsecure = true\n", reg.Host())
	decoy := fmt.Appendf(nil, "[[registry]]\nlocation = %q\nblocked = true\n", reg.Host())
	t.Setenv("CONTAINERS_REGISTRIES_CONF", filepath.Join(t.TempDir(), "absent.conf"))
	override := filepath.Join(t.TempDir(), "override.conf")
	writeFile(t, override, decoy)
	t.Setenv("CONTAINERS_REGISTRIES_CONF_OVERRIDE", override)

	for _, test := range []struct {
		name  string
		files map[string][]byte
	}{
		{"etc", map[string][]byte{"etc/containers/registries.conf": conf}},
		{"usr", map[string][]byte{"usr/share/containers/registries.conf": conf}},
		{"etc hides usr", map[string][]byte{
			"etc/containers/registries.conf": conf, "usr/share/containers/registries.conf": decoy,
		}},
		{"drop-in", map[string][]byte{"etc/containers/registries.conf.d/10.conf": conf}},
		{"drop-ins of both", map[string][]byte{
			"usr/share/containers/registries.conf.d/10.conf": conf,
			"etc/containers/registries.conf.d/05.conf":       []byte("unqualified-search-registries = []\n"),
		}},
		{"drop-in hidden", map[string][]byte{
			"usr/share/containers/registries.conf.d/10.conf": decoy,
			"etc/containers/registries.conf.d/10.conf":       conf,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := testOptions(t)
			for name, data := range test.files {
				writeFile(t, filepath.Join(o.Root, name), data)
			}
			mustOpen(t, reg.Host()+"/image", o)
			if left, _ := filepath.Glob(filepath.Join(o.TempDir, "*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	t.Run("broken", func(t *testing.T) {
		o := testOptions(t)
		writeFile(t, filepath.Join(o.Root, "etc/containers/registries.conf"), []byte("not = [toml"))
		_, err := Open(t.Context(), reg.Host()+"/image", o)
		wantError[*UsageError](t, err)
	})
}

func TestMirror(t *testing.T) {
	mirror := testregistry.New(t, testregistry.Options{})
	mirror.PutImage(t, "mirrored/image", "latest", randomImage(t, 100, 2))
	o := testOptions(t)
	o.RegistriesConf = filepath.Join(t.TempDir(), "registries.conf")
	writeFile(t, o.RegistriesConf, fmt.Appendf(nil, `
[[registry]]
location = "registry.test.invalid/real"
[[registry.mirror]]
location = "%s/mirrored"
insecure = true
`, mirror.Host()))
	img := mustOpen(t, "registry.test.invalid/real/image", o)
	readAll(t, img)
	if got, want := img.Reference.Name, "registry.test.invalid/real/image:latest"; got != want {
		t.Errorf("Reference.Name = %q, want %q", got, want)
	}
}

func TestAuth(t *testing.T) {
	for mode, name := range map[testregistry.AuthMode]string{
		testregistry.BasicAuth: "basic", testregistry.TokenAuth: "token",
	} {
		t.Run(name, func(t *testing.T) {
			reg, o := startRegistry(t, testregistry.Options{Auth: mode, User: "me", Password: "right"})
			reg.PutImage(t, "image", "latest", randomImage(t, 1000, 2))
			ref := reg.Host() + "/image"

			// What the tools of a user would take must not be taken.
			home := t.TempDir()
			decoy := reg.AuthFile("me", "right")
			for _, path := range []string{".docker/config.json", ".config/containers/auth.json", "auth.json", "config.json"} {
				writeFile(t, filepath.Join(home, path), decoy)
			}
			writeFile(t, filepath.Join(home, "containers/auth.json"), decoy)
			t.Setenv("HOME", home)
			t.Setenv("XDG_RUNTIME_DIR", home)
			t.Setenv("DOCKER_CONFIG", home)
			t.Setenv("REGISTRY_AUTH_FILE", filepath.Join(home, "auth.json"))

			file := filepath.Join(t.TempDir(), "auth.json")
			writeFile(t, file, reg.AuthFile("me", "right"))
			wrong := filepath.Join(t.TempDir(), "wrong.json")
			writeFile(t, wrong, reg.AuthFile("me", "wrong"))
			root, wrongRoot, empty := t.TempDir(), t.TempDir(), t.TempDir()
			writeFile(t, filepath.Join(root, "etc/ostree/auth.json"), reg.AuthFile("me", "right"))
			writeFile(t, filepath.Join(wrongRoot, "run/ostree/auth.json"), reg.AuthFile("me", "wrong"))

			for _, test := range []struct {
				name   string
				auth   Auth
				source string // "" with refused: none found
				refuse bool
			}{
				{name: "file", auth: Auth{File: file}, source: file},
				{name: "user and password", auth: Auth{UserPassword: &UserPassword{"me", "right"}}, source: "user name and password given"},
				{name: "root", auth: Auth{Roots: []string{root}}, source: root + "/etc/ostree/auth.json"},
				{name: "second root", auth: Auth{Roots: []string{empty, root}}, source: root + "/etc/ostree/auth.json"},
				{name: "content", auth: Auth{Content: reg.AuthFile("me", "right"), ContentName: "the new image"}, source: "the new image"},
				{name: "anonymous", auth: Auth{Anonymous: true, File: file}, source: "none, as asked for", refuse: true},
				{name: "wrong file", auth: Auth{File: wrong}, source: wrong, refuse: true},
				{name: "wrong password", auth: Auth{UserPassword: &UserPassword{"me", "wrong"}}, source: "user name and password given", refuse: true},
				{name: "first root wins", auth: Auth{Roots: []string{wrongRoot, root}}, source: wrongRoot + "/run/ostree/auth.json", refuse: true},
				{name: "nothing found", auth: Auth{Roots: []string{empty}}, refuse: true},
			} {
				t.Run(test.name, func(t *testing.T) {
					o := o
					o.Auth = test.auth
					reg.ResetLog()
					img, err := Open(t.Context(), ref, o)
					if !test.refuse {
						must(t, err)
						defer img.Close()
						readAll(t, img)
						if img.CredentialSource != test.source {
							t.Errorf("CredentialSource = %q, want %q", img.CredentialSource, test.source)
						}
						return
					}
					e := wantError[*AuthError](t, err)
					if e.Registry != reg.Host() || e.CredentialSource != test.source {
						t.Errorf("AuthError{Registry: %q, CredentialSource: %q}, want %q, %q", e.Registry, e.CredentialSource, reg.Host(), test.source)
					}
					for _, part := range []string{reg.Host(), test.source} {
						if !strings.Contains(err.Error(), part) {
							t.Errorf("message %q does not name %q", err, part)
						}
					}
					if test.source == "" && !strings.Contains(err.Error(), "none found; searched "+empty) {
						t.Errorf("message %q does not say what was searched", err)
					}
					if mode == testregistry.TokenAuth && e.Realm != reg.URL()+"/token" {
						t.Errorf("Realm = %q, want %q", e.Realm, reg.URL()+"/token")
					}
					if strings.Contains(err.Error(), "wrong\"") || strings.Contains(err.Error(), ":wrong") {
						t.Errorf("message %q shows the password", err)
					}
					if n := reg.Count(testregistry.Manifest); n > 2 {
						t.Errorf("refusal was retried: %d requests", n)
					}
				})
			}
		})
	}
}

func TestForbidden(t *testing.T) {
	for _, code := range []string{"DENIED", "-"} {
		t.Run(code, func(t *testing.T) {
			reg, o := startRegistry(t, testregistry.Options{})
			reg.Inject(testregistry.Fault{Kind: testregistry.Manifest, Times: -1, Status: http.StatusForbidden, Code: code})
			_, err := Open(t.Context(), reg.Host()+"/image", o)
			wantError[*AuthError](t, err)
		})
	}
}

func TestNotFound(t *testing.T) {
	for _, code := range []string{"MANIFEST_UNKNOWN", "NAME_UNKNOWN", "-"} {
		t.Run(code, func(t *testing.T) {
			reg, o := startRegistry(t, testregistry.Options{})
			reg.Inject(testregistry.Fault{Kind: testregistry.Manifest, Times: -1, Status: http.StatusNotFound, Code: code})
			_, err := Open(t.Context(), reg.Host()+"/image", o)
			wantError[*NotFoundError](t, err)
			if n := reg.Count(testregistry.Manifest); n != 1 {
				t.Errorf("%d requests, want 1", n)
			}
		})
	}
	t.Run("blob", func(t *testing.T) {
		reg, o := startRegistry(t, testregistry.Options{})
		reg.PutImage(t, "image", "latest", randomImage(t, 100, 1))
		reg.Inject(testregistry.Fault{Kind: testregistry.Blob, Times: -1, Status: http.StatusNotFound, Code: "BLOB_UNKNOWN"})
		_, err := mustOpen(t, reg.Host()+"/image", o).Layer(t.Context(), 0)
		wantError[*NotFoundError](t, err)
	})
}

// TestServerFaults covers what is retried, where and how often.
func TestServerFaults(t *testing.T) {
	const manifest, blob = testregistry.Manifest, testregistry.Blob
	for _, test := range []struct {
		name     string
		fault    testregistry.Fault
		retries  int
		requests int // of the kind of the fault
		fails    bool
	}{
		{"manifest 500 twice", testregistry.Fault{Kind: manifest, Times: 2, Status: 500}, 0, 3, false},
		{"manifest 502 with HTML", testregistry.Fault{Kind: manifest, Times: 2, Status: 502, Code: "-"}, 0, 3, false},
		{"manifest 503 for ever", testregistry.Fault{Kind: manifest, Times: -1, Status: 503}, 2, 3, true},
		{"manifest 500, no retries", testregistry.Fault{Kind: manifest, Times: -1, Status: 500}, -1, 1, true},
		{"manifest 429", testregistry.Fault{Kind: manifest, Times: 2, Status: 429, RetryAfter: "0"}, -1, 3, false},
		{"manifest 429 for ever", testregistry.Fault{Kind: manifest, Times: -1, Status: 429, RetryAfter: "0"}, 0, 5, true},
		{"manifest 400", testregistry.Fault{Kind: manifest, Times: -1, Status: 400}, 0, 1, true},
		{"ping 500", testregistry.Fault{Kind: testregistry.Ping, Times: 2, Status: 500}, 0, 3, false},
		{"manifest dropped", testregistry.Fault{Kind: manifest, Times: 2, DropAfter: new(int64(10))}, 0, 3, false},
		{"blob 500 twice", testregistry.Fault{Kind: blob, Times: 2, Status: 500}, 0, 3, false},
		{"blob 429", testregistry.Fault{Kind: blob, Times: 2, Status: 429, RetryAfter: "0"}, -1, 3, false},
		{"blob 500 for ever", testregistry.Fault{Kind: blob, Times: -1, Status: 500}, 1, 2, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			reg, o := startRegistry(t, testregistry.Options{})
			reg.PutImage(t, "image", "latest", randomImage(t, 100, 1))
			reg.Inject(test.fault)
			o.Retries = test.retries
			img, err := Open(t.Context(), reg.Host()+"/image", o)
			if err == nil {
				defer img.Close()
				_, err = readLayer(t, img, 0)
			}
			if (err != nil) != test.fails {
				t.Errorf("error %v, want failure: %v", err, test.fails)
			}
			if want := test.fails && test.fault.Status != 400; IsRetryable(err) != want {
				t.Errorf("IsRetryable(%v) = %v", err, !want)
			}
			if n := reg.Count(test.fault.Kind); n != test.requests {
				t.Errorf("%d requests, want %d", n, test.requests)
			}
		})
	}
}

// TestBrokenBlob covers connections that end before the blob does.
func TestBrokenBlob(t *testing.T) {
	for _, test := range []struct {
		name    string
		noRange bool
		faults  []testregistry.Fault
		fails   bool
	}{
		{"dropped once", false, []testregistry.Fault{{Times: 1, DropAfter: new(int64(100_000))}}, false},
		{"dropped once, no ranges", true, []testregistry.Fault{{Times: 1, DropAfter: new(int64(100_000))}}, false},
		{"dropped thrice, no ranges", true, []testregistry.Fault{{Times: 3, DropAfter: new(int64(100_000))}}, false},
		{"dropped at once", true, []testregistry.Fault{{Times: 1, DropAfter: new(int64(0))}}, false},
		{"dropped before all was repeated", true, []testregistry.Fault{
			{Times: 1, DropAfter: new(int64(100_000))}, {Times: 2, DropAfter: new(int64(50_000))},
		}, false},
		{"dropped for ever, no ranges", true, []testregistry.Fault{{Times: -1, DropAfter: new(int64(100_000))}}, true},
		{"short without a length", true, []testregistry.Fault{{Times: 1, Truncate: new(int64(1000)), NoLength: true}}, false},
		{"stalled", true, []testregistry.Fault{{Times: 1, StallAfter: new(int64(100_000))}}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // containers/image sleeps a second before it reconnects
			reg, o := startRegistry(t, testregistry.Options{NoRange: test.noRange})
			reg.PutImage(t, "image", "latest", randomImage(t, 200_000, 1))
			if test.faults[0].StallAfter != nil {
				o.StallTimeout = 500 * time.Millisecond
			}
			img := mustOpen(t, reg.Host()+"/image", o)
			for _, f := range test.faults {
				f.Kind, f.Target = testregistry.Blob, img.Layers[0].Digest.String()
				reg.Inject(f)
			}
			data, err := readLayer(t, img, 0)
			if test.fails {
				if !IsRetryable(err) {
					t.Errorf("IsRetryable(%v) = false", err)
				}
				return
			}
			must(t, err)
			if digest.FromBytes(data) != img.Layers[0].Digest {
				t.Errorf("layer has other content")
			}
		})
	}
	t.Run("range is used", func(t *testing.T) {
		t.Parallel()
		reg, o := startRegistry(t, testregistry.Options{})
		reg.PutImage(t, "image", "latest", randomImage(t, 200_000, 1))
		img := mustOpen(t, reg.Host()+"/image", o)
		reg.Inject(testregistry.Fault{Kind: testregistry.Blob, Times: 1, DropAfter: new(int64(100_000))})
		if _, err := readLayer(t, img, 0); err != nil {
			t.Fatal(err)
		}
		var ranges []string
		for _, req := range reg.Requests() {
			if req.Kind == testregistry.Blob {
				ranges = append(ranges, req.Range)
			}
		}
		if diff := cmp.Diff([]string{"", "bytes=100000-"}, ranges); diff != "" {
			t.Errorf("ranges (-want +got):\n%s", diff)
		}
	})
}

// TestLyingBlob covers content that is not what the manifest says.
func TestLyingBlob(t *testing.T) {
	for _, test := range []struct {
		name   string
		fault  testregistry.Fault
		reason string
	}{
		{"first byte", testregistry.Fault{Corrupt: new(int64(0))}, "content has digest"},
		{"later byte", testregistry.Fault{Corrupt: new(int64(30_000))}, "content has digest"},
		{"shorter", testregistry.Fault{Truncate: new(int64(1000))}, "source has 1000 bytes"},
		{"shorter without a length", testregistry.Fault{Truncate: new(int64(1000)), NoLength: true}, "ends after 1000 of"},
		{"empty", testregistry.Fault{Truncate: new(int64(0)), NoLength: true}, "ends after 0 of"},
		{"longer", testregistry.Fault{Pad: 1}, "the manifest says"},
		{"longer without a length", testregistry.Fault{Pad: 1, NoLength: true}, "longer than the"},
	} {
		t.Run(test.name, func(t *testing.T) {
			reg, o := startRegistry(t, testregistry.Options{NoRange: true})
			reg.PutImage(t, "image", "latest", randomImage(t, 50_000, 2))
			img := mustOpen(t, reg.Host()+"/image", o)
			test.fault.Kind, test.fault.Times = testregistry.Blob, -1
			reg.Inject(test.fault)
			_, err := readLayer(t, img, 1)
			e := wantError[*IntegrityError](t, err)
			if e.Layer != 1 || e.Digest != img.Layers[1].Digest || !strings.Contains(e.Reason, test.reason) {
				t.Errorf("%+v, want layer 1, digest %s, reason with %q", e, img.Layers[1].Digest, test.reason)
			}
			if IsRetryable(err) {
				t.Errorf("retryable: %v", err)
			}
		})
	}
	t.Run("config", func(t *testing.T) {
		reg, o := startRegistry(t, testregistry.Options{})
		reg.PutImage(t, "image", "latest", randomImage(t, 100, 1))
		img := mustOpen(t, reg.Host()+"/image", o)
		reg.Inject(testregistry.Fault{Kind: testregistry.Blob, Times: 1, Corrupt: new(int64(5))})
		_, err := img.Config(t.Context())
		if e := wantError[*IntegrityError](t, err); e.Layer != PartConfig {
			t.Errorf("Layer = %d, want PartConfig", e.Layer)
		}
		_, err = img.Config(t.Context())
		must(t, err)
	})
}

func TestLyingManifest(t *testing.T) {
	reg, o := startRegistry(t, testregistry.Options{})
	good := reg.PutImage(t, "image", "latest", randomImage(t, 100, 1))
	reg.PutImage(t, "image", "other", randomImage(t, 100, 1))

	t.Run("by digest", func(t *testing.T) {
		reg.Inject(testregistry.Fault{Kind: testregistry.Manifest, Target: good.Digest, Times: -1, Corrupt: new(int64(3))})
		defer reg.ClearFaults()
		_, err := Open(t.Context(), reg.Host()+"/image@"+good.Digest, o)
		e := wantError[*IntegrityError](t, err)
		if e.Layer != PartManifest || e.Digest.String() != good.Digest {
			t.Errorf("%+v", e)
		}
	})
	t.Run("below an index", func(t *testing.T) {
		putIndex(t, reg, "index", entry(good, "linux", "amd64", ""))
		reg.Inject(testregistry.Fault{Kind: testregistry.Manifest, Target: good.Digest, Times: -1, Body: []byte(`{"schemaVersion":2,"layers":[]}`)})
		defer reg.ClearFaults()
		_, err := Open(t.Context(), reg.Host()+"/image:index", o)
		e := wantError[*IntegrityError](t, err)
		if e.Layer != PartManifest || e.Digest.String() != good.Digest {
			t.Errorf("%+v", e)
		}
	})
	t.Run("huge", func(t *testing.T) {
		reg.Inject(testregistry.Fault{Kind: testregistry.Manifest, Target: "other", Times: -1, Pad: 100 << 20})
		defer reg.ClearFaults()
		var err error
		allocated := allocatedBy(func() { _, err = Open(t.Context(), reg.Host()+"/image:other", o) })
		if err == nil || !strings.Contains(err.Error(), "maximum allowed size") {
			t.Errorf("error %v", err)
		}
		if allocated > 64<<20 {
			t.Errorf("%d MiB were allocated for a manifest of 100 MiB", allocated>>20)
		}
	})
}

// entry is a descriptor in an index.
func entry(d testregistry.Descriptor, os, arch, variant string) testregistry.Descriptor {
	d.Platform = &testregistry.Platform{OS: os, Architecture: arch, Variant: variant}
	return d
}

func putIndex(t *testing.T, reg *testregistry.Registry, tag string, entries ...testregistry.Descriptor) testregistry.Descriptor {
	t.Helper()
	return putIndexIn(t, reg, "image", tag, entries...)
}

func putIndexIn(t *testing.T, reg *testregistry.Registry, repository, tag string, entries ...testregistry.Descriptor) testregistry.Descriptor {
	t.Helper()
	data, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": MediaTypeOCIIndex, "manifests": entries,
	})
	must(t, err)
	return reg.PutManifest(t, repository, tag, MediaTypeOCIIndex, data)
}

// putPlatform stores an image whose config says what platform it is for.
func putPlatform(t *testing.T, reg *testregistry.Registry, config string) testregistry.Descriptor {
	t.Helper()
	c := reg.PutBlob(t, "image", "application/vnd.oci.image.config.v1+json", []byte(config))
	data, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": MediaTypeOCIManifest, "config": c, "layers": []any{},
	})
	must(t, err)
	return reg.PutManifest(t, "image", "", MediaTypeOCIManifest, data)
}

func TestIndex(t *testing.T) {
	reg, o := startRegistry(t, testregistry.Options{})
	put := func(os, arch, variant string) testregistry.Descriptor {
		return putPlatform(t, reg, fmt.Sprintf(`{"os":%q,"architecture":%q,"variant":%q}`, os, arch, variant))
	}
	amd, arm := put("linux", "amd64", ""), put("linux", "arm64", "v8")
	v6, v7 := put("linux", "arm", "v6"), put("linux", "arm", "v7")
	attestation := entry(put("unknown", "unknown", ""), "unknown", "unknown", "")
	known := []testregistry.Descriptor{
		attestation,
		entry(v7, "linux", "arm", "v7"), entry(v6, "linux", "arm", "v6"),
		entry(amd, "linux", "amd64", ""), entry(arm, "linux", "arm64", "v8"),
	}
	artifact := testregistry.Descriptor{MediaType: "application/x-other", Digest: testregistry.Sum(nil), Size: 1}

	for _, test := range []struct {
		name              string
		entries           []testregistry.Descriptor
		os, arch, variant string
		want              string // digest
		missing           string // text of the error
	}{
		{name: "amd64", entries: known, arch: "amd64", want: amd.Digest},
		{name: "arm64", entries: known, arch: "arm64", want: arm.Digest},
		{name: "arm v6", entries: known, arch: "arm", variant: "v6", want: v6.Digest},
		{name: "arm v7", entries: known, arch: "arm", variant: "v7", want: v7.Digest},
		{name: "arm v8 falls back", entries: known, arch: "arm", variant: "v8", want: v7.Digest},
		{name: "missing architecture", entries: known, arch: "s390x",
			missing: "no image for platform linux/s390x; there are: linux/amd64, linux/arm/v6, linux/arm/v7, linux/arm64/v8"},
		{name: "missing variant", entries: known, arch: "arm", variant: "v5",
			missing: "no image for platform linux/arm/v5; there are: "},
		{name: "missing system", entries: known, os: "windows", arch: "amd64",
			missing: "no image for platform windows/amd64; there are: "},
		{name: "one without platform", entries: []testregistry.Descriptor{arm}, arch: "amd64", want: arm.Digest},
		{name: "several without platform", entries: []testregistry.Descriptor{arm, amd, v7}, arch: "amd64", want: amd.Digest},
		{name: "several without, variant", entries: []testregistry.Descriptor{v6, v7, amd}, arch: "arm", variant: "v7", want: v7.Digest},
		{name: "several without, none suits", entries: []testregistry.Descriptor{v6, v7, amd}, arch: "s390x",
			missing: "there are: linux/amd64, linux/arm/v6, linux/arm/v7"},
		{name: "with platform goes first", entries: []testregistry.Descriptor{amd, entry(arm, "linux", "amd64", "")}, arch: "amd64", want: arm.Digest},
		{name: "artifacts are passed over", entries: []testregistry.Descriptor{artifact, arm}, arch: "amd64", want: arm.Digest},
		{name: "empty", arch: "amd64", missing: "names no image"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := o
			o.Architecture, o.Variant = test.arch, test.variant
			if test.os != "" {
				o.OS = test.os
			}
			index := putIndex(t, reg, "index", test.entries...)
			img, err := Open(t.Context(), reg.Host()+"/image:index", o)
			if test.missing != "" {
				wantError[*NotFoundError](t, err)
				if !strings.Contains(err.Error(), test.missing) {
					t.Errorf("error %q does not say %q", err, test.missing)
				}
				return
			}
			must(t, err)
			defer img.Close()
			if img.ManifestDigest.String() != test.want {
				t.Errorf("ManifestDigest = %s, want %s", img.ManifestDigest, test.want)
			}
			if img.IndexDigest.String() != index.Digest {
				t.Errorf("IndexDigest = %s, want %s", img.IndexDigest, index.Digest)
			}
		})
	}

	t.Run("known manifest", func(t *testing.T) {
		putIndex(t, reg, "index", known...)
		manifest := mustOpen(t, reg.Host()+"/image:index", o).Manifest
		var asked []string
		for _, test := range []struct {
			name     string
			answer   []byte
			requests int
		}{
			{"right", manifest, 1},
			{"wrong", []byte("{}"), 2},
			{"none", nil, 2},
		} {
			t.Run(test.name, func(t *testing.T) {
				o := o
				o.KnownManifest = func(d string) []byte {
					asked = append(asked, d)
					return test.answer
				}
				reg.ResetLog()
				img := mustOpen(t, reg.Host()+"/image:index", o)
				if !bytes.Equal(img.Manifest, manifest) {
					t.Errorf("other manifest")
				}
				if n := reg.Count(testregistry.Manifest); n != test.requests {
					t.Errorf("%d manifest requests, want %d", n, test.requests)
				}
			})
		}
		if diff := cmp.Diff([]string{amd.Digest, amd.Digest, amd.Digest}, asked); diff != "" {
			t.Errorf("asked for (-want +got):\n%s", diff)
		}
	})

	t.Run("nested", func(t *testing.T) {
		inner := putIndex(t, reg, "inner", known...)
		outer := putIndex(t, reg, "outer", inner)
		img := mustOpen(t, reg.Host()+"/image:outer", o)
		if img.ManifestDigest.String() != amd.Digest || img.IndexDigest.String() != outer.Digest {
			t.Errorf("ManifestDigest = %s, IndexDigest = %s", img.ManifestDigest, img.IndexDigest)
		}
		for _, tag := range []string{"deep1", "deep2"} {
			outer = putIndex(t, reg, tag, outer)
		}
		_, err := Open(t.Context(), reg.Host()+"/image:deep2", o)
		wantError[*UnsupportedError](t, err)
	})
}

func TestUnsupportedImages(t *testing.T) {
	reg, o := startRegistry(t, testregistry.Options{})
	config := reg.PutBlob(t, "image", "application/vnd.oci.image.config.v1+json", []byte("{}"))
	const layerType = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
	foreign := reg.PutBlob(t, "image", layerType, []byte("layer"))
	foreign.URLs = []string{"https://elsewhere.test.invalid/layer"}
	many := make([]testregistry.Descriptor, maxLayers+1)
	for i := range many {
		many[i] = config
	}
	big := config
	big.Size = maxConfigSize + 1
	type object = map[string]any
	for _, test := range []struct {
		name, mediaType string
		manifest        any
		text            string
	}{
		{"schema 1", mediaTypeDockerSchema1Signed, object{"schemaVersion": 1, "name": "image", "tag": "latest", "fsLayers": []any{}}, "schema 1"},
		{"foreign layer", MediaTypeOCIManifest, object{"schemaVersion": 2, "config": config, "layers": []any{foreign}}, "foreign layer"},
		{"too many layers", MediaTypeOCIManifest, object{"schemaVersion": 2, "config": config, "layers": many}, "1001 layers"},
		{"huge config", MediaTypeOCIManifest, object{"schemaVersion": 2, "config": big, "layers": []any{}}, "its config has"},
		{"other type", MediaTypeOCIManifest, object{"schemaVersion": 2, "mediaType": "application/x-other", "config": config, "layers": []any{}}, "x-other"},
	} {
		t.Run(test.name, func(t *testing.T) {
			data, err := json.Marshal(test.manifest)
			must(t, err)
			// The registry checks what it is given, so it gets it on the way out.
			reg.PutManifest(t, "image", "latest", MediaTypeOCIManifest, fmt.Appendf(nil, `{"schemaVersion":2,"config":{"digest":%q}}`, config.Digest))
			reg.Inject(testregistry.Fault{Kind: testregistry.Manifest, Times: -1, Body: data})
			defer reg.ClearFaults()
			_, err = Open(t.Context(), reg.Host()+"/image", o)
			wantError[*UnsupportedError](t, err)
			if !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %q does not say %q", err, test.text)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	reg, o := startRegistry(t, testregistry.Options{})
	reg.PutImage(t, "image", "latest", randomImage(t, 200_000, 1))
	img := mustOpen(t, reg.Host()+"/image", o)
	reg.Inject(testregistry.Fault{Kind: testregistry.Blob, Times: -1, StallAfter: new(int64(1000))})

	t.Run("blob", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := img.Layer(ctx, 0)
		must(t, err)
		defer r.Close()
		time.AfterFunc(50*time.Millisecond, cancel)
		start := time.Now()
		buf := make([]byte, 1<<16)
		for err == nil {
			_, err = r.Read(buf)
		}
		if took := time.Since(start); took > 40*time.Second { // the stall would take two minutes
			t.Errorf("cancelling took %v", took)
		}
		if ctx.Err() == nil || IsRetryable(err) {
			t.Errorf("error %v, retryable %v", err, IsRetryable(err))
		}
		if _, again := r.Read(buf); again == nil || again.Error() != err.Error() {
			t.Errorf("second error %v, want %v", again, err)
		}
	})
	t.Run("rate limit", func(t *testing.T) {
		reg.Inject(testregistry.Fault{Kind: testregistry.Manifest, Times: -1, Status: 429, RetryAfter: "60"})
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := Open(ctx, reg.Host()+"/image", o)
		if err == nil || time.Since(start) > 40*time.Second {
			t.Errorf("error %v after %v", err, time.Since(start))
		}
		reg.ClearFaults()
	})
	t.Run("retry delay", func(t *testing.T) {
		reg.Inject(testregistry.Fault{Kind: testregistry.Manifest, Times: -1, Status: 500})
		o := o
		o.RetryDelay = time.Hour
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := Open(ctx, reg.Host()+"/image", o); err == nil {
			t.Error("no error")
		}
		reg.ClearFaults()
	})
}

// TestConcurrentReaders reads everything at once, as an importer does.
func TestConcurrentReaders(t *testing.T) {
	reg, o := startRegistry(t, testregistry.Options{Auth: testregistry.TokenAuth, User: "me", Password: "right"})
	reg.PutImage(t, "image", "latest", randomImage(t, 100_000, 8))
	o.Auth = Auth{UserPassword: &UserPassword{"me", "right"}}
	img := mustOpen(t, reg.Host()+"/image", o)
	var wg sync.WaitGroup
	for i := range 3 * len(img.Layers) {
		wg.Go(func() {
			if _, err := img.Config(t.Context()); err != nil {
				t.Errorf("Config: %v", err)
			}
			if _, err := readLayer(t, img, i%len(img.Layers)); err != nil {
				t.Errorf("Layer(%d): %v", i%len(img.Layers), err)
			}
		})
	}
	wg.Wait()
	if n := reg.Count(testregistry.Blob); n != 3*len(img.Layers)+1 {
		t.Errorf("%d blob requests, want %d", n, 3*len(img.Layers)+1)
	}
	if n := reg.Count(testregistry.Token); n != 1 {
		t.Errorf("%d token requests, want 1", n)
	}
}

func BenchmarkLayer(b *testing.B) {
	const size = 64 << 20
	data := make([]byte, size)
	r := blobReader{
		open: func(context.Context) (io.ReadCloser, int64, error) {
			return io.NopCloser(bytes.NewReader(data)), size, nil
		},
		stall: time.Minute,
		desc:  Descriptor{Digest: digest.FromBytes(data), Size: size},
	}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		fresh := r
		reader, err := newBlobReader(b.Context(), &fresh)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(struct{ io.Writer }{io.Discard}, reader); err != nil {
			b.Fatal(err)
		}
		reader.Close()
	}
}
