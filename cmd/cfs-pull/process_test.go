// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/internal/loopfs"
	"github.com/cfs-pull/cfs-pull/internal/ocilayout"
	"github.com/cfs-pull/cfs-pull/internal/testregistry"
)

// makeLayout writes an OCI layout with an image "latest" that has a layer for
// each size, made of one file with the bytes of content.
func makeLayout(t *testing.T, content io.Reader, c ocilayout.Compression, sizes ...int64) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	w, err := ocilayout.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i, size := range sizes {
		err := w.AddLayer(c, func(tw *tar.Writer) error {
			header := tar.Header{Name: "usr/", Typeflag: tar.TypeDir, Mode: 0o755}
			if err := tw.WriteHeader(&header); err != nil {
				return err
			}
			header = tar.Header{Name: fmt.Sprintf("usr/file%d", i), Typeflag: tar.TypeReg, Mode: 0o644, Size: size}
			if err := tw.WriteHeader(&header); err != nil {
				return err
			}
			_, err := io.CopyN(tw, content, size)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish("latest", imgspecv1.ImageConfig{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func random() io.Reader { return rand.NewChaCha8([32]byte{1}) }

func makeRepo(t *testing.T, dir string) string {
	t.Helper()
	repo := filepath.Join(dir, "repo")
	if _, err := composefs.Init(t.Context(), repo, composefs.InitOptions{AllowMissingVerity: true}); err != nil {
		t.Fatal(err)
	}
	return repo
}

// tags lists the tags of a repository.
func tags(t *testing.T, repo string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(repo, "streams", "refs", "oci", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// checkNoTemporaries fails if a repository has files that no name leads to
// for good. The lock's file stays.
func checkNoTemporaries(t *testing.T, repo string) {
	t.Helper()
	err := filepath.WalkDir(repo, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), ".") && path != repo && d.Name() != ".cfs-pull.lock" {
			t.Errorf("%s was left", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// pullResult is what the tests need of a result's JSON.
type pullResult struct {
	Tagged bool
	Stats  struct{ Layers, LayersPresent int }
	Error  struct {
		Code int
		Kind string
	}
}

func parseResult(t *testing.T, stdout []byte) pullResult {
	t.Helper()
	var r pullResult
	if err := json.Unmarshal(stdout, &r); err != nil {
		t.Fatalf("parse result: %v\n%s", err, stdout)
	}
	return r
}

// exitCode is the exit status of a program that has ended.
func exitCode(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		t.Fatal(err)
	}
	return exit.ProcessState.ExitCode()
}

// A signal in the middle of a layer ends the program at once. What is complete
// stays, there is no tag, and the next pull goes on from there.
func TestSignals(t *testing.T) {
	layout := makeLayout(t, random(), ocilayout.Gzip, 200<<10, 3<<20)
	blobs := layerDigests(t, layout)
	for signal, code := range map[unix.Signal]int{unix.SIGINT: 130, unix.SIGTERM: 143} {
		t.Run(unix.SignalName(signal), func(t *testing.T) {
			registry := testregistry.New(t, testregistry.Options{})
			registry.PutLayout(t, "os", layout)
			after := int64(1 << 20)
			registry.Inject(testregistry.Fault{Kind: testregistry.Blob, Target: blobs[1], Times: 1, StallAfter: &after})
			repo, temp := makeRepo(t, t.TempDir()), t.TempDir()
			args := []string{
				"--repo", repo, "--insecure-policy", "--registries-conf", registry.InsecureConf(t),
				"--os", "linux", "--arch", "amd64",
				"--min-free", "0", "--no-boot", "--json", registry.Host() + "/os:latest",
			}
			cmd := exec.CommandContext(t.Context(), "cfs-pull", args...)
			cmd.Env = append(os.Environ(), "TMPDIR="+temp)
			var stdout bytes.Buffer
			cmd.Stdout = &stdout
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// The small layer is reported as soon as it is complete; the other
			// one has stalled by then or soon will.
			messages := &waitingReader{from: stderr}
			messages.waitFor(t, "layer "+shortDigest(blobs[0])+": done")
			begin := time.Now()
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			rest := messages.rest(t)
			err = cmd.Wait()
			// Without an end the stalled layer would be given up after two
			// minutes; what is complete has to reach a disk that may be busy.
			if took := time.Since(begin); took > 40*time.Second {
				t.Errorf("it took %v to end", took)
			}
			if got := exitCode(t, err); got != code {
				t.Errorf("exit status %d, want %d", got, code)
			}
			if want := "interrupted by " + unix.SignalName(signal); !strings.Contains(rest, want) {
				t.Errorf("the message is %q, want %q", rest, want)
			}
			r := parseResult(t, stdout.Bytes())
			if r.Tagged || r.Error.Code != code || r.Error.Kind != "interrupted" {
				t.Errorf("the result is %+v", r)
			}
			if left := tags(t, repo); len(left) > 0 {
				t.Errorf("there are tags: %v", left)
			}
			checkNoTemporaries(t, repo)
			if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
				t.Errorf("temporary files are left: %v (%v)", left, err)
			}

			registry.ClearFaults()
			registry.ResetLog()
			out, err := exec.CommandContext(t.Context(), "cfs-pull", args...).Output()
			if err != nil {
				t.Fatalf("the next pull: %v", err)
			}
			if r := parseResult(t, out); !r.Tagged || r.Stats.LayersPresent != 1 {
				t.Errorf("the next result is %+v, want one layer present", r)
			}
			var fetched []string
			for _, request := range registry.Requests() {
				if request.Kind == testregistry.Blob && request.Target != configDigest(t, layout) {
					fetched = append(fetched, request.Target)
				}
			}
			if diff := cmp.Diff(blobs[1:], fetched); diff != "" {
				t.Errorf("layers fetched by the next pull (-want +got):\n%s", diff)
			}
		})
	}
}

// waitingReader reads the messages of a program while it runs.
type waitingReader struct {
	from io.Reader
	seen strings.Builder
}

func (w *waitingReader) waitFor(t *testing.T, text string) {
	t.Helper()
	b := make([]byte, 4096)
	for !strings.Contains(w.seen.String(), text) {
		n, err := w.from.Read(b)
		w.seen.Write(b[:n])
		if err != nil {
			t.Fatalf("the program ended before it said %q: %s", text, w.seen.String())
		}
	}
}

func (w *waitingReader) rest(t *testing.T) string {
	t.Helper()
	rest, err := io.ReadAll(w.from)
	if err != nil {
		t.Fatal(err)
	}
	return string(rest)
}

// layoutManifest reads the manifest of a layout's only image.
func layoutManifest(t *testing.T, dir string) imgspecv1.Manifest {
	t.Helper()
	read := func(name string, to any) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = json.Unmarshal(text, to)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var index imgspecv1.Index
	read("index.json", &index)
	var manifest imgspecv1.Manifest
	read("blobs/sha256/"+index.Manifests[0].Digest.Encoded(), &manifest)
	return manifest
}

func layerDigests(t *testing.T, dir string) []string {
	t.Helper()
	var digests []string
	for _, layer := range layoutManifest(t, dir).Layers {
		digests = append(digests, layer.Digest.String())
	}
	return digests
}

func configDigest(t *testing.T, dir string) string {
	t.Helper()
	return layoutManifest(t, dir).Config.Digest.String()
}

// repeat is a text that compresses well, forever.
type repeat struct{ n uint64 }

func (r *repeat) Read(b []byte) (int, error) {
	// Each block differs, so that files do not share objects.
	for i := range b {
		if r.n++; r.n%4096 < 8 {
			b[i] = byte(r.n >> 12 >> (8 * (r.n % 4096)))
		} else {
			b[i] = 'x'
		}
	}
	return len(b), nil
}

// A file system without the space is 5, whether that was to be seen before or
// not.
func TestNoSpace(t *testing.T) {
	dir := loopfs.MountSize(t, loopfs.Ext4, 32<<20)
	repo := makeRepo(t, dir)
	for name, layout := range map[string]string{
		"seen before":   makeLayout(t, random(), ocilayout.Gzip, 64<<20),
		"in the middle": makeLayout(t, &repeat{}, ocilayout.Gzip, 1<<20, 64<<20),
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "cfs-pull", "--repo", repo, "--insecure-policy",
				"--min-free", "0", "--no-boot", "--json", "--os", "linux", "--arch", "amd64", "oci:"+layout+":latest")
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if got := exitCode(t, err); got != exitSpace {
				t.Errorf("exit status %d, want %d", got, exitSpace)
			}
			if r := parseResult(t, out); r.Tagged || r.Error.Code != exitSpace || r.Error.Kind != "space" {
				t.Errorf("the result is %+v", r)
			}
			if !strings.Contains(stderr.String(), "space") {
				t.Errorf("the message is %q", stderr.String())
			}
			if left := tags(t, repo); len(left) > 0 {
				t.Errorf("there are tags: %v", left)
			}
			checkNoTemporaries(t, repo)
		})
	}
	// What was written by the failed pulls is not in the way of a smaller one.
	layout := makeLayout(t, &repeat{}, ocilayout.Gzip, 1<<20)
	out, err := exec.CommandContext(t.Context(), "cfs-pull", "--repo", repo, "--insecure-policy",
		"--min-free", "0", "--no-boot", "--json", "--os", "linux", "--arch", "amd64", "oci:"+layout+":latest").Output()
	if err != nil {
		t.Fatalf("a small image afterwards: %v\n%s", err, out)
	}
}
