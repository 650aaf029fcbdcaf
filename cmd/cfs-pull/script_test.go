// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/composefs"
	"github.com/cfs-pull/cfs-pull/cstor"
	"github.com/cfs-pull/cfs-pull/internal/testregistry"
	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

func TestMain(m *testing.M) {
	if cstor.Reexec() {
		return
	}
	testscript.Main(m, map[string]func(){
		"cfs-pull": main,
		"holdlock": holdLock,
	})
}

// holdLock is a program that locks a directory exclusively, creates a file to
// say so, and waits to be killed.
func holdLock() {
	dir, err := os.Open(os.Args[1])
	if err == nil {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
	}
	if err == nil {
		err = os.WriteFile(os.Args[2], nil, 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	time.Sleep(time.Hour)
}

// User name and password of the registries that ask for them.
const (
	registryUser     = "puller"
	registryPassword = "secret"
)

// imagesInRegistry are the images that the registries have in repository "os".
var imagesInRegistry = []string{"boot-modules", "layers", "multi-arch", "bad-diffid"}

// TestScripts runs the scripts of testdata/script. They know the environment
// variables LAYOUT, the OCI layout of the conformance images; REGISTRY, a
// registry on plain HTTP; SHM, a directory on a tmpfs; SECURE and TOKEN, registries on HTTPS that want
// credentials, with CERTS; CONF, a registries.conf for REGISTRY.
//
// Their commands, beside those of testscript:
//
//	code N PROGRAM ARGS...      runs a program, which must exit with N
//	pull N ARGS...              the same with cfs-pull and the options that most scripts need
//	unified N ARGS...           the same for a unified pull, without SELinux policy
//	corrupt DIR NAME            changes a byte of the file of that name somewhere below DIR
//	json PATH [REGEXP]          the last stdout is one JSON document without null, and has this
//	authfile FILE USER PASSWORD credentials for all registries
//	requests N KIND AGENT       the registries got N requests of a kind from an agent
//	tree DIR FILE               writes to FILE what there is in DIR
//	await FILE                  waits until FILE exists
func TestScripts(t *testing.T) {
	layout := filepath.Join(testutil.ModuleRoot(t), "testdata", "oci", "layout")
	certs := t.TempDir()
	start := func(o testregistry.Options) *testregistry.Registry {
		o.User, o.Password = registryUser, registryPassword
		r := testregistry.New(t, o)
		r.PutLayout(t, "os", layout, imagesInRegistry...)
		if o.TLS {
			// Each registry has an authority of its own.
			ca, err := os.ReadFile(filepath.Join(r.CertDir(t), "ca.crt"))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(certs, fmt.Sprintf("%d.crt", o.Auth)), ca, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return r
	}
	plain := start(testregistry.Options{})
	secure := start(testregistry.Options{TLS: true, Auth: testregistry.BasicAuth})
	token := start(testregistry.Options{TLS: true, Auth: testregistry.TokenAuth})
	registries := []*testregistry.Registry{plain, secure, token}
	conf := plain.InsecureConf(t)

	testscript.Run(t, testscript.Params{
		Dir:                filepath.Join("testdata", "script"),
		RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("LAYOUT", layout)
			env.Setenv("REGISTRY", plain.Host())
			env.Setenv("SECURE", secure.Host())
			env.Setenv("TOKEN", token.Host())
			env.Setenv("CERTS", certs)
			env.Setenv("CONF", conf)
			if shm, err := os.MkdirTemp("/dev/shm", "cfs-pull-test-"); err == nil {
				env.Setenv("SHM", shm)
				env.Defer(func() { _ = os.RemoveAll(shm) })
			}
			return nil
		},
		Condition: scriptCondition(t),
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":    scriptCode,
			"pull":    scriptPull,
			"unified": scriptUnified,
			"corrupt": scriptCorrupt,
			"json":    scriptJSON,
			"tree":    scriptTree,
			"await":   scriptAwait,
			"authfile": func(ts *testscript.TestScript, _ bool, args []string) {
				file, user, password := args[0], args[1], args[2]
				ts.Check(os.WriteFile(ts.MkAbs(file), authFile(registries, user, password), 0o600))
			},
			"requests": func(ts *testscript.TestScript, _ bool, args []string) {
				want, kind, agent := args[0], testregistry.Kind(args[1]), args[2]
				n := 0
				for _, r := range registries {
					for _, request := range r.Requests() {
						if request.Kind == kind && strings.HasPrefix(request.UserAgent, agent) {
							n++
						}
					}
				}
				if strconv.Itoa(n) != want {
					ts.Fatalf("%d requests of kind %s by %s, want %s", n, kind, agent, want)
				}
			},
		},
	})
}

// scriptCondition knows "verity", whether a repository in a temporary directory
// can require fs-verity, and "root".
func scriptCondition(t *testing.T) func(string) (bool, error) {
	return func(condition string) (bool, error) {
		switch condition {
		case "root":
			return os.Geteuid() == 0, nil
		case "shm":
			info, err := os.Stat("/dev/shm")
			return err == nil && info.IsDir(), nil
		case "verity":
			repo := filepath.Join(t.TempDir(), "repo")
			_, err := composefs.Init(t.Context(), repo, composefs.InitOptions{})
			return err == nil, nil
		}
		return false, fmt.Errorf("unknown condition %q", condition)
	}
}

// authFile is a containers-auth.json file for several registries.
func authFile(registries []*testregistry.Registry, user, password string) []byte {
	all := map[string]map[string]any{"auths": {}}
	for _, r := range registries {
		var one map[string]map[string]any
		// The test's own file; an error shows as a file without this registry.
		_ = json.Unmarshal(r.AuthFile(user, password), &one)
		for host, auth := range one["auths"] {
			all["auths"][host] = auth
		}
	}
	text, _ := json.Marshal(all) // maps of strings can be encoded
	return text
}

func scriptCode(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("%s exited with %d, want %s", args[1], code, args[0])
	}
}

