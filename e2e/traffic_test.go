package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// traffic is what clients send to a node while something is done to it: requests at an even pace, nine of ten over
// connections that are kept and one over a connection of its own, and WebSockets that talk all the time. Nothing is retried,
// and all that is not as it should be fails the test.
type traffic struct {
	t       testing.TB
	endings sync.WaitGroup
	ended   sync.Once
	ctx     context.Context
	stop    context.CancelFunc
	kept    *http.Client
	fresh   *http.Client
	url     string

	running               chan struct{} // as many as there are requests that wait for their answer
	asked, failed, talked atomic.Int64
	slowest               atomic.Int64 // nanoseconds
}

// mostWaiting is how many requests of one kind may wait for their answers before no more are sent: a machine without processors
// to spare would only get more and more to do, and run out of file descriptors.
const mostWaiting = 64

// trafficOptions say what there is.
type trafficOptions struct {
	Endpoint   string
	Rate       int // requests a second
	WebSockets int // that last as long as the traffic
	TLS        *tls.Config
}

// startTraffic begins at once. It ends with the test, if not before, and before all that the test had started earlier.
func startTraffic(t testing.TB, n *node, o trafficOptions) *traffic {
	t.Helper()
	f := &traffic{t: t, url: at(o.Endpoint, ""), running: make(chan struct{}, mostWaiting)}
	if o.TLS != nil {
		f.url = strings.Replace(f.url, "http:", "https:", 1)
	}
	f.ctx, f.stop = context.WithCancel(t.Context())
	t.Cleanup(f.end)
	client := func(keep bool) *http.Client {
		transport := &http.Transport{
			DialContext: dialTo(n.proxy), DisableKeepAlives: !keep, MaxIdleConnsPerHost: 64, IdleConnTimeout: reuse,
			TLSClientConfig: o.TLS,
		}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport, Timeout: time.Minute}
	}
	f.kept, f.fresh = client(true), client(false)
	f.endings.Go(func() { f.requests(o.Rate) })
	for i := range o.WebSockets {
		ws, _, err := websocket.Dial(t.Context(), strings.Replace(f.url, "http", "ws", 1)+"/ws", &websocket.DialOptions{HTTPClient: f.kept})
		if err != nil {
			t.Fatal(err)
		}
		f.endings.Go(func() { f.talk(i, ws) })
	}
	return f
}

// requests sends one after the other when they are due, and does not wait for answers, unless it waits for many.
func (f *traffic) requests(rate int) {
	began := time.Now()
	for i := 0; ; i++ {
		pause(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		f.running <- struct{}{}
		if f.ctx.Err() != nil {
			return
		}
		f.endings.Go(func() {
			defer func() { <-f.running }()
			began := time.Now()
			if err := f.request(i); err != nil && f.failed.Add(1) < 10 {
				f.t.Errorf("request %d, after %s: %v", i, time.Since(began), err)
			}
			f.asked.Add(1)
			for took := int64(time.Since(began)); ; {
				if most := f.slowest.Load(); took <= most || f.slowest.CompareAndSwap(most, took) {
					return
				}
			}
		})
	}
}

// request sends a POST, which net/http does not send again when something may have been delivered.
func (f *traffic) request(i int) error {
	client := f.kept
	if i%10 == 0 {
		client = f.fresh
	}
	text := fmt.Sprintf("request %d", i)
	r, err := http.NewRequestWithContext(context.WithoutCancel(f.ctx), http.MethodPost, f.url+"/", strings.NewReader(text))
	if err != nil {
		return err
	}
	r.GetBody = nil
	a, err := try(client, r)
	if err == nil && (a.StatusCode != http.StatusOK || a.body != text) {
		err = fmt.Errorf("status %d: %.200s", a.StatusCode, a.body)
	}
	return err
}

// talk keeps a WebSocket busy.
func (f *traffic) talk(i int, ws *websocket.Conn) {
	for n := 0; f.ctx.Err() == nil; n++ {
		text := fmt.Sprint(n)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(f.ctx), settle)
		err := ws.Write(ctx, websocket.MessageText, []byte(text))
		var have []byte
		if err == nil {
			_, have, err = ws.Read(ctx)
		}
		cancel()
		if err != nil || string(have) != text {
			f.t.Errorf("WebSocket %d, message %d: %q, %v", i, n, have, err)
			return
		}
		f.talked.Add(1)
		pause(50 * time.Millisecond)
	}
	if err := ws.Close(websocket.StatusNormalClosure, ""); err != nil {
		f.t.Errorf("the end of WebSocket %d: %v", i, err)
	}
}

// end stops and waits for the last answers. What comes after the first call does nothing.
func (f *traffic) end() {
	f.ended.Do(func() {
		f.stop()
		f.endings.Wait()
		f.kept.CloseIdleConnections()
		f.t.Logf("%d requests, %d failed, the slowest took %s; %d messages over WebSockets",
			f.asked.Load(), f.failed.Load(), time.Duration(f.slowest.Load()).Round(time.Millisecond), f.talked.Load())
	})
}

// echoAll is the service of the traffic.
func echoAll(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/ws" {
		echoWebSocket(w, r)
		return
	}
	_, _ = io.Copy(w, r.Body)
}
