package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pikoproxy/piko/e2e/classic"
)

func TestHalfCloseReachesTheOtherSide(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	heard := make(chan string, 1)
	startAgent(t, n, agentOptions{},
		offer{Endpoint: "client-first", Protocol: "tcp", Addr: serveTCP(t, func(c *net.TCPConn) {
			b, err := io.ReadAll(c)
			_, _ = fmt.Fprintf(c, "heard %s %v", b, err)
		})},
		offer{Endpoint: "service-first", Protocol: "tcp", Addr: serveTCP(t, func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "that was all")
			_ = c.CloseWrite()
			b, err := io.ReadAll(c)
			heard <- fmt.Sprintf("%s %v", b, err)
		})})
	t.Run("client first", func(t *testing.T) {
		address, _ := startForward(t, n, "client-first")
		c := connect(t, address)
		mustWrite(t, c, "a question")
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(c); err != nil || string(b) != "heard a question <nil>" {
			t.Errorf("client read %q, %v: want the answer to all it said", b, err)
		}
	})
	t.Run("service first", func(t *testing.T) {
		address, _ := startForward(t, n, "service-first")
		c := connect(t, address)
		if b, err := io.ReadAll(c); err != nil || string(b) != "that was all" {
			t.Fatalf("client read %q, %v", b, err)
		}
		mustWrite(t, c, "still talking")
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got := wait(t, "the service has heard all", settle, heard); got != "still talking <nil>" {
			t.Errorf("service heard %q: want what was said after its own end", got)
		}
	})
}

func TestResetIsNotACleanEnd(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	heard := make(chan error, 1)
	startAgent(t, n, agentOptions{},
		offer{Endpoint: "resets", Protocol: "tcp", Addr: serveTCP(t, func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 4))
			_ = c.SetLinger(0)
		})},
		offer{Endpoint: "listens", Protocol: "tcp", Addr: serveTCP(t, func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "ready")
			_, err := io.ReadAll(c)
			heard <- err
		})})
	t.Run("of the service", func(t *testing.T) {
		address, _ := startForward(t, n, "resets")
		c := connect(t, address)
		mustWrite(t, c, "ping")
		if _, err := io.ReadAll(c); !isReset(err) {
			t.Errorf("client read %v: want a reset", err)
		}
	})
	t.Run("of the client", func(t *testing.T) {
		address, _ := startForward(t, n, "listens")
		c := connect(t, address)
		mustRead(t, c, "ready")
		if err := c.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := wait(t, "the service sees the end", settle, heard); !isReset(err) {
			t.Errorf("service read %v: want a reset", err)
		}
	})
}

func TestForwardToNobodyIsAnErrorOnTheLocalSide(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Proxy: `endpoint_wait = "0s"`})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "dead", Addr: freeAddress(t), Protocol: "tcp"})
	for _, endpoint := range []string{"absent", "dead"} {
		address, p := startForward(t, n, endpoint)
		for range 3 {
			if b, err := ask(address); !isReset(err) {
				t.Errorf("%s endpoint: client read %q, %v: want a reset, not a clean end", endpoint, b, err)
			}
		}
		if p.ended() {
			t.Errorf("%s endpoint: piko-forward ended: want it to go on", endpoint)
		}
		await(t, endpoint+" endpoint: the log of piko-forward says why", settle, func() error {
			if log := p.output(t); !strings.Contains(log, endpoint) || !strings.Contains(log, "502") &&
				!strings.Contains(log, "PIKO-E") && !strings.Contains(log, "upstream") {
				return fmt.Errorf("it does not:\n%s", log)
			}
			return nil
		})
	}
}

// ask sends a word and reads until the end. A reset may come before the connection is established, or before the word is
// sent; the kernel tells of it once, and who reads after that finds an end.
func ask(address string) (string, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(settle)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, "hello?"); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

func TestForwardsOfEveryKindInOneProcess(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	offers := []offer{}
	for i := range 5 {
		offers = append(offers, offer{Endpoint: fmt.Sprint("e", i), Protocol: "tcp", Addr: serveTCP(t, func(c *net.TCPConn) {
			_, _ = fmt.Fprintf(c, "service %d", i)
		})})
	}
	startAgent(t, n, agentOptions{}, offers...)
	dir, err := os.MkdirTemp("", "piko") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	listens := []string{"unix:" + socket}
	for range 4 {
		listens = append(listens, freeAddress(t))
	}
	toml := fmt.Sprintf("[connect]\nurl = %q\n", "http://"+n.proxy)
	for i, l := range listens {
		toml += fmt.Sprintf("[[forwards]]\nlisten = %q\nendpoint = \"e%d\"\n", l, i)
	}
	p := start(t, nil, "piko-forward", "--config", writeFile(t, "piko-forward.toml", toml))
	for i, l := range listens {
		network := "tcp"
		if path, ok := strings.CutPrefix(l, "unix:"); ok {
			network, l = "unix", path
		}
		p.awaitListen(t, network, l)
		c, err := net.Dial(network, l)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(settle))
		b, err := io.ReadAll(c)
		if want := fmt.Sprint("service ", i); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v: want %q", l, b, err, want)
		}
		_ = c.Close()
	}
	p.signal(t, 15)
	if code := p.exit(t, settle); code != 0 {
		t.Errorf("piko-forward exits %d: want 0", code)
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unix socket is still there: %v", err)
	}
}

