// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

func TestMatchUKI(t *testing.T) {
	a, b, s := hex512("a"), hex512("b"), hex256("5")
	tried := candidates(t, a, b, hex512("c"), s)
	for _, tt := range []struct {
		name, cmdline string
		match         string // id, or "" for a mismatch
		insecure      bool
		found         string // id of the mismatch
		parse         bool   // the mismatch is a parse error
	}{
		{name: "first", cmdline: "composefs=" + a, match: a},
		{name: "second", cmdline: "composefs.digest=v2-sha512-12:" + b, match: b},
		{name: "the form does not matter", cmdline: "composefs.digest=v1-sha512-12:" + b, match: b},
		{name: "insecure", cmdline: "composefs=?" + b, match: b, insecure: true},
		{name: "other algorithm", cmdline: "composefs.digest=v1-sha256-12:" + s, match: s},
		{name: "both algorithms, one fits", cmdline: "composefs.digest=v1-sha512-12:" + hex512("e") + " composefs.digest=v1-sha256-12:" + s, match: s},
		{name: "another image", cmdline: "composefs=" + hex512("d"), found: hex512("d")},
		{name: "no argument", cmdline: "quiet"},
		{name: "malformed", cmdline: "composefs=xyz", parse: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sections := &Sections{HasCmdline: true, Cmdline: tt.cmdline}
			got, karg, err := MatchUKI(sections, tried)
			if check := CheckUKI(sections, tried); (check == nil) != (err == nil) {
				t.Errorf("CheckUKI says %v, MatchUKI %v", check, err)
			}
			if tt.match != "" {
				if err != nil || got.ID.String() != tt.match || karg.ID != got.ID || karg.Insecure != tt.insecure {
					t.Errorf("got %v, %+v, %v", got, karg, err)
				}
				return
			}
			var mismatch *MismatchError
			if !errors.As(err, &mismatch) {
				t.Fatalf("got error %v, want a *MismatchError", err)
			}
			if mismatch.Found.String() != tt.found || (mismatch.Err != nil) != tt.parse {
				t.Errorf("got %+v", mismatch)
			}
			if diff := cmp.Diff(tried, mismatch.Tried, cmp.Comparer(func(a, b fsverity.Digest) bool { return a == b })); diff != "" {
				t.Errorf("tried (-want +got):\n%s", diff)
			}
			if !tt.parse {
				for _, c := range tried {
					if !strings.Contains(err.Error(), c.String()) {
						t.Errorf("error %q does not list %s", err, c)
					}
				}
			}
		})
	}
	err := CheckUKI(&Sections{}, tried)
	if mismatch := (*MismatchError)(nil); !errors.As(err, &mismatch) || !errors.Is(err, ErrNoSection) {
		t.Errorf("without .cmdline: %v", err)
	}
	if err := CheckUKI(&Sections{HasCmdline: true, Cmdline: "composefs=" + a}, nil); err == nil {
		t.Error("without candidates: no error")
	}
}
