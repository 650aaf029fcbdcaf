// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"github.com/cfs-pull/cfs-pull/internal/testregistry"
)

// testOptions accept any image, use no credentials, retry at once, and read no
// configuration of the machine.
func testOptions(t *testing.T) Options {
	t.Helper()
	return Options{
		OS: "linux", Architecture: "amd64",
		Auth:           Auth{Anonymous: true},
		InsecurePolicy: true,
		Root:           t.TempDir(),
		RetryDelay:     time.Millisecond,
		TempDir:        t.TempDir(),
		Logger:         slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimRight(p, "\n"))
	return len(p), nil
}

// startRegistry starts a registry with TLS and options to reach it.
func startRegistry(t *testing.T, ro testregistry.Options) (*testregistry.Registry, Options) {
	t.Helper()
	ro.TLS = true
	reg := testregistry.New(t, ro)
	o := testOptions(t)
	o.CertDir = reg.CertDir(t)
	return reg, o
}

// randomImage has layers of about size bytes.
func randomImage(t *testing.T, size int64, layers int) v1.Image {
	t.Helper()
	img, err := random.Image(size, int64(layers))
	must(t, err)
	return img
}

func mustOpen(t *testing.T, ref string, o Options) *Image {
	t.Helper()
	img, err := Open(t.Context(), ref, o)
	if err != nil {
		t.Fatalf("Open(%s): %v", ref, err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

// readLayer reads layer i to its end.
func readLayer(t *testing.T, img *Image, i int) ([]byte, error) {
	t.Helper()
	r, err := img.Layer(t.Context(), i)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// readAll reads config and layers and fails the test on any error.
func readAll(t *testing.T, img *Image) (config []byte, layers [][]byte) {
	t.Helper()
	config, err := img.Config(t.Context())
	if err != nil {
		t.Fatalf("Config: %v", err)
	}
	for i := range img.Layers {
		data, err := readLayer(t, img, i)
		if err != nil {
			t.Fatalf("Layer(%d): %v", i, err)
		}
		layers = append(layers, data)
	}
	return config, layers
}

// wantError says whether err has type E, and returns it.
func wantError[E error](t *testing.T, err error) E {
	t.Helper()
	e, ok := errors.AsType[E](err)
	if !ok {
		t.Fatalf("error is %T: %v; want %T", err, err, e)
	}
	return e
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, data, 0o600))
}
