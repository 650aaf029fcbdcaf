// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package crashtest

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// becomeTraced installs the filter that stops this process and its children
// before each call of the request, and turns into the command.
func becomeTraced(text string) error {
	var r request
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return err
	}
	calls, err := numbers(r.Plan.Calls)
	if err != nil {
		return err
	}
	program, err := exec.LookPath(r.Command[0])
	if err != nil {
		return err
	}
	environment := os.Environ()
	// The filter belongs to a thread, and exec keeps that of its own.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	filter := traceFilter(calls)
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
		return fmt.Errorf("install seccomp filter: %w", err)
	}
	return fmt.Errorf("run %s: %w", program, unix.Exec(program, r.Command, environment))
}

// What seccomp hands a filter: offsets in struct seccomp_data, and the name of
// the instruction set.
const (
	dataNumber = 0
	dataArch   = 4
	archX86    = 0xc000003e
)

// traceFilter is a seccomp filter that asks the tracer about calls and allows
// everything else.
func traceFilter(calls []uint32) []unix.SockFilter {
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	jump := func(k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: yes, Jf: no, K: k}
	}
	answer := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	filter := []unix.SockFilter{load(dataArch), jump(archX86, 0, uint8(len(calls)+1)), load(dataNumber)}
	for i, nr := range calls {
		filter = append(filter, jump(nr, uint8(len(calls)-i), 0))
	}
	return append(filter, answer(unix.SECCOMP_RET_ALLOW), answer(unix.SECCOMP_RET_TRACE))
}

// tracer is a tracer at work.
type tracer struct {
	request
	main   int // process id of the command
	begun  bool
	result Traced
}

// runTracer is the tracer's whole life.
func runTracer(text string) error {
	t := tracer{}
	if err := json.Unmarshal([]byte(text), &t.request); err != nil {
		return err
	}
	result := os.NewFile(resultFD, "result")
	syscall.CloseOnExec(resultFD)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// All ptrace requests must come from the thread that is the tracer.
	runtime.LockOSThread()
	process, err := os.StartProcess(self, []string{self, tracedArg, text}, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return err
	}
	t.main = process.Pid
	if err := t.loop(); err != nil {
		return errors.Join(err, process.Kill())
	}
	return json.NewEncoder(result).Encode(t.result)
}

// loop answers every stop of every thread until the command has ended.
func (t *tracer) loop() error {
	attached := false
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		case status.Exited() || status.Signaled():
			if pid != t.main {
				continue
			}
			t.result.Killed = status.Signaled()
			t.result.Exit = status.ExitStatus()
			return nil
		case !status.Stopped():
			continue
		}
		if !attached {
			options := unix.PTRACE_O_TRACESECCOMP | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK |
				unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_EXITKILL
			if err := unix.PtraceSetOptions(pid, options); err != nil {
				return fmt.Errorf("set ptrace options: %w", err)
			}
			attached = true
		}
		signal, err := t.stopped(pid, status)
		if err == nil {
			err = unix.PtraceCont(pid, signal)
		}
		// A thread that another one has killed meanwhile is gone.
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("continue: %w", err)
		}
	}
}

// stopped handles one stop; the thread goes on with the signal returned.
func (t *tracer) stopped(pid int, status unix.WaitStatus) (int, error) {
	if status.StopSignal() != unix.SIGTRAP {
		if status.StopSignal() == unix.SIGSTOP {
			return 0, nil // how a new thread begins
		}
		return int(status.StopSignal()), nil
	}
	switch status.TrapCause() {
	case unix.PTRACE_EVENT_EXEC:
		t.begun = true
	case unix.PTRACE_EVENT_SECCOMP:
		if t.begun {
			return 0, t.call(pid)
		}
	}
	return 0, nil
}

// call handles the stop before a system call.
func (t *tracer) call(pid int) error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &regs); err != nil {
		return err
	}
	name := callNames[uint32(regs.Orig_rax)]
	if slices.Contains(t.Plan.Calls, callCreate) && creates(pid, name, &regs) {
		name = callCreate
	} else if !slices.Contains(t.Plan.Calls, name) {
		return nil
	}
	if !t.counts(pid, name, &regs) {
		return nil
	}
	t.result.Calls = append(t.result.Calls, name)
	n := len(t.result.Calls)
	if t.Plan.At == 0 || n < t.Plan.At || n > t.Plan.At && !t.Plan.Sticky {
		return nil
	}
	t.result.Happened = true
	switch {
	case t.Plan.Kill:
		// The call may be a child's.
		return errors.Join(unix.Kill(pid, unix.SIGKILL), unix.Kill(t.main, unix.SIGKILL))
	case t.Plan.Errno != 0:
		// A call with the number -1 is skipped, and the result is what it
		// finds in the register.
		regs.Orig_rax, regs.Rax = ^uint64(0), -uint64(t.Plan.Errno)
		return unix.PtraceSetRegs(pid, &regs)
	case len(t.Plan.Hook) > 0:
		return t.hook()
	}
	return nil
}

