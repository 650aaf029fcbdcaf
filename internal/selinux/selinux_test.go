// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package selinux

import (
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/dlclark/regexp2"
	"github.com/klauspost/compress/zstd"
)

func readPolicy(tb testing.TB) Sources {
	tb.Helper()
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("testdata", "policy", name))
		if err != nil {
			tb.Fatal(err)
		}
		return b
	}
	return Sources{
		FileContexts: read("file_contexts"), Local: read("file_contexts.local"), Homedirs: read("file_contexts.homedirs"),
		Subs: read("file_contexts.subs"), SubsDist: read("file_contexts.subs_dist"),
	}
}

func mustParse(tb testing.TB, src Sources) *Policy {
	tb.Helper()
	p, err := Parse(src)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func TestLookup(t *testing.T) {
	p := mustParse(t, readPolicy(t))
	tests := []struct {
		path string
		kind byte
		want string // the type, or empty
	}{
		{"/", 'd', "root_t"},
		{"/", '-', "default_t"},
		{"/anything", '-', "default_t"},
		{"/new\nline", '-', "default_t"},
		{"/not\xff\xfeutf8", '-', "default_t"},
		{"/with\x00nul", '-', ""},
		{"relative", '-', ""},
		{"", 'd', ""},
		{"/bin/sh", 'l', "bin_t"},
		{"/dev/null", 'c', "null_device_t"},
		{"/dev/null", '-', ""},
		{"/dev/sda1", 'b', "fixed_disk_device_t"},
		{"/dev/sda1", 'c', ""},
		{"/dev/7x", 'c', "usb_device_t"},
		{"/dev/misc/agpgart", 'c', "agp_device_t"},
		{"/dev/log", 's', "devlog_t"},
		{"/run/initctl", 'p', "initctl_t"},
		{"/run/x.pid", '-', ""},
		{"/run/user/%{USERID}", 'd', "user_tmp_t"}, // literal braces: PCRE2 syntax
		{"/etc/shadow", '-', "mine_t"},
		{"/etc/shadow-", '-', "shadow_t"},
		{"/etc/shadow-", 'd', "etc_t"},
		{"/etc/xrc.d/init.d", '-', "etc_rc_t"},
		{"/etc/rc.d/init.d/crond", '-', "initrc_exec_t"},
		{"/etc/a/b.key", '-', "cert_t"},
		{"/etc/axkey", '-', "etc_t"},
		{"/usr", 'd', "usr_t"},
		{"/usr/bin", 'd', "bin_t"},
		{"/usr/a/b/bin/x", '-', "bin_t"},
		{"/usr/bin/bash5.2", '-', "shell_exec_t"},
		{"/usr/bin/bash5.22", '-', "bin_t"},
		{"/usr/lib64/x/y.so.1.2", '-', "textrel_t"},
		{"/usr/lib64/x/y.so.1/2", '-', "lib_t"},
		{"/usr/lib/rust/helper", '-', "helper_exec_t"},
		{"/usr/lib/python/helper", '-', "lib_t"},
		{"/usr/tmp", 'd', "tmp_t"},
		{"/usr/tmp/x", '-', ""},
		{"/usr/local/mine", '-', "mine_t"},
		{"/usr/local/mine", 'd', "other_t"},
		{"/var/lib/SAMBA/x", '-', "samba_var_t"},
		{"/var/log/a_b.20240101.gz", '-', "old_log_t"},
		{"/var/log/a_b.2024010", '-', "var_log_t"},
		{"/var/x/cache", 'l', "cache_link_t"},
		{"/home/me", 'd', "user_home_dir_t"},
		{"/home/me/.ssh/id", '-', "ssh_home_t"},
	}
	for range 2 { // the second round finds all states made
		for _, test := range tests {
			got, ok := p.Lookup(test.path, test.kind)
			if ok != (test.want != "") || ok && strings.Split(got, ":")[2] != test.want {
				t.Errorf("Lookup(%q, %q) = %q, %v, want %q", test.path, test.kind, got, ok, test.want)
			}
		}
	}
	if err := p.Err(); err != nil {
		t.Error(err)
	}
	if got, _ := p.Lookup("/usr/tmp", 'd'); got != "system_u:object_r:tmp_t:s0-s15:c0.c1023" {
		t.Errorf("context is %q", got)
	}
}

func TestAlias(t *testing.T) {
	p := mustParse(t, readPolicy(t))
	for path, want := range map[string]string{
		"/run": "/run2", "/var/home": "/home", "/opt": "/usr/local", "/lib": "/usr/lib", "/lib/x": "", "/": "", "/run/": "",
	} {
		if got, ok := p.Alias(path); got != want || ok != (want != "") {
			t.Errorf("Alias(%q) = %q, %v, want %q", path, got, ok, want)
		}
	}
}

func TestEmptyPolicy(t *testing.T) {
	p := mustParse(t, Sources{FileContexts: []byte("\n# nothing\n   \n")})
	if got, ok := p.Lookup("/", 'd'); ok {
		t.Errorf("context %q of an empty policy", got)
	}
}

func TestParseConfig(t *testing.T) {
	tests := []struct {
		config, want string
		ok           bool
	}{
		{"SELINUX=enforcing\nSELINUXTYPE=targeted\n", "targeted", true},
		{"SELINUXTYPE=targeted", "targeted", true},
		{" selinuxType \t=  mls \r\n", "mls", true},
		{"#SELINUXTYPE=no\nSELINUXTYPE=a\nSELINUXTYPE=b\n", "a", true},
		{"# SELINUXTYPE=no\n", "", false},
		{"SELINUXTYPE = \"quoted\" # and more", "\"quoted\" # and more", true},
		{"SELINUXTYPE=a=b", "a=b", true},
		{"SELINUXTYPE=", "", true},
		{"SELINUXTYPE targeted", "", false},
		{"ſELINUXTYPE=targeted", "", false},
		{"", "", false},
	}
	for _, test := range tests {
		if got, ok := ParseConfig([]byte(test.config)); got != test.want || ok != test.ok {
			t.Errorf("ParseConfig(%q) = %q, %v, want %q, %v", test.config, got, ok, test.want, test.ok)
		}
	}
}

func TestParseErrors(t *testing.T) {
	tests := []struct {
		name string
		src  Sources
		file string
		line int
	}{
		{"no context", Sources{FileContexts: []byte("\n/a\n")}, "file_contexts", 2},
		{"no context behind a type", Sources{Local: []byte("/a -d\n")}, "file_contexts.local", 1},
		{"unknown type", Sources{FileContexts: []byte("/a -x ctx")}, "file_contexts", 1},
		{"long type", Sources{FileContexts: []byte("/a --- ctx")}, "file_contexts", 1},
		{"empty type", Sources{FileContexts: []byte("/a - ctx")}, "file_contexts", 1},
		{"trailing field", Sources{Homedirs: []byte("#\n\n/a -- ctx more")}, "file_contexts.homedirs", 3},
		{"not UTF-8", Sources{FileContexts: []byte("/ok ctx\n# \xff\n")}, "file_contexts", 2},
		{"bad expression", Sources{FileContexts: []byte("/a(b ctx")}, "file_contexts", 1},
		{"unbalanced expression", Sources{FileContexts: []byte("/a)(b ctx")}, "file_contexts", 1},
		{"nothing to repeat", Sources{FileContexts: []byte("*a ctx")}, "file_contexts", 1},
		{"flag without support", Sources{FileContexts: []byte("(?x)a ctx")}, "file_contexts", 1},
		{"one field of an alias", Sources{Subs: []byte("/a")}, "file_contexts.subs", 1},
		{"three fields of an alias", Sources{SubsDist: []byte("# c\n/a /b /c")}, "file_contexts.subs_dist", 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := Parse(test.src)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("error is %v, want an *Error", err)
			}
			if e.File != test.file || e.Line != test.line {
				t.Errorf("error is at %s line %d, want %s line %d: %v", e.File, e.Line, test.file, test.line, err)
			}
		})
	}
}

