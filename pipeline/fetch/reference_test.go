// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseReference(t *testing.T) {
	const sum = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for _, test := range []struct {
		ref, transport string
		want           Reference // Original is ref
		text           string    // of String
	}{
		{"quay.io/os/image", "", Reference{Transport: TransportRegistry, Name: "quay.io/os/image:latest"}, "docker://quay.io/os/image:latest"},
		{"docker://quay.io/os/image:v1", "", Reference{Transport: TransportRegistry, Name: "quay.io/os/image:v1"}, "docker://quay.io/os/image:v1"},
		{"localhost:5000/myimage:v1", "", Reference{Transport: TransportRegistry, Name: "localhost:5000/myimage:v1"}, "docker://localhost:5000/myimage:v1"},
		{"registry.example.com/img", "", Reference{Transport: TransportRegistry, Name: "registry.example.com/img:latest"}, "docker://registry.example.com/img:latest"},
		{"quay.io/os/image@" + sum, "", Reference{Transport: TransportRegistry, Name: "quay.io/os/image@" + sum}, "docker://quay.io/os/image@" + sum},
		{"quay.io/os/image:v1@" + sum, "", Reference{Transport: TransportRegistry, Name: "quay.io/os/image@" + sum}, "docker://quay.io/os/image@" + sum},
		{"docker.io/fedora", "", Reference{Transport: TransportRegistry, Name: "docker.io/library/fedora:latest"}, "docker://docker.io/library/fedora:latest"},
		{"docker://fedora", "", Reference{Transport: TransportRegistry, Name: "docker.io/library/fedora:latest"}, "docker://docker.io/library/fedora:latest"},
		{"fedora", "registry", Reference{Transport: TransportRegistry, Name: "docker.io/library/fedora:latest"}, "docker://docker.io/library/fedora:latest"},
		{"fedora", "docker", Reference{Transport: TransportRegistry, Name: "docker.io/library/fedora:latest"}, "docker://docker.io/library/fedora:latest"},
		{"fedora:43", "", Reference{Transport: TransportRegistry, Name: "fedora:43", Short: true}, "fedora:43"},
		{"os/image", "", Reference{Transport: TransportRegistry, Name: "os/image", Short: true}, "os/image"},
		{"docker:5000/x", "", Reference{Transport: TransportRegistry, Name: "docker:5000/x:latest"}, "docker://docker:5000/x:latest"},
		{"docker://oci:5000/x", "", Reference{Transport: TransportRegistry, Name: "oci:5000/x:latest"}, "docker://oci:5000/x:latest"},
		{"oci:5000/x", "registry", Reference{Transport: TransportRegistry, Name: "oci:5000/x:latest"}, "docker://oci:5000/x:latest"},
		{"5000/x", "oci", Reference{Transport: TransportOCI, Name: "5000/x"}, "oci:5000/x"},
		{"oci:/srv/layout:v1", "", Reference{Transport: TransportOCI, Name: "/srv/layout:v1"}, "oci:/srv/layout:v1"},
		{"/srv/layout:v1", "oci", Reference{Transport: TransportOCI, Name: "/srv/layout:v1"}, "oci:/srv/layout:v1"},
		{"oci:layout", "", Reference{Transport: TransportOCI, Name: "layout"}, "oci:layout"},
		{"oci-archive:/a.tar", "", Reference{Transport: TransportOCIArchive, Name: "/a.tar"}, "oci-archive:/a.tar"},
		{"docker-archive:/a.tar:image:v1", "", Reference{Transport: TransportDockerArchive, Name: "/a.tar:image:v1"}, "docker-archive:/a.tar:image:v1"},
		{"dir:/srv/dir", "", Reference{Transport: TransportDir, Name: "/srv/dir"}, "dir:/srv/dir"},
		{"containers-storage:localhost/x", "", Reference{Transport: TransportContainersStorage, Name: "localhost/x"}, "containers-storage:localhost/x"},
	} {
		got, err := ParseReference(test.ref, test.transport)
		if err != nil {
			t.Errorf("ParseReference(%q, %q): %v", test.ref, test.transport, err)
			continue
		}
		test.want.Original = test.ref
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("ParseReference(%q, %q) (-want +got):\n%s", test.ref, test.transport, diff)
		}
		if got.String() != test.text {
			t.Errorf("String() = %q, want %q", got.String(), test.text)
		}
	}
}

