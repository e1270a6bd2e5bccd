package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestEndpointIsNamedByHostOrHeader(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Proxy: `endpoint_wait = "0s"`})
	startAgent(t, n, agentOptions{},
		offer{Endpoint: "alpha", Addr: serve(t, say("alpha"))},
		offer{Endpoint: "Beta", Addr: serve(t, say("beta"))})
	const answered = http.StatusOK
	for _, test := range []struct {
		name, host, header string
		status             int
		body               string
	}{
		{"first label of Host", "alpha.piko.example.com", "", answered, "alpha"},
		{"Host with a port", "alpha.example.com:8000", "", answered, "alpha"},
		{"Host in capitals", "ALPHA.Piko.Example.COM", "", answered, "alpha"},
		{"Host, offered with capitals", "beta.example.com", "", answered, "beta"},
		{"header", "localhost", "alpha", answered, "alpha"},
		{"header in capitals", "127.0.0.1", "ALPHA", answered, "alpha"},
		{"header before Host", "alpha.example.com", "beta", answered, "beta"},
		{"Host without a dot", "alpha", "", 400, "missing endpoint id"},
		{"Host that is an address", "127.0.0.1:8000", "", 400, "missing endpoint id"},
		{"Host that is an IPv6 address", "[::1]:8000", "", 400, "missing endpoint id"},
		{"nobody offers it", "gamma.example.com", "", 502, "no available upstreams"},
		{"part of a name", "alph.example.com", "", 502, "no available upstreams"},
	} {
		for _, version := range []string{"--http1.1", "--http2-prior-knowledge"} {
			t.Run(test.name+"/"+version, func(t *testing.T) {
				args := []string{version, "-H", "Host: " + test.host, "-w", "\n%{http_code}", "http://" + n.proxy + "/"}
				if test.header != "" {
					args = append(args, "-H", "x-piko-endpoint: "+test.header)
				}
				out, errs, code := curl(t, args...)
				if code != 0 || !strings.HasSuffix(out, fmt.Sprintf("\n%d", test.status)) || !strings.Contains(out, test.body) {
					t.Errorf("curl exits %d with %q %s: want status %d and %q", code, out, errs, test.status, test.body)
				}
			})
		}
	}
}

func TestOnlyHostsUnderTheDomainsAreServed(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Proxy: `domains = ["piko.example.com"]`})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "alpha", Addr: serve(t, say("alpha"))})
	c := n.client(t)
	for host, want := range map[string]int{
		"alpha.piko.example.com":      200,
		"ALPHA.PIKO.EXAMPLE.COM:8000": 200,
		"alpha.example.com":           404,
		"alpha.notpiko.example.com":   404,
		"alpha.piko.example.com.evil": 404,
	} {
		if a := get(t, c, "http://"+host+"/"); a.StatusCode != want {
			t.Errorf("host %s: status %d %s: want %d", host, a.StatusCode, a.body, want)
		}
	}
	r := request(t, http.MethodGet, "http://elsewhere.org/", nil)
	r.Header.Set("X-Piko-Endpoint", "alpha")
	if a := do(t, c, r); a.StatusCode != 200 {
		t.Errorf("named by header: status %d %s: want 200", a.StatusCode, a.body)
	}
}

func TestCurlSpeaksEveryVersion(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	cert, key := ca.issue(t, "localhost", "my-endpoint.piko.test")
	n := startNode(t, nodeOptions{Proxy: fmt.Sprintf("[proxy.tls]\ncert = %q\nkey = %q", cert, key)})
	plain := startNode(t, nodeOptions{})
	service := serve(t, func(w http.ResponseWriter, r *http.Request) {
		reply(w, "%s %s", r.Method, r.URL.Path)
	})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "my-endpoint", Addr: service})
	startAgent(t, plain, agentOptions{}, offer{Endpoint: "my-endpoint", Addr: service})
	_, port, _ := strings.Cut(n.proxy, ":")
	secure := []string{"--cacert", ca.file, "--resolve", "my-endpoint.piko.test:" + port + ":127.0.0.1",
		"https://my-endpoint.piko.test:" + port + "/path"}
	open := []string{"-H", "x-piko-endpoint: my-endpoint", "http://" + plain.proxy + "/path"}
	for _, test := range []struct {
		name, want string
		args       []string
	}{
		{"HTTP/1.0", "1.1", append([]string{"--http1.0"}, open...)},
		{"HTTP/1.1", "1.1", append([]string{"--http1.1"}, open...)},
		{"HTTP/2 prior knowledge", "2", append([]string{"--http2-prior-knowledge"}, open...)},
		{"HTTP/2 offered in the clear", "1.1", append([]string{"--http2"}, open...)},
		{"HTTP/1.1 over TLS", "1.1", append([]string{"--http1.1"}, secure...)},
		{"HTTP/2 over TLS", "2", append([]string{"--http2"}, secure...)},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, errs, code := curl(t, append([]string{"-w", " over %{http_version}"}, test.args...)...)
			want := "GET /path over " + test.want
			if test.name == "HTTP/1.0" && strings.HasSuffix(out, "over 1") {
				// Either version may stand in the answer to an HTTP/1.0 request (RFC 9110, 2.5).
				want = "GET /path over 1"
			}
			if code != 0 || out != want {
				t.Errorf("curl exits %d with %q %s: want %q", code, out, errs, want)
			}
		})
	}
}
