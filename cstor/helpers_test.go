// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfs-pull/cfs-pull/internal/testutil"
	"github.com/cfs-pull/cfs-pull/pipeline/fetch"
)

func TestMain(m *testing.M) {
	if Reexec() {
		return
	}
	if done := helperProcess(); done {
		return
	}
	os.Exit(m.Run())
}

func check[T any](v T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		must(tb, err)
		return v
	}
}

// testLog writes to the test's log.
func testLog(tb testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(logWriter{tb}, nil))
}

type logWriter struct{ tb testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	w.tb.Logf("%s", bytes.TrimRight(p, "\n"))
	return len(p), nil
}

// storeOptions are the options of a new store in a directory of the test.
func storeOptions(tb testing.TB, dir string) Options {
	// podman takes no more than 50 bytes of a runroot.
	run := check(os.MkdirTemp("", "cs"))(tb)
	tb.Cleanup(func() { os.RemoveAll(run) })
	return Options{
		GraphRoot: filepath.Join(dir, "root"), RunRoot: filepath.Join(run, "r"),
		LockTimeout: 2 * time.Minute, Log: testLog(tb),
	}
}

// testStore makes a store. Writing to one needs root: the library mounts a test
// overlay and changes owners.
func testStore(tb testing.TB) *Store {
	tb.Helper()
	return openStore(tb, storeOptions(tb, tb.TempDir()))
}

func openStore(tb testing.TB, o Options) *Store {
	tb.Helper()
	testutil.RequireRoot(tb)
	s := check(Ensure(tb.Context(), o))(tb)
	tb.Cleanup(func() { must(tb, s.Close()) })
	return s
}

// vector is the reference of an image of the conformance vectors.
func vector(tb testing.TB, name string) string {
	tb.Helper()
	return "oci:" + filepath.Join(testutil.Vectors(tb), "oci", "layout") + ":" + name
}

// fetchOptions accept any image, use no credentials and retry at once.
func fetchOptions(tb testing.TB) fetch.Options {
	return fetch.Options{
		OS: "linux", Architecture: "amd64", Auth: fetch.Auth{Anonymous: true}, InsecurePolicy: true,
		Root: tb.TempDir(), RetryDelay: time.Millisecond, TempDir: tb.TempDir(), Logger: testLog(tb),
	}
}

// openSource opens an image as the pipeline does.
func openSource(tb testing.TB, ref string, o fetch.Options) Source {
	tb.Helper()
	img := check(fetch.Open(tb.Context(), ref, o))(tb)
	tb.Cleanup(func() { img.Close() })
	return sourceOf(img)
}

func sourceOf(img *fetch.Image) Source {
	return Source{
		Reference: img.Reference.String(), Manifest: img.Manifest, Index: img.Index,
		Config: img.Config, Layer: img.Layer, Retry: fetch.IsRetryable,
	}
}

// pull pulls an image and fails the test on any error.
func pull(tb testing.TB, s *Store, ref string, names ...string) *PullResult {
	tb.Helper()
	return check(s.Pull(tb.Context(), openSource(tb, ref, fetchOptions(tb)), PullOptions{Names: names, MinFree: -1}))(tb)
}

// eventLog collects the events of a pull.
type eventLog struct {
	mu     sync.Mutex
	events []Event
}

func (l *eventLog) add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

// podman runs podman on a store and returns what it prints.
func podman(tb testing.TB, s *Store, args ...string) string {
	tb.Helper()
	out, err := runPodman(tb, s.options, args...)
	if err != nil {
		tb.Fatalf("podman %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func runPodman(tb testing.TB, o Options, args ...string) (string, error) {
	tb.Helper()
	return runTool(tb, "podman", append([]string{"--root", o.GraphRoot, "--runroot", o.RunRoot, "--storage-driver", "overlay"}, args...)...)
}

// runTool runs a tool of the containers projects, away from the configuration
// and the stores of the machine.
func runTool(tb testing.TB, name string, args ...string) (string, error) {
	tb.Helper()
	testutil.RequireRoot(tb)
	path := testutil.RequireTool(tb, name, name)
	cmd := exec.CommandContext(tb.Context(), path, args...)
	home := tb.TempDir()
	must(tb, os.WriteFile(filepath.Join(home, "storage.conf"), []byte("[storage]\ndriver = \"overlay\"\ngraphroot = \""+home+"/g\"\nrunroot = \""+home+"/r\"\n"), 0o600))
	must(tb, os.WriteFile(filepath.Join(home, "containers.conf"), []byte("[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n"), 0o600))
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_RUNTIME_DIR="+home, "XDG_CONFIG_HOME="+home,
		"CONTAINERS_STORAGE_CONF="+home+"/storage.conf", "CONTAINERS_CONF="+home+"/containers.conf")
	cmd.WaitDelay = 20 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, errs.String())
	}
	return out.String(), err
}

