// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package realimage

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/cfs-pull/cfs-pull/internal/testutil"
)

// The account of the test registry.
const (
	registryUser     = "puller"
	registryPassword = "correct horse battery staple"
)

// Registry is the distribution project's registry on a port of the loopback
// interface, with HTTPS by a private CA and a password.
type Registry struct {
	Address  string // host:port
	CertDir  string // has ca.crt, for --cert-dir
	AuthFile string // has the account, in the format of docker's config.json

	roots *x509.CertPool // of the CA
	marks int            // how often Requests was called

	mu       sync.Mutex
	requests []Request
}

// Request is one line of the registry's access log.
type Request struct {
	Method string
	URI    string
	Status int
}

// StartRegistry runs an empty registry until the test ends.
func StartRegistry(tb testing.TB) *Registry {
	tb.Helper()
	program := testutil.RequireTool(tb, "docker-registry", "docker-registry")
	htpasswd := testutil.RequireTool(tb, "htpasswd", "apache2-utils")
	dir := tb.TempDir()
	r := &Registry{CertDir: filepath.Join(dir, "certs"), AuthFile: filepath.Join(dir, "auth.json")}

	accounts, err := exec.Command(htpasswd, "-nbB", registryUser, registryPassword).Output()
	if err != nil {
		tb.Fatalf("htpasswd: %v", err)
	}
	port := freePort(tb)
	r.Address = fmt.Sprintf("127.0.0.1:%d", port)
	if err := os.Mkdir(r.CertDir, 0o755); err != nil {
		tb.Fatal(err)
	}
	ca, cert, key := certificates(tb)
	r.roots = x509.NewCertPool()
	r.roots.AppendCertsFromPEM(ca)
	auth := base64.StdEncoding.EncodeToString([]byte(registryUser + ":" + registryPassword))
	config := filepath.Join(dir, "config.yml")
	for path, content := range map[string][]byte{
		filepath.Join(dir, "htpasswd"):     accounts,
		filepath.Join(dir, "cert.pem"):     cert,
		filepath.Join(dir, "key.pem"):      key,
		filepath.Join(r.CertDir, "ca.crt"): ca,
		r.AuthFile:                         fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, r.Address, auth),
		config: fmt.Appendf(nil, `version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: %[1]s/storage}}
http: {addr: %[2]q, tls: {certificate: %[1]s/cert.pem, key: %[1]s/key.pem}}
auth: {htpasswd: {realm: test, path: %[1]s/htpasswd}}
`, dir, r.Address),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			tb.Fatal(err)
		}
	}

	cmd := exec.Command(program, "serve", config)
	var messages bytes.Buffer
	cmd.Stderr = &messages
	accesses, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		r.readAccesses(accesses)
	}()
	tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-read
		_ = cmd.Wait() // killed: the status says nothing
		if tb.Failed() {
			tb.Logf("registry: %s", messages.Bytes())
		}
	})
	for range 1200 { // a minute
		conn, err := net.Dial("tcp", r.Address)
		if err == nil {
			conn.Close()
			return r
		}
		time.Sleep(50 * time.Millisecond)
	}
	tb.Fatalf("the registry does not listen on %s", r.Address)
	return nil
}

// accessLine is a line of the combined log format of web servers.
var accessLine = regexp.MustCompile(`^\S+ \S+ .* \[[^]]*\] "(\S+) (\S+) [^"]*" (\d+) `)

// readAccesses collects the lines of the registry's access log until it ends.
func (r *Registry) readAccesses(log io.Reader) {
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		fields := accessLine.FindStringSubmatch(lines.Text())
		if fields == nil {
			continue
		}
		status, err := strconv.Atoi(fields[3])
		if err != nil {
			continue
		}
		r.mu.Lock()
		r.requests = append(r.requests, Request{fields[1], fields[2], status})
		r.mu.Unlock()
	}
}

// Requests returns what was asked since the last call. It waits for the log to
// catch up with the answers that a client has already: until a request of its
// own is in it, and a moment longer, as handlers that run at once may log in
// another order.
func (r *Registry) Requests(tb testing.TB) []Request {
	tb.Helper()
	r.marks++
	mark := fmt.Sprintf("/v2/mark-%d", r.marks)
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: r.roots}, DisableKeepAlives: true,
	}}
	answer, err := client.Get("https://" + r.Address + mark)
	if err != nil {
		tb.Fatal(err)
	}
	answer.Body.Close()
	isMark := func(q Request) bool { return q.URI == mark }
	for deadline := time.Now().Add(time.Minute); ; {
		time.Sleep(200 * time.Millisecond)
		r.mu.Lock()
		got := r.requests
		if slices.ContainsFunc(got, isMark) {
			r.requests = nil
			r.mu.Unlock()
			return slices.DeleteFunc(got, isMark)
		}
		r.mu.Unlock()
		if time.Now().After(deadline) {
			tb.Fatal("the registry does not log what it is asked")
		}
	}
}

// Push copies an image of an OCI layout into the registry, blobs unchanged, and
// returns the image's docker:// reference.
func (r *Registry) Push(tb testing.TB, layout, tag string) string {
	tb.Helper()
	skopeo := testutil.RequireTool(tb, "skopeo", "skopeo")
	ref := "docker://" + r.Address + "/os:" + tag
	out, err := exec.CommandContext(tb.Context(), skopeo, "copy", "--quiet", "--preserve-digests",
		"--dest-cert-dir", r.CertDir, "--dest-authfile", r.AuthFile, "oci:"+layout+":"+tag, ref).CombinedOutput()
	if err != nil {
		tb.Fatalf("skopeo copy to the registry: %v\n%s", err, out)
	}
	return ref
}

// freePort finds a TCP port that nothing listens on.
func freePort(tb testing.TB) int {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// certificates makes a CA and a server certificate for 127.0.0.1, as PEM.
func certificates(tb testing.TB) (ca, cert, key []byte) {
	tb.Helper()
	must := func(err error) {
		if err != nil {
			tb.Fatalf("make certificates: %v", err)
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	caCert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, caCert, caCert, caKey.Public(), caKey)
	must(err)
	serverKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "registry"},
		NotBefore: caCert.NotBefore, NotAfter: caCert.NotAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	serverDER, err := x509.CreateCertificate(rand.Reader, server, caCert, serverKey.Public(), caKey)
	must(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(serverKey)
	must(err)
	encode := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	return encode("CERTIFICATE", caDER), encode("CERTIFICATE", serverDER), encode("PRIVATE KEY", keyDER)
}

// Unauthorised tells whether the request was refused for lack of a password.
func (r Request) Unauthorised() bool { return r.Status == http.StatusUnauthorized }
