package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
)

func logTo(t *testing.T, out io.Writer, format string, journal bool) *logrus.Logger {
	t.Helper()
	l, err := newLog(out, config.Log{Level: "debug", Format: format}, journal)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestOneEventIsOneLine(t *testing.T) {
	fields := logrus.Fields{
		"endpoint": "my-endpoint", "reason": "two words", "n": 3, "ok": true, "took": 1500 * time.Millisecond,
		"err": errors.New(`dial "x": refused`), "empty": "", "time": "forged", "pair": "a=b",
	}
	for _, c := range []struct {
		name, format string
		journal      bool
		want         string
	}{
		{"text", "text", false, `time=2026-08-22T10:00:00.007Z level=warn msg="session lost" empty="" endpoint=my-endpoint ` +
			`err="dial \"x\": refused" n=3 ok=true pair="a=b" reason="two words" time_=forged took=1.5s`},
		{"text in the journal", "text", true, `<4>level=warn msg="session lost" empty="" endpoint=my-endpoint ` +
			`err="dial \"x\": refused" n=3 ok=true pair="a=b" reason="two words" time_=forged took=1.5s`},
		{"JSON", "json", false, `{"time":"2026-08-22T10:00:00.007Z","level":"warn","msg":"session lost","empty":"",` +
			`"endpoint":"my-endpoint","err":"dial \"x\": refused","n":3,"ok":true,"pair":"a=b","reason":"two words",` +
			`"time_":"forged","took":"1.5s"}`},
		{"JSON in the journal", "json", true, `<4>{"level":"warn","msg":"session lost","empty":"",` +
			`"endpoint":"my-endpoint","err":"dial \"x\": refused","n":3,"ok":true,"pair":"a=b","reason":"two words",` +
			`"time_":"forged","took":"1.5s"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			logTo(t, &b, c.format, c.journal).WithTime(time.Date(2026, 8, 22, 10, 0, 0, 7e6, time.UTC)).
				WithFields(fields).Warn("session lost")
			if b.String() != c.want+"\n" {
				t.Errorf("have %s\nwant %s", b.String(), c.want)
			}
		})
	}
}

// hostile is what a peer would send to forge a line, move the cursor or turn the text round.
var hostile = []string{
	"\n{\"level\":\"fatal\"}", "\x1b[2J\x1b]0;title\a", "a\rb", "a\x00b", "\u2028x\u2029", "\u0085", "\x7f", "\u009b31m", "\u202egnp.exe",
	"\xff\xfe", `back\slash`, `"`, "tab\there", "\U000e0001", " ", "x=y",
}

func TestNothingBreaksOutOfItsField(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		for _, bad := range hostile {
			var b bytes.Buffer
			logTo(t, &b, format, false).WithError(errors.New(bad)).WithField(bad, bad).Info(bad)
			line := strings.TrimSuffix(b.String(), "\n")
			for _, r := range line {
				if r != ' ' && !unicode.IsPrint(r) {
					t.Errorf("%s: %q holds %U", format, line, r)
				}
			}
			if format == "text" {
				if n := len(splitText(t, line)); n != 5 {
					t.Errorf("%q has %d fields, want 5", line, n)
				}
				continue
			}
			var m map[string]any
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				t.Errorf("%q: %v", line, err)
			}
			if want := strings.ToValidUTF8(bad, "\ufffd"); m["err"] != want && m["err"] != strings.Repeat("\ufffd", len(bad)) {
				t.Errorf("err is %q, want %q", m["err"], want)
			}
		}
	}
}

// splitText splits a text line at the spaces that are not quoted, as a log reader does.
func splitText(t *testing.T, line string) []string {
	t.Helper()
	var fields []string
	for line != "" {
		end, quoted := 0, false
		for ; end < len(line) && (quoted || line[end] != ' '); end++ {
			switch {
			case quoted && line[end] == '\\':
				end++
			case line[end] == '"':
				quoted = !quoted
			}
		}
		fields = append(fields, line[:end])
		line = strings.TrimPrefix(line[end:], " ")
	}
	return fields
}

func TestLevelAndFormatChangeLive(t *testing.T) {
	var b bytes.Buffer
	p := NewProcess("pikod", "1", logTo(t, &b, "text", true))
	if err := p.SetLog(config.Log{Level: "warn", Format: "json"}); err != nil {
		t.Fatal(err)
	}
	p.Log.Info("unseen")
	p.Log.Warn("seen")
	if want := "<4>{\"level\":\"warn\",\"msg\":\"seen\"}\n"; b.String() != want {
		t.Errorf("have %q, want %q", b.String(), want)
	}
	if err := p.SetLog(config.Log{Level: "loud", Format: "json"}); err == nil {
		t.Error("an unknown level was taken")
	}
	if err := p.SetLog(config.Log{Level: "info", Format: "xml"}); err == nil {
		t.Error("an unknown format was taken")
	}
}

func TestLibraryErrorsAreLimited(t *testing.T) {
	var b bytes.Buffer
	p := NewProcess("pikod", "1", logTo(t, &b, "text", true))
	l := p.ErrorLog()
	for range 1000 {
		l.Print("bad\nthing")
	}
	if n := strings.Count(b.String(), "\n"); n < libraryBurst || n > 2*libraryBurst {
		t.Errorf("%d lines of 1000 written, want about %d", n, libraryBurst)
	}
	if !strings.HasPrefix(b.String(), `<4>level=warn msg="library reports an error" err="bad\nthing"`+"\n") {
		t.Errorf("have %q", b.String())
	}
}

func TestJournalIsKnownByItsStream(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	t.Setenv("JOURNAL_STREAM", strconv.FormatUint(st.Dev, 10)+":"+strconv.FormatUint(st.Ino, 10))
	if !toJournal(f) {
		t.Error("not recognised")
	}
	t.Setenv("JOURNAL_STREAM", "1:1")
	if toJournal(f) {
		t.Error("another process's stream taken for ours")
	}
	if toJournal(&bytes.Buffer{}) {
		t.Error("a buffer taken for the journal")
	}
}

// stuck is a reader that reads only when released.
type stuck struct {
	entered chan struct{}
	release chan struct{}
	bytes.Buffer
}

func (s *stuck) Write(b []byte) (int, error) {
	select {
	case s.entered <- struct{}{}:
	default:
	}
	<-s.release
	return s.Buffer.Write(b)
}

// put writes, which must always seem to succeed.
func put(t *testing.T, a *async, line []byte) {
	t.Helper()
	if n, err := a.Write(line); n != len(line) || err != nil {
		t.Fatalf("%d of %d bytes taken, %v", n, len(line), err)
	}
}

func TestStuckReaderStopsNobody(t *testing.T) {
	out := &stuck{entered: make(chan struct{}, 1), release: make(chan struct{})}
	l := logTo(t, io.Discard, "json", false)
	a := newAsync(out, func(lines int) []byte { return droppedNotice(l, lines) })
	line := []byte(strings.Repeat("x", 1023) + "\n")
	put(t, a, line)
	<-out.entered
	const lines = logBuffer/1024 + 100
	for range lines {
		put(t, a, line)
	}
	if err := testutil.CollectAndCompare((&Process{dropped: a.Dropped, reload: &reloads{}}).Collector(), strings.NewReader(
		"# HELP piko_log_dropped_lines_total Lines of the log that were dropped, as nobody read them in time.\n"+
			"# TYPE piko_log_dropped_lines_total counter\npiko_log_dropped_lines_total 100\n"), "piko_log_dropped_lines_total"); err != nil {
		t.Error(err)
	}
	if a.Dropped() != 100 {
		t.Errorf("%d dropped, want 100", a.Dropped())
	}
	started := time.Now()
	a.Close(10 * time.Millisecond)
	if took := time.Since(started); took > 30*time.Second {
		t.Errorf("end of the process held up for %v", took)
	}
	close(out.release)
	<-a.done
	if want := `"level":"warn","msg":"log lines dropped: nobody read them in time","lines":100}` + "\n"; !strings.Contains(out.String(), want) {
		t.Errorf("%q is missing", want)
	}
	if n := strings.Count(out.String(), "xxx\n"); n != logBuffer/1024+1 {
		t.Errorf("%d lines written, want %d", n, logBuffer/1024+1)
	}
}

// TestLinesShareWrites sees which lines are written at once, and which wait for others to come.
func TestLinesShareWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var times []time.Duration
		var sizes []int
		began := time.Now()
		a := newAsync(writes(func(b []byte) {
			times, sizes = append(times, time.Since(began)), append(sizes, len(b))
		}), func(int) []byte { return nil })
		line := make([]byte, 1<<10)
		put(t, a, line) // the first after silence: at once
		synctest.Wait()
		put(t, a, line) // the next ones: together, after a pause
		put(t, a, line)
		<-time.After(logPause)
		synctest.Wait()
		for range logFull >> 10 { // enough for a write of its own
			put(t, a, line)
		}
		synctest.Wait()
		put(t, a, line)
		a.Close(time.Minute) // waits for nothing but the write
		want := []time.Duration{0, logPause, logPause, logPause}
		if !slices.Equal(times, want) || !slices.Equal(sizes, []int{1 << 10, 2 << 10, logFull, 1 << 10}) {
			t.Errorf("%d bytes at %v, want four writes at %v", sizes, times, want)
		}
	})
}

// writes is a writer that is told what is written.
type writes func(b []byte)

func (w writes) Write(b []byte) (int, error) {
	w(b)
	return len(b), nil
}

func TestCloseFlushes(t *testing.T) {
	var b bytes.Buffer
	a := newAsync(&b, func(int) []byte { return nil })
	for range 100 {
		put(t, a, []byte("line\n"))
	}
	a.Close(time.Minute)
	if b.String() != strings.Repeat("line\n", 100) {
		t.Errorf("have %d bytes", b.Len())
	}
	put(t, a, []byte("late\n"))
	if a.Dropped() != 1 {
		t.Error("a line after the end is not counted")
	}
}
