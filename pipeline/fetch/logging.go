// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"io"
	"log/slog"

	"github.com/sirupsen/logrus"
)

// InstallLogging sends what the container libraries log to l. They log
// through the global logger of logrus, which otherwise writes to standard
// error, so a program calls this once, at its start. It is the only function
// of this package that changes global state.
func InstallLogging(l *slog.Logger) {
	logrus.SetOutput(io.Discard)
	logrus.SetLevel(logrus.PanicLevel)
	for _, level := range logrus.AllLevels {
		if l.Enabled(context.Background(), slogLevel(level)) {
			logrus.SetLevel(level)
		}
	}
	logrus.StandardLogger().ReplaceHooks(logrus.LevelHooks{})
	logrus.AddHook(slogHook{l})
}

// slogHook is a logrus.Hook.
type slogHook struct{ l *slog.Logger }

func (slogHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h slogHook) Fire(e *logrus.Entry) error {
	ctx := e.Context
	if ctx == nil {
		ctx = context.Background()
	}
	attrs := make([]slog.Attr, 0, len(e.Data))
	for key, value := range e.Data {
		attrs = append(attrs, slog.Any(key, value))
	}
	h.l.LogAttrs(ctx, slogLevel(e.Level), e.Message, attrs...)
	return nil
}

func slogLevel(l logrus.Level) slog.Level {
	switch l {
	case logrus.TraceLevel:
		return slog.LevelDebug - 4
	case logrus.DebugLevel:
		return slog.LevelDebug
	case logrus.InfoLevel:
		// Their "info" is detail to our users: which mirror, reconnections.
		return slog.LevelDebug + 1
	case logrus.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelError
}
