package console

import (
	"net"
	"net/http"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/guard"
	"github.com/pikoproxy/piko/internal/limit"
)

const (
	maxTarget = 16 << 10 // bytes
	maxFields = 100
)

// guarded puts TLS, as it is at the moment, and the guard on connections.
func (x *Console) guarded(l net.Listener) net.Listener {
	return guard.NewListener(l, guard.Options{
		Current: x.tls,
		Limits: func() guard.Limits {
			return guard.Limits{Bytes: x.server.MaxHeaderBytes, Fields: maxFields, Target: maxTarget}
		},
		HeaderTimeout: x.server.ReadHeaderTimeout, ErrorLog: x.o.ErrorLog, Turns: x.turns,
		Rejected: func() { x.report.Count(limit.Admin, limit.Handshake) },
	})
}

// behindGuard prepares the server for what guarded returns.
func (x *Console) behindGuard() {
	x.server.ConnContext = guard.With
	x.server.Handler = guard.Handler(x.server.Handler, func(w http.ResponseWriter, r *http.Request, why guard.Refusal) {
		f := fault.MalformedRequest
		if why.Kind() == guard.Slow {
			f = fault.RequestTimeout
		}
		x.report.Reject(limit.Admin, limit.ReasonOf(f.Code), logrus.Fields{"remote": r.RemoteAddr, "err": why})
		fault.Write(w, r, f, "")
	})
}
