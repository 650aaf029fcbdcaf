// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package filelock

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	const table = `1: FLOCK  ADVISORY  WRITE 4242 fd:01:262146 0 EOF
1: -> FLOCK  ADVISORY  READ 4243 fd:01:262146 0 EOF
2: POSIX  ADVISORY  WRITE 17 00:1b:99 0 EOF
3: FLOCK  ADVISORY  READ 0 00:1b:99 0 EOF
4: FLOCK  ADVISORY  READ 18 00:1b:18446744073709551615 0 EOF
5: FLOCK
6: FLOCK  ADVISORY  READ x 00:1b:1 0 EOF
7: FLOCK  ADVISORY  READ 19 1b:1 0 EOF
`
	want := []line{
		{pid: 4242, write: true, major: 0xfd, minor: 1, inode: 262146},
		{pid: 18, minor: 0x1b, inode: 1<<64 - 1},
	}
	if diff := cmp.Diff(want, parse(strings.NewReader(table), "FLOCK"), cmp.AllowUnexported(line{})); diff != "" {
		t.Errorf("locks (-want +got):\n%s", diff)
	}
}

func TestHolders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := PosixHolders(path, false); len(got) != 0 {
		t.Errorf("holders of a lock that nobody has: %v", got)
	}
	err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_RDLCK})
	if err != nil {
		t.Fatal(err)
	}
	if got := PosixHolders(path, false); !cmp.Equal(got, []Holder{Self()}) {
		t.Errorf("holders %v, want this process", got)
	}
	if got := PosixHolders(path, true); len(got) != 0 {
		t.Errorf("a reader counts as a writer: %v", got)
	}
	if got := FlockHolders(f, false); len(got) != 0 {
		t.Errorf("a POSIX lock counts as flock: %v", got)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if got := FlockHolders(f, true); !cmp.Equal(got, []Holder{Self()}) {
		t.Errorf("holders %v, want this process", got)
	}
}
