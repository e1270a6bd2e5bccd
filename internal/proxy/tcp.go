package proxy

import (
	"bufio"
	"net"
	"net/http"
	"strings"

	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/guard"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
	"github.com/pikoproxy/piko/internal/websocket"
)

// serveTCP carries raw bytes in the binary messages of a WebSocket to an endpoint. The stream is opened before the
// handshake is answered, so that a client learns by a status and a JSON body why there is none.
func (x *exchange) serveTCP() {
	if !asksFor(x.r, "websocket") {
		if x.r.ProtoMajor == 1 {
			x.w.Header()["Upgrade"], x.w.Header()["Connection"] = []string{"websocket"}, []string{"Upgrade"}
		}
		x.refuse(fault.UpgradeRequired, nil)
		return
	}
	s, err := x.server.router.Open(x.r.Context(), router.Request{
		Key: x.key, Header: x.streamHeader(tunnel.ProtocolTCP),
	})
	if err != nil {
		x.notOpened(err, false)
		return
	}
	x.record.session = s.Upstream().Session().ID()
	x.watch(s)
	conn, err := websocket.Accept(passing{x.w}, x.r, websocket.AcceptOptions{})
	x.unwatch()
	if err != nil {
		_ = s.Reset()
		x.record.status, x.record.err = http.StatusBadRequest, err
		return
	}
	x.record.status = http.StatusSwitchingProtocols
	x.splice(conn, streamConn{s})
}

// passing is a ResponseWriter whose connection comes without its guard when it is taken over.
type passing struct{ http.ResponseWriter }

// Hijack takes the connection over.
func (w passing) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return guard.Pass(conn), rw, nil
}

// asksFor reports whether the request asks for the protocol, well or badly.
func asksFor(r *http.Request, protocol string) bool {
	for _, line := range r.Header["Upgrade"] {
		for p := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(trimOWS(p), protocol) {
				return true
			}
		}
	}
	return false
}