func TestProxyProtocolTellsTheServiceWhoIsThere(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	heads := make(chan string, 1)
	service := serveTCP(t, func(c *net.TCPConn) {
		head, err := readProxyHead(bufio.NewReader(c))
		heads <- fmt.Sprint(head, err)
	})
	startAgent(t, n, agentOptions{},
		offer{Endpoint: "one", Addr: service, Protocol: "tcp", More: `proxy_protocol = "v1"`},
		offer{Endpoint: "two", Addr: service, Protocol: "tcp", More: `proxy_protocol = "v2"`})
	for endpoint, version := range map[string]string{"one": "v1", "two": "v2"} {
		c, err := classic.Dial(t.Context(), "http://"+n.proxy, endpoint, "")
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, c, "payload")
		// The client, as pikod sees it, is this end of the connection to its proxy listener.
		want := fmt.Sprintf("%s from %s, then payload<nil>", version, c.LocalAddr())
		if got := wait(t, "the service has read the head", settle, heads); got != want {
			t.Errorf("service saw %q: want %q", got, want)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// readProxyHead reads the head of the PROXY protocol in either version, and the seven bytes behind it.
func readProxyHead(r *bufio.Reader) (string, error) {
	first, err := r.Peek(5)
	if err != nil {
		return "", err
	}
	var head string
	if string(first) == "PROXY" {
		line, err := r.ReadString('\n')
		words := strings.Fields(line)
		if err != nil || len(words) != 6 || words[1] != "TCP4" || !strings.HasSuffix(line, "\r\n") {
			return line, fmt.Errorf("no head of version 1: %w", err)
		}
		head = "v1 from " + net.JoinHostPort(words[2], words[4])
	} else {
		b := make([]byte, 16)
		if _, err := io.ReadFull(r, b); err != nil {
			return "", err
		}
		if string(b[:12]) != "\r\n\r\n\x00\r\nQUIT\n" || b[12] != 0x21 || b[13] != 0x11 {
			return fmt.Sprintf("%x", b), errors.New("no head of version 2 for PROXY over TCP and IPv4")
		}
		rest := make([]byte, binary.BigEndian.Uint16(b[14:]))
		if _, err := io.ReadFull(r, rest); err != nil || len(rest) < 12 {
			return "", fmt.Errorf("addresses of %d bytes: %w", len(rest), err)
		}
		head = fmt.Sprintf("v2 from %s:%d", net.IP(rest[:4]), binary.BigEndian.Uint16(rest[8:]))
	}
	payload := make([]byte, 7)
	_, err = io.ReadFull(r, payload)
	return head + ", then " + string(payload), err
}

func TestTCPOverWebSocketForClassicClients(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Proxy: `endpoint_wait = "0s"`})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serveTCP(t, echo), Protocol: "tcp"})
	c, err := classic.Dial(t.Context(), "http://"+n.proxy, "e", "")
	if err != nil {
		t.Fatal(err)
	}
	message := strings.Repeat("0123456789abcdef", 1<<16)
	go func() {
		for rest := message; rest != ""; {
			k := min(len(rest), 12_345)
			if _, err := io.WriteString(c, rest[:k]); err != nil {
				t.Errorf("write: %v", err)
				return
			}
			rest = rest[k:]
		}
	}()
	mustRead(t, c, message)
	if err := c.Close(); err != nil {
		t.Errorf("close: %v: want the Close frame answered", err)
	}
	_, err = classic.Dial(t.Context(), "http://"+n.proxy, "absent", "")
	var status *classic.StatusError
	if !errors.As(err, &status) || status.Status != http.StatusBadGateway ||
		!strings.Contains(status.Body, "no available upstreams") {
		t.Errorf("absent endpoint: %v: want 502 no available upstreams", err)
	}
}

func TestManyShortTCPConnections(t *testing.T) {
	parallel(t)
	n := startNode(t, nodeOptions{})
	agent := startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serveTCP(t, echo), Protocol: "tcp"})
	address, forward := startForward(t, n, "e")
	errs := load(t, 16, 2000, func() error {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		if _, err := io.WriteString(c, "ping"); err != nil {
			return err
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		b, err := io.ReadAll(c)
		if err == nil && string(b) != "ping" {
			err = fmt.Errorf("read %q", b)
		}
		return err
	})
	if len(errs) > 0 {
		t.Errorf("%d of 2000 connections failed, the first with: %v", len(errs), errs[0])
	}
	for _, p := range []*process{n.process, agent, forward} {
		await(t, "the connections are gone from "+p.name, settle, func() error {
			if k := p.files(t); k > 40 {
				return fmt.Errorf("%d open files", k)
			}
			return nil
		})
	}
}

// TestTCPConnectionTakesNoLongerThanItMust is not parallel: it measures.
func TestTCPConnectionTakesNoLongerThanItMust(t *testing.T) {
	n := startNode(t, nodeOptions{})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serveTCP(t, echo), Protocol: "tcp"})
	address, _ := startForward(t, n, "e")
	c := connect(t, address)
	var trips []time.Duration
	for range 200 {
		began := time.Now()
		mustWrite(t, c, "x")
		mustRead(t, c, "x")
		trips = append(trips, time.Since(began))
	}
	// A timer on the way (Nagle, delayed acknowledgement, a batch that waits) costs every trip up to 40 ms; a busy
	// machine costs some of them more.
	slices.Sort(trips)
	if took := trips[len(trips)/10]; took > bound(10*time.Millisecond) {
		t.Errorf("the quickest tenth of the round trips took up to %s: want no timer on the way", took)
	}
}
