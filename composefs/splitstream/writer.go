// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package splitstream

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

const (
	// maxBufferedRun is how many inline bytes a writer holds before it starts
	// to compress a run whose length it does not know yet.
	maxBufferedRun = 4 << 20

	// encoderWindow bounds the encoder's memory. Tar headers repeat at short
	// distance, a larger window gains little.
	encoderWindow = 1 << 20

	fileBuffer = 64 << 10
)

// Writer writes one split stream into an empty file. It is not safe for
// concurrent use. After an error every later call returns that error.
//
// File layout: header, info block, stream, stream_refs, object_refs,
// named_refs. The compressed stream comes first so that it never has to be
// held in memory; header and info are patched in at the end.
type Writer struct {
	f   *os.File
	out *bufio.Writer
	pos uint64 // file offset of the next byte given to out
	enc *zstd.Encoder
	err error

	algorithm   fsverity.Algorithm
	contentType ContentType

	inFrame  bool   // enc has an open frame
	anything bool   // the stream section has at least one frame
	run      []byte // inline bytes not yet given to enc

	// A run that outgrew the buffer: its length word is a frame of its own,
	// stored raw at lengthAt, and is patched when the run ends.
	streaming bool
	lengthAt  uint64
	runLength uint64

	inline, size uint64

	objects    []fsverity.Digest
	objectAt   map[fsverity.Digest]int64
	streams    []fsverity.Digest
	streamAt   map[fsverity.Digest]int
	names      map[string]int
	maxRunSize int
}

// NewWriter starts a split stream in f, an empty file that is open for reading
// and writing and not in append mode. The caller keeps f and closes it.
func NewWriter(f *os.File, alg fsverity.Algorithm, ct ContentType) (*Writer, error) {
	if !alg.Valid() {
		return nil, fmt.Errorf("write splitstream: algorithm %d is not known", alg)
	}
	w := &Writer{
		f:           f,
		algorithm:   alg,
		contentType: ct,
		objectAt:    make(map[fsverity.Digest]int64),
		streamAt:    make(map[fsverity.Digest]int),
		names:       make(map[string]int),
		maxRunSize:  maxBufferedRun,
	}
	w.out = bufio.NewWriterSize(f, fileBuffer)
	if err := w.emit(make([]byte, infoEnd)); err != nil {
		return nil, err
	}
	return w, nil
}

// InlineBytes is the number of inline bytes written so far.
func (w *Writer) InlineBytes() uint64 { return w.inline }

// Size is the length in bytes of the reassembled stream so far.
func (w *Writer) Size() uint64 { return w.size }

