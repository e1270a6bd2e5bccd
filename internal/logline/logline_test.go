package logline_test

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/logline"
)

// hostile is what a peer would send to forge a line, move the cursor or turn the text round.
var hostile = []string{
	"\n{\"level\":\"fatal\"}", "\x1b[2J\x1b]0;title\a", "a\rb", "a\x00b", "\u2028x\u2029", "\u0085", "\x7f", "\u009b31m", "\u202egnp.exe",
	"\xff\xfe", `back\slash`, `"`, "tab\there", "\U000e0001", " ", "x=y",
}

func FuzzQuoting(f *testing.F) {
	for _, s := range hostile {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q := logline.AppendQuoted(nil, s)
		var back string
		if err := json.Unmarshal(q, &back); err != nil {
			t.Fatalf("%q is no JSON string: %v", q, err)
		}
		if want := string([]rune(s)); back != want {
			t.Fatalf("%q came back as %q", s, back)
		}
	})
}

// record is an event with its fields ready.
type record struct {
	context.Context
	path string
}

func (r *record) AppendTo(l *logline.Line) {
	l.Text("path", r.path)
	l.Int("status", 200)
}

func TestRecordWritesItsFields(t *testing.T) {
	for _, c := range []struct {
		f          logline.Formatter
		path, want string
	}{
		{logline.Formatter{}, "/a", "time=2026-08-22T10:00:00.007Z level=info msg=request node=n1 path=/a status=200\n"},
		{logline.Formatter{Journal: true}, "a b\n", `<6>level=info msg=request node=n1 path="a b\n" status=200` + "\n"},
		{logline.Formatter{JSON: true}, "ü\"", `{"time":"2026-08-22T10:00:00.007Z","level":"info","msg":"request",` +
			`"node":"n1","path":"ü\"","status":200}` + "\n"},
	} {
		var out bytes.Buffer
		l := logrus.New()
		l.SetOutput(&out)
		l.SetFormatter(&c.f)
		l.WithContext(&record{path: c.path}).WithTime(time.Date(2026, 8, 22, 10, 0, 0, 7e6, time.UTC)).
			WithField("node", "n1").Info("request")
		if out.String() != c.want {
			t.Errorf("%s, want %s", out.String(), c.want)
		}
		if c.f.JSON && !json.Valid(out.Bytes()) {
			t.Errorf("%s is no JSON", out.String())
		}
	}
}

func TestTimesAreRightWhateverTheLineBeforeWas(t *testing.T) {
	east := time.FixedZone("", 5*3600+1800)
	times := []time.Time{
		time.Date(2026, 8, 22, 10, 0, 0, 7e6, time.UTC), time.Date(2026, 8, 22, 10, 0, 0, 999_999_999, time.UTC),
		time.Date(2026, 8, 22, 15, 30, 0, 0, east), time.Date(2026, 8, 22, 10, 0, 1, 1e6, time.UTC),
		time.Date(2026, 8, 22, 10, 0, 1, 120e6, time.UTC), time.Date(12026, 8, 22, 10, 0, 1, 123e6, time.UTC),
		time.Date(12026, 8, 22, 10, 0, 1, 124e6, time.UTC), time.Unix(0, 5e6).UTC(), {},
	}
	f := &logline.Formatter{}
	for _, at := range append(times, times...) {
		line, err := f.Format(&logrus.Entry{Time: at, Level: logrus.InfoLevel})
		want := "time=" + at.Format("2006-01-02T15:04:05.000Z07:00") + " "
		if err != nil || !bytes.HasPrefix(line, []byte(want)) {
			t.Errorf("%s, want %s", line, want)
		}
	}
}

type sink struct{}

func (sink) Write(p []byte) (int, error) { return len(p), nil }

// The access log writes such a line for each request.
func TestRecordsAllocateNextToNothing(t *testing.T) {
	l := logrus.New()
	l.SetOutput(sink{})
	l.SetFormatter(&logline.Formatter{})
	e := &logrus.Entry{Logger: l, Context: &record{path: "/some/path?a=b"}}
	least := 100.0
	for range 50 { // under the race detector pools lose some of what they are given
		least = min(least, testing.AllocsPerRun(1, func() { e.Log(logrus.InfoLevel, "request") }))
	}
	if least > 1 {
		t.Errorf("%v allocations for a line", least)
	}
}

func BenchmarkRecord(b *testing.B) {
	l := logrus.New()
	l.SetOutput(sink{})
	l.SetFormatter(&logline.Formatter{})
	e := &logrus.Entry{Logger: l, Context: &record{path: "/some/path?a=b"}}
	b.ReportAllocs()
	for b.Loop() {
		e.Log(logrus.InfoLevel, "request")
	}
}
