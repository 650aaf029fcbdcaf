// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
)

// parseLogLevel is the level from which on messages are written.
func (o *pullOptions) parseLogLevel() (slog.Level, error) {
	return logLevel(o.logLevel, o.verbose, o.quiet)
}

// logLevel is the level that --log-level names, else CFS_PULL_LOG, else that
// which -v and -q stand for.
func logLevel(name string, verbose, quiet bool) (slog.Level, error) {
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}
	for _, from := range []struct{ where, name string }{
		{"--log-level", name}, {"CFS_PULL_LOG", os.Getenv("CFS_PULL_LOG")},
	} {
		if from.name == "" {
			continue
		}
		level, ok := levels[strings.ToLower(from.name)]
		if !ok {
			return 0, usagef("%s %q: want debug, info, warn or error", from.where, from.name)
		}
		return level, nil
	}
	switch {
	case verbose:
		return slog.LevelInfo, nil
	case quiet:
		return slog.LevelError, nil
	}
	return slog.LevelWarn, nil
}

// logHandler writes messages the way the program writes its errors:
// "cfs-pull: warning: text (key=value, key=value)".
type logHandler struct {
	out   io.Writer // writes of one line are not torn
	level slog.Level
	attrs []string
	group string // with a dot behind it
}

// Enabled implements slog.Handler.
func (h *logHandler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level }

// Handle implements slog.Handler.
func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	attrs := h.attrs[:len(h.attrs):len(h.attrs)]
	r.Attrs(func(a slog.Attr) bool {
		attrs = appendAttr(attrs, h.group, a)
		return true
	})
	text := r.Message
	if len(attrs) > 0 {
		text += " (" + strings.Join(attrs, ", ") + ")"
	}
	_, err := fmt.Fprintf(h.out, "cfs-pull: %s: %s\n", levelText(r.Level), text)
	return err
}

// WithAttrs implements slog.Handler.
func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	with.attrs = h.attrs[:len(h.attrs):len(h.attrs)]
	for _, a := range attrs {
		with.attrs = appendAttr(with.attrs, h.group, a)
	}
	return &with
}

// WithGroup implements slog.Handler.
func (h *logHandler) WithGroup(name string) slog.Handler {
	with := *h
	if name != "" {
		with.group += name + "."
	}
	return &with
}

func levelText(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warning"
	case l >= slog.LevelInfo:
		return "info"
	}
	return "debug"
}

func appendAttr(to []string, group string, a slog.Attr) []string {
	value := a.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, inner := range value.Group() {
			to = appendAttr(to, group, inner)
		}
		return to
	}
	if a.Equal(slog.Attr{}) {
		return to
	}
	// Keep what others say on one line.
	text := value.String()
	if text == "" {
		return to
	}
	if strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		text = fmt.Sprintf("%q", text)
	}
	return append(to, group+a.Key+"="+text)
}