// Write appends inline bytes. Bytes of adjacent calls become one chunk.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := w.grow(uint64(len(p))); err != nil {
		return 0, err
	}
	w.inline += uint64(len(p))
	if !w.streaming {
		if len(w.run)+len(p) <= w.maxRunSize {
			w.run = append(w.run, p...)
			return len(p), nil
		}
		if err := w.startLongRun(); err != nil {
			return 0, err
		}
	}
	w.runLength += uint64(len(p))
	if err := w.compress(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// External appends the whole content of object id, which is size bytes long.
// The size only counts towards the size of the stream.
func (w *Writer) External(id fsverity.Digest, size uint64) error {
	if w.err != nil {
		return w.err
	}
	n, err := w.objectIndex(id)
	if err != nil {
		return err
	}
	if err := w.grow(size); err != nil {
		return err
	}
	if err := w.endRun(); err != nil {
		return err
	}
	var word [8]byte
	binary.LittleEndian.PutUint64(word[:], uint64(n))
	return w.compress(word[:])
}

// AddObjectRef lists an object that no chunk refers to, to keep it alive.
func (w *Writer) AddObjectRef(id fsverity.Digest) error {
	if w.err != nil {
		return w.err
	}
	_, err := w.objectIndex(id)
	return err
}

// AddStreamRef names another stream or an image by its object. The table of
// streams is in the order of first calls. Naming again replaces, but the first
// stream stays in the table. A name is UTF-8 without NUL.
func (w *Writer) AddStreamRef(name string, id fsverity.Digest) error {
	if w.err != nil {
		return w.err
	}
	if err := w.checkDigest(id); err != nil {
		return err
	}
	if !utf8.ValidString(name) || strings.IndexByte(name, 0) >= 0 {
		return w.fail(fmt.Errorf("write splitstream: name of a stream reference %q is not UTF-8 without NUL", name))
	}
	n, ok := w.streamAt[id]
	if !ok {
		n = len(w.streams)
		w.streamAt[id] = n
		w.streams = append(w.streams, id)
	}
	w.names[name] = n
	return nil
}

// Finish completes the file. The Writer is of no use afterwards.
func (w *Writer) Finish() error {
	if w.err != nil {
		return w.err
	}
	if err := w.endRun(); err != nil {
		return err
	}
	if err := w.endFrame(); err != nil {
		return err
	}
	if !w.anything {
		if err := w.emit(emptyFrame[:]); err != nil {
			return err
		}
	}
	i := info{contentType: w.contentType, size: w.size, stream: span{infoEnd, w.pos}}

	// Others align the tables by construction; a reader that maps them may
	// rely on it.
	if err := w.emit(make([]byte, -w.pos&7)); err != nil {
		return err
	}
	var err error
	if i.streamRefs, err = w.emitTable(w.streams); err != nil {
		return err
	}
	if i.objectRefs, err = w.emitTable(w.objects); err != nil {
		return err
	}
	if i.namedRefs, err = w.emitNames(); err != nil {
		return err
	}
	if err := w.out.Flush(); err != nil {
		return w.fail(fmt.Errorf("write splitstream: %w", err))
	}
	h := header{algorithm: w.algorithm, info: span{infoStart, infoEnd}}.encode()
	b := i.encode()
	if _, err := w.f.WriteAt(append(h[:], b[:]...), 0); err != nil {
		return w.fail(fmt.Errorf("write splitstream header: %w", err))
	}
	w.err = errFinished
	return nil
}

var errFinished = errors.New("write splitstream: already finished")

func (w *Writer) fail(err error) error {
	if w.err == nil {
		w.err = err
	}
	return err
}

func (w *Writer) checkDigest(id fsverity.Digest) error {
	if id.Algorithm() != w.algorithm {
		return w.fail(fmt.Errorf("write splitstream: digest %q is not %s", id, w.algorithm))
	}
	return nil
}

func (w *Writer) objectIndex(id fsverity.Digest) (int64, error) {
	n, ok := w.objectAt[id]
	if ok {
		return n, nil
	}
	if err := w.checkDigest(id); err != nil {
		return 0, err
	}
	n = int64(len(w.objects))
	w.objectAt[id] = n
	w.objects = append(w.objects, id)
	return n, nil
}

// grow counts n more bytes of reassembled stream.
func (w *Writer) grow(n uint64) error {
	if n > math.MaxInt64-w.size {
		return w.fail(errors.New("write splitstream: stream is longer than 2^63-1 bytes"))
	}
	w.size += n
	return nil
}

// endRun gives the inline bytes since the last external chunk to the encoder.
func (w *Writer) endRun() error {
	if w.streaming {
		return w.endLongRun()
	}
	if len(w.run) == 0 {
		return nil
	}
	var word [8]byte
	binary.LittleEndian.PutUint64(word[:], -uint64(len(w.run)))
	if err := w.compress(word[:]); err != nil {
		return err
	}
	if err := w.compress(w.run); err != nil {
		return err
	}
	w.run = w.run[:0]
	return nil
}

// startLongRun begins a chunk of unknown length. Its length word goes into a
// frame of its own that stores it raw, at a known place in the file, where
// endLongRun patches it. So a run of any length needs neither memory nor a
// second file.
func (w *Writer) startLongRun() error {
	if err := w.endFrame(); err != nil {
		return err
	}
	w.anything = true
	w.lengthAt = w.pos + uint64(len(wordFrame)) - 8
	if err := w.emit(wordFrame[:]); err != nil {
		return err
	}
	w.streaming = true
	w.runLength = uint64(len(w.run))
	if err := w.compress(w.run); err != nil {
		return err
	}
	w.run = w.run[:0]
	return nil
}

func (w *Writer) endLongRun() error {
	if err := w.out.Flush(); err != nil {
		return w.fail(fmt.Errorf("write splitstream: %w", err))
	}
	var word [8]byte
	binary.LittleEndian.PutUint64(word[:], -w.runLength)
	if _, err := w.f.WriteAt(word[:], int64(w.lengthAt)); err != nil {
		return w.fail(fmt.Errorf("write length of inline chunk: %w", err))
	}
	w.streaming = false
	w.runLength = 0
	return nil
}

// compress appends to the stream section.
func (w *Writer) compress(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if !w.inFrame {
		if w.enc == nil {
			enc, err := newEncoder()
			if err != nil {
				return w.fail(err)
			}
			w.enc = enc
		}
		w.enc.Reset(emitter{w})
		w.inFrame, w.anything = true, true
	}
	if _, err := w.enc.Write(p); err != nil {
		return w.fail(fmt.Errorf("compress splitstream: %w", err))
	}
	return nil
}

func (w *Writer) endFrame() error {
	if !w.inFrame {
		return nil
	}
	w.inFrame = false
	if err := w.enc.Close(); err != nil {
		return w.fail(fmt.Errorf("compress splitstream: %w", err))
	}
	return nil
}

func newEncoder() (*zstd.Encoder, error) {
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedDefault),
		zstd.WithEncoderConcurrency(1), // no goroutines, nothing to wait for
		zstd.WithWindowSize(encoderWindow),
		zstd.WithEncoderCRC(false), // the file's fs-verity digest covers it
		zstd.WithZeroFrames(true),  // an empty section must still be a frame
	)
	if err != nil {
		return nil, fmt.Errorf("start zstd encoder: %w", err)
	}
	return enc, nil
}

// emitter is the encoder's way to the file.
type emitter struct{ w *Writer }

func (e emitter) Write(p []byte) (int, error) {
	if err := e.w.emit(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// emit appends bytes to the file.
func (w *Writer) emit(p []byte) error {
	if _, err := w.out.Write(p); err != nil {
		return w.fail(fmt.Errorf("write splitstream: %w", err))
	}
	w.pos += uint64(len(p))
	return nil
}

func (w *Writer) emitTable(ids []fsverity.Digest) (span, error) {
	s := span{start: w.pos}
	var raw [fsverity.MaxDigestSize]byte
	for _, id := range ids {
		if err := w.emit(id.AppendBytes(raw[:0])); err != nil {
			return span{}, err
		}
	}
	s.end = w.pos
	return s, nil
}

func (w *Writer) emitNames() (span, error) {
	s := span{start: w.pos}
	if len(w.names) == 0 {
		err := w.emit(emptyFrame[:])
		s.end = w.pos
		return s, err
	}
	var text []byte
	for _, name := range slices.Sorted(maps.Keys(w.names)) {
		text = strconv.AppendInt(text, int64(w.names[name]), 10)
		text = append(text, ':')
		text = append(text, name...)
		text = append(text, 0)
	}
	if w.enc == nil {
		enc, err := newEncoder()
		if err != nil {
			return span{}, w.fail(err)
		}
		w.enc = enc
	}
	if err := w.emit(w.enc.EncodeAll(text, nil)); err != nil {
		return span{}, err
	}
	s.end = w.pos
	return s, nil
}
