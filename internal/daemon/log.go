package daemon

import (
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
	"github.com/pikoproxy/piko/internal/logline"
)

// newLog returns the process's log. It has no hooks: logrus runs them under its lock.
func newLog(out io.Writer, c config.Log, journal bool) (*logrus.Logger, error) {
	l := logrus.New()
	l.SetOutput(out)
	l.SetFormatter(&logline.Formatter{Journal: journal})
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
func parseLog(c config.Log) (logrus.Level, logline.Formatter, error) {
	level, err := logrus.ParseLevel(c.Level)
	if err != nil {
		return 0, logline.Formatter{}, fmt.Errorf("log.level: want debug, info, warn or error, have %q", c.Level)
	}
	var f logline.Formatter
	switch c.Format {
	case "text":
	case "json":
		f.JSON = true
	default:
		return 0, logline.Formatter{}, fmt.Errorf("log.format: want text or json, have %q", c.Format)
	}
	return level, f, nil
}

// setLog changes level and format of a log in use.
func setLog(l *logrus.Logger, c config.Log) error {
	level, f, err := parseLog(c)
	if err != nil {
		return err
	}
	if old, ok := l.Formatter.(*logline.Formatter); ok {
		f.Journal = old.Journal
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
