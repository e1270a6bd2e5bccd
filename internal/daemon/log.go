package daemon

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/time/rate"

	"github.com/pikoproxy/piko/internal/config"
)

// newLog returns the process's log. It has no hooks: logrus runs them under its lock.
func newLog(out io.Writer, c config.Log, journal bool) (*logrus.Logger, error) {
	l := logrus.New()
	l.SetOutput(out)
	l.SetFormatter(&formatter{journal: journal})
	return l, setLog(l, c)
}

// droppedNotice is the line that tells of lines that were dropped because nobody read them in time.
func droppedNotice(l *logrus.Logger, lines int) []byte {
	e := logrus.NewEntry(l).WithField("lines", lines).WithTime(time.Now())
	e.Level, e.Message = logrus.WarnLevel, "log lines dropped: nobody read them in time"
	b, err := e.Bytes()
	if err != nil {
		return nil // our formatter returns no error
	}
	return b
}

// parseLog returns what the settings of the log mean.
func parseLog(c config.Log) (logrus.Level, formatter, error) {
	level, err := logrus.ParseLevel(c.Level)
	if err != nil {
		return 0, formatter{}, fmt.Errorf("log.level: want debug, info, warn or error, have %q", c.Level)
	}
	var f formatter
	switch c.Format {
	case "text":
	case "json":
		f.json = true
	default:
		return 0, formatter{}, fmt.Errorf("log.format: want text or json, have %q", c.Format)
	}
	return level, f, nil
}

// setLog changes level and format of a log in use.
func setLog(l *logrus.Logger, c config.Log) error {
	level, f, err := parseLog(c)
	if err != nil {
		return err
	}
	if old, ok := l.Formatter.(*formatter); ok {
		f.journal = old.journal
	}
	l.SetLevel(level)
	l.SetFormatter(&f)
	return nil
}

// toJournal reports whether what is written there goes to systemd's journal, by the rule of systemd.exec(5).
func toJournal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	return os.Getenv("JOURNAL_STREAM") == strconv.FormatUint(st.Dev, 10)+":"+strconv.FormatUint(st.Ino, 10)
}

// Library errors repeat what a peer sent; a peer must not be able to fill the disk with them.
const (
	libraryLines = 10 // a second
	libraryBurst = 20
)

// ErrorLog returns a log for libraries that know only the standard one, such as the ErrorLog of a http.Server. Each line
// becomes a warning with the line under err, quoted like any other value; beyond 10 a second they are counted instead.
func (p *Process) ErrorLog() *log.Logger {
	return log.New(&libraryLog{log: p.Log, limit: rate.NewLimiter(libraryLines, libraryBurst)}, "", 0)
}

// libraryLog is written to by one log.Logger, which lets one goroutine in at a time.
type libraryLog struct {
	log     logrus.FieldLogger
	limit   *rate.Limiter
	skipped int
}

// Write logs one line.
func (l *libraryLog) Write(b []byte) (int, error) {
	if !l.limit.AllowN(time.Now(), 1) {
		l.skipped++
		return len(b), nil
	}
	entry := l.log.WithField("err", strings.TrimRight(string(b), "\n"))
	if l.skipped > 0 {
		entry = entry.WithField("skipped", l.skipped)
		l.skipped = 0
	}
	entry.Warn("library reports an error")
	return len(b), nil
}

// formatter writes one event as one line of text or JSON. Whatever a field holds, the line stays one line and cannot
// move a terminal's cursor: see appendQuoted.
type formatter struct {
	json    bool
	journal bool // the journal knows the time; the priority goes in front for it
}

// Format appends the event to the entry's buffer.
func (f *formatter) Format(e *logrus.Entry) ([]byte, error) {
	buf := e.Buffer
	if buf == nil {
		buf = new(bytes.Buffer)
	}
	b := buf.AvailableBuffer()
	if f.journal {
		b = append(b, '<', priority(e.Level), '>')
	}
	if f.json {
		b = f.appendJSON(b, e)
	} else {
		b = f.appendText(b, e)
	}
	return append(b, '\n'), nil
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

func (f *formatter) appendText(b []byte, e *logrus.Entry) []byte {
	if !f.journal {
		b = append(b, "time="...)
		b = append(e.Time.AppendFormat(b, timeFormat), ' ')
	}
	b = append(append(b, "level="...), levelName(e.Level)...)
	b = appendValue(append(b, " msg="...), e.Message)
	for _, k := range keys(e.Data) {
		b = append(appendValue(append(b, ' '), fieldName(k)), '=')
		b = appendValue(b, text(e.Data[k]))
	}
	return b
}

func (f *formatter) appendJSON(b []byte, e *logrus.Entry) []byte {
	b = append(b, '{')
	if !f.journal {
		b = append(b, `"time":"`...)
		b = append(e.Time.AppendFormat(b, timeFormat), '"', ',')
	}
	b = append(append(b, `"level":"`...), levelName(e.Level)...)
	b = appendQuoted(append(b, `","msg":`...), e.Message)
	for _, k := range keys(e.Data) {
		b = append(appendQuoted(append(b, ','), fieldName(k)), ':')
		switch v := e.Data[k].(type) {
		case bool, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64:
			b = fmt.Append(b, v)
		default:
			b = appendQuoted(b, text(v))
		}
	}
	return append(b, '}')
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
