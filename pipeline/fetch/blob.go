// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"
)

// resumeProgress is how many bytes count as progress: after that many, a
// stream that breaks again has all its retries again.
const resumeProgress = 1 << 20

// openBlob starts the transfer of a blob from its first byte. size is what the
// source says, or -1. The context governs the whole transfer.
type openBlob func(ctx context.Context) (body io.ReadCloser, size int64, err error)

// blobReader delivers the bytes of one blob and verifies them. It reaches
// io.EOF only after size and digest were found right.
type blobReader struct {
	ctx   context.Context
	open  openBlob
	retry retryPolicy
	stall time.Duration
	desc  Descriptor
	// fail makes an IntegrityError for this blob.
	fail func(reason string) error
	// classify gives an error its final type. It may be nil.
	classify func(error) error

	body     io.ReadCloser
	declared int64 // size that the source gave, or -1
	cancel   context.CancelCauseFunc
	bodyCtx  context.Context
	watchdog *time.Timer // runs during a Read of body

	hash      hash.Hash
	delivered int64 // bytes given to the reader and hashed
	resumedAt int64 // value of delivered at the last resumption
	resumed   int   // resumptions without progress
	pending   error // error of body that is still to be looked at
	err       error // final
}

// newBlobReader opens the blob, so that an error of the first request comes
// before a reader exists.
func newBlobReader(ctx context.Context, r *blobReader) (*blobReader, error) {
	r.ctx = ctx
	r.hash = r.desc.Digest.Algorithm().Hash()
	if r.classify == nil {
		r.classify = func(err error) error { return err }
	}
	err := r.retry.do(ctx, "fetch blob "+r.desc.Digest.String(), func(context.Context) error { return r.start() })
	if err != nil {
		return nil, err
	}
	return r, nil
}

// start opens the body at the first byte that was not delivered.
func (r *blobReader) start() error {
	ctx, cancel := context.WithCancelCause(r.ctx)
	body, size, err := r.openWatched(ctx, cancel)
	if err != nil {
		cancel(nil)
		return err
	}
	r.body, r.declared, r.bodyCtx, r.cancel = body, size, ctx, cancel
	r.watchdog = time.AfterFunc(r.stall, func() { cancel(errStalled) })
	r.watchdog.Stop()
	if size >= 0 && size != r.desc.Size {
		r.stop()
		return r.fail(fmt.Sprintf("source has %d bytes, the manifest says %d", size, r.desc.Size))
	}
	if r.delivered > 0 {
		if err := r.skip(r.delivered); err != nil {
			r.stop()
			return err
		}
	}
	return nil
}

// openWatched opens the blob and gives up when there is no answer. The wait
// is longer than that for data, because the library may have to wait for a
// registry that limits the rate.
func (r *blobReader) openWatched(ctx context.Context, cancel context.CancelCauseFunc) (io.ReadCloser, int64, error) {
	timer := time.AfterFunc(max(r.stall, manifestTimeout), func() { cancel(errStalled) })
	defer timer.Stop()
	body, size, err := r.open(ctx)
	if err != nil {
		return nil, 0, r.explain(ctx, err)
	}
	return body, size, nil
}