// hook runs the command of the plan. Its end must not be taken for a stop of
// the traced program, so it is waited for here, by its id.
func (t *tracer) hook() error {
	process, err := os.StartProcess(t.Plan.Hook[0], t.Plan.Hook, &os.ProcAttr{Files: []*os.File{nil, os.Stderr, os.Stderr}})
	if err != nil {
		return fmt.Errorf("run hook: %w", err)
	}
	state, err := process.Wait()
	if err != nil {
		return fmt.Errorf("run hook: %w", err)
	}
	t.result.HookExit = state.ExitCode()
	return nil
}

// counts says whether a call is one that the plan means.
func (t *tracer) counts(pid int, name string, regs *unix.PtraceRegs) bool {
	switch name {
	case callCreate, "open", "openat", "openat2", "mkdirat", "mkdir", "symlinkat", "linkat", "unlinkat", "unlink", "rmdir",
		"rename", "renameat", "renameat2", "readlinkat", "newfstatat", "statx", "statfs", "faccessat", "faccessat2":
		if t.Plan.Below == "" {
			return true
		}
		where, ok := pathArgument(pid, callNames[uint32(regs.Orig_rax)], regs)
		return ok && below(where, t.Plan.Below)
	case "setxattr", "fchmodat", "fchownat", "utimensat":
		return true
	case "copy_file_range":
		return t.isFile(pid, regs.Rdx)
	case "sendfile":
		return t.isFile(pid, regs.Rdi)
	}
	return t.isFile(pid, regs.Rdi)
}

// creates says whether a call opens a file that it makes.
func creates(pid int, name string, regs *unix.PtraceRegs) bool {
	flags := regs.Rdx
	switch name {
	case "open":
		flags = regs.Rsi
	case "openat":
	case "openat2":
		how := make([]byte, 8)
		if n, err := unix.PtracePeekData(pid, uintptr(regs.Rdx), how); err != nil || n < len(how) {
			return false
		}
		flags = binary.LittleEndian.Uint64(how)
	default:
		return false
	}
	return flags&unix.O_CREAT != 0 || flags&unix.O_TMPFILE == unix.O_TMPFILE
}

// isFile says whether a descriptor is open on a file, below Plan.Below if that
// is set.
func (t *tracer) isFile(pid int, fd uint64) bool {
	target, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/fd/" + strconv.Itoa(int(int32(fd))))
	if err != nil || !strings.HasPrefix(target, "/") || strings.HasPrefix(target, "/dev/") || strings.HasPrefix(target, "/proc/") ||
		strings.HasPrefix(target, "/memfd:") || strings.HasPrefix(target, "/sys/") {
		return false
	}
	return t.Plan.Below == "" || below(target, t.Plan.Below)
}

func below(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// pathArgument is the path that a call names last, where it changes something.
func pathArgument(pid int, name string, regs *unix.PtraceRegs) (string, bool) {
	dirfd, at := uint64(0), uint64(0)
	switch name {
	case "open", "mkdir", "unlink", "rmdir", "statfs":
		minusHundred := int64(unix.AT_FDCWD)
		dirfd, at = uint64(minusHundred), regs.Rdi
	case "symlinkat":
		dirfd, at = regs.Rsi, regs.Rdx
	case "linkat", "renameat", "renameat2":
		dirfd, at = regs.Rdx, regs.R10
	case "rename":
		minusHundred := int64(unix.AT_FDCWD)
		dirfd, at = uint64(minusHundred), regs.Rsi
	default:
		dirfd, at = regs.Rdi, regs.Rsi
	}
	text, ok := readString(pid, at)
	if !ok || strings.HasPrefix(text, "/") {
		return path.Clean(text), ok
	}
	link := "/proc/" + strconv.Itoa(pid) + "/cwd"
	if int32(dirfd) != unix.AT_FDCWD {
		link = "/proc/" + strconv.Itoa(pid) + "/fd/" + strconv.Itoa(int(int32(dirfd)))
	}
	dir, err := os.Readlink(link)
	return path.Join(dir, text), err == nil
}

// readString reads a string of a traced process.
func readString(pid int, at uint64) (string, bool) {
	var text []byte
	word := make([]byte, 256)
	for len(text) <= unix.PathMax {
		// Up to the end of a page: the next one may not be there.
		n := min(len(word), int(4096-at%4096))
		n, err := unix.PtracePeekData(pid, uintptr(at), word[:n])
		if err != nil || n == 0 {
			return "", false
		}
		if end := strings.IndexByte(string(word[:n]), 0); end >= 0 {
			return string(append(text, word[:end]...)), true
		}
		text, at = append(text, word[:n]...), at+uint64(n)
	}
	return "", false
}