// unmountStore takes away the mount that podman leaves on a store.
func unmountStore(tb testing.TB, o Options) {
	tb.Helper()
	tb.Cleanup(func() {
		for _, dir := range []string{filepath.Join(o.GraphRoot, driverDir)} {
			_ = exec.Command("umount", "--lazy", dir).Run()
		}
	})
}

// tree is what a directory holds, by path: types, modes, sizes and link targets.
func tree(tb testing.TB, dir string) map[string]string {
	tb.Helper()
	out := map[string]string{}
	must(tb, filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		text := fmt.Sprintf("%v %d", info.Mode(), info.Size())
		if info.IsDir() {
			text = info.Mode().String()
		}
		if info.Mode()&os.ModeSymlink != 0 {
			text = "-> " + check(os.Readlink(path))(tb)
		}
		out[strings.TrimPrefix(path, dir)] = text
		return nil
	}))
	return out
}

// readJSON reads a JSON file of the store.
func readJSON[T any](tb testing.TB, path string) (v T) {
	tb.Helper()
	must(tb, json.Unmarshal(check(os.ReadFile(path))(tb), &v))
	return v
}

// helperProcess does what the environment asks this test binary for, as another
// process, and reports whether it did.
func helperProcess() bool {
	job, ok := os.LookupEnv("CSTOR_TEST_HELPER")
	if !ok {
		return false
	}
	if err := helpers[job](context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	return true
}

// helpers are the jobs of helperProcess.
var helpers = map[string]func(context.Context) error{
	"pull": helpPull,
	"lock": helpLock,

	"host-store": helpHostStore,
}

// helpPull pulls the references CSTOR_REF and gives the images the names
// CSTOR_NAMES.
func helpPull(ctx context.Context) (err error) {
	s, err := Ensure(ctx, Options{GraphRoot: os.Getenv("CSTOR_ROOT"), RunRoot: os.Getenv("CSTOR_RUN")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	for _, ref := range strings.Fields(os.Getenv("CSTOR_REF")) {
		img, err := fetch.Open(ctx, ref, fetch.Options{
			OS: "linux", Architecture: "amd64", Auth: fetch.Auth{Anonymous: true}, InsecurePolicy: true,
			Root: os.Getenv("CSTOR_TMP"), TempDir: os.Getenv("CSTOR_TMP"),
		})
		if err != nil {
			return err
		}
		_, err = s.Pull(ctx, sourceOf(img), PullOptions{Names: strings.Fields(os.Getenv("CSTOR_NAMES")), MinFree: -1})
		if err := errors.Join(err, img.Close()); err != nil {
			return err
		}
	}
	return nil
}

// helpLock takes the POSIX lock CSTOR_LOCK, as the library does, says so, and
// holds it until its input ends.
func helpLock(context.Context) error {
	f, err := os.OpenFile(os.Getenv("CSTOR_LOCK"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		return err
	}
	fmt.Println("locked")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// startHelper starts another process for a job. It returns what the process
// writes to stderr, once it has ended.
func startHelper(tb testing.TB, job string, env ...string) (*exec.Cmd, *bytes.Buffer) {
	tb.Helper()
	cmd, errs := helperCommand(tb, job, env)
	must(tb, cmd.Start())
	return cmd, errs
}

// pullElsewhere pulls in another process, so that this one has not opened the
// store's locks for writing.
func pullElsewhere(tb testing.TB, o Options, ref, name string) {
	tb.Helper()
	testutil.RequireRoot(tb)
	cmd, errs := startHelper(tb, "pull", "CSTOR_ROOT="+o.GraphRoot, "CSTOR_RUN="+o.RunRoot, "CSTOR_REF="+ref,
		"CSTOR_NAMES="+name, "CSTOR_TMP="+tb.TempDir())
	if err := cmd.Wait(); err != nil {
		tb.Fatalf("%v\n%s", err, errs)
	}
}

// startHelperWithInput is startHelper with pipes to the process and from it.
func startHelperWithInput(tb testing.TB, job string, env ...string) (cmd *exec.Cmd, in io.WriteCloser, out io.ReadCloser) {
	tb.Helper()
	cmd, _ = helperCommand(tb, job, env)
	in, out = check(cmd.StdinPipe())(tb), check(cmd.StdoutPipe())(tb)
	must(tb, cmd.Start())
	return cmd, in, out
}

func helperCommand(tb testing.TB, job string, env []string) (*exec.Cmd, *bytes.Buffer) {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), check(os.Executable())(tb))
	cmd.Env = append(append(os.Environ(), "CSTOR_TEST_HELPER="+job), env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	return cmd, &errs
}
