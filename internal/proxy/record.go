package proxy

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/limit"
	"github.com/pikoproxy/piko/internal/logline"
)

// maxLogged bounds what of a client's text goes into one field of the log, in bytes.
const maxLogged = 256

// record is what is logged and counted about one exchange. It refers to the request only by strings.
type record struct {
	context.Context // nil: a log entry takes a record where a context belongs, and asks it for nothing but AppendTo

	entry    logrus.Entry
	began    time.Time
	took     time.Duration
	method   string
	path     string
	endpoint string
	client   string
	session  string // the upstream's
	proto    string
	code     string       // of the fault, if any
	reason   limit.Reason // why the client was turned away, where code does not say
	err      error
	status   int
	received int64 // bytes of the request body from the client, or of everything after a switch
	sent     int64 // bytes of the answer's body to the client, or of everything after a switch
}

func (rec *record) begin(r *http.Request) {
	*rec = record{began: time.Now(), method: r.Method, path: r.URL.Path, client: r.RemoteAddr, proto: r.Proto}
}

// fail notes which fault ended the exchange, and why.
func (rec *record) fail(f fault.Fault, err error) {
	rec.code, rec.err = f.Code, err
}

// finish counts and logs an exchange that is over.
func (s *Server) finish(rec *record) {
	took := time.Since(rec.began)
	if rec.status == 0 {
		// The handler panicked by a bug of ours, which net/http has logged.
		rec.status, rec.code = http.StatusInternalServerError, fault.Internal.Code
	}
	s.metrics.observe(rec, took)
	if rec.reason == "" {
		rec.reason = limit.ReasonOf(rec.code)
	}
	if rec.reason != "" {
		s.report.Count(limit.Proxy, rec.reason)
	}
	if s.access == nil || !s.settings.Load().AccessLog || !s.access.IsLevelEnabled(logrus.InfoLevel) {
		return
	}
	rec.took = took
	rec.entry = logrus.Entry{Logger: s.access, Context: rec}
	if took < time.Second { // else the clock may have been set meanwhile
		rec.entry.Time = rec.began.Add(took)
	}
	rec.entry.Log(logrus.InfoLevel, "request")
}

var _ logline.Record = (*record)(nil)

// AppendTo writes the fields of the access log.
func (rec *record) AppendTo(l *logline.Line) {
	l.Text("client", rec.client)
	if rec.code != "" {
		l.Text("code", rec.code)
	}
	l.Int("duration_us", rec.took.Microseconds())
	if rec.endpoint != "" {
		l.Text("endpoint", rec.endpoint)
	}
	if rec.err != nil {
		l.Text("err", cutText(rec.err.Error()))
	}
	l.Text("method", cutText(rec.method))
	l.Text("path", cutText(rec.path))
	l.Text("proto", rec.proto)
	if rec.reason != "" {
		l.Text("reason", string(rec.reason))
	}
	l.Int("received", rec.received)
	l.Int("sent", rec.sent)
	if rec.session != "" {
		l.Text("session", rec.session)
	}
	l.Int("status", int64(rec.status))
}

func cutText(s string) string {
	if len(s) <= maxLogged {
		return s
	}
	return s[:maxLogged] + "..."
}

func statusClass(status int) int {
	return min(max(status/100, 1), 5) - 1
}

func classLabel(class int) string { return strconv.Itoa(class+1) + "xx" }
