package daemon

import (
	"context"
	"log/slog"

	"github.com/sirupsen/logrus"
)

// Slog returns a logger that writes to log, for packages that take a *slog.Logger. Levels between those of logrus count
// as the next lower one; the names of groups become prefixes of the fields in them.
func Slog(log logrus.FieldLogger) *slog.Logger { return slog.New(&slogHandler{log: log}) }

type slogHandler struct {
	log    logrus.FieldLogger
	prefix string
}

// Enabled implements slog.Handler.
func (h *slogHandler) Enabled(_ context.Context, level slog.Level) bool {
	switch log := h.log.(type) {
	case *logrus.Logger:
		return log.IsLevelEnabled(logrusLevel(level))
	case *logrus.Entry:
		return log.Logger.IsLevelEnabled(logrusLevel(level))
	}
	return true
}

// Handle implements slog.Handler.
func (h *slogHandler) Handle(_ context.Context, r slog.Record) error {
	fields := make(logrus.Fields, r.NumAttrs())
	r.Attrs(func(a slog.Attr) bool {
		addField(fields, h.prefix, a)
		return true
	})
	h.log.WithFields(fields).WithTime(r.Time).Log(logrusLevel(r.Level), r.Message)
	return nil
}

// WithAttrs implements slog.Handler.
func (h *slogHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	fields := make(logrus.Fields, len(attrs))
	for _, a := range attrs {
		addField(fields, h.prefix, a)
	}
	return &slogHandler{log: h.log.WithFields(fields), prefix: h.prefix}
}

// WithGroup implements slog.Handler.
func (h *slogHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return &slogHandler{log: h.log, prefix: h.prefix + name + "."}
}

func addField(fields logrus.Fields, prefix string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() != slog.KindGroup {
		fields[prefix+a.Key] = v.Any()
		return
	}
	if a.Key != "" {
		prefix += a.Key + "."
	}
	for _, member := range v.Group() {
		addField(fields, prefix, member)
	}
}

func logrusLevel(l slog.Level) logrus.Level {
	switch {
	case l >= slog.LevelError:
		return logrus.ErrorLevel
	case l >= slog.LevelWarn:
		return logrus.WarnLevel
	case l >= slog.LevelInfo:
		return logrus.InfoLevel
	}
	return logrus.DebugLevel
}
