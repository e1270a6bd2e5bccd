package guard

import (
	"bufio"
	"net"
	"net/http"
)

// Handler is for servers behind a guard that are no proxies: it has refuse answer what the guard has refused, after which
// the connection is closed, and gives everything else to next. When next takes a connection over, that comes without its
// guard. The server's ConnContext must be [With].
func Handler(next http.Handler, refuse func(http.ResponseWriter, *http.Request, Refusal)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := From(r.Context())
		if why := c.Refusal(); why != 0 && r.RequestURI == Target {
			w.Header().Set("Connection", "close")
			refuse(w, r, why)
			return
		}
		free := &unguarded{ResponseWriter: w}
		next.ServeHTTP(free, r)
		if !free.taken && r.ProtoAtLeast(1, 1) && len(r.Header["Upgrade"]) > 0 {
			c.Resume()
		}
	})
}

// unguarded is a ResponseWriter whose connection comes without its guard when it is taken over.
type unguarded struct {
	http.ResponseWriter
	taken bool
}

// Hijack takes the connection over.
func (w *unguarded) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.taken = true
	return Pass(conn), rw, nil
}

// Unwrap lets deadlines and flushing reach the writer below.
func (w *unguarded) Unwrap() http.ResponseWriter { return w.ResponseWriter }
