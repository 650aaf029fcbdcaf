// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package tarraw

import (
	"io"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cfs-pull/cfs-pull/composefs/tree"
)

// entry is what header() makes, changed by f.
func entry(f func(*Entry)) *Entry {
	e := &Entry{Type: TypeRegular, Name: "f", Mode: 0o644, UID: 1000, GID: 100, MtimeSec: 0o14524631000, HasDev: true}
	if f != nil {
		f(e)
	}
	return e
}

var ignoreOffset = cmpopts.IgnoreFields(Entry{}, "Offset", "Object")

func TestAccepted(t *testing.T) {
	long := strings.Repeat("n", 300)
	tests := []struct {
		name    string
		archive string
		want    []*Entry
	}{
		{"nothing at all", "", nil},
		{"end marker only", zeros(2), nil},
		{"end marker and garbage", zeros(2) + "garbage", nil},
		{"no end marker", header(), []*Entry{entry(nil)}},
		{"second archive after the end", header() + zeros(2) + header(name("g")) + zeros(2), []*Entry{entry(nil)}},
		{"single zero block between members", header() + zeros(1) + header() + zeros(2), []*Entry{entry(nil), entry(nil)}},
		{"single zero block after an extension record", longName("a") + zeros(1) + header() + zeros(2),
			[]*Entry{entry(func(e *Entry) { e.Name = "a" })}},

		{"base-256 size", header(rawSize("\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03")) + blocks("abc"),
			[]*Entry{entry(func(e *Entry) { e.Size = 3; e.Content = []byte("abc") })}},
		{"base-256 with bits above 64", header(rawSize("\x80\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x03")) + blocks("abc"),
			[]*Entry{entry(func(e *Entry) { e.Size = 3; e.Content = []byte("abc") })}},
		{"base-256 ids", header(uid("\x80\x00\x00\x00\xb2\xd0\x5e\x00"), gid("\xff\xff\xff\xff\xff\xff\xff\xff")),
			[]*Entry{entry(func(e *Entry) { e.UID = 3000000000; e.GID = math.MaxUint32 })}},
		{"base-256 time before the epoch", header(mtime(strings.Repeat("\xff", 12))),
			[]*Entry{entry(func(e *Entry) { e.MtimeSec = -1 })}},
		{"octal with spaces", header(mode(" \t 755 \x00")), []*Entry{entry(func(e *Entry) { e.Mode = 0o755 })}},
		{"octal cut at NUL", header(mode("755\x00zzz\x00")), []*Entry{entry(func(e *Entry) { e.Mode = 0o755 })}},
		{"octal without end", header(mode("00000755")), []*Entry{entry(func(e *Entry) { e.Mode = 0o755 })}},
		{"octal with plus sign", header(mode("+000755\x00")), []*Entry{entry(func(e *Entry) { e.Mode = 0o755 })}},
		{"octal empty", header(mode(pad("", 8))), []*Entry{entry(func(e *Entry) { e.Mode = 0 })}},
		{"octal blank", header(mode("       \x00")), []*Entry{entry(func(e *Entry) { e.Mode = 0 })}},
		{"mode is not masked", header(mode("7777777\x00")), []*Entry{entry(func(e *Entry) { e.Mode = 0o7777777 })}},
		{"mode cut to 32 bits", header(mode("\x80\x00\x00\x01\x00\x00\x01\xed")), []*Entry{entry(func(e *Entry) { e.Mode = 0o755 })}},

		{"ustar prefix", header(prefix("a/b")), []*Entry{entry(func(e *Entry) { e.Name = "a/b/f" })}},
		{"ustar prefix, empty name", header(prefix("a"), raw(0, "\x00")), []*Entry{entry(func(e *Entry) { e.Name = "a/" })}},
		{"GNU has no prefix", header(prefix("a/b"), magic(gnuMagic)), []*Entry{entry(nil)}},
		{"old headers have no prefix and no devices", header(prefix("a"), magic(oldMagic), devices("garbage", "garbage")),
			[]*Entry{entry(func(e *Entry) { e.HasDev = false })}},
		{"half a magic is none", header(prefix("a"), magic("ustar\x00  ")), []*Entry{entry(func(e *Entry) { e.HasDev = false })}},
		{"name of 100 bytes", header(name(long[:100])), []*Entry{entry(func(e *Entry) { e.Name = long[:100] })}},
		{"name of any bytes", header(name("\xff\n\x01")), []*Entry{entry(func(e *Entry) { e.Name = "\xff\n\x01" })}},
		{"long name", longName(long) + header(prefix("a")), []*Entry{entry(func(e *Entry) { e.Name = long })}},
		{"long name without NUL", member(long, typ('L')) + header(), []*Entry{entry(func(e *Entry) { e.Name = long })}},
		{"long name, only the last NUL goes", member("a\x00\x00", typ('L')) + header(), []*Entry{entry(func(e *Entry) { e.Name = "a\x00" })}},
		{"long link", longLink(long) + header(typ('2'), linkname("short")),
			[]*Entry{entry(func(e *Entry) { e.Type = '2'; e.Linkname = long })}},
		{"empty long link", longLink("") + header(typ('2'), linkname("short")),
			[]*Entry{entry(func(e *Entry) { e.Type = '2' })}},
		{"long name and long link and pax", longName("a") + longLink("b") + pax("path", "c") + header(),
			[]*Entry{entry(func(e *Entry) { e.Name = "c"; e.Linkname = "b" })}},
		{"pax then long name", pax("path", "c") + longName("a") + header(), []*Entry{entry(func(e *Entry) { e.Name = "c" })}},
		{"pax link", pax("linkpath", long) + longLink("b") + header(typ('1')),
			[]*Entry{entry(func(e *Entry) { e.Type = '1'; e.Linkname = long })}},
		{"records are used once", longName("a") + header() + header(), []*Entry{entry(func(e *Entry) { e.Name = "a" }), entry(nil)}},

		{"pax numbers", pax("uid", "4294967294", "gid", "+70000", "size", "003", "mtime", "1.5") + header() + blocks("abc"),
			[]*Entry{entry(func(e *Entry) {
				e.UID, e.GID, e.Size, e.MtimeSec, e.MtimeNsec = 4294967294, 70000, 3, 1, 500000000
				e.Content = []byte("abc")
			})}},
		{"pax ids cut to 32 bits", pax("uid", "4294967297") + header(), []*Entry{entry(func(e *Entry) { e.UID = 1 })}},
		{"pax size overrides a larger one", pax("size", "0") + header(size(1<<20)), []*Entry{entry(nil)}},
		{"pax size overrides a size that no file has", pax("size", "3") + header(rawSize("\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff")) + blocks("abc"),
			[]*Entry{entry(func(e *Entry) { e.Size = 3; e.Content = []byte("abc") })}},
		{"pax time, whole", pax("mtime", "7") + header(), []*Entry{entry(func(e *Entry) { e.MtimeSec = 7 })}},
		{"pax time, dot only", pax("mtime", "7.") + header(), []*Entry{entry(func(e *Entry) { e.MtimeSec = 7 })}},
		{"pax time, ten digits", pax("mtime", "7.1234567899") + header(),
			[]*Entry{entry(func(e *Entry) { e.MtimeSec, e.MtimeNsec = 7, 123456789 })}},
		{"pax time, bad fraction", pax("mtime", "7.5x") + header(), []*Entry{entry(func(e *Entry) { e.MtimeSec = 7 })}},
		{"pax time, two dots", pax("mtime", "7.5.5") + header(), []*Entry{entry(func(e *Entry) { e.MtimeSec = 7 })}},
		{"pax time twice: last seconds, first fraction", pax("mtime", "7.25", "mtime", "9.75") + header(),
			[]*Entry{entry(func(e *Entry) { e.MtimeSec, e.MtimeNsec = 9, 250000000 })}},
		{"pax time twice: first without fraction", pax("mtime", "7", "mtime", "9.75") + header(),
			[]*Entry{entry(func(e *Entry) { e.MtimeSec = 9 })}},
		{"pax attributes", pax("SCHILY.xattr.user.b", "1", "SCHILY.xattr.user.a", "x=y\n\x00", "SCHILY.xattr.user.b", "2",
			"LIBARCHIVE.xattr.user.c", "Yg==", "SCHILY.xattr.", "") + header(),
			[]*Entry{entry(func(e *Entry) {
				e.Xattrs = []tree.Xattr{{Name: "", Value: []byte{}}, {Name: "user.a", Value: []byte("x=y\n\x00")}, {Name: "user.b", Value: []byte("2")}}
			})}},
		{"pax unknown keys", pax("comment", "\xff", "", "", "GNU.sparse.foo", "-1") + header(), []*Entry{entry(nil)}},
		{"pax data ends at what has no length", member(paxData("path", "a")+"\x00\x00 junk "+paxRecord("path", "b"), typ('x')) + header(),
			[]*Entry{entry(func(e *Entry) { e.Name = "a" })}},
		{"pax record length with plus and zeros", member("+0013 path=a\n", typ('x')) + header(),
			[]*Entry{entry(func(e *Entry) { e.Name = "a" })}},
		{"empty pax header", pax() + header(), []*Entry{entry(nil)}},
		{"sparse keys that do not make a sparse file", pax("GNU.sparse.major", "1", "GNU.sparse.minor", "1", "GNU.sparse.realsize", "5",
			"GNU.sparse.numbytes", "3", "GNU.sparse.name", "real", "path", "fake") + header(),
			[]*Entry{entry(func(e *Entry) { e.Name = "real" })}},

		{"global header is not applied", member(paxData("path", "g", "uid", "-1"), typ('g')) + header(), []*Entry{entry(nil)}},
		{"global header needs no magic", member("garbage", typ('g'), magic(oldMagic), mode("garbage\x00")) + header(), []*Entry{entry(nil)}},
		{"global header voids records before it", longName("a") + pax("uid", "1") + member("", typ('g')) + header(), []*Entry{entry(nil)}},
		{"global header between equal records", longName("a") + member("", typ('g')) + longName("b") + header(),
			[]*Entry{entry(func(e *Entry) { e.Name = "b" })}},

		{"old headers have no extension records", member("data", typ('L'), magic(oldMagic)) + member("", typ('x'), magic(oldMagic)) + header(),
			[]*Entry{
				entry(func(e *Entry) { e.Type = 'L'; e.Size = 4; e.HasDev = false }),
				entry(func(e *Entry) { e.Type = 'x'; e.HasDev = false }),
				entry(nil),
			}},
		{"sparse type in an old header", member("data", typ('S'), magic(oldMagic)),
			[]*Entry{entry(func(e *Entry) { e.Type = 'S'; e.Size = 4; e.HasDev = false })}},
		{"NUL type", header(typ(0), name("d/")), []*Entry{entry(func(e *Entry) { e.Name = "d/" })}},
		{"device", header(typ('3'), devices("0000005\x00", "0000377\x00")),
			[]*Entry{entry(func(e *Entry) { e.Type = '3'; e.Devmajor, e.Devminor = 5, 255 })}},
		{"directory with a body", member(body(600), typ('5')), []*Entry{entry(func(e *Entry) { e.Type = '5'; e.Size = 600 })}},
		{"hard link with a body", member(body(65), typ('1'), linkname("g")) + header(),
			[]*Entry{entry(func(e *Entry) { e.Type = '1'; e.Size = 65; e.Linkname = "g" }), entry(nil)}},
		{"64 bytes are inline", member(body(64)), []*Entry{entry(func(e *Entry) { e.Size = 64; e.Content = []byte(body(64)) })}},
		{"65 bytes are external", member(body(65)), []*Entry{entry(func(e *Entry) { e.Size = 65 })}},
		{"contiguous file", member(body(512), typ('7')), []*Entry{entry(func(e *Entry) { e.Type = '7'; e.Size = 512 })}},
		{"unknown type", member(body(70), typ('V')), []*Entry{entry(func(e *Entry) { e.Type = 'V'; e.Size = 70 })}},
		{"garbage as padding", header(size(65)) + body(65) + strings.Repeat("p", BlockSize-65) + zeros(2),
			[]*Entry{entry(func(e *Entry) { e.Size = 65 })}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, pieces, err := frame(strings.NewReader(test.archive), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, ignoreOffset); diff != "" {
				t.Errorf("entries (-want +got):\n%s", diff)
			}
			if join(pieces) != test.archive {
				t.Error("pieces do not make the archive")
			}
			again, err := readStream(&fakeChunks{pieces: pieces})
			if err != nil {
				t.Fatalf("stream: %v", err)
			}
			if diff := cmp.Diff(got, again, cmpopts.IgnoreFields(Entry{}, "Object")); diff != "" {
				t.Errorf("stream (-archive +stream):\n%s", diff)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	huge := "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff"
	tests := []struct {
		name    string
		archive string
		rule    string
		entry   string
		offset  int64
	}{
		{"checksum", header() + badSum(header(), "000001"), RuleChecksum, "f", 512},
		{"checksum not octal", badSum(header(), "9"), RuleChecksum, "f", 0},
		{"signed checksum", badSum(header(name("\xff")), signedSum(header(name("\xff")))), RuleChecksum, "\xff", 0},
		{"garbage", strings.Repeat("g", 512), RuleChecksum, strings.Repeat("g", 100), 0},
		{"mode", header(mode("0000648\x00")), RuleNumber, "f", 0},
		{"mode with a space inside", header(mode("0 644\x00")), RuleNumber, "f", 0},
		{"mode, plus sign alone", header(mode("+\x00")), RuleNumber, "f", 0},
		{"mode, two plus signs", header(mode("++644\x00")), RuleNumber, "f", 0},
		{"uid, though pax overrides it", pax("uid", "1") + header(uid("zzz\x00")), RuleNumber, "f", 1024},
		{"gid", header(gid("-1\x00")), RuleNumber, "f", 0},
		{"mtime", header(mtime("-1\x00")), RuleNumber, "f", 0},
		{"size", header(rawSize("zzz\x00")), RuleNumber, "f", 0},
		{"device number", header(devices("zzz\x00", "")), RuleNumber, "f", 0},
		{"device numbers are never base-256", header(devices("", "\x80\x00\x00\x00\x00\x00\x00\x01")), RuleNumber, "f", 0},
		{"size of 2^64-1", header(rawSize(strings.Repeat("\xff", 12))), RuleSize, "f", 0},
		{"size of 2^63-1", header(rawSize(huge)), RuleSize, "f", 0},
		{"pax size of 2^63", pax("size", "9223372036854775808") + header(), RuleSize, "f", 1024},

		{"empty name", header(raw(0, "\x00")), RulePath, "", 0},
		{"empty long name", longName("") + header(), RulePath, "f", 1024},
		{"empty pax name", pax("path", "") + header(), RulePath, "f", 1024},

		{"two long names", longName("a") + longName("b") + header(), RuleDuplicate, "f", 1024},
		{"two long links", longLink("a") + longName("b") + longLink("c") + header(), RuleDuplicate, "f", 2048},
		{"two pax headers", pax("uid", "1") + pax("gid", "1") + header(), RuleDuplicate, "PaxHeaders/f", 1024},
		{"end after a record", longName("a") + zeros(2), RuleOrphan, "f", 1536},

		{"pax length beyond the data", member("99 path=a\n", typ('x')) + header(), RulePax, "f", 1024},
		{"pax length too small", member("3 path=a\n", typ('x')) + header(), RulePax, "f", 1024},
		{"pax length zero", member("0 path=a\n", typ('x')) + header(), RulePax, "f", 1024},
		{"pax without newline", member("9 path=ab", typ('x')) + header(), RulePax, "f", 1024},
		{"pax without equals sign", member("7 path\n", typ('x')) + header(), RulePax, "f", 1024},
		{"pax key not UTF-8", pax("\xff", "a") + header(), RulePax, "f", 1024},
		{"pax uid", pax("uid", "-1") + header(), RulePaxNumber, "f", 1024},
		{"pax gid", pax("gid", " 1") + header(), RulePaxNumber, "f", 1024},
		{"pax size", pax("size", "") + header(), RulePaxNumber, "f", 1024},
		{"pax size overflow", pax("size", "18446744073709551616") + header(), RulePaxNumber, "f", 1024},
		{"pax sparse number", pax("GNU.sparse.realsize", "x") + header(), RulePaxNumber, "f", 1024},
		{"pax sparse version", pax("GNU.sparse.major", "x") + header(), RulePaxNumber, "f", 1024},
		{"pax time, name follows", pax("mtime", "-1.5", "path", "the/name") + header(), RulePaxTime, "the/name", 1024},
		{"pax time empty", pax("mtime", "") + header(), RulePaxTime, "f", 1024},
		{"pax time in hex", pax("mtime", "0x10") + header(), RulePaxTime, "f", 1024},
		{"pax time not UTF-8", pax("mtime", "1.\xff") + header(), RulePaxTime, "f", 1024},

		{"sparse type", header(typ('S'), magic(gnuMagic)), RuleSparse, "f", 0},
		{"sparse type, ustar", header(typ('S')), RuleSparse, "f", 0},
		{"sparse 0.0", pax("GNU.sparse.offset", "0", "GNU.sparse.numbytes", "1") + header(), RuleSparse, "f", 1024},
		{"sparse 0.1", pax("GNU.sparse.map", "0,1") + header(), RuleSparse, "f", 1024},
		{"sparse 1.0", pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "s") + header(), RuleSparse, "s", 1024},

		{"long name too long", header(typ('L'), size(1<<20+1)), RuleExtension, "f", 0},
		{"records too long together", longName(body(1<<20-1)) + header(typ('K'), size(1)), RuleExtension, "f", 1<<20 + 512},
		{"global header too long", header(typ('g'), size(1<<20+1)), RuleExtension, "f", 0},

		{"cut in a header", header()[:511], RuleTruncated, "", 511},
		{"cut after a record header", header(typ('L'), size(10)), RuleTruncated, "f", 512},
		{"cut after a record", longName("a"), RuleTruncated, "f", 1024},
		{"cut in a global header", header(typ('g'), size(513)) + body(512), RuleTruncated, "f", 1024},
		{"cut after one zero block", header() + zeros(1), RuleTruncated, "", 1024},
		{"cut in the second zero block", zeros(1) + "\x00", RuleTruncated, "", 513},
		{"cut in a small body", header(size(3)) + "abc", RuleTruncated, "f", 515},
		{"cut in a large body", header(size(1000)) + body(999), RuleTruncated, "f", 1511},
		{"cut before a large body", header(size(1000)), RuleTruncated, "f", 512},
		{"cut in padding", header(size(1000)) + body(1000), RuleTruncated, "f", 1512},
		{"cut in a directory's body", header(size(1000), typ('5')) + body(1000), RuleTruncated, "f", 1512},
		{"size that lies", header(rawSize("77777777777\x00")) + body(100), RuleTruncated, "f", 612},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := frame(strings.NewReader(test.archive), Limits{})
			e := wantRule(t, err, test.rule)
			if e.Entry != test.entry || e.Offset != test.offset {
				t.Errorf("error names %q at %d, want %q at %d: %v", e.Entry, e.Offset, test.entry, test.offset, err)
			}
			if e.Error() == "" || e.Unwrap() == nil {
				t.Error("error has no text or no cause")
			}
		})
	}
}

