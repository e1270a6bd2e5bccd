// Package logline writes events of the log, each as one line of text or JSON.
//
// Whatever a field holds, the line stays one line and cannot move a terminal's cursor: see [AppendQuoted].
//
// An event that happens for every request must cost next to nothing. It does without a map of fields: an entry's Context
// that is a [Record] writes its fields by itself, into the line.
//
// Everything is safe for concurrent use, but for a [Line], which belongs to one call.
package logline

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// Record is the Context of a log entry that has its fields ready. They come after those of the entry, in the order in
// which they are written.
type Record interface {
	context.Context
	AppendTo(l *Line)
}

// Line is an event on its way to the log.
type Line struct {
	b    []byte
	json bool
	clock
}

var lines = sync.Pool{New: func() any { return new(Line) }}

// Text adds a field. The name must be a plain word.
func (l *Line) Text(name, value string) {
	l.name(name)
	if l.json {
		l.b = AppendQuoted(l.b, value)
	} else {
		l.b = AppendValue(l.b, value)
	}
}

// Int adds a field that is a number.
func (l *Line) Int(name string, value int64) {
	l.name(name)
	l.b = strconv.AppendInt(l.b, value, 10)
}

func (l *Line) name(name string) {
	if l.json {
		l.b = append(append(append(l.b, ',', '"'), name...), '"', ':')
	} else {
		l.b = append(append(append(l.b, ' '), name...), '=')
	}
}

// Formatter is that of a logrus.Logger. The zero value writes text.
type Formatter struct {
	JSON    bool
	Journal bool // for systemd's journal, which knows the time; the priority goes in front for it
}

// Format appends the event to the entry's buffer.
func (f *Formatter) Format(e *logrus.Entry) ([]byte, error) {
	buf := e.Buffer
	if buf == nil {
		buf = new(bytes.Buffer)
	}
	l := lines.Get().(*Line)
	b := buf.AvailableBuffer()
	if f.Journal {
		b = append(b, '<', priority(e.Level), '>')
	}
	if f.JSON {
		b = f.appendJSON(b, e, &l.clock)
	} else {
		b = f.appendText(b, e, &l.clock)
	}
	if r, ok := e.Context.(Record); ok {
		l.b, l.json = b, f.JSON
		r.AppendTo(l)
		b, l.b = l.b, nil
	}
	lines.Put(l)
	if f.JSON {
		b = append(b, '}')
	}
	// Written to the buffer as well, so that it is large enough for the next line.
	_, _ = buf.Write(append(b, '\n')) // it never fails
	return buf.Bytes(), nil
}

// priority is the level in the terms of syslog(3).
func priority(l logrus.Level) byte {
	switch l {
	case logrus.PanicLevel, logrus.FatalLevel:
		return '2'
	case logrus.ErrorLevel:
		return '3'
	case logrus.WarnLevel:
		return '4'
	case logrus.InfoLevel:
		return '6'
	default:
		return '7'
	}
}

// timeFormat has milliseconds and always the same width.
const timeFormat = "2006-01-02T15:04:05.000Z07:00"

// clock writes times in timeFormat. It remembers the last one: most lines are of the same second as the line before.
type clock struct {
	second int64
	place  *time.Location
	text   []byte // empty: nothing is remembered
}

// millis is where the milliseconds stand in timeFormat.
const millis = len("2006-01-02T15:04:05.")

func (c *clock) append(b []byte, t time.Time) []byte {
	if second, place := t.Unix(), t.Location(); second != c.second || place != c.place || len(c.text) == 0 {
		c.second, c.place, c.text = second, place, t.AppendFormat(c.text[:0], timeFormat)
	}
	if len(c.text) < millis+3 || c.text[millis-1] != '.' {
		return t.AppendFormat(b, timeFormat) // a year of more than four digits
	}
	n := len(b) + millis
	b = append(b, c.text...)
	ms := t.Nanosecond() / int(time.Millisecond)
	b[n], b[n+1], b[n+2] = digit(ms/100), digit(ms/10), digit(ms)
	return b
}

// digit is the last one of n.
func digit(n int) byte { return "0123456789"[n%10] }

func (f *Formatter) appendText(b []byte, e *logrus.Entry, c *clock) []byte {
	if !f.Journal {
		b = append(b, "time="...)
		b = append(c.append(b, e.Time), ' ')
	}
	b = append(append(b, "level="...), levelName(e.Level)...)
	b = AppendValue(append(b, " msg="...), e.Message)
	for _, k := range keys(e.Data) {
		b = append(AppendValue(append(b, ' '), fieldName(k)), '=')
		b = AppendValue(b, text(e.Data[k]))
	}
	return b
}

func (f *Formatter) appendJSON(b []byte, e *logrus.Entry, c *clock) []byte {
	b = append(b, '{')
	if !f.Journal {
		b = append(b, `"time":"`...)
		b = append(c.append(b, e.Time), '"', ',')
	}
	b = append(append(b, `"level":"`...), levelName(e.Level)...)
	b = AppendQuoted(append(b, `","msg":`...), e.Message)
	for _, k := range keys(e.Data) {
		b = append(AppendQuoted(append(b, ','), fieldName(k)), ':')
		switch v := e.Data[k].(type) {
		case bool, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64:
			b = fmt.Append(b, v)
		default:
			b = AppendQuoted(b, text(v))
		}
	}
	return b
}

// fieldName keeps a field from passing for one of the line's own, and writes errors under err, whatever logrus calls
// them.
func fieldName(k string) string {
	switch k {
	case "time", "level", "msg":
		return k + "_"
	case logrus.ErrorKey:
		return "err"
	}
	return k
}

func levelName(l logrus.Level) string {
	if l == logrus.WarnLevel {
		return "warn" // as in the settings; logrus says "warning"
	}
	return l.String()
}