func scriptPull(ts *testscript.TestScript, neg bool, args []string) {
	common := []string{
		args[0], "cfs-pull", "--direct", "--repo", "repo", "--insecure-policy",
		"--min-free", "0", "--os", "linux", "--arch", "amd64",
	}
	scriptCode(ts, neg, append(common, args[1:]...))
}

func scriptUnified(ts *testscript.TestScript, neg bool, args []string) {
	common := []string{
		args[0], "cfs-pull", "--unified", "--insecure-policy", "--min-free", "0", "--os", "linux", "--arch", "amd64",
		"--allow-missing-verity", "--run-root", ts.MkAbs("run"), "--selinux-policy-root", ts.MkAbs("none"),
	}
	scriptCode(ts, neg, append(common, args[1:]...))
}

func scriptCorrupt(ts *testscript.TestScript, _ bool, args []string) {
	done := false
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != args[1] {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		done = true
		content[len(content)/2] ^= 1
		return os.WriteFile(path, content, 0o600)
	}))
	if !done {
		ts.Fatalf("there is no %s below %s", args[1], args[0])
	}
}

// scriptJSON checks the last standard output. PATH is keys and indexes with
// dots between them.
func scriptJSON(ts *testscript.TestScript, neg bool, args []string) {
	decoder := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	var document any
	ts.Check(decoder.Decode(&document))
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		ts.Fatalf("there is more than one JSON document on stdout")
	}
	if path := findNull("", document); path != "" {
		ts.Fatalf("%s is null", path)
	}
	value, ok := document, true
	for _, key := range strings.Split(args[0], ".") {
		switch inner := value.(type) {
		case map[string]any:
			value, ok = inner[key]
		case []any:
			i, err := strconv.Atoi(key)
			if ok = err == nil && i >= 0 && i < len(inner); ok {
				value = inner[i]
			}
		default:
			ok = false
		}
		if !ok {
			break
		}
	}
	if neg {
		if ok {
			ts.Fatalf("%s is there: %v", args[0], value)
		}
		return
	}
	if !ok {
		ts.Fatalf("there is no %s", args[0])
	}
	if len(args) == 1 {
		return
	}
	text, isText := value.(string)
	if !isText {
		var b bytes.Buffer
		encoder := json.NewEncoder(&b)
		encoder.SetEscapeHTML(false)
		ts.Check(encoder.Encode(value))
		text = strings.TrimSpace(b.String())
	}
	want, err := regexp.Compile("^(?:" + args[1] + ")$")
	ts.Check(err)
	if !want.MatchString(text) {
		ts.Fatalf("%s is %s, want %s", args[0], text, args[1])
	}
}

// findNull is the path of a null in a document, or "".
func findNull(path string, value any) string {
	switch value := value.(type) {
	case nil:
		return path
	case map[string]any:
		for key, inner := range value {
			if found := findNull(path+"."+key, inner); found != "" {
				return found
			}
		}
	case []any:
		for i, inner := range value {
			if found := findNull(fmt.Sprintf("%s.%d", path, i), inner); found != "" {
				return found
			}
		}
	}
	return ""
}

// scriptTree lists a directory with what would change if something were
// written there.
func scriptTree(ts *testscript.TestScript, _ bool, args []string) {
	root := ts.MkAbs(args[0])
	var b strings.Builder
	ts.Check(filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %v %d %v\n", strings.TrimPrefix(path, root), info.Mode(), info.Size(), info.ModTime())
		return nil
	}))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(b.String()), 0o600))
}

func scriptAwait(ts *testscript.TestScript, _ bool, args []string) {
	deadline := time.Now().Add(2 * time.Minute)
	for {
		_, err := os.Stat(ts.MkAbs(args[0]))
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("waited too long: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
