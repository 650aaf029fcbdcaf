// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestSpool(t *testing.T) {
	content := noise(1, 1<<20)
	for _, test := range []struct {
		name string
		in   io.Reader
		want error
	}{
		{"whole", iotest.HalfReader(bytes.NewReader(content)), nil},
		{"empty", bytes.NewReader(nil), nil},
		{"broken", io.MultiReader(bytes.NewReader(content), iotest.ErrReader(errBroken)), errBroken},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := check(newSpool(t.TempDir()))(t)
			done := make(chan struct{})
			go func() {
				defer close(done)
				s.fill(test.in)
			}()
			r := s.reader(t.Context())
			got, err := io.ReadAll(r)
			if !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			if err == nil && test.name == "whole" && !bytes.Equal(got, content) {
				t.Errorf("%d bytes, other than what was written", len(got))
			}
			<-done
			must(t, errors.Join(r.Close(), s.close()))
		})
	}
}

// A reader that waits ends with its context.
func TestSpoolIsCancelled(t *testing.T) {
	s := check(newSpool(t.TempDir()))(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	r := s.reader(ctx)
	go cancel(errBroken)
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, errBroken) {
		t.Errorf("error %v", err)
	}
	must(t, errors.Join(r.Close(), s.close()))
}

// A spool that gives up is no end of the blob.
func TestSpoolGivesUp(t *testing.T) {
	s := check(newSpool(t.TempDir()))(t)
	w := spoolWriter{s}
	check(w.Write([]byte("some bytes")))(t)
	err := w.giveUp()
	go s.finish(err)
	r := s.reader(t.Context())
	if _, err := io.ReadAll(r); !errors.Is(err, errSpoolFull) {
		t.Errorf("error %v", err)
	}
	must(t, errors.Join(r.Close(), s.close()))
}