// signedSum is the checksum that some old programs wrote.
func signedSum(h string) string {
	sum := 8 * int(' ')
	for i := range len(h) {
		if i < 148 || i >= 156 {
			sum += int(int8(h[i]))
		}
	}
	return "00" + string([]byte{byte('0' + sum>>9&7), byte('0' + sum>>6&7), byte('0' + sum>>3&7), byte('0' + sum&7)})
}

func TestLimits(t *testing.T) {
	long := strings.Repeat("n", 1<<20-1)
	entries, _, err := frame(strings.NewReader(longName(long)+header()+longLink(long)+header()), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if entries[0].Name != long || entries[1].Linkname != long {
		t.Error("names of a MiB are not kept")
	}

	archive := longName("aaa") + longLink("bbb") + pax("uid", "1") + header()
	if _, _, err := frame(strings.NewReader(archive), Limits{MaxExtension: 16, MaxPending: 3}); err != nil {
		t.Error(err)
	}
	_, _, err = frame(strings.NewReader(archive), Limits{MaxExtension: 15})
	wantRule(t, err, RuleExtension)
	_, _, err = frame(strings.NewReader(archive), Limits{MaxPending: 2})
	wantRule(t, err, RulePending)

	// 1 MiB of attributes with one name, and with many.
	var same, many strings.Builder
	for i := 0; same.Len() < 1<<20-100; i++ {
		same.WriteString(paxRecord("SCHILY.xattr.user.a", string(rune('0'+i%10))))
	}
	for i := 0; many.Len() < 1<<20-100; i++ {
		many.WriteString(paxRecord("SCHILY.xattr."+string(rune('a'+i%26))+string(rune('a'+i/26%26))+string(rune('a'+i/676%26)), "v"))
	}
	entries, _, err = frame(strings.NewReader(member(same.String(), typ('x'))+header()+member(many.String(), typ('x'))+header()), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(entries[0].Xattrs); n != 1 {
		t.Errorf("%d attributes of one name", n)
	}
	if n := len(entries[1].Xattrs); n != 26*26*26 {
		t.Errorf("%d attributes, want %d", n, 26*26*26)
	}
}

func TestErrorText(t *testing.T) {
	err := &Error{Entry: strings.Repeat("\n", 1000), Offset: 7, Rule: RulePax, Err: io.ErrUnexpectedEOF}
	if len(err.Error()) > 1000 || strings.Contains(err.Error(), "\n") {
		t.Errorf("error text is not bounded and quoted: %d bytes", len(err.Error()))
	}
}
