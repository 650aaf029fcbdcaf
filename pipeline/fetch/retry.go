// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"reflect"
	"strings"
	"syscall"
	"time"

	"github.com/docker/distribution/registry/api/errcode"
	"go.podman.io/image/v5/docker"
)

const (
	// defaultRetries is how often an operation is tried again, as podman does.
	defaultRetries = 3
	// firstRetryDelay doubles with each retry up to maxRetryDelay.
	firstRetryDelay = time.Second
	maxRetryDelay   = time.Minute
	// manifestTimeout bounds one attempt to resolve a reference. It leaves room
	// for the waits of containers/image when a registry limits the rate: five
	// requests with at most a minute between them.
	manifestTimeout = 10 * time.Minute
	// defaultStallTimeout is how long a blob may deliver no byte before the
	// connection is given up. TCP alone would wait for hours.
	defaultStallTimeout = 2 * time.Minute
)

// errStalled is the cause with which a silent connection is cancelled.
var errStalled = errors.New("no data received in time")

// retryPolicy is the part of Options that says how to try again.
type retryPolicy struct {
	retries int
	delay   time.Duration // 0: exponential
	log     *slog.Logger
}

// wait sleeps before retry number n, counted from 0.
func (p retryPolicy) wait(ctx context.Context, n int) error {
	delay := p.delay
	if delay <= 0 {
		delay = min(firstRetryDelay<<min(n, 16), maxRetryDelay)
		// Many machines pull after the same blip; do not let them return as one.
		delay += rand.N(delay/10 + 1)
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// do calls f until it succeeds, fails for good, or the retries are used up.
// what names the operation in the log.
func (p retryPolicy) do(ctx context.Context, what string, f func(context.Context) error) error {
	for n := 0; ; n++ {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return fmt.Errorf("%s: %w", what, cause)
		}
		// containers/image has waited and tried a rate limit five times before
		// it reports it; more of the same would only prolong the limit.
		if n >= p.retries || !IsRetryable(err) || isRateLimit(err) {
			return err
		}
		p.log.Warn("retrying", "operation", what, "retry", n+1, "error", err)
		if err := p.wait(ctx, n); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

// IsRetryable says whether doing the same again may succeed: the network
// failed, or the server answered with 408, 429 or a 5xx status. It is false
// for everything that the other typed errors of this package describe, and for
// a context that was cancelled.
func IsRetryable(err error) bool {
	var local *localError
	if err == nil || isTyped(err) || errors.As(err, &local) {
		return false
	}
	if errors.Is(err, errStalled) {
		return true
	}
	if errors.Is(err, context.Canceled) {
		return false
	}
	switch status := httpStatus(err); {
	case status == http.StatusNotImplemented, status == http.StatusHTTPVersionNotSupported:
		return false
	case status == http.StatusRequestTimeout, status == http.StatusTooManyRequests, status >= 500:
		return true
	case status != 0:
		return false
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return !dns.IsNotFound
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return isNetworkErrno(errno)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() {
		return true
	}
	// A server that closes the connection instead of answering.
	var opaque interface{ Unwrap() error }
	if errors.As(err, &opaque) && errors.Is(err, io.EOF) {
		return true
	}
	// net/http has no types for these.
	text := err.Error()
	for _, s := range []string{
		"http: server closed idle connection",
		"transport connection broken",
		"http2: ",
		"stream error: stream ID",
	} {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
}

// localError is an error of a source that is no registry. A file that ends too
// early looks like a broken connection, but will not grow.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }

func (e *localError) Unwrap() error { return e.err }

func isNetworkErrno(errno syscall.Errno) bool {
	switch errno {
	case syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE,
		syscall.ETIMEDOUT, syscall.EHOSTDOWN, syscall.EHOSTUNREACH,
		syscall.ENETDOWN, syscall.ENETUNREACH, syscall.ENETRESET,
		syscall.EINTR, syscall.EAGAIN:
		return true
	}
	return false
}

func isRateLimit(err error) bool { return httpStatus(err) == http.StatusTooManyRequests }

// httpStatus is the status of the HTTP response that caused err, or 0. The
// registry client of containers/image reports a status in three ways.
func httpStatus(err error) int {
	if errors.Is(err, docker.ErrTooManyRequests) {
		return http.StatusTooManyRequests
	}
	var unauthorized docker.ErrUnauthorizedForCredentials
	if errors.As(err, &unauthorized) {
		return http.StatusUnauthorized
	}
	var unexpected docker.UnexpectedHTTPStatusError
	if errors.As(err, &unexpected) {
		return unexpected.StatusCode
	}
	var coder errcode.ErrorCoder
	if errors.As(err, &coder) {
		if coder.ErrorCode() != errcode.ErrorCodeUnknown {
			return coder.ErrorCode().Descriptor().HTTPStatusCode
		}
		// A 4xx answer whose code is not one of the specification; its status
		// is lost. Several registries word "no such manifest" their own way.
		if strings.Contains(strings.ToLower(err.Error()), "not found") {
			return http.StatusNotFound
		}
		return http.StatusBadRequest
	}
	return statusField(err)
}

// statusField finds the status in an error type that containers/image does not
// export: one for a 4xx answer whose body is not the JSON of the
// specification.
func statusField(err error) int {
	for err != nil {
		v := reflect.Indirect(reflect.ValueOf(err))
		if v.Kind() == reflect.Struct {
			if f := v.FieldByName("StatusCode"); f.IsValid() && f.CanInt() {
				return int(f.Int())
			}
		}
		switch u := err.(type) {
		case interface{ Unwrap() error }:
			err = u.Unwrap()
		case interface{ Unwrap() []error }:
			for _, e := range u.Unwrap() {
				if status := statusField(e); status != 0 {
					return status
				}
			}
			return 0
		default:
			return 0
		}
	}
	return 0
}
