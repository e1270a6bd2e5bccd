package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// crowd is what clients behind a balancer do: each takes a node that is ready, and retries nothing.
type crowd struct {
	cluster *cluster
	o       crowdOptions
	turn    atomic.Int64
	clients []*http.Client
	ctx     context.Context // ends when nothing new is to be begun
	stop    context.CancelFunc
	running sync.WaitGroup
	halted  atomic.Bool // streams that are held are to say goodbye

	sent, local, tunnels atomic.Int64

	mu       sync.Mutex
	failures []failure
	waits    []failure // requests of a second or more that were answered, except those that are to last
	breaks   []failure // streams that were cut
}

// crowdOptions say what a crowd does.
type crowdOptions struct {
	Rate      int           // requests a second
	Endpoints []string      // that they go to in turn
	Local     float64       // the share of requests for which a node that has agents for the endpoint is chosen; 0: any node
	Lasting   time.Duration // how long one request in a hundred takes
	Brief     int           // so many WebSockets at a time that last 3 s
	Held      int           // so many WebSockets at a time that are to last as long as the crowd
	Calls     int           // so many gRPC streams, to the endpoint "g", that are to last as long
	Forward   string        // where so many TCP connections as WebSockets are made, of either kind
}

// failure is something that did not go as it should.
type failure struct {
	number       int // of the request; its path is /number
	node         int
	what         string
	began, ended time.Time
	err          error
}

func (f failure) String() string {
	return fmt.Sprintf("%s through n%d at %s, after %s: %v", f.what, f.node+1, f.began.Format("05.000"),
		f.ended.Sub(f.began), f.err)
}

// loadService answers what a crowd asks: at once, after some time, or as a WebSocket.
func loadService(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/ws" {
		echoWebSocket(w, r)
		return
	}
	if lasting, err := time.ParseDuration(r.URL.RawQuery); err == nil {
		reply(w, "begin ")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-time.After(lasting):
		case <-r.Context().Done():
			return
		}
	}
	reply(w, "ok")
}

// startCrowd begins. Everything fails the test that is not as it should be, once the crowd has ended.
func startCrowd(t testing.TB, c *cluster, o crowdOptions) *crowd {
	f := &crowd{cluster: c, o: o}
	f.ctx, f.stop = context.WithCancel(t.Context())
	for _, n := range c.nodes {
		client := n.client(t)
		client.Transport.(*http.Transport).IdleConnTimeout = reuse
		f.clients = append(f.clients, client)
	}
	f.running.Go(f.requests)
	for range o.Brief {
		f.running.Go(func() { f.repeat("WebSocket", f.briefWebSocket) })
		if o.Forward != "" {
			f.running.Go(func() { f.repeat("TCP", func(int) error { return f.briefTCP() }) })
		}
	}
	for i := range o.Held {
		f.running.Go(func() { f.hold("held WebSocket", o.Endpoints[i%len(o.Endpoints)], openWebSocket) })
		if o.Forward != "" {
			f.running.Go(func() { f.hold("held TCP", "tcp", openTCP) })
		}
	}
	for range o.Calls {
		f.running.Go(func() { f.hold("gRPC stream", "g", openCall) })
	}
	return f
}

// requests sends one after the other when they are due, and does not wait for answers, unless it waits for many.
func (f *crowd) requests() {
	began := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	waiting := make(chan struct{}, len(f.clients)*mostWaiting)
	for i := 0; ; i++ {
		timer.Reset(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(f.o.Rate))))
		select {
		case <-timer.C:
			waiting <- struct{}{}
			f.running.Go(func() {
				f.request(i)
				<-waiting
			})
		case <-f.ctx.Done():
			return
		}
	}
}

// choose gives the endpoint for a request, and a node that keeps to the share of those that hold it, as far as there is one.
func (f *crowd) choose(i int) (endpoint string, node int) {
	turn, all := int(f.turn.Add(1)), f.o.Endpoints
	endpoint = all[i%len(all)]
	if f.o.Local == 0 {
		return endpoint, f.cluster.pick(turn)
	}
	holds := float64(f.local.Load()) < f.o.Local*float64(f.sent.Load())
	for k := range all {
		e := all[(i+k)%len(all)]
		if n := f.cluster.pickBy(turn, e, holds); n >= 0 {
			if holds {
				f.local.Add(1)
			}
			return e, n
		}
	}
	if node = f.cluster.pick(turn); node >= 0 && !holds {
		f.local.Add(1)
	}
	return endpoint, node
}

// request sends one, with a body as often as without, so that the client's transport can't repeat it silently.
func (f *crowd) request(i int) {
	endpoint, n := f.choose(i)
	if n < 0 {
		f.note(failure{number: i, node: n, what: "request", began: time.Now(), err: errors.New("no node is ready")})
		return
	}
	path, want := fmt.Sprint("/", i), "ok"
	if i%200 == 0 || i%200 == 101 {
		path, want = path+"?"+f.o.Lasting.String(), "begin ok"
	}
	method, body := http.MethodGet, ""
	if i%2 == 1 {
		method, body = http.MethodPost, "body"
	}
	began := time.Now()
	r, err := http.NewRequestWithContext(context.WithoutCancel(f.ctx), method, at(endpoint, path), strings.NewReader(body))
	if err != nil {
		f.note(failure{number: i, node: n, what: method, began: began, err: err})
		return
	}
	if body == "" {
		r.Body, r.ContentLength, r.GetBody = nil, 0, nil
	}
	f.sent.Add(1)
	a, err := try(f.clients[n], r)
	if err == nil && (a.StatusCode != http.StatusOK || a.body != want) {
		err = fmt.Errorf("status %d: %q", a.StatusCode, a.body)
	}
	x := failure{number: i, node: n, what: method + " " + endpoint + path, began: began, err: err}
	f.note(x)
	if x.ended = time.Now(); err == nil && want == "ok" && x.ended.Sub(began) > time.Second {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.waits = append(f.waits, x)
	}
}

// note keeps what failed.
func (f *crowd) note(x failure) {
	if x.err == nil {
		return
	}
	x.ended = time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failures = append(f.failures, x)
}

// end waits for what runs and gives what failed.
func (f *crowd) end() []failure {
	f.halted.Store(true)
	f.stop()
	f.running.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failures
}

// report tells how it went.
func (f *crowd) report(t testing.TB) {
	f.mu.Lock()
	defer f.mu.Unlock()
	slowest := time.Duration(0)
	for _, x := range f.waits {
		slowest = max(slowest, x.ended.Sub(x.began))
	}
	sent, text := f.sent.Load(), ""
	if f.o.Local > 0 {
		text = fmt.Sprintf(" (%.0f %% of them to a node with agents for the endpoint)", 100*float64(f.local.Load())/float64(sent))
	}
	t.Logf("%d requests%s and %d WebSockets, gRPC streams and TCP connections: %d failed, %d requests took more than 1 s, the "+
		"slowest %s; %d streams were cut", sent, text, f.tunnels.Load(), len(f.failures), len(f.waits),
		slowest.Round(time.Millisecond), len(f.breaks))
}

// complain shows the first failures.
func complain(t testing.TB, failures []failure, sent int64) {
	t.Helper()
	if len(failures) == 0 {
		return
	}
	slices.SortFunc(failures, func(a, b failure) int { return a.began.Compare(b.began) })
	var errs []error
	for _, f := range failures[:min(len(failures), 12)] {
		errs = append(errs, errors.New(f.String()))
	}
	t.Errorf("%d of %d requests failed: want none; the first ones:\n%v", len(failures), sent, errors.Join(errs...))
}
