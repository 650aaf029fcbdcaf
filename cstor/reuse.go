// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
)

// errNoArchive is a layer that no other layer of the store can be made from.
var errNoArchive = errors.New("no layer of the store has this archive")

// reuseLayer stores a layer whose archive another layer of the store has, above
// others, as is usual when a lower layer of an image has changed. Nothing is
// transferred, and the files share their blocks where the file system can do
// that; elsewhere the library unpacks the archive once more. What comes out is
// compared with the diff_id like any layer.
func (p *puller) reuseLayer(ctx context.Context, w *writer, l *stored) (err error) {
	from := l.copyOf
	if from == nil { // it has been stored by this pull
		err := p.withRecords(ctx, func(v view) error {
			from = v.archives()[l.diffID]
			return nil
		})
		if err != nil {
			return err
		}
	}
	if from == nil {
		return fmt.Errorf("%w: diff_id %s", errNoArchive, l.diffID)
	}
	c := &copier{puller: p, from: p.Store}
	s := &staged{layer: l, source: *from}
	if c.probeClone([]Layer{*from}) == nil {
		temporary, tempErr := newTempDir(p.graphRoot)
		if tempErr != nil {
			return tempErr
		}
		defer func() { err = errors.Join(err, temporary.remove()) }()
		if s.output, err = c.stage(ctx, l, *from, filepath.Join(temporary.path, "layer")); err != nil {
			return err
		}
	}
	return c.commit(ctx, w, s)
}
