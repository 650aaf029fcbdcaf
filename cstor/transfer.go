// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"context"
	"errors"
	"io"
	"sync"
)

// transfers fetches blobs ahead of the layer that is being stored, into
// temporary files, in the order of the layers: as many at once as the options
// say, and no more ahead. The first one is left out: it goes into the store as
// it arrives.
type transfers struct {
	*puller
	byLayer map[*stored]*transfer
	slots   chan struct{} // one for each transfer that is under way or waits to be stored
	stop    context.CancelFunc
	starter sync.WaitGroup
}

// transfer is one blob on its way.
type transfer struct {
	layer *stored
	ready chan struct{} // closed when spool or err is set
	spool *spool
	err   error
	stop  context.CancelFunc
	tasks sync.WaitGroup
}

func (p *puller) startTransfers(ctx context.Context, layers []*stored) *transfers {
	ctx, stop := context.WithCancel(ctx)
	t := &transfers{
		puller: p, byLayer: map[*stored]*transfer{},
		slots: make(chan struct{}, p.options.ParallelLayers), stop: stop,
	}
	var order []*transfer
	first := true
	for _, l := range layers {
		if !l.fetched() {
			continue
		}
		if !first {
			x := &transfer{layer: l, ready: make(chan struct{}), stop: func() {}}
			t.byLayer[l] = x
			order = append(order, x)
		}
		first = false
	}
	t.starter.Go(func() {
		for _, x := range order {
			select {
			case t.slots <- struct{}{}:
				t.begin(ctx, x)
			case <-ctx.Done():
				x.err = context.Cause(ctx)
				close(x.ready)
			}
		}
	})
	return t
}

// begin starts one transfer.
func (t *transfers) begin(ctx context.Context, x *transfer) {
	defer close(x.ready)
	s, err := newSpool(t.graphRoot)
	if err != nil {
		x.err = err
		return
	}
	ctx, x.stop = context.WithCancel(ctx)
	x.spool = s
	x.tasks.Go(func() {
		blob, err := t.fetch(ctx, x.layer)
		if err != nil {
			s.finish(err)
			return
		}
		s.fill(blob)
		_ = blob.Close() // it was read to its end, or why not is known
	})
}

// blob is the layer's blob, for one try to store it. The reader must be closed.
func (t *transfers) blob(ctx context.Context, l *stored) (io.ReadCloser, error) {
	x := t.byLayer[l]
	if x == nil {
		return t.fetch(ctx, l)
	}
	delete(t.byLayer, l) // a second try fetches for itself
	<-x.ready
	if x.err != nil {
		return nil, x.err
	}
	return &transferReader{spoolReader: x.spool.reader(ctx), transfer: x, release: func() { <-t.slots }}, nil
}

// transferReader reads a blob that is being transferred.
type transferReader struct {
	*spoolReader
	transfer *transfer
	release  func()
}

// Close ends the transfer.
func (r *transferReader) Close() error {
	err := errors.Join(r.spoolReader.Close(), r.transfer.end())
	r.release()
	return err
}

// end stops a transfer and gives its file back.
func (x *transfer) end() error {
	<-x.ready
	x.stop()
	x.tasks.Wait()
	if x.spool == nil {
		return nil
	}
	return x.spool.close()
}

// close ends all transfers that nobody has asked for.
func (t *transfers) close() (err error) {
	t.stop()
	t.starter.Wait()
	for _, x := range t.byLayer {
		err = errors.Join(err, x.end())
	}
	return err
}
