package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/pikoproxy/piko/e2e/classic"
)

// revokedWithin is how soon nothing of a revoked token may be left on any node.
var revokedWithin = bound(5 * time.Second)

// endless answers with more and more until the client has gone.
func endless(w http.ResponseWriter, r *http.Request) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := io.WriteString(w, "more\n"); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

// Each node has a deny list of its own, a file. What a token has begun is gone from each of them soon after the files have
// changed, and what others have begun goes on.
func TestSecurityARevokedTokenIsGoneFromEveryNode(t *testing.T) {
	parallel(t)
	denied := make([]string, 3)
	c := startClusterOf(t, len(denied), func(i int) nodeOptions {
		denied[i] = writeFile(t, "denied", "# nobody yet\n")
		auth := fmt.Sprintf("%s\nauth.denylist_file = %q", withKey, denied[i])
		return nodeOptions{Proxy: auth + "\naccess_log = false", Upstream: auth}
	})
	agent := func(id string) {
		launchAgent(t, c.nodes[0], agentOptions{
			URL: "http://" + c.upstreams, Connect: "connections = 3\ntoken_file = " +
				fmt.Sprintf("%q", writeFile(t, "token", sign(t, claims{ID: id}))),
		}, offer{Endpoint: "web", Addr: serve(t, endless)}, offer{Endpoint: "tcp", Addr: serveTCP(t, echo), Protocol: "tcp"})
	}
	agent("stolen-agent")
	agent("good-agent")
	c.awaitSessions(t, "web", 6, 2*settle)
	c.awaitSessions(t, "tcp", 6, settle)

	var thieves, honest []io.Reader
	for _, n := range c.nodes {
		for id, held := range map[string]*[]io.Reader{"stolen": &thieves, "good": &honest} {
			token := sign(t, claims{ID: id})
			*held = append(*held, download(t, n, token), dialTCP(t, n, token))
		}
	}
	began := time.Now()
	for _, file := range denied {
		mustWriteFile(t, file, "stolen\nstolen-agent\n")
	}
	for i, r := range thieves {
		if err := ends(t, r, time.Until(began.Add(revokedWithin))); err != nil {
			t.Errorf("connection %d of the revoked client: %v", i, err)
		}
	}
	c.awaitSessions(t, "web", 3, time.Until(began.Add(revokedWithin)))
	t.Logf("everything of the revoked tokens was gone after %v", time.Since(began).Round(time.Millisecond))
	for i, n := range c.nodes {
		n.awaitEndpoint(t, "web", 1) // the session of the good agent
		r := request(t, http.MethodGet, at("web", "/"), nil)
		r.Header.Set("Authorization", "Bearer "+sign(t, claims{ID: "stolen"}))
		if a := do(t, n.client(t), r); a.StatusCode != http.StatusUnauthorized {
			t.Errorf("node %d answers the revoked token with %d", i+1, a.StatusCode)
		}
	}
	// What the good client holds went through either agent. Through the good one it goes on; the thief's service is gone.
	alive := 0
	for _, r := range honest {
		if ends(t, r, 200*time.Millisecond) != nil {
			alive++
		}
	}
	t.Logf("%d of the %d connections of the other client are alive", alive, len(honest))
	for _, n := range c.nodes {
		download(t, n, sign(t, claims{ID: "good"}))
	}
}

// download begins a request whose answer does not end.
func download(t testing.TB, n *node, token string) io.Reader {
	t.Helper()
	r := request(t, http.MethodGet, at("web", "/"), nil)
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := n.client(t).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("a download begins with status %d", resp.StatusCode)
	}
	return resp.Body
}

// dialTCP begins a TCP connection through a node.
func dialTCP(t testing.TB, n *node, token string) io.Reader {
	t.Helper()
	conn, err := classic.Dial(t.Context(), "http://"+n.proxy, "tcp", token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	mustWrite(t, conn, "ping")
	mustRead(t, conn, "ping")
	return conn
}

// ends reads until the end, which must come in time.
func ends(t testing.TB, r io.Reader, within time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, r)
		ended <- err
	}()
	select {
	case err := <-ended:
		if err == nil {
			return errors.New("ended as if it were complete")
		}
		return nil
	case <-ctx.Done():
		return errors.New("still open")
	}
}

// A connection of a client ends when its token does, and the reason is in the log.
func TestSecurityAnExpiredTokenEndsWhatItHasBegun(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Proxy: withKey})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "web", Addr: serve(t, endless)},
		offer{Endpoint: "tcp", Addr: serveTCP(t, echo), Protocol: "tcp"})
	address := freeAddress(t)
	file := writeFile(t, "token", sign(t, claims{Expires: time.Now().Add(time.Hour)}))
	p := start(t, nil, "piko-forward", address, "tcp", "--url", "http://"+n.proxy, "--token-file", file)
	p.awaitListen(t, "tcp", address)
	// Good for 20 s, with the leeway of ten: everything must have begun by then.
	token := sign(t, claims{Expires: time.Now().Add(10 * time.Second)})
	mustWriteFile(t, file, token)
	forwarded := connect(t, address)
	mustWrite(t, forwarded, "ping")
	mustRead(t, forwarded, "ping")
	for what, r := range map[string]io.Reader{
		"a download": download(t, n, token), "a TCP connection": dialTCP(t, n, token), "one by piko-forward": forwarded,
	} {
		if err := ends(t, r, time.Minute); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	await(t, "the log says why", settle, func() error { return contains(n.output(t), "token has expired") })
}

// A node that stops waits long for what runs, and revocations do not wait for it.
func TestSecurityARevokedTokenEndsWhileItsNodeStops(t *testing.T) {
	t.Parallel()
	denied := writeFile(t, "denied", "# nobody yet\n")
	n := startNode(t, nodeOptions{
		Top: "drain_timeout = \"5m\"", Proxy: fmt.Sprintf("%s\nauth.denylist_file = %q\naccess_log = false", withKey, denied),
	})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "web", Addr: serve(t, endless)})
	thief, honest := download(t, n, sign(t, claims{ID: "stolen"})), download(t, n, sign(t, claims{ID: "good"}))
	n.signal(t, syscall.SIGTERM)
	await(t, "the drain", settle, func() error { return contains(n.output(t), "draining") })
	mustWriteFile(t, denied, "stolen\n")
	if err := ends(t, thief, time.Minute); err != nil {
		t.Errorf("a download of the revoked client: %v", err)
	}
	if err := ends(t, honest, 200*time.Millisecond); err == nil {
		t.Error("a download of the other client has ended too")
	}
	await(t, "the log says so", settle, func() error { return contains(n.output(t), "the process is stopping") })
}
