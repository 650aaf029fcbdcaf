// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/docker/distribution/registry/api/errcode"
)

func TestDetectMediaType(t *testing.T) {
	const config = `"config":{"mediaType":"application/vnd.oci.image.config.v1+json"}`
	for _, test := range []struct{ name, data, hint, want, err string }{
		{"own type", `{"mediaType":"` + MediaTypeOCIManifest + `",` + config + `}`, "", MediaTypeOCIManifest, ""},
		{"own type wins", `{"mediaType":"` + MediaTypeOCIManifest + `",` + config + `}`, MediaTypeDockerManifest, MediaTypeOCIManifest, ""},
		{"hint", `{"schemaVersion":2,` + config + `}`, MediaTypeOCIManifest, MediaTypeOCIManifest, ""},
		{"useless hint", `{"schemaVersion":2,` + config + `}`, "text/plain", MediaTypeOCIManifest, ""},
		{"guessed index", `{"schemaVersion":2,"manifests":[]}`, "", MediaTypeOCIIndex, ""},
		{"guessed Docker", `{"schemaVersion":2,"config":{"mediaType":"` + mediaTypeDockerConfig + `"}}`, "", MediaTypeDockerManifest, ""},
		{"schema 1", `{"schemaVersion":1,"fsLayers":[]}`, "application/json", mediaTypeDockerSchema1, ""},
		{"other", `{"mediaType":"application/x"}`, MediaTypeOCIManifest, "application/x", ""},
		{"manifest and index", `{"schemaVersion":2,"manifests":[],"layers":[]}`, MediaTypeOCIIndex, "", "members of a manifest"},
		{"index and manifest", `{"schemaVersion":2,"manifests":[],"layers":[]}`, MediaTypeOCIManifest, "", "members of another kind"},
		{"other case", `{"schemaVersion":2,"Layers":[]}`, MediaTypeOCIManifest, "", "not spelled"},
		{"twice", `{"layers":[],"layers":[1]}`, MediaTypeOCIManifest, "", "given twice"},
		{"twice inside", `{"layers":[{"digest":"a","digest":"b"}]}`, MediaTypeOCIManifest, "", "given twice"},
		{"other case inside", `{"layers":[{"Digest":"a"}]}`, MediaTypeOCIManifest, "", "not spelled"},
		{"annotations are free", `{"layers":[],"annotations":{"Digest":"a","digest":"b"}}`, MediaTypeOCIManifest, MediaTypeOCIManifest, ""},
		{"trailing data", `{"layers":[]}{}`, MediaTypeOCIManifest, "", "after the JSON"},
		{"trailing newline", "{\"layers\":[]}\n", MediaTypeOCIManifest, MediaTypeOCIManifest, ""},
		{"deep", strings.Repeat("[", 100_000), MediaTypeOCIManifest, "", "nested too deeply"},
		{"empty", "", MediaTypeOCIManifest, "", "EOF"},
		{"HTML", "<html>", "text/html", "", "invalid character"},
		{"unknown", "{}", "", "", "unknown kind"},
		{"array", "[]", MediaTypeOCIManifest, "", "cannot unmarshal"},
		{"huge", strings.Repeat(" ", maxManifestSize+1), "", "", "larger than"},
	} {
		got, err := detectMediaType([]byte(test.data), test.hint)
		if got != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%s: %q, %v; want %q, %q", test.name, got, err, test.want, test.err)
		}
	}
}

