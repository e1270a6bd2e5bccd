package proxy

import (
	"net/http"
	"strconv"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/limit"
)

// maxLogged bounds what of a client's text goes into one field of the log, in bytes.
const maxLogged = 256

// record is what is logged and counted about one exchange. It refers to the request only by strings.
type record struct {
	began    time.Time
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
	fields := logrus.Fields{
		"method": cutText(rec.method), "path": cutText(rec.path), "status": rec.status, "client": rec.client,
		"duration_us": took.Microseconds(), "received": rec.received, "sent": rec.sent, "proto": rec.proto,
	}
	if rec.endpoint != "" {
		fields["endpoint"] = rec.endpoint
	}
	if rec.session != "" {
		fields["session"] = rec.session
	}
	if rec.code != "" {
		fields["code"] = rec.code
	}
	if rec.reason != "" {
		fields["reason"] = string(rec.reason)
	}
	if rec.err != nil {
		fields["err"] = cutText(rec.err.Error())
	}
	s.access.WithFields(fields).Info("request")
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
