package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// oneService starts a node and an agent whose endpoint "e" leads to the handler, and so does "read", for which the
// agent has to read the requests that it would hand on unread otherwise.
func oneService(t testing.TB, o nodeOptions, h http.HandlerFunc) *node {
	t.Helper()
	n := startNode(t, o)
	service := serve(t, h)
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: service},
		offer{Endpoint: "read", Addr: service, More: "access_log = true"})
	return n
}

// versions are the clients that a test of HTTP is to be repeated with.
func (n *node) versions(t testing.TB) map[string]*http.Client {
	return map[string]*http.Client{"HTTP/1.1": n.client(t), "HTTP/2": n.client2(t)}
}

// ways are the versions, and each once more through the agent of oneService that reads the requests.
func (n *node) ways(t testing.TB) map[string]*http.Client {
	all := n.versions(t)
	for name, c := range maps.Clone(all) {
		c := *c
		c.Transport = naming{"read", c.Transport}
		all[name+", read by the agent"] = &c
	}
	return all
}

// naming sends every request to one endpoint, whatever its host is.
type naming struct {
	endpoint string
	http.RoundTripper
}

func (n naming) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("X-Piko-Endpoint", n.endpoint)
	return n.RoundTripper.RoundTrip(r)
}

func TestRequestArrivesAsItWasSent(t *testing.T) {
	t.Parallel()
	type seen struct {
		method, target, host, body string
		header                     http.Header
	}
	requests := make(chan seen, 1)
	n := oneService(t, nodeOptions{}, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		requests <- seen{r.Method, r.RequestURI, r.Host, string(b), r.Header}
		w.Header().Add("X-Twice", "one")
		w.Header().Add("X-Twice", "two")
		w.WriteHeader(http.StatusTeapot)
		if r.Method != http.MethodHead {
			_, _ = io.WriteString(w, "short and stout")
		}
	})
	for name, c := range n.ways(t) {
		for _, test := range []struct{ method, target, body string }{
			{http.MethodGet, "/", ""},
			{http.MethodGet, "/a%2Fb/%7Ec/..;/d?x=%41&y=a+b&z;&&=%zz", ""},
			{http.MethodGet, "//double/slash", ""},
			{http.MethodHead, "/head", ""},
			{http.MethodPost, "/post?q", "a body"},
			{http.MethodPut, "/put", strings.Repeat("x", 100_000)},
			{http.MethodPatch, "/patch", "y"},
			{http.MethodDelete, "/delete", ""},
			{http.MethodOptions, "/options", ""},
			{"PROPFIND", "/webdav", "<propfind/>"},
		} {
			t.Run(name+" "+test.method+" "+test.target, func(t *testing.T) {
				r := request(t, test.method, at("e", ""), strings.NewReader(test.body))
				path, query, _ := strings.Cut(test.target, "?")
				// Opaque is how net/http is told to send a target as it is.
				r.URL.Opaque, r.URL.RawQuery = "//"+r.URL.Host+path, query
				r.Header.Set("Content-Encoding", "made-up")
				r.Header["X-Twice"] = []string{"one", "two"}
				if test.body == "" {
					r.Body, r.ContentLength = nil, 0
				}
				a := do(t, c, r)
				s := wait(t, "the service has the request", settle, requests)
				if s.method != test.method || s.target != test.target || s.body != test.body || s.host != "e.piko.test" {
					t.Errorf("service saw %s %s at %s with %d bytes: want %s %s at e.piko.test with %d bytes",
						s.method, s.target, s.host, len(s.body), test.method, test.target, len(test.body))
				}
				if got := s.header.Get("Content-Encoding"); got != "made-up" {
					t.Errorf("service saw content encoding %q: want it untouched", got)
				}
				if got := s.header["Accept-Encoding"]; got != nil {
					t.Errorf("service saw accept-encoding %q: want none, as none was sent", got)
				}
				if got := fmt.Sprint(s.header["X-Twice"]); got != "[one two]" {
					t.Errorf("service saw %s: want both lines in order", got)
				}
				if got := fmt.Sprint(a.Header["X-Twice"]); got != "[one two]" {
					t.Errorf("client saw %s: want both lines in order", got)
				}
				want := "short and stout"
				if test.method == http.MethodHead {
					want = ""
				}
				if a.StatusCode != http.StatusTeapot || a.body != want {
					t.Errorf("client saw %d %q: want %d %q", a.StatusCode, a.body, http.StatusTeapot, want)
				}
			})
		}
	}
}

