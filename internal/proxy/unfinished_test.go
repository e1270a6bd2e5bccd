package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// The time for a head is none for the body behind it.
func TestUploadLongerThanHeaderTimeout(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.ReadHeaderTimeout = 100 * time.Millisecond })
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%d bytes, %v", n, err)
	})
	for _, size := range []int{10, 20000} { // one that is read in advance, and one that is not
		c, br := f.dial()
		body := strings.Repeat("z", size)
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: ep1.piko.test\r\nContent-Length: %d\r\n\r\n%s", size, body[:size/2])
		// A client that came later has had its time for a head, so this one has too.
		_, idle := f.dial()
		if _, err := idle.ReadByte(); err == nil || isTimeout(err) {
			t.Fatal("a silent client was not sent away")
		}
		io.WriteString(c, body[size/2:])
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if have, want := readAll(t, resp), fmt.Sprintf("%d bytes, <nil>", size); have != want {
			t.Errorf("%s %s, want %s", resp.Status, have, want)
		}
	}
}

// A switch of protocols that nobody asked for may come while the body of the request is still being sent.
func TestUnaskedSwitchBeforeTheBodyEnds(t *testing.T) {
	f := newFixture(t, nil)
	f.serveRaw(func(c net.Conn, br *bufio.Reader) {
		if _, err := readRequestHead(br); err == nil {
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
			io.Copy(io.Discard, br)
		}
	})
	for range 20 {
		c, br := f.dial()
		fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: ep1.piko.test\r\nContent-Length: 200000\r\n\r\n")
		go func() { // ends with the connection
			for range 20 {
				io.WriteString(c, strings.Repeat("z", 10000))
			}
		}()
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body := readAll(t, resp); resp.StatusCode != http.StatusBadGateway || !strings.Contains(body, "PIKO-E4006") {
			t.Fatalf("%s %s", resp.Status, body)
		}
		c.Close()
	}
}
