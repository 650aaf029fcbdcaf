// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package realimage

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// Binary builds the command as it is shipped and returns its path.
func Binary(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "cfs-pull")
	cmd := exec.Command("go", "build", "-tags", "containers_image_openpgp", "-o", path, "./cmd/cfs-pull")
	cmd.Dir = testutil.ModuleRoot(tb)
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build cfs-pull: %v\n%s", err, out)
	}
	return path
}

// Result is what tests look at of the command's result JSON.
type Result struct {
	Changed        bool
	ManifestDigest string
	Tag            string
	Image          ImageID
	BootImage      ImageID
	BootEntries    []struct {
		Type, Kver, BootDigest string
		Files                  []struct {
			Role, Object string
			Size         int64
		}
	}
	Stats struct {
		Layers, LayersPresent int
		Objects               map[string]int64
		Bytes                 map[string]int64
	}
}

// ImageID names an EROFS image of the repository.
type ImageID struct{ ID, Erofs string }

// Pull runs a direct pull into a repository, which is made on the way, and
// fails the test unless it succeeds.
func Pull(tb testing.TB, binary, repository string, args ...string) Result {
	tb.Helper()
	return pull(tb, binary, repository, append([]string{"--direct"}, args...)...)
}

// PullUnified is Pull by way of a containers-storage, which is made on the way.
func PullUnified(tb testing.TB, binary, repository, store string, args ...string) Result {
	tb.Helper()
	return pull(tb, binary, repository, append([]string{
		"--unified", "--storage", store, "--run-root", filepath.Join(tb.TempDir(), "run"), "--no-label",
	}, args...)...)
}

func pull(tb testing.TB, binary, repository string, args ...string) Result {
	tb.Helper()
	policy := filepath.Join(tb.TempDir(), "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		tb.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(tb.Context(), binary, append([]string{
		"--json", "--repo", repository, "--init", "--allow-missing-verity", "--signature-policy", policy,
	}, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		tb.Fatalf("cfs-pull %v: %v\n%s%s", args, err, stdout.Bytes(), stderr.Bytes())
	}
	var r Result
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		tb.Fatalf("read the result of cfs-pull: %v\n%s", err, stdout.Bytes())
	}
	return r
}