func TestResponsesWithoutABody(t *testing.T) {
	t.Parallel()
	n := oneService(t, nodeOptions{}, func(w http.ResponseWriter, r *http.Request) {
		var status int
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &status)
		w.Header().Set("Etag", `"tag"`)
		if status == http.StatusFound {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(status)
	})
	for name, c := range n.ways(t) {
		for _, status := range []int{200, 204, 302, 304, 404, 500, 503} {
			t.Run(fmt.Sprintf("%s %d", name, status), func(t *testing.T) {
				for range 3 { // the connection must be in step for the next request
					a := get(t, c, at("e", fmt.Sprintf("/%d", status)))
					if a.StatusCode != status || a.body != "" || a.Header.Get("Etag") != `"tag"` {
						t.Fatalf("status %d, body %q, header %v: want %d and the service's own header",
							a.StatusCode, a.body, a.Header, status)
					}
				}
			})
		}
	}
}

func TestChunkedBodiesAndTrailersBothWays(t *testing.T) {
	t.Parallel()
	n := oneService(t, nodeOptions{}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		flush := http.NewResponseController(w)
		_ = flush.EnableFullDuplex()
		b := make([]byte, 100)
		sum := 0
		for {
			k, err := r.Body.Read(b)
			sum += k
			if _, err := w.Write(b[:k]); err != nil || flush.Flush() != nil {
				return
			}
			if err != nil {
				break
			}
		}
		w.Header().Set("X-Sum", fmt.Sprintf("%d %s", sum, r.Trailer.Get("X-Client-Sum")))
		w.Header().Set(http.TrailerPrefix+"X-Unannounced", "yes")
	})
	for name, c := range n.ways(t) {
		t.Run(name, func(t *testing.T) {
			content := strings.Repeat("0123456789abcdef", 4096)
			r := request(t, http.MethodPost, at("e", "/"), io.NopCloser(io.LimitReader(strings.NewReader(content), 1<<30)))
			r.ContentLength = -1
			r.Trailer = http.Header{"X-Client-Sum": {"client"}}
			a := do(t, c, r)
			if a.body != content {
				t.Errorf("body came back with %d bytes: want the %d sent", len(a.body), len(content))
			}
			if got, want := a.Trailer.Get("X-Sum"), fmt.Sprintf("%d client", len(content)); got != want {
				t.Errorf("trailer %q: want %q", got, want)
			}
			if got := a.Trailer.Get("X-Unannounced"); got != "yes" {
				t.Errorf("trailer that was not announced: %q: want yes", got)
			}
		})
	}
}

func TestExpectContinueIsAnsweredByTheService(t *testing.T) {
	t.Parallel()
	n := oneService(t, nodeOptions{}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		k, _ := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprint(w, k)
	})
	t.Run("curl waits for 100 and uploads", func(t *testing.T) {
		file := writeFile(t, "upload", strings.Repeat("u", 1<<20))
		out, errs, code := curl(t, "-v", "--http1.1", "--expect100-timeout", "60", "-H", "Expect: 100-continue",
			"-H", "x-piko-endpoint: e", "-T", file, "http://"+n.proxy+"/take")
		if code != 0 || out != fmt.Sprint(1<<20) || !strings.Contains(errs, "< HTTP/1.1 100 Continue") {
			t.Errorf("curl exits %d with %q:\n%s", code, out, errs)
		}
	})
	t.Run("a refusal comes instead of 100, and the body stays at home", func(t *testing.T) {
		// A service that says nothing for a second is taken for one that does not know of 100.
		await(t, "413 with no 100 before it", bound(0), func() error {
			c := connect(t, n.proxy)
			mustWrite(t, c, "POST /refuse HTTP/1.1\r\nHost: e.piko.test\r\nContent-Length: 1000000\r\n"+
				"Expect: 100-continue\r\n\r\n")
			if a := nextAnswer(t, bufio.NewReader(c)); a.StatusCode != http.StatusRequestEntityTooLarge {
				return fmt.Errorf("status %d", a.StatusCode)
			}
			return nil
		})
	})
}

func TestEarlyHintsArriveBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	hinted := make(chan struct{}, 1)
	n := oneService(t, nodeOptions{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		select {
		case <-hinted:
			_, _ = io.WriteString(w, "answer")
		case <-time.After(settle):
			w.WriteHeader(http.StatusGatewayTimeout)
		}
	})
	for name, c := range n.ways(t) {
		t.Run(name, func(t *testing.T) {
			var link atomic.Value
			r := request(t, http.MethodGet, at("e", "/"), nil)
			r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
				Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
					if code == http.StatusEarlyHints {
						link.Store(h.Get("Link"))
						hinted <- struct{}{}
					}
					return nil
				},
			}))
			a := do(t, c, r)
			if a.body != "answer" || link.Load() != "</style.css>; rel=preload" {
				t.Errorf("status %d, body %q, hint %v: want the hint before the answer", a.StatusCode, a.body, link.Load())
			}
		})
	}
}

func TestStreamedEventsAreFlushedAtOnce(t *testing.T) {
	t.Parallel()
	read := make(chan struct{})
	n := oneService(t, nodeOptions{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		flush := http.NewResponseController(w)
		for i := range 50 {
			_, _ = fmt.Fprintf(w, "data: %d\n\n", i)
			if flush.Flush() != nil {
				return
			}
			// The next event is sent only when the last one was read, so a proxy that collects them never ends.
			select {
			case <-read:
			case <-time.After(settle):
				return
			}
		}
	})
	for name, c := range n.ways(t) {
		t.Run(name, func(t *testing.T) {
			resp, err := c.Do(request(t, http.MethodGet, at("e", "/"), nil))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			events := 0
			for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
				if lines.Text() == fmt.Sprintf("data: %d", events) {
					events++
					read <- struct{}{}
				}
			}
			if events != 50 {
				t.Errorf("%d events: want 50", events)
			}
		})
	}
}

func TestRequestBodyIsStreamedToTheService(t *testing.T) {
	t.Parallel()
	got := make(chan string)
	n := oneService(t, nodeOptions{}, func(_ http.ResponseWriter, r *http.Request) {
		for b := make([]byte, 100); ; {
			k, err := r.Body.Read(b)
			if k > 0 {
				got <- string(b[:k])
			}
			if err != nil {
				return
			}
		}
	})
	for name, c := range n.ways(t) {
		t.Run(name, func(t *testing.T) {
			body, w := io.Pipe()
			done := make(chan error, 1)
			r := request(t, http.MethodPost, at("e", "/"), body)
			go func() {
				_, err := try(c, r)
				done <- err
			}()
			for i := range 20 {
				piece := fmt.Sprint("piece ", i)
				mustWrite(t, w, piece)
				if b := wait(t, "the service reads what was sent", settle, got); b != piece {
					t.Fatalf("service read %q: want %q", b, piece)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if err := wait(t, "the request ends", settle, done); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestHeadersThatAreTooLargeAreRefused(t *testing.T) {
	t.Parallel()
	n := oneService(t, nodeOptions{}, say("ok"))
	c := n.client(t)
	for name, test := range map[string]struct {
		size, fields, want int
	}{
		"within the limit": {20 << 10, 1, 200},
		"too many bytes":   {64 << 10, 1, 431},
		"too many fields":  {10, 200, 431},
	} {
		r := request(t, http.MethodGet, at("e", "/"), nil)
		for i := range test.fields {
			r.Header.Set(fmt.Sprintf("X-Field-%d", i), strings.Repeat("v", test.size))
		}
		if a := do(t, c, r); a.StatusCode != test.want {
			t.Errorf("%s: status %d: want %d", name, a.StatusCode, test.want)
		}
	}
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	t.Parallel()
	n := oneService(t, nodeOptions{}, func(w http.ResponseWriter, r *http.Request) { reply(w, "%s", r.URL.Path) })
	c := connect(t, n.proxy)
	var all bytes.Buffer
	for i := range 50 {
		_, _ = fmt.Fprintf(&all, "GET /%d HTTP/1.1\r\nHost: e.piko.test\r\n\r\n", i)
	}
	mustWrite(t, c, all.String())
	r := bufio.NewReader(c)
	for i := range 50 {
		if a, want := nextAnswer(t, r), fmt.Sprintf("/%d", i); a.body != want {
			t.Fatalf("answer %d is %q: want %q", i, a.body, want)
		}
	}
}
