package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
)

// What a client sends before it can know that the node is stopping is answered, on a connection that was idle and on one
// that nobody has read from yet. The answer says that it is the last one.
func TestShutdownAnswersWhatIsOnItsWay(t *testing.T) {
	f := newFixture(t, nil)
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {})
	const request = "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n"
	idle, idleReader := f.dial()
	io.WriteString(idle, request)
	if resp, err := http.ReadResponse(idleReader, nil); err != nil || resp.StatusCode != 200 || resp.Close {
		t.Fatal(resp, err)
	}
	fresh, freshReader := f.dial()
	// The proxy accepts in order: when this one is answered, the one before has been accepted.
	if resp, _, err := f.raw("GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nConnection: close\r\n\r\n"); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.stopOnce()
	}()
	for { // until nobody accepts
		c, err := net.Dial("tcp", f.addr)
		if err != nil {
			break
		}
		c.Close()
	}
	for name, conn := range map[string]struct {
		net.Conn
		*bufio.Reader
	}{"idle": {idle, idleReader}, "fresh": {fresh, freshReader}} {
		io.WriteString(conn.Conn, request)
		resp, err := http.ReadResponse(conn.Reader, nil)
		if err != nil || resp.StatusCode != 200 || !resp.Close {
			t.Errorf("%s: %v %v", name, resp, err)
		}
		if _, err := conn.ReadByte(); err != io.EOF {
			t.Errorf("%s: the connection is not closed: %v", name, err)
		}
	}
	await(t, done, "end of the shutdown")
}
