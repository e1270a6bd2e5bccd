package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pikoproxy/piko/e2e/classic"
)

// startClassic runs a classic agent in the test and waits until the node knows its endpoint.
func startClassic(t testing.TB, n *node, endpoint string, v classic.Version, h http.HandlerFunc) *classic.Agent {
	t.Helper()
	a := listenClassic(t, n, endpoint, v)
	serveOn(t, &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}, a)
	return a
}

func listenClassic(t testing.TB, n *node, endpoint string, v classic.Version) *classic.Agent {
	t.Helper()
	a, err := classic.Listen(t.Context(), classic.Options{URL: "http://" + n.upstream, Endpoint: endpoint, Version: v})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	n.awaitEndpoint(t, strings.ToLower(endpoint), -1)
	return a
}

var classicVersions = []classic.Version{classic.V081, classic.V090}

func TestClassicAgentServesHTTP(t *testing.T) {
	parallel(t)
	n := startNode(t, nodeOptions{})
	startClassic(t, n, "E", classic.V090, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ws":
			echoWebSocket(w, r)
		case "/echo":
			echoBody(w, r)
		default:
			w.Header().Set("Trailer", "X-End")
			reply(w, "%s %s %s", r.Proto, r.Host, r.Header.Get("X-Forwarded-For"))
			w.Header().Set("X-End", "yes")
		}
	})
	for name, c := range n.versions(t) {
		a := get(t, c, at("e", "/"))
		if want := "HTTP/1.1 e.piko.test 127.0.0.1"; a.body != want || a.Trailer.Get("X-End") != "yes" {
			t.Errorf("%s: %q, trailer %v: want %q", name, a.body, a.Trailer, want)
		}
		const size = 32 << 20
		resp, err := c.Do(request(t, http.MethodPost, at("e", "/echo"), io.LimitReader(newFlood(), size)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := sum(resp.Body)
		_ = resp.Body.Close()
		if want, _ := sum(io.LimitReader(newFlood(), size)); err != nil || got != want {
			t.Errorf("%s: 32 MiB came back as %s, %v: want %s", name, got, err, want)
		}
		if errs := load(t, 16, 2000, func() error {
			a, err := try(c, request(t, http.MethodGet, at("e", "/"), nil))
			if err == nil && a.StatusCode != 200 {
				err = errors.New(a.body)
			}
			return err
		}); len(errs) > 0 {
			t.Errorf("%s: %d of 2000 requests failed: %v", name, len(errs), errs[0])
		}
	}
}

func TestClassicAgentServesTCP(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	a := listenClassic(t, n, "e", classic.V090)
	go func() {
		for {
			c, err := a.Accept()
			if err != nil {
				return
			}
			go func() {
				// Closing a yamux stream is a half-close, so the answer can still be read.
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	address, _ := startForward(t, n, "e")
	c := connect(t, address)
	message := strings.Repeat("0123456789abcdef", 1<<16)
	go func() {
		_, _ = io.WriteString(c, message)
		_ = c.CloseWrite()
	}()
	if b, err := io.ReadAll(c); err != nil || string(b) != message {
		t.Errorf("%d bytes came back, %v: want %d and a clean end", len(b), err, len(message))
	}
}

// TestClassicAgentsSurviveRestarts is not parallel: it measures how fast they are back.
func TestClassicAgentsSurviveRestarts(t *testing.T) {
	n := startNode(t, nodeOptions{})
	agents := map[string]*classic.Agent{}
	for _, v := range classicVersions {
		name := "e-" + strings.ReplaceAll(v.String(), ".", "-")
		agents[name] = startClassic(t, n, name, v, say("ok"))
	}
	for i, sig := range []syscall.Signal{
		syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT,
	} {
		n.signal(t, sig)
		n.exit(t, settle)
		n.run(t)
		for name, a := range agents {
			ctx, cancel := context.WithTimeout(t.Context(), bound(5*time.Second))
			if err := a.WaitSessions(ctx, i+2); err != nil {
				t.Errorf("%s after %s: %v: want it to connect again", name, sig, err)
			}
			cancel()
			if a := get(t, n.client(t), at(name, "/")); a.body != "ok" {
				t.Errorf("%s after %s: status %d %s", name, sig, a.StatusCode, a.body)
			}
		}
	}
}

func TestClassicAgentsFinishWhatRunsWhilePikodDrains(t *testing.T) {
	t.Parallel()
	for _, v := range classicVersions {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			n := startNode(t, nodeOptions{})
			began := make(chan struct{}, 1)
			a := startClassic(t, n, "e", v, slow(began))
			done := inFlight(t, n.client(t), at("e", "/early"))
			wait(t, "the service has the request", settle, began)
			n.signal(t, syscall.SIGTERM)
			if err := wait(t, "the request ends", settle, done); err != nil {
				t.Errorf("the request that ran: %v: want it completed", err)
			}
			if code := n.exit(t, settle); code != 0 {
				t.Errorf("pikod exits %d: want 0", code)
			}
			select {
			case <-a.Done():
				t.Errorf("the agent gave up: %v", a.Err())
			default:
			}
			n.run(t)
			ctx, cancel := context.WithTimeout(t.Context(), settle)
			defer cancel()
			if err := a.WaitSessions(ctx, 2); err != nil {
				t.Errorf("after the restart: %v: want it to connect again", err)
			}
		})
	}
}

func TestClassicAgentThatLeavesCostsNoRequest(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	startClassic(t, n, "e", classic.V081, say("ok"))
	leaver := startClassic(t, n, "e", classic.V090, say("ok"))
	n.awaitEndpoint(t, "e", 2)
	c := n.client(t)
	served := 0
	errs := load(t, 1, 1000, func() error {
		if served++; served == 300 {
			if err := leaver.Leave(); err != nil {
				return err
			}
		}
		a, err := try(c, request(t, http.MethodPost, at("e", "/"), strings.NewReader("order")))
		if err == nil && a.body != "ok" {
			err = fmt.Errorf("status %d: %s", a.StatusCode, a.body)
		}
		return err
	})
	if len(errs) > 0 {
		t.Errorf("%d of 1000 requests failed when an agent said goodbye: %v", len(errs), errs[0])
	}
	n.awaitEndpoint(t, "e", 1)
}

func TestClassicAgentThatTakesNoStreamFailsOnlyThatRequest(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Proxy: `endpoint_wait = "0s"`})
	// The agent's library takes one stream and, as nobody asks for it, none after that.
	a := listenClassic(t, n, "e", classic.V081)
	answers := make(chan answer, 2)
	c := n.client(t)
	for range 2 {
		r := request(t, http.MethodGet, at("e", "/"), nil)
		go func() {
			ans, err := try(c, r)
			if err != nil {
				t.Errorf("request: %v", err)
			}
			answers <- ans
		}()
	}
	// A stream may take 10 s to open; the library would end the session after 75.
	ans := wait(t, "the request whose stream does not open has failed", bound(13*time.Second), answers)
	if ans.StatusCode != http.StatusGatewayTimeout || !strings.Contains(ans.body, "upstream timeout") {
		t.Errorf("status %d %s: want 504 upstream timeout", ans.StatusCode, ans.body)
	}
	serveOn(t, &http.Server{Handler: say("ok"), ReadHeaderTimeout: time.Minute}, a)
	if ans := wait(t, "the other request ends", settle, answers); ans.body != "ok" {
		t.Errorf("the other request: status %d %s: want it answered", ans.StatusCode, ans.body)
	}
	if ans := get(t, c, at("e", "/")); ans.body != "ok" || a.Sessions() != 1 {
		t.Errorf("a request after that: status %d %s in session %d: want it answered in the first",
			ans.StatusCode, ans.body, a.Sessions())
	}
}

func TestClassicAndNativeAgentsShareAnEndpoint(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	startClassic(t, n, "e", classic.V090, say("classic"))
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serve(t, say("native"))})
	n.awaitEndpoint(t, "e", 2)
	c := n.client(t)
	counts := map[string]int{}
	for range 200 {
		counts[get(t, c, at("e", "/")).body]++
	}
	if counts["classic"] < 20 || counts["native"] < 20 || len(counts) != 2 {
		t.Errorf("answers %v: want both kinds to serve", counts)
	}
}

func TestUpstreamListenerRefusesForGoodWhatIsNoHandshake(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	for _, path := range []string{"/", "/piko/v1/upstream/", "/piko/v1/upstream/e", "/piko/v1/upstream/not_a_name!",
		"/piko/v1/upstream/e/and/more", "/piko/v2/tunnel", "/piko/v3/anything"} {
		status, body, err := fetch("http://" + n.upstream + path)
		// Agents try again after 408, 429 and most of 5xx; for what can never succeed that would be for ever.
		if err != nil || status < 400 || status > 499 || status == 408 || status == 429 {
			t.Errorf("GET %s: status %d %s, %v: want one that agents take for final", path, status, body, err)
		}
	}
}
