// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Package testregistry is a container registry inside a test. It serves over
// TLS with a certificate authority of its own, or plain HTTP, asks for
// credentials if told to, misbehaves if told to, and keeps a log of requests,
// so that a test can say how many manifests and blobs a pull may cost.
//
// The registry itself is that of go-containerregistry; this package stands in
// front of it.
package testregistry

import (
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

// Kind is what a request is for.
type Kind string

// The kinds of requests.
const (
	Ping     Kind = "ping"
	Manifest Kind = "manifest"
	Blob     Kind = "blob"
	Token    Kind = "token"
	Other    Kind = "other"
)

// AuthMode is how a registry asks for credentials.
type AuthMode int

const (
	// NoAuth lets everybody in.
	NoAuth AuthMode = iota
	// BasicAuth asks for a user name and a password with each request.
	BasicAuth
	// TokenAuth sends the client to /token, which asks for a user name and a
	// password and gives out a token.
	TokenAuth
)

// Options says what kind of registry to start. The zero value is plain HTTP
// for everybody.
type Options struct {
	TLS            bool
	Auth           AuthMode
	User, Password string
	// NoRange answers a request for a part of a blob with all of it.
	NoRange bool
}

// Request is an entry of the log.
type Request struct {
	Kind   Kind
	Method string
	// Repository and Target are the two parts of the path: target is a tag or
	// a digest.
	Repository, Target string
	Range              string
	UserAgent          string
	// User is the name in a basic Authorization header.
	User string
	// Status is the status of the answer; 0 when the connection was dropped
	// before.
	Status int
}

// Registry is a running registry. It stops when its test ends.
type Registry struct {
	o      Options
	server *httptest.Server
	inner  http.Handler
	ca     *authority

	mu     sync.Mutex
	faults []*Fault
	log    []Request
}

const token = "test-token"

// New starts a registry on the loopback interface.
func New(tb testing.TB, o Options) *Registry {
	tb.Helper()
	r := &Registry{o: o, inner: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	r.server = httptest.NewUnstartedServer(r)
	// A dropped connection makes the server complain.
	r.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	if o.TLS {
		ca, err := newAuthority()
		if err != nil {
			tb.Fatal(err)
		}
		r.ca = ca
		r.server.TLS = ca.serverConfig()
		r.server.StartTLS()
	} else {
		r.server.Start()
	}
	tb.Cleanup(func() {
		r.server.CloseClientConnections()
		r.server.Close()
	})
	return r
}

// Host is host:port of the registry.
func (r *Registry) Host() string {
	_, host, _ := strings.Cut(r.server.URL, "://")
	return host
}

// URL is the address of the registry with its scheme.
func (r *Registry) URL() string { return r.server.URL }

// CertDir is a new directory with the certificate of the authority, as
// --cert-dir takes it.
func (r *Registry) CertDir(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), r.ca.certPEM, 0o600); err != nil {
		tb.Fatal(err)
	}
	return dir
}

// AuthFile is the content of a containers-auth.json file for this registry.
func (r *Registry) AuthFile(user, password string) []byte {
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	return fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, r.Host(), auth)
}

// InsecureConf writes a registries.conf file that allows plain HTTP and
// unknown certificates for this registry, and returns its path.
func (r *Registry) InsecureConf(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "registries.conf")
	conf := fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", r.Host())
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// Requests is the log so far. What the test itself put into the registry is
// not part of it.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Request(nil), r.log...)
}

// Count is the number of requests of a kind so far.
func (r *Registry) Count(kind Kind) int {
	n := 0
	for _, req := range r.Requests() {
		if req.Kind == kind {
			n++
		}
	}
	return n
}

// ResetLog forgets the log.
func (r *Registry) ResetLog() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = nil
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	kind, repository, target := parsePath(req.URL.Path)
	user, _, _ := req.BasicAuth()
	entry := Request{
		Kind: kind, Method: req.Method, Repository: repository, Target: target,
		Range: req.Header.Get("Range"), UserAgent: req.UserAgent(), User: user,
	}
	recorder := &statusWriter{ResponseWriter: w}
	defer func() {
		entry.Status = recorder.status
		r.mu.Lock()
		r.log = append(r.log, entry)
		r.mu.Unlock()
	}()
	fault := r.nextFault(kind, target)
	if fault != nil && fault.Status != 0 {
		fault.refuse(recorder)
		return
	}
	if kind == Token {
		r.serveToken(recorder, req)
		return
	}
	if !r.authorised(req) {
		r.challenge(recorder)
		return
	}
	if kind == Blob {
		r.fixRange(req, target)
	}
	if fault != nil {
		fault.serve(recorder, req, r.inner)
		return
	}
	r.inner.ServeHTTP(recorder, req)
}

// parsePath takes a path of the distribution specification apart.
func parsePath(path string) (kind Kind, repository, target string) {
	switch path {
	case "/v2/", "/v2":
		return Ping, "", ""
	case "/token":
		return Token, "", ""
	}
	parts := strings.Split(strings.TrimPrefix(path, "/v2/"), "/")
	if len(parts) < 3 {
		return Other, "", ""
	}
	repository = strings.Join(parts[:len(parts)-2], "/")
	target = parts[len(parts)-1]
	switch parts[len(parts)-2] {
	case "manifests":
		return Manifest, repository, target
	case "blobs":
		return Blob, repository, target
	}
	return Other, repository, target
}

func (r *Registry) authorised(req *http.Request) bool {
	switch r.o.Auth {
	case BasicAuth:
		user, password, ok := req.BasicAuth()
		return ok && user == r.o.User && password == r.o.Password
	case TokenAuth:
		return req.Header.Get("Authorization") == "Bearer "+token
	}
	return true
}

func (r *Registry) challenge(w http.ResponseWriter) {
	challenge := `Basic realm="test registry"`
	if r.o.Auth == TokenAuth {
		challenge = fmt.Sprintf(`Bearer realm="%s/token",service="test"`, r.server.URL)
	}
	w.Header().Set("WWW-Authenticate", challenge)
	writeError(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
}

func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request) {
	user, password, ok := req.BasicAuth()
	if !ok || user != r.o.User || password != r.o.Password {
		writeError(w, http.StatusUnauthorized, "UNAUTHORIZED", "wrong user name or password")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"token":%q,"expires_in":300}`, token)
}

func writeError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
}

// fixRange gives an open range an end, which the registry insists on.
func (r *Registry) fixRange(req *http.Request, target string) {
	start, open := strings.CutSuffix(req.Header.Get("Range"), "-")
	if r.o.NoRange {
		req.Header.Del("Range")
		return
	}
	if !open {
		return
	}
	head := httptest.NewRequest(http.MethodHead, req.URL.Path, nil)
	answer := httptest.NewRecorder()
	r.inner.ServeHTTP(answer, head)
	size, err := strconv.ParseInt(answer.Header().Get("Content-Length"), 10, 64)
	if err != nil {
		return
	}
	req.Header.Set("Range", fmt.Sprintf("%s-%d", start, size-1))
}

// statusWriter notes the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController find what is below.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
