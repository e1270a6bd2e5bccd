package acme

import (
	"github.com/sirupsen/logrus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// bridge lets certmagic, which logs with zap, write into our log. Its informational lines are told at debug: an operator
// wants to read what went wrong, and the orders are in the metrics.
func bridge(log *logrus.Logger) *zap.Logger { return zap.New(&core{log: log}) }

type core struct {
	log    *logrus.Logger
	fields []zapcore.Field
}

func levelOf(l zapcore.Level) logrus.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return logrus.ErrorLevel
	case l == zapcore.WarnLevel:
		return logrus.WarnLevel
	default:
		return logrus.DebugLevel
	}
}

// Enabled implements zapcore.LevelEnabler.
func (c *core) Enabled(l zapcore.Level) bool { return c.log.IsLevelEnabled(levelOf(l)) }

// With implements zapcore.Core.
func (c *core) With(fields []zapcore.Field) zapcore.Core {
	all := append(append([]zapcore.Field(nil), c.fields...), fields...)
	return &core{log: c.log, fields: all}
}

// Check implements zapcore.Core.
func (c *core) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return checked.AddCore(e, c)
	}
	return checked
}

// Write implements zapcore.Core.
func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	all := zapcore.NewMapObjectEncoder()
	for _, f := range append(append([]zapcore.Field(nil), c.fields...), fields...) {
		if f.Key == "error" {
			f.Key = "err"
		}
		f.AddTo(all)
	}
	c.log.WithFields(all.Fields).WithField("detail", e.Message).Log(levelOf(e.Level), "acme")
	return nil
}

// Sync implements zapcore.Core.
func (c *core) Sync() error { return nil }
