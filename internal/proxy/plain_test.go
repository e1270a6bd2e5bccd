package proxy

import (
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
)

// A connection that rests keeps nothing of the request before.
func TestIdleConnectionsKeepNoHeads(t *testing.T) {
	f := newFixture(t, nil)
	f.serveRaw(answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
	head := "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nX-Large: " + strings.Repeat("x", 30<<10) + "\r\n\r\n"
	before := heap()
	const conns = 200
	for range conns {
		c, br := f.dial()
		io.WriteString(c, head)
		if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
	}
	if grown := (heap() - before) / conns; grown > 20<<10 {
		t.Errorf("%d bytes are kept for each connection", grown)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
