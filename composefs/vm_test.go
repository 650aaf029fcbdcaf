// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"strings"
	"testing"

	"github.com/cfs-pull/cfs-pull/internal/microvm"
)

// skippedInVM are tests for which a kernel with fs-verity makes no difference,
// and that take their time in an emulated machine.
const skippedInVM = "Fuzz|Vector|InVM|ReadBack|LinkStreamOnceRace|CloseWhileBusy|" +
	"CollectGarbage|Upgrade|Reset(Interrupted|Locks|Plan|Elsewhere|Mount)|EachDirent|ParseMeta|ParseLocks|ConcurrentPut/no_|" +
	"TestFsck$|Fsck(Help|Users|Only|Padding|Bounded|Cancelled|ReadOnly|Work)"

// TestInVM runs the tests of this package with a kernel and a file system that
// have fs-verity, in place of the stand-in.
func TestInVM(t *testing.T) {
	microvm.Require(t)
	result, err := microvm.Run(t.Context(), microvm.Config{
		Files: map[string]string{"/bin/composefs.test": microvm.GoTestBinary(t, "./composefs")},
		Disks: []microvm.Disk{{Path: microvm.Ext4(t, 256)}},
		Script: "mount -t ext4 /dev/vda /mnt && " + needKernel + "=1 TMPDIR=/mnt " +
			"composefs.test -test.short -test.v -test.skip '" + skippedInVM + "'",
	})
	if err != nil || result.ExitCode != 0 {
		t.Fatalf("%v\n%s", err, result)
	}
	t.Log(result.Output)
	for _, want := range []string{"--- PASS: TestBrokenObjects/secure ", "--- PASS: TestConcurrentPut/secure ", "--- PASS: TestStoreWhileForking/slow", "--- PASS: TestWrongDigest/verity_not_required", "--- PASS: TestFsckSecure/an_object_without_fs-verity", "--- PASS: TestResetToSecure "} {
		if !strings.Contains(result.Output, want) {
			t.Errorf("the output has no %q:\n%s", want, result)
		}
	}
}
