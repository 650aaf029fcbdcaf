// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package microvm

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/ulikunitz/xz"
)

const (
	// modulesDep is depmod's table of what to load before what:
	// "PATH: PATH...", where the last one named goes first.
	modulesDep = "modules.dep"

	// modulesBuiltin names the modules that are part of the kernel image,
	// one path a line.
	modulesBuiltin = "modules.builtin"
)

// moduleTable knows a kernel's modules by name.
type moduleTable struct {
	dir     string
	path    map[string]string   // name to path below dir
	needs   map[string][]string // path to paths, in the order of modules.dep
	builtin map[string]bool     // names
}

func readModuleTable(dir string) (*moduleTable, error) {
	t := &moduleTable{dir: dir, path: map[string]string{}, needs: map[string][]string{}, builtin: map[string]bool{}}
	dep, err := os.ReadFile(filepath.Join(dir, modulesDep))
	if err != nil {
		return nil, fmt.Errorf("read kernel modules: %w", err)
	}
	for line := range strings.Lines(string(dep)) {
		file, needs, ok := strings.Cut(line, ":")
		if ok {
			t.path[moduleName(file)] = file
			t.needs[file] = strings.Fields(needs)
		}
	}
	builtin, err := os.ReadFile(filepath.Join(dir, modulesBuiltin))
	if err != nil {
		return nil, fmt.Errorf("read kernel modules: %w", err)
	}
	for line := range strings.Lines(string(builtin)) {
		t.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	return t, nil
}

// moduleName is the name of the module in file. The kernel takes - and _ for
// the same.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// loadOrder lists the files to load, in this order, to have the named modules.
func (t *moduleTable) loadOrder(names []string) ([]string, error) {
	var order []string
	seen := map[string]bool{}
	add := func(file string) {
		if !seen[file] {
			seen[file] = true
			order = append(order, file)
		}
	}
	for _, name := range names {
		name = moduleName(name)
		if t.builtin[name] {
			continue
		}
		file, ok := t.path[name]
		if !ok {
			return nil, fmt.Errorf("load kernel modules: the kernel below %s has no module %q", t.dir, name)
		}
		needs := t.needs[file]
		for i := len(needs) - 1; i >= 0; i-- {
			add(needs[i])
		}
		add(file)
	}
	return order, nil
}

// read is the module in file, decompressed: busybox does not do that.
func (t *moduleTable) read(file string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(t.dir, file))
	if err != nil {
		return nil, fmt.Errorf("read kernel module: %w", err)
	}
	if !strings.HasSuffix(file, ".xz") {
		return b, nil
	}
	r, err := xz.NewReader(bytes.NewReader(b))
	if err == nil {
		b, err = io.ReadAll(r)
	}
	if err != nil {
		return nil, fmt.Errorf("decompress kernel module %s: %w", file, err)
	}
	return b, nil
}