func TestHostilePolicies(t *testing.T) {
	tests := []struct {
		name, policy string
	}{
		{"size", strings.Repeat("#", MaxPolicySize+1)},
		{"lines", strings.Repeat("/a c\n", 1_000_000)},
		{"long expression", "/" + strings.Repeat("a", MaxRegexSize) + " c"},
		{"large repetition", "/(a{1000}){1000} c"},
		{"repetition count", "/a{99999999999999999999} c"},
		{"repetition of repetitions", "/a" + strings.Repeat("{9}", 40) + " c"},
		{"large optional repetition", "/(a{0,1000}){0,1000} c"},
		{"many large expressions", strings.Repeat("/.{10000}[ab]{10000} c\n", 1000)},
		{"nesting", strings.Repeat("(", 4000) + strings.Repeat(")", 4000) + " c"},
		{"nesting of classes", strings.Repeat("[", 4000) + "a" + strings.Repeat("]", 4000) + " c"},
		{"nesting in PCRE2 syntax", "(?=a)" + strings.Repeat("(", 4000) + strings.Repeat(")", 4000) + " c"},
		{"many in PCRE2 syntax", strings.Repeat("/(?!a)b c\n", MaxFallbacks+1)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			start := time.Now()
			if _, err := Parse(Sources{FileContexts: []byte(test.policy)}); err == nil {
				t.Error("accepted")
			} else if len(err.Error()) > 1000 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
	for _, empty := range []string{"/(){10000} c", "/((){10000}){10000} c", "/(a{0}){9999}{9999} c", "/(((a*)*)*)* c", "/(|a)+ c", "/(^*$*){3,} c"} {
		p := mustParse(t, Sources{FileContexts: []byte(empty)})
		if _, ok := p.Lookup("/", 'd'); !ok || p.Err() != nil {
			t.Errorf("%q does not match: %v", empty, p.Err())
		}
	}
}

func TestCatastrophicExpressions(t *testing.T) {
	path := "/" + strings.Repeat("a", 5000)
	// The automaton takes these in its stride.
	p := mustParse(t, Sources{FileContexts: []byte("/(a+)+b c\n/(a|a)*b c\n/(a*)*(a*)*(a*)*b c\n/(.*a){20}b c\n/(a?){500}b c")})
	if _, ok := p.Lookup(path, '-'); ok || p.Err() != nil {
		t.Errorf("match %v, error %v", ok, p.Err())
	}
	// A backtracking engine does not, and is stopped.
	p = mustParse(t, Sources{FileContexts: []byte("/(?=a)(a+)+b c\n/.* d")})
	if _, ok := p.Lookup("/x", '-'); !ok || p.Err() != nil {
		t.Errorf("match %v, error %v", ok, p.Err())
	}
	// The last line matches, so that nothing else is tried.
	if _, ok := p.Lookup(path, '-'); !ok || p.Err() != nil {
		t.Errorf("match %v, error %v", ok, p.Err())
	}
	p = mustParse(t, Sources{FileContexts: []byte("/.* d\n/(?=a)(a+)+b c")})
	start := time.Now()
	for range 100 {
		if _, ok := p.Lookup(path, '-'); ok {
			t.Error("a match in spite of the error")
		}
	}
	if p.Err() == nil || time.Since(start) > 20*fallbackTimeout {
		t.Errorf("error %v after %v", p.Err(), time.Since(start))
	}
}

func TestWorkLimit(t *testing.T) {
	var policy strings.Builder
	for c := byte('a'); c <= 'z'; c++ {
		policy.WriteString("/.*" + string(c) + ".{30} c\n") // 2^30 states for each
	}
	p := mustParse(t, Sources{FileContexts: []byte(policy.String())})
	p.automaton.workLimit = 1 << 20
	p.automaton.cacheLimit = 1 << 20
	rng := rand.New(rand.NewPCG(1, 2))
	for range 10000 {
		p.Lookup(randomPath(rng, "abcdefghijklmnopqrstuvwxyz/", 100), '-')
		if p.automaton.size > 2<<20 {
			t.Fatalf("states take %d bytes", p.automaton.size)
		}
	}
	if !errors.Is(p.Err(), errWork) {
		t.Errorf("error is %v", p.Err())
	}
}

func randomPath(rng *rand.Rand, letters string, most int) string {
	b := make([]byte, rng.IntN(most))
	for i := range b {
		b[i] = letters[rng.IntN(len(letters))]
	}
	return "/" + string(b)
}

// naive tries each expression on its own with other engines, last line first.
type naive struct {
	contexts []string
	match    []func(key []byte) bool
}

func newNaive(t *testing.T, src Sources) *naive {
	t.Helper()
	n := &naive{}
	for _, file := range [][]byte{src.FileContexts, src.Local, src.Homedirs} {
		if err := eachLine("", file, func(fields []string) error {
			s, err := parseSpec(fields)
			if err != nil {
				return err
			}
			n.contexts = append(n.contexts, s.context)
			last := "[^\\x00]"
			if s.kind != 0 {
				last = string(s.kind)
			}
			pattern := "^(?:" + string(latin1(s.regex)) + ")" + last + "$"
			if strings.Contains(s.regex, "(?!") || strings.Contains(s.regex, "%{") {
				re := regexp2.MustCompile(pattern, regexp2.RE2)
				n.match = append(n.match, func(key []byte) bool {
					ok, err := re.MatchRunes(latin1(string(key)))
					return ok && err == nil
				})
				return nil
			}
			re := regexp.MustCompile("(?s)" + pattern)
			n.match = append(n.match, func(key []byte) bool { return re.MatchString(string(latin1(string(key)))) })
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

func (n *naive) lookup(path string, kind byte) (string, bool) {
	key := append([]byte(path), kind)
	for i := len(n.match) - 1; i >= 0; i-- {
		if n.match[i](key) {
			return n.contexts[i], n.contexts[i] != none
		}
	}
	return "", false
}

// TestAgreesWithScan compares with a scan of all lines, for paths that nearly
// match and with a cache so small that states are dropped all the time.
func TestAgreesWithScan(t *testing.T) {
	src := readPolicy(t)
	scan := newNaive(t, src)
	large, small := mustParse(t, src), mustParse(t, src)
	small.automaton.cacheLimit = 5000
	rng := rand.New(rand.NewPCG(3, 4))
	words := strings.Fields("usr bin lib lib64 etc dev var log cache home me .ssh run user shadow shadow- bash sh5.2 x.so.1 x.so python rust helper " +
		"rc.d init.d xrc.d crond SAMBA samba lost+found tmp share locale sda 7 null boot efi a_b.20240101.gz x.pid systemd system modules \xff\xfe é a\nb %{USERID} mine local")
	hits := map[string]int{}
	for range 30000 {
		path := ""
		for range rng.IntN(6) {
			path += "/" + words[rng.IntN(len(words))]
		}
		if rng.IntN(5) == 0 && path != "" {
			b := []byte(path)
			b[rng.IntN(len(b))] = byte(1 + rng.IntN(255))
			path = string(b)
		}
		if path == "" {
			path = "/"
		}
		kind := "bcdpls-"[rng.IntN(7)]
		want, wantOK := scan.lookup(path, kind)
		for _, p := range []*Policy{large, small} {
			got, ok := p.Lookup(path, kind)
			if ok != wantOK || ok && got != want {
				t.Fatalf("Lookup(%q, %q) = %q, %v, want %q, %v (%v)", path, kind, got, ok, want, wantOK, p.Err())
			}
		}
		hits[want]++
	}
	if len(hits) < 20 {
		t.Errorf("only %d contexts were found", len(hits))
	}
}

// TestAgreesWithReference compares the reading of expressions with that of the
// engines of composefs-rs. testdata/README.md says where the file comes from.
func TestAgreesWithReference(t *testing.T) {
	f, err := os.Open("testdata/regexes.jsonl.zst")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	matches, seen, missing := 0, map[string]int{}, 0
	for cases := json.NewDecoder(z); ; {
		var c struct {
			Regex, Type, Engine string
			Keys                [][]byte
			Match               []bool
		}
		if err := cases.Decode(&c); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen[c.Engine]++
		line := c.Regex + " -" + c.Type + " c"
		if c.Type == "." {
			line = c.Regex + " c"
		}
		if c.Regex[0] == '#' {
			continue
		}
		p, err := Parse(Sources{FileContexts: []byte(line)})
		switch {
		case err != nil && c.Engine == "refused":
			continue
		case c.Engine == "refused" && len(p.fallbacks) == 1:
			continue // the engine for PCRE2 syntax is not PCRE2
		case err != nil && c.Engine == "pcre2":
			missing++ // escapes of PCRE2 without support
			continue
		case err != nil:
			var syntax *syntaxError
			if errors.As(err, &syntax) && syntax.fatal || strings.Contains(err.Error(), "without an opening one") {
				missing++
				continue
			}
			t.Errorf("%q is refused: %v", c.Regex, err)
			continue
		case c.Engine == "refused":
			t.Errorf("%q is accepted", c.Regex)
			continue
		}
		for i, key := range c.Keys {
			n := len(key) - 1
			if _, ok := p.Lookup(string(key[:n]), key[n]); ok != c.Match[i] {
				t.Errorf("%q on %q: match %v, want %v", c.Regex, key, ok, c.Match[i])
			}
			if c.Match[i] {
				matches++
			}
		}
	}
	if matches < 500 || seen["rust"] < 300 || seen["pcre2"] < 50 || missing > 100 {
		t.Errorf("%d matches, %v, %d not supported", matches, seen, missing)
	}
}

func TestConcurrentUse(t *testing.T) {
	p := mustParse(t, readPolicy(t))
	done := make(chan string)
	for i := range 4 {
		go func() {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			for range 2000 {
				p.Lookup(randomPath(rng, "usrbinlib/.", 30), '-')
			}
			got, _ := p.Lookup("/usr/bin/bash", '-')
			done <- got
		}()
	}
	for range 4 {
		if got := <-done; got != "system_u:object_r:shell_exec_t:s0" {
			t.Errorf("context is %q", got)
		}
	}
}

func FuzzPolicy(f *testing.F) {
	f.Add([]byte("/a(/.*)? -- c\n/b.+[^/]{1,2} c\n# x\n"), "/a/b", byte('-'))
	f.Add([]byte("/(?!x)a++\\b[[:alpha:]\\d]* -d <<none>>\n"), "/aa1", byte('d'))
	f.Add([]byte("(?i)/É\\x{e9}\\xff[^a-f&&[b]] c\n/x c d e"), "/\xff\xc3", byte('l'))
	f.Add([]byte("(?m:^a$|\\n) c\n\\Q..\\E c\n[]\\-x]{,3} c"), "a\n", byte('s'))
	f.Fuzz(func(t *testing.T, policy []byte, path string, kind byte) {
		if len(policy) > 1<<12 || len(path) > 1<<10 {
			return
		}
		p, err := Parse(Sources{FileContexts: policy, Subs: policy})
		if err != nil {
			p, err = Parse(Sources{FileContexts: policy})
		}
		if err != nil {
			var e *Error
			if !errors.As(err, &e) && !errors.Is(err, ErrTooLarge) {
				t.Errorf("error of type %T: %v", err, err)
			}
			return
		}
		p.automaton.workLimit = 1 << 24
		for i := range p.fallbacks {
			p.fallbacks[i].regex.MatchTimeout = 10 * time.Millisecond
		}
		first, ok := p.Lookup(path, kind)
		if p.Err() != nil {
			return
		}
		p.automaton.cacheLimit = 0
		p.automaton.reset()
		if again, okAgain := p.Lookup(path, kind); p.Err() == nil && (again != first || okAgain != ok) {
			t.Errorf("%q, %v and then %q, %v", first, ok, again, okAgain)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	src := readPolicy(b)
	b.SetBytes(int64(len(src.FileContexts) + len(src.Local) + len(src.Homedirs)))
	b.ReportAllocs()
	for b.Loop() {
		mustParse(b, src)
	}
}

// BenchmarkLookup uses a policy as large as a distribution's: the small one
// with other names.
func BenchmarkLookup(b *testing.B) {
	src := readPolicy(b)
	var policy strings.Builder
	policy.Write(src.FileContexts)
	for i := range 5600 {
		name := "name" + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676))
		line := []string{"/usr/bin/" + name + "\t--\tc\n", "/var/lib/" + name + "(/.*)?\tc\n"}[i%2]
		if i%100 == 0 {
			line = "/usr/(.*/)?" + name + "/[^/]*\\.so\t--\tc\n"
		}
		policy.WriteString(line)
	}
	p := mustParse(b, Sources{FileContexts: []byte(policy.String())})
	rng := rand.New(rand.NewPCG(5, 6))
	var paths []string
	for range 20000 {
		name := "name" + randomPath(rng, "abcdefgh", 4)[1:]
		paths = append(paths, "/usr/share/doc/"+name+"/copyright", "/usr/lib/"+name+"/x.so", "/var/lib/"+name+"/data/file", "/usr/bin/"+name)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		p.Lookup(paths[i%len(paths)], '-')
	}
	if p.Err() != nil {
		b.Error(p.Err())
	}
}
