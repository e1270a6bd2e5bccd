package agent

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/relay"
)

// recorder notes what a handler answers.
type recorder struct {
	http.ResponseWriter
	start  time.Time
	status int
	bytes  int64
	body   *requestBody // of the request, when it has to end before another one may follow; nil: it need not
	hold   atomic.Bool  // the answer has no body, so that its head need not be sent before its end is known
}

type recorderKey struct{}

// FlushError sends what was written. The head of an answer without a body goes out together with its end: the only HEADERS
// of a failed call of gRPC has to end the stream, or the client misses the trailers.
func (r *recorder) FlushError() error {
	if r.hold.Load() {
		return nil
	}
	return http.NewResponseController(r.ResponseWriter).Flush()
}

// holdEmpty tells the recorder of a request that its answer has no body.
func holdEmpty(res *http.Response) error {
	rec, ok := res.Request.Context().Value(recorderKey{}).(*recorder)
	if ok && res.ContentLength == 0 && res.StatusCode != http.StatusSwitchingProtocols {
		rec.hold.Store(true)
		res.Body = &emptyBody{res.Body, rec}
	}
	return nil
}

// emptyBody ends the holding of the head. ReverseProxy closes it when it flushes no more but for trailers that have come.
type emptyBody struct {
	io.ReadCloser
	rec *recorder
}

// Close implements io.Closer.
func (b *emptyBody) Close() error {
	b.rec.hold.Store(false)
	return b.ReadCloser.Close()
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 && (status >= http.StatusOK || status == http.StatusSwitchingProtocols) {
		r.status = status
	}
	if status >= http.StatusOK && r.body != nil && !r.body.ended.Load() {
		// The transport is still reading the body, and net/http will break its read off when the answer has ended. What
		// comes then is the rest of the body, and must not be taken for the next request.
		r.Header().Set("Connection", "close")
	}
	r.ResponseWriter.WriteHeader(status)
}

// requestBody is the body of a request that knows whether it was read to its end.
type requestBody struct {
	io.ReadCloser
	ended atomic.Bool
}

// Read implements io.Reader.
func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.ended.Store(true)
	}
	return n, err
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach what is beneath.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Hijack hands over the stream of an upgraded request.
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(r.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	r.status = http.StatusSwitchingProtocols
	return &upgraded{Conn: conn, early: rw.Reader}, rw, nil
}

// upgraded is the stream of an upgraded request. ReverseProxy closes it in the same way whether both sides have ended or one
// has broken; only the first may look like an end to the client.
type upgraded struct {
	net.Conn
	early       *bufio.Reader // what came together with the request, and ReverseProxy does not look at
	clientEnded atomic.Bool
	// Alone it is no proof: a socket that was reset says so once, perhaps to the direction towards the service, and from
	// then on reads as ended.
	serviceEnded atomic.Bool
}

// Read reads what the client sends.
func (u *upgraded) Read(b []byte) (int, error) {
	if u.early.Buffered() > 0 {
		return u.early.Read(b)
	}
	n, err := u.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		u.clientEnded.Store(true)
	}
	return n, err
}

// CloseWrite passes on that the service has ended its direction.
func (u *upgraded) CloseWrite() error {
	u.serviceEnded.Store(true)
	if half, ok := u.Conn.(relay.CloseWriter); ok {
		return half.CloseWrite()
	}
	return nil
}

// Close closes the stream if both sides have ended, and resets it otherwise.
func (u *upgraded) Close() error {
	if !u.clientEnded.Load() || !u.serviceEnded.Load() {
		relay.Abort(u.Conn)
		return nil
	}
	return u.Conn.Close()
}

// logRequest counts a request and, if wanted, writes its line of the access log.
func (l *listener) logRequest(rec *recorder, r *http.Request) {
	l.metrics.request(rec.status)
	if !l.settings.AccessLog {
		return
	}
	l.log.WithFields(logrus.Fields{
		"client":   clientOf(r),
		"method":   r.Method,
		"host":     r.Host,
		"path":     r.URL.EscapedPath(),
		"proto":    r.Proto,
		"status":   rec.status, // 0: broken off before there was an answer
		"bytes":    rec.bytes,
		"duration": time.Since(rec.start).String(),
	}).Info("request")
}

// clientOf returns the client's address as the node passed it on.
func clientOf(r *http.Request) string {
	list := r.Header["X-Forwarded-For"]
	if len(list) == 0 {
		return r.RemoteAddr
	}
	last := list[len(list)-1]
	return strings.TrimSpace(last[strings.LastIndexByte(last, ',')+1:])
}

// logStream writes the line of the access log for a spliced stream, if wanted. A broken stream is worth a line at debug
// in any case.
func (l *listener) logStream(in *piko.Incoming, start time.Time, counts relay.Counts, err error) {
	if !l.settings.AccessLog && (err == nil || !l.debug()) {
		return
	}
	entry := l.log.WithFields(logrus.Fields{
		"client":         in.RemoteAddr().String(),
		"received_bytes": counts.AToB,
		"sent_bytes":     counts.BToA,
		"duration":       time.Since(start).String(),
	})
	if err != nil {
		entry = entry.WithField("err", err)
	}
	if l.settings.AccessLog {
		entry.Info("connection")
		return
	}
	entry.Debug("connection broken")
}