func TestParseReferenceErrors(t *testing.T) {
	for _, test := range []struct{ ref, transport, text string }{
		{"", "", "empty"},
		{"UPPER/case", "", "lowercase"},
		{"quay.io/image@sha256:short", "", "invalid"},
		{"docker://", "", ""},
		{"https://quay.io/image", "", "unknown transport"},
		{"ostree://x", "", "unknown transport"},
		{"x", "tarball", "unknown transport"},
		{"docker://quay.io/image", "registry", ""},
		{"oci:5000/x", "", "docker://oci:5000/x"},
		{"dir:1/x", "", "--transport dir 1/x"},
		{"containers-storage:80/x", "", "docker://"},
		{"oci:", "", "no path"},
		{"oci::name", "", "no path"},
		{"dir:", "", "no path"},
		{"containers-storage:", "", "no image"},
		{"docker-daemon:image:v1", "", "docker save"},
		{"image\nname", "", "control character"},
		{"dir:/a\x00b", "", "control character"},
		{strings.Repeat("a", 10_000), "", "longer than"},
	} {
		_, err := ParseReference(test.ref, test.transport)
		wantError[*UsageError](t, err)
		if !strings.Contains(err.Error(), test.text) {
			t.Errorf("ParseReference(%q, %q): %q does not say %q", test.ref, test.transport, err, test.text)
		}
	}
}

func TestOpenRefusesContainersStorage(t *testing.T) {
	_, err := Open(t.Context(), "containers-storage:localhost/x", testOptions(t))
	wantError[*UsageError](t, err)
	if !strings.Contains(err.Error(), "unified") {
		t.Errorf("error %q does not speak of unified mode", err)
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"fedora", "oci:a:b", "docker://a.b/c@sha256:" + strings.Repeat("0", 64), "dir:/x", "a:1/b:c@d"} {
		f.Add(s, "")
	}
	f.Add("x", "oci")
	f.Fuzz(func(t *testing.T, ref, transport string) {
		r, err := ParseReference(ref, transport)
		if err != nil {
			wantError[*UsageError](t, err)
			return
		}
		again, err := ParseReference(r.String(), "")
		if err != nil {
			// Only names that look like a port may need the transport spelled out.
			if r.Transport == TransportRegistry || !looksLikePort(r.Name) {
				t.Fatalf("%q became %q: %v", ref, r, err)
			}
			return
		}
		again.Original = r.Original
		if again != r {
			t.Fatalf("%+v became %+v", r, again)
		}
	})
}

func TestShortNames(t *testing.T) {
	for _, test := range []struct {
		name, conf, ref string
		want            string // name of the reference
		err             string
	}{
		{"no configuration", "", "fedora", "docker.io/library/fedora:latest", ""},
		{"one registry", `unqualified-search-registries = ["one.test"]`, "os/image:v1", "one.test/os/image:v1", ""},
		{"docker.io", `unqualified-search-registries = ["docker.io"]`, "fedora", "docker.io/library/fedora:latest", ""},
		{"ambiguous", `unqualified-search-registries = ["one.test", "two.test"]`, "image", "", "one.test/image:latest or two.test/image:latest"},
		{"alias", "unqualified-search-registries = [\"one.test\", \"two.test\"]\n[aliases]\n\"image\" = \"three.test/os/image\"", "image:v2", "three.test/os/image:v2", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := testOptions(t)
			if test.conf != "" {
				writeFile(t, filepath.Join(o.Root, "etc/containers/registries.conf"), []byte(test.conf))
			}
			ref, err := ParseReference(test.ref, "")
			must(t, err)
			s, err := newSession(&o, true)
			must(t, err)
			defer s.Close()
			full, err := s.completeShortName(ref, o.TempDir)
			if test.err != "" {
				wantError[*UsageError](t, err)
				if !strings.Contains(err.Error(), test.err) {
					t.Errorf("error %q does not say %q", err, test.err)
				}
				return
			}
			must(t, err)
			if want := (Reference{Original: test.ref, Transport: TransportRegistry, Name: test.want}); full != want {
				t.Errorf("%+v, want %+v", full, want)
			}
			if left, _ := filepath.Glob(filepath.Join(o.TempDir, "*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func ExampleParseReference() {
	ref, err := ParseReference("quay.io/fedora/fedora-bootc:43", "")
	fmt.Println(ref, ref.Registry(), err)
	_, err = ParseReference("oci:5000/image", "")
	fmt.Println(err)
	// Output:
	// docker://quay.io/fedora/fedora-bootc:43 quay.io <nil>
	// "oci:5000/image": this may be transport oci or a registry on host "oci" (write docker://oci:5000/image for the registry, or --transport oci 5000/image for the transport)
}
