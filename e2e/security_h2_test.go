//go:build security

package e2e

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2peer speaks HTTP/2 frame by frame.
type h2peer struct {
	*http2.Framer
	conn   *tls.Conn
	fields []byte // of a GET for the endpoint
}

func (n *node) h2peer(t testing.TB) *h2peer {
	t.Helper()
	conn, err := tls.Dial("tcp", n.proxy, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	p := &h2peer{Framer: http2.NewFramer(conn, conn), conn: conn}
	if err := p.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":path", "/"}, {":authority", "web.piko.test"}} {
		if err := e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	p.fields = b.Bytes()
	return p
}

// end reads until the node has ended the connection, and returns the code of its GOAWAY.
func (p *h2peer) end() (http2.ErrCode, error) {
	code := http2.ErrCodeNo
	for {
		f, err := p.ReadFrame()
		if err != nil {
			return code, err
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			code = g.ErrCode
		}
	}
}

// What clients of HTTP/2 have brought servers down with costs here a bounded amount of memory, and one connection; others
// are served as before.
func TestSecurityFloodsOfHTTP2(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.issue(t, "web.piko.test")
	n := startNode(t, nodeOptions{Proxy: fmt.Sprintf("access_log = false\ntls = {cert = %q, key = %q}", cert, key)})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "web", Addr: serve(t, echoBody)})
	tr := &http.Transport{
		DialContext: dialTo(n.proxy), TLSClientConfig: &tls.Config{RootCAs: a.pool}, ForceAttemptHTTP2: true,
	}
	t.Cleanup(tr.CloseIdleConnections)
	honest := &http.Client{Transport: tr, Timeout: settle}
	calm, failed := runFor(t, honest, 3*time.Second, func() {})
	if len(failed) > 0 {
		t.Fatal(failed[0])
	}
	was, before := p99(calm), n.rss(t)
	for _, flood := range []struct {
		name string
		send func(p *h2peer) error // until the connection ends, or for long
	}{
		{"rapid reset (CVE-2023-44487)", func(p *h2peer) error {
			for id := uint32(1); id < 200_000; id += 2 {
				err := errors.Join(p.WriteHeaders(http2.HeadersFrameParam{
					StreamID: id, BlockFragment: p.fields, EndStream: true, EndHeaders: true,
				}), p.WriteRSTStream(id, http2.ErrCodeCancel))
				if err != nil {
					return err
				}
			}
			return nil
		}},
		{"CONTINUATION without end (CVE-2023-45288)", func(p *h2peer) error {
			err := p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.fields})
			fragment := bytes.Repeat([]byte{0, 1, 'x', 1, 'y'}, 3000)
			for i := 0; i < 20_000 && err == nil; i++ {
				err = p.WriteContinuation(1, false, fragment)
			}
			return err
		}},
		{"SETTINGS, answers unread", func(p *h2peer) error {
			var err error
			for i := 0; i < 200_000 && err == nil; i++ {
				err = p.WriteSettings()
			}
			return err
		}},
		{"PING, answers unread", func(p *h2peer) error {
			var err error
			for i := 0; i < 200_000 && err == nil; i++ {
				err = p.WritePing(false, [8]byte{})
			}
			return err
		}},
		{"empty DATA", func(p *h2peer) error {
			err := p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.fields, EndHeaders: true})
			for i := 0; i < 200_000 && err == nil; i++ {
				err = p.WriteData(1, false, nil)
			}
			return err
		}},
	} {
		t.Run(flood.name, func(t *testing.T) {
			const peers = 4
			done := make(chan error, peers)
			most := before
			busy, failed := runFor(t, honest, 0, func() {
				for range peers {
					p := n.h2peer(t)
					reads := flood.name[0] == 'r' || flood.name[0] == 'C'
					go func() {
						if reads {
							go func() { _, _ = p.end() }()
						}
						_ = p.conn.SetDeadline(time.Now().Add(10 * time.Second))
						done <- flood.send(p)
						_ = p.conn.NetConn().Close()
					}()
				}
				for range peers {
					<-done
					most = max(most, n.rss(t))
				}
			})
			t.Logf("p99 of %d honest requests %v, %v before; %d MiB at most, %d before", len(busy), p99(busy), was, most>>20, before>>20)
			if len(failed) > 0 {
				t.Errorf("%d honest requests failed: %s\n%s", len(failed), failed[0], n.faults(t))
			}
			if grown := most - before; grown > 64<<20 {
				t.Errorf("it costs %d MiB", grown>>20)
			}
		})
	}
}

// runFor sends honest requests while f runs, and at least for d.
func runFor(t *testing.T, c *http.Client, d time.Duration, f func()) ([]time.Duration, []string) {
	t.Helper()
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		least := time.NewTimer(d)
		f()
		<-least.C
	}()
	took, failed := pace(t, c, "https://web.piko.test/", stop)
	if len(took) == 0 {
		took = []time.Duration{0}
	}
	return took, failed
}
