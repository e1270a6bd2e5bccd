package e2e

import (
	"bufio"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// middleman is a proxy that leads every name to one address and remembers what was asked for.
type middleman struct {
	address string
	target  string
	asked   chan string // the names asked for
	served  atomic.Int32
}

// handshake is the beginning of a proxy's work: it gives the name that was asked for.
type handshake func(*bufio.Reader, io.Writer) (string, error)

func startMiddleman(t testing.TB, target string, shake handshake) *middleman {
	m := &middleman{target: target, asked: make(chan string, 100)}
	m.address = serveTCP(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		name, err := shake(r, c)
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", target)
		if err != nil {
			return
		}
		defer func() { _ = out.Close() }()
		m.served.Add(1)
		select {
		case m.asked <- name:
		default:
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(out, r)
			_ = out.(*net.TCPConn).CloseWrite()
		}()
		_, _ = io.Copy(c, out)
		_ = c.CloseWrite()
		<-done
	})
	return m
}

// connectHandshake is the proxy's side of HTTP CONNECT, for user "u" with password "p" when they are asked for.
func connectHandshake(user bool) handshake {
	return func(r *bufio.Reader, w io.Writer) (string, error) {
		req, err := http.ReadRequest(r)
		if err != nil {
			return "", err
		}
		if req.Method != http.MethodConnect {
			_, err := io.WriteString(w, "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
			return "", errors.Join(errors.New("not CONNECT"), err)
		}
		want := "Basic " + base64.StdEncoding.EncodeToString([]byte("u:p"))
		if user && req.Header.Get("Proxy-Authorization") != want {
			_, err := io.WriteString(w, "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
			return "", errors.Join(errors.New("no credentials"), err)
		}
		_, err = io.WriteString(w, "HTTP/1.1 200 Connection Established\r\n\r\n")
		return req.Host, err
	}
}

// socksHandshake is the server's side of SOCKS 5 (RFC 1928), with user and password (RFC 1929) when they are offered.
func socksHandshake(r *bufio.Reader, w io.Writer) (string, error) {
	head := make([]byte, 2)
	if _, err := io.ReadFull(r, head); err != nil || head[0] != 5 {
		return "", fmt.Errorf("greeting %v: %w", head, err)
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(r, methods); err != nil {
		return "", err
	}
	if strings.Contains(string(methods), "\x02") {
		if _, err := w.Write([]byte{5, 2}); err != nil {
			return "", err
		}
		login := make([]byte, 5) // version, 1, "u", 1, "p"
		if _, err := io.ReadFull(r, login); err != nil || string(login) != "\x01\x01u\x01p" {
			return "", fmt.Errorf("login %q: %w", login, err)
		}
		if _, err := w.Write([]byte{1, 0}); err != nil {
			return "", err
		}
	} else if _, err := w.Write([]byte{5, 0}); err != nil {
		return "", err
	}
	ask := make([]byte, 5) // version, CONNECT, 0, kind, first byte of the address
	if _, err := io.ReadFull(r, ask); err != nil || ask[1] != 1 {
		return "", fmt.Errorf("request %v: %w", ask, err)
	}
	var host string
	switch ask[3] {
	case 1:
		rest := make([]byte, 3)
		if _, err := io.ReadFull(r, rest); err != nil {
			return "", err
		}
		host = net.IP(append([]byte{ask[4]}, rest...)).String()
	case 3:
		name := make([]byte, ask[4])
		if _, err := io.ReadFull(r, name); err != nil {
			return "", err
		}
		host = string(name)
	default:
		return "", fmt.Errorf("address of kind %d", ask[3])
	}
	port := make([]byte, 2)
	if _, err := io.ReadFull(r, port); err != nil {
		return "", err
	}
	_, err := w.Write([]byte{5, 0, 0, 1, 127, 0, 0, 1, 0, 0})
	return fmt.Sprintf("%s:%d", host, binary.BigEndian.Uint16(port)), err
}

func TestAgentConnectsThroughAProxy(t *testing.T) {
	t.Parallel()
	service := serve(t, say("ok"))
	for _, test := range []struct {
		name      string
		handshake handshake
		setting   string // proxy_url, with ADDRESS for that of the proxy
		variable  string // or a variable of the environment
	}{
		{"HTTP CONNECT", connectHandshake(false), "http://ADDRESS", ""},
		{"HTTP CONNECT with credentials", connectHandshake(true), "http://u:p@ADDRESS", ""},
		{"SOCKS", socksHandshake, "socks5://ADDRESS", ""},
		{"SOCKS with credentials", socksHandshake, "socks5://u:p@ADDRESS", ""},
		{"HTTP_PROXY", connectHandshake(false), "", "HTTP_PROXY=http://ADDRESS"},
		{"http_proxy as SOCKS", socksHandshake, "", "http_proxy=socks5://ADDRESS"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			n := startNode(t, nodeOptions{})
			m := startMiddleman(t, n.upstream, test.handshake)
			// Only the proxy knows this name. The environment's proxies are not used for loopback addresses.
			_, port, _ := net.SplitHostPort(n.upstream)
			o := agentOptions{URL: "http://pikod.test:" + port}
			if test.setting != "" {
				o.Connect = fmt.Sprintf("proxy_url = %q", strings.ReplaceAll(test.setting, "ADDRESS", m.address))
			} else {
				o.Env = []string{strings.ReplaceAll(test.variable, "ADDRESS", m.address)}
			}
			startAgent(t, n, o, offer{Endpoint: "e", Addr: service})
			if a := get(t, n.client(t), at("e", "/")); a.body != "ok" {
				t.Errorf("status %d %s", a.StatusCode, a.body)
			}
			if got, want := <-m.asked, "pikod.test:"+port; got != want {
				t.Errorf("the proxy was asked for %s: want %s", got, want)
			}
		})
	}
}

func TestForwardConnectsThroughAProxyOfTheEnvironment(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serveTCP(t, echo), Protocol: "tcp"})
	m := startMiddleman(t, n.proxy, connectHandshake(false))
	address := freeAddress(t)
	p := start(t, []string{"HTTP_PROXY=http://" + m.address}, "piko-forward", address, "e",
		"--url", "http://pikod.test:80")
	p.awaitListen(t, "tcp", address)
	c := connect(t, address)
	mustWrite(t, c, "ping")
	mustRead(t, c, "ping")
	if m.served.Load() == 0 {
		t.Error("the proxy was not used")
	}
}

func TestAgentSaysWhyAProxyRefused(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	m := startMiddleman(t, n.upstream, connectHandshake(true))
	agent := launchAgent(t, n, agentOptions{Connect: fmt.Sprintf("proxy_url = %q", "http://u:wrong@"+m.address)},
		offer{Endpoint: "e", Addr: serve(t, say("ok"))})
	await(t, "the agent says that the proxy wants credentials", settle, func() error {
		return contains(agent.output(t), "407")
	})
	if strings.Contains(agent.output(t), "wrong") {
		t.Errorf("the password for the proxy is in the log:\n%s", agent.output(t))
	}
}
