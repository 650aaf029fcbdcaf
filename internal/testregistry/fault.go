// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package testregistry

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
)

// Fault is a way to misbehave. The fields after Times are alternatives.
type Fault struct {
	// Kind is the kind of requests that it strikes.
	Kind Kind
	// Target is the tag or digest that it strikes; empty: all.
	Target string
	// Skip is how many requests are spared first.
	Skip int
	// Times is how many requests it strikes; negative: all from then on.
	Times int

	// Status answers with this status. Code is the error code of the body; empty
	// is the usual one, and with "-" the body is not the JSON of the
	// specification.
	Status int
	Code   string
	// RetryAfter is the Retry-After header of that answer.
	RetryAfter string

	// DropAfter, when not nil, closes the connection after that many bytes of
	// the body.
	DropAfter *int64
	// Corrupt changes the byte at this offset of the body.
	Corrupt *int64
	// Truncate serves only that many bytes, as if there were no more.
	Truncate *int64
	// Pad serves that many zero bytes more than there are.
	Pad int64
	// NoLength leaves the Content-Length away.
	NoLength bool
	// Body serves this in place of the content.
	Body []byte
	// StallAfter, when not nil, serves that many bytes and then nothing until
	// the client goes away.
	StallAfter *int64
}

// Inject adds a fault. Faults are tried in the order of their injection.
func (r *Registry) Inject(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, &f)
}

// ClearFaults makes the registry behave.
func (r *Registry) ClearFaults() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

// nextFault is the fault for a request, or nil.
func (r *Registry) nextFault(kind Kind, target string) *Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.faults {
		if f.Kind != kind || f.Target != "" && f.Target != target || f.Times == 0 {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		if f.Times > 0 {
			f.Times--
		}
		struck := *f
		return &struck
	}
	return nil
}

// usualCodes are the error codes of the distribution specification.
var usualCodes = map[int]string{
	http.StatusUnauthorized:    "UNAUTHORIZED",
	http.StatusForbidden:       "DENIED",
	http.StatusNotFound:        "MANIFEST_UNKNOWN",
	http.StatusTooManyRequests: "TOOMANYREQUESTS",
}

// refuse answers with an error.
func (f *Fault) refuse(w http.ResponseWriter) {
	if f.RetryAfter != "" {
		w.Header().Set("Retry-After", f.RetryAfter)
	}
	switch f.Code {
	case "-":
		w.WriteHeader(f.Status)
		fmt.Fprintln(w, "<html>no</html>")
	case "":
		writeError(w, f.Status, usualCodes[f.Status], "injected")
	default:
		writeError(w, f.Status, f.Code, "injected")
	}
}

// serve answers with what inner has, changed. The whole body is in memory,
// except for padding.
func (f *Fault) serve(w http.ResponseWriter, req *http.Request, inner http.Handler) {
	answer := httptest.NewRecorder()
	inner.ServeHTTP(answer, req)
	body := answer.Body.Bytes()
	if f.Body != nil {
		body = f.Body
	}
	if f.Corrupt != nil && *f.Corrupt < int64(len(body)) {
		body[*f.Corrupt] ^= 0xff
	}
	if f.Truncate != nil {
		body = body[:min(*f.Truncate, int64(len(body)))]
	}
	for key, values := range answer.Header() {
		w.Header()[key] = values
	}
	w.Header().Set("Content-Length", strconv.FormatInt(int64(len(body))+f.Pad, 10))
	if f.NoLength {
		w.Header().Del("Content-Length")
	}
	w.WriteHeader(answer.Code)
	if f.NoLength {
		flush(w) // or net/http computes the length
	}
	switch {
	case f.DropAfter != nil:
		w.Write(body[:min(*f.DropAfter, int64(len(body)))])
		flush(w)
		panic(http.ErrAbortHandler)
	case f.StallAfter != nil:
		w.Write(body[:min(*f.StallAfter, int64(len(body)))])
		flush(w)
		<-req.Context().Done()
		return
	}
	w.Write(body)
	zeros := make([]byte, 1<<16)
	for left := f.Pad; left > 0; {
		n, err := w.Write(zeros[:min(left, int64(len(zeros)))])
		if err != nil {
			return
		}
		left -= int64(n)
	}
}

func flush(w http.ResponseWriter) {
	// A writer that cannot flush only makes a test less sharp.
	_ = http.NewResponseController(w).Flush()
}