// skip discards bytes that were delivered from an earlier connection. They are
// not compared: the digest covers what was delivered then and what follows now.
func (r *blobReader) skip(n int64) error {
	buf := make([]byte, min(n, 64<<10))
	for n > 0 {
		got, err := r.readBody(buf[:min(n, int64(len(buf)))])
		n -= int64(got)
		if err != nil && n > 0 {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// readBody is one Read of the body that gives up when nothing arrives.
func (r *blobReader) readBody(p []byte) (int, error) {
	r.watchdog.Reset(r.stall)
	n, err := r.body.Read(p)
	r.watchdog.Stop()
	if err != nil && err != io.EOF {
		err = r.explain(r.bodyCtx, err)
	}
	return n, err
}

// explain puts the cause of a cancelled context in place of the error that it
// led to.
func (r *blobReader) explain(ctx context.Context, err error) error {
	if cause := context.Cause(r.ctx); cause != nil {
		return cause
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// Read implements io.Reader.
func (r *blobReader) Read(p []byte) (int, error) {
	for r.err == nil {
		if cause := context.Cause(r.ctx); cause != nil {
			r.err = fmt.Errorf("read blob %s: %w", r.desc.Digest, cause)
			break
		}
		if r.pending != nil {
			r.err = r.settle(r.pending)
			r.pending = nil
			continue
		}
		if len(p) == 0 {
			return 0, nil
		}
		// One byte more than there should be, to see whether there is one.
		if room := r.desc.Size - r.delivered; room < int64(len(p)) {
			p = p[:room+1]
		}
		n, err := r.readBody(p)
		r.pending = err
		if r.delivered+int64(n) > r.desc.Size {
			r.err = r.fail(fmt.Sprintf("longer than the %d bytes that the manifest says", r.desc.Size))
			break
		}
		if n > 0 {
			r.hash.Write(p[:n])
			r.delivered += int64(n)
			return n, nil
		}
	}
	r.stop()
	return 0, r.err
}

// settle decides what the end of the body means: the verified end of the blob,
// a broken connection that is resumed (nil), or failure.
func (r *blobReader) settle(err error) error {
	if err == io.EOF {
		// Where the source did not say how much would come, an early end may be
		// a lost connection.
		if r.delivered < r.desc.Size && r.declared < 0 {
			err = io.ErrUnexpectedEOF
		} else {
			return r.verify()
		}
	}
	if r.delivered-r.resumedAt >= resumeProgress {
		r.resumed = 0
	}
	for r.resumed < r.retry.retries && IsRetryable(err) && r.ctx.Err() == nil {
		r.stop()
		r.retry.log.Warn("resuming blob", "digest", r.desc.Digest.String(), "offset", r.delivered, "error", err)
		if werr := r.retry.wait(r.ctx, r.resumed); werr != nil {
			return fmt.Errorf("read blob %s: %w", r.desc.Digest, werr)
		}
		r.resumed++
		r.resumedAt = r.delivered
		if err = r.start(); err == nil {
			return nil
		}
	}
	if r.delivered < r.desc.Size && r.declared < 0 && errors.Is(err, io.ErrUnexpectedEOF) {
		return r.fail(fmt.Sprintf("ends after %d of %d bytes", r.delivered, r.desc.Size))
	}
	if isTyped(err) {
		return err
	}
	return r.classify(fmt.Errorf("read blob %s at offset %d: %w", r.desc.Digest, r.delivered, err))
}

// verify is io.EOF when everything is right.
func (r *blobReader) verify() error {
	if r.delivered != r.desc.Size {
		return r.fail(fmt.Sprintf("ends after %d of %d bytes", r.delivered, r.desc.Size))
	}
	if got := digest.NewDigest(r.desc.Digest.Algorithm(), r.hash); got != r.desc.Digest {
		return r.fail(fmt.Sprintf("content has digest %s", got))
	}
	return io.EOF
}

// stop ends the connection, if there is one.
func (r *blobReader) stop() {
	if r.body == nil {
		return
	}
	r.watchdog.Stop()
	r.cancel(nil)
	r.body.Close()
	r.body = nil
}

// Close ends the transfer. Unless Read has returned io.EOF before, nothing was
// verified. It must not be called while a Read is in progress; cancel the
// context for that.
func (r *blobReader) Close() error {
	r.stop()
	if r.err == nil {
		r.err = fs.ErrClosed
	}
	return nil
}

// readBlob reads a whole verified blob of at most limit bytes.
func readBlob(r *blobReader, limit int64) ([]byte, error) {
	defer r.Close()
	if r.desc.Size > limit {
		return nil, fmt.Errorf("read blob %s: %d bytes are more than the limit of %d", r.desc.Digest, r.desc.Size, limit)
	}
	return io.ReadAll(r)
}