func TestParseManifest(t *testing.T) {
	const sum = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	descriptor := func(digest, size string) string {
		return fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar+zstd","digest":%q,"size":%s}`, digest, size)
	}
	good := descriptor(sum, "5")
	config, layers, err := parseManifest([]byte(`{"config":`+good+`,"layers":[`+good+`]}`), "")
	must(t, err)
	if config.Size != 5 || len(layers) != 1 || string(layers[0].Digest) != sum || layers[0].Compression != CompressionZstd {
		t.Errorf("config %+v, layers %+v", config, layers)
	}
	for name, data := range map[string]string{
		"no config":         `{"layers":[]}`,
		"null config":       `{"config":null}`,
		"no digest":         `{"config":{"size":1}}`,
		"no size":           `{"config":{"digest":"` + sum + `"}}`,
		"negative size":     `{"config":` + descriptor(sum, "-1") + `}`,
		"fractional size":   `{"config":` + descriptor(sum, "1.5") + `}`,
		"enormous size":     `{"config":` + descriptor(sum, "1e30") + `}`,
		"short digest":      `{"config":` + descriptor("sha256:00", "1") + `}`,
		"path as digest":    `{"config":` + good + `,"layers":[` + descriptor("sha256:../../../etc/passwd", "1") + `]}`,
		"unknown algorithm": `{"config":` + good + `,"layers":[` + descriptor("md5:d41d8cd98f00b204e9800998ecf8427e", "1") + `]}`,
		"upper case digest": `{"config":` + good + `,"layers":[` + descriptor(strings.ToUpper(sum), "1") + `]}`,
	} {
		if _, _, err := parseManifest([]byte(data), ""); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzManifest(f *testing.F) {
	const sum = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	d := `{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"` + sum + `","size":1}`
	f.Add([]byte(`{"schemaVersion":2,"config":`+d+`,"layers":[`+d+`],"annotations":{"a":"b"}}`), MediaTypeOCIManifest)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[`+d+`]}`), MediaTypeOCIIndex)
	f.Add([]byte(`{"schemaVersion":1,"fsLayers":[]}`), "")
	f.Fuzz(func(t *testing.T, data []byte, hint string) {
		mediaType, err := detectMediaType(data, hint)
		if err != nil || isIndex(mediaType) || unsupportedManifest(mediaType, "") != nil {
			return
		}
		config, layers, err := parseManifest(data, "")
		if err != nil {
			return
		}
		for _, d := range append(layers, Layer{Descriptor: config}) {
			if d.Size < 0 || d.Digest.Validate() != nil {
				t.Fatalf("descriptor %+v", d)
			}
			if p := blobPath(d.Digest); strings.Contains(p, "..") || strings.Count(p, "/") != 2 {
				t.Fatalf("path %q", p)
			}
		}
	})
}

func TestIsRetryable(t *testing.T) {
	dial := func(errno error) error {
		return &url.Error{Op: "Get", URL: "https://x", Err: &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", errno)}}
	}
	for _, test := range []struct {
		name string
		err  error
		want bool
	}{
		{"nil", nil, false},
		{"refused", dial(syscall.ECONNREFUSED), true},
		{"reset", dial(syscall.ECONNRESET), true},
		{"unreachable", dial(syscall.ENETUNREACH), true},
		{"not permitted", dial(syscall.EPERM), false},
		{"no space", fmt.Errorf("write: %w", syscall.ENOSPC), false},
		{"no such host", &url.Error{Err: &net.DNSError{IsNotFound: true}}, false},
		{"name server down", &url.Error{Err: &net.DNSError{IsTemporary: true}}, true},
		{"timeout", &url.Error{Err: &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}}, true},
		{"closed without an answer", &url.Error{Op: "Get", Err: io.EOF}, true},
		{"end of a stream", io.EOF, false},
		{"cut off", fmt.Errorf("read: %w", io.ErrUnexpectedEOF), true},
		{"stalled", fmt.Errorf("read: %w", errStalled), true},
		{"cancelled", fmt.Errorf("read: %w", context.Canceled), false},
		{"timed out", fmt.Errorf("read: %w", context.DeadlineExceeded), true},
		{"rate limit", errcode.ErrorCodeTooManyRequests.WithMessage("slow down"), true},
		{"denied", errcode.ErrorCodeDenied.WithMessage("no"), false},
		{"HTTP/2", errors.New("http2: server sent GOAWAY and closed the connection"), true},
		{"integrity", &IntegrityError{}, false},
		{"absent", &NotFoundError{Err: io.ErrUnexpectedEOF}, false},
		{"other", errors.New("other"), false},
	} {
		if got := IsRetryable(test.err); got != test.want {
			t.Errorf("%s: IsRetryable(%v) = %v", test.name, test.err, got)
		}
	}
}
