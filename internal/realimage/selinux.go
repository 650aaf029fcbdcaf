// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package realimage

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// Labels asks libselinux which security context the tree's own policy gives
// each path. Paths without one are absent from the answer, and all are when
// the tree has no policy.
func Labels(tb testing.TB, root string, tree Tree) map[string]string {
	tb.Helper()
	program := testutil.RequireTool(tb, "matchpathcon", "selinux-utils")
	config, err := os.ReadFile(filepath.Join(root, "etc/selinux/config"))
	if err != nil {
		return nil
	}
	policy := ""
	for line := range strings.Lines(string(config)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "SELINUXTYPE="); ok {
			policy = value
		}
	}
	// A copy without the compiled forms, so that the text is what counts.
	contexts := tb.TempDir()
	for _, name := range []string{"", ".local", ".homedirs", ".subs", ".subs_dist"} {
		name = "file_contexts" + name
		content, err := os.ReadFile(filepath.Join(root, "etc/selinux", policy, "contexts/files", name))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(contexts, name), content, 0o600); err != nil {
			tb.Fatal(err)
		}
	}

	modes := map[string]string{
		"dir": "dir", "file": "file", "link": "lnk_file", "char": "chr_file", "block": "blk_file", "fifo": "pipe",
		"socket": "sock_file",
	}
	byMode := make(map[string][]string)
	for _, path := range slices.Sorted(maps.Keys(tree)) {
		mode := modes[tree[path].Type]
		byMode[mode] = append(byMode[mode], path)
	}
	labels := make(map[string]string, len(tree))
	for mode, paths := range byMode {
		for batch := range slices.Chunk(paths, 1000) {
			args := []string{"-n", "-f", filepath.Join(contexts, "file_contexts"), "-m", mode}
			for _, path := range batch {
				args = append(args, filepath.Join("/", path))
			}
			out, err := exec.Command(program, args...).Output()
			if err != nil {
				tb.Fatalf("matchpathcon: %v", err)
			}
			lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
			if len(lines) != len(batch) {
				tb.Fatalf("matchpathcon answered %d of %d paths", len(lines), len(batch))
			}
			for i, path := range batch {
				if lines[i] != "<<none>>" {
					labels[path] = lines[i]
				}
			}
		}
	}
	return labels
}

// labelXattr is a security context as Entry.Xattrs shows it.
func labelXattr(context string) string { return fmt.Sprintf("security.selinux=%q", context) }
