package agent

import (
	"context"
	"time"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/relay"
)

// splice carries the bytes of a stream over one connection to the service, untouched. It serves TCP, and HTTP when nothing
// in the settings needs to read it: the service then sees exactly what the node sent.
//
// It connects to the service before it accepts the stream: what fails until then costs the client nothing, since the node
// tries another upstream. Idle HTTP streams are ended by the node, also when it learns that the endpoint is withdrawn.
func (l *listener) splice(ctx context.Context, in *piko.Incoming) {
	if !l.enter() {
		l.refuse(in, piko.CodeOverloaded)
		return
	}
	defer l.leave()
	start := time.Now()
	service, err := l.dial(ctx, in.Protocol(), in.RemoteAddr())
	if err != nil {
		l.refuse(in, piko.CodeServiceUnreachable)
		return
	}
	conn, err := in.Accept()
	if err != nil {
		_ = service.Close()
		l.metrics.abandoned.Inc()
		return
	}
	l.metrics.accepted.Inc()
	l.metrics.open.Inc()
	defer l.metrics.open.Dec()
	counts, err := relay.Relay(ctx, conn, service, relay.Options{})
	l.metrics.received.Add(float64(counts.AToB))
	l.metrics.sent.Add(float64(counts.BToA))
	l.logStream(in, start, counts, err)
}
