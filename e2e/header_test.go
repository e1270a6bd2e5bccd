package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// sendRaw sends a request as it is written, on a connection of its own.
func sendRaw(t testing.TB, n *node, raw string) answer {
	t.Helper()
	c := connect(t, n.proxy)
	mustWrite(t, c, raw)
	return nextAnswer(t, bufio.NewReader(c))
}

// showHeaders answers with the header it got, a line for each field.
func showHeaders(w http.ResponseWriter, r *http.Request) {
	reply(w, "Host: %s\n", r.Host)
	for key, values := range r.Header {
		reply(w, "%s: %s\n", key, strings.Join(values, " | "))
	}
}

func field(body, name string) string {
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, name+": "); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

const forged = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.example\r\n" +
	"X-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6;proto=https;host=evil.example\r\n"

func TestForwardedHeadersAreOurs(t *testing.T) {
	t.Parallel()
	n := oneService(t, nodeOptions{}, showHeaders)
	for name, header := range map[string]string{"none sent": "", "forged": forged} {
		t.Run(name, func(t *testing.T) {
			a := sendRaw(t, n, "GET / HTTP/1.1\r\nHost: e.piko.test\r\n"+header+"\r\n")
			for key, want := range map[string]string{
				"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "e.piko.test",
			} {
				if got := field(a.body, key); got != want {
					t.Errorf("%s: %q: want %q", key, got, want)
				}
			}
			forwarded := strings.ToLower(field(a.body, "Forwarded"))
			for _, want := range []string{"for=127.0.0.1", "proto=http", "host=e.piko.test"} {
				if !strings.Contains(strings.ReplaceAll(forwarded, `"`, ""), want) {
					t.Errorf("Forwarded: %q: want %s in it", forwarded, want)
				}
			}
			if strings.Contains(a.body, "6.6.6.6") || strings.Contains(a.body, "evil") {
				t.Errorf("the service was told what the client forged:\n%s", a.body)
			}
		})
	}
}

func TestForwardedHeadersOfATrustedProxyAreKept(t *testing.T) {
	t.Parallel()
	n := oneService(t, nodeOptions{Proxy: `trusted_proxies = ["127.0.0.0/8"]`}, showHeaders)
	a := sendRaw(t, n, "GET / HTTP/1.1\r\nHost: e.piko.test\r\nX-Forwarded-For: 203.0.113.7\r\n"+
		"X-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n\r\n")
	for key, want := range map[string]string{"X-Forwarded-Proto": "https", "X-Forwarded-Host": "shop.example"} {
		if got := field(a.body, key); got != want {
			t.Errorf("%s: %q: want %q", key, got, want)
		}
	}
	if got := field(a.body, "X-Forwarded-For"); !strings.HasPrefix(got, "203.0.113.7") {
		t.Errorf("X-Forwarded-For: %q: want the client's address first", got)
	}
}

func TestInternalFieldsDoNotReachTheService(t *testing.T) {
	t.Parallel()
	n := oneService(t, nodeOptions{}, showHeaders)
	a := sendRaw(t, n, "GET / HTTP/1.1\r\nHost: e.piko.test\r\nX-Piko-Endpoint: e\r\nX-Piko-Forward: true\r\n"+
		"X-Piko-Authorization: Bearer secret\r\nX-PIKO-Anything: y\r\nX-Own: kept\r\n"+
		"Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\r\n")
	if a.StatusCode != 200 || field(a.body, "X-Own") != "kept" {
		t.Fatalf("status %d:\n%s", a.StatusCode, a.body)
	}
	for _, unwanted := range []string{"x-piko", "secret", "keep-alive", "proxy-connection"} {
		if strings.Contains(strings.ToLower(a.body), unwanted) {
			t.Errorf("the service saw %s:\n%s", unwanted, a.body)
		}
	}
}

func TestConnectionFieldTakesNothingOfOursAway(t *testing.T) {
	t.Parallel()
	n := oneService(t, nodeOptions{}, showHeaders)
	for _, name := range []string{"x-forwarded-for", "x-piko-endpoint", "X-Forwarded-Host", "forwarded"} {
		a := sendRaw(t, n, "GET / HTTP/1.1\r\nHost: e.piko.test\r\nConnection: close, "+name+"\r\n\r\n")
		// To refuse such a request is right, and so is to serve it as if nothing had been said.
		if a.StatusCode == http.StatusBadRequest {
			continue
		}
		if a.StatusCode != 200 || field(a.body, "X-Forwarded-For") != "127.0.0.1" ||
			field(a.body, "X-Forwarded-Host") != "e.piko.test" || field(a.body, "Forwarded") == "" {
			t.Errorf("Connection: %s: status %d:\n%s", name, a.StatusCode, a.body)
		}
	}
}

func TestFieldsOfTheAnswerPassThrough(t *testing.T) {
	t.Parallel()
	n := oneService(t, nodeOptions{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Set-Cookie"] = []string{"a=1", "b=2"}
		w.Header().Set("Content-Encoding", "made-up")
		w.Header().Set("Server", "own/1")
		w.Header().Set("Date", "Thu, 01 Jan 1970 00:00:00 GMT")
		w.Header().Set("Keep-Alive", "timeout=1")
		_, _ = io.WriteString(w, "\x1f\x8bnot really zipped")
	})
	for name, c := range n.ways(t) {
		a := get(t, c, at("e", "/"))
		if got := fmt.Sprint(a.Header["Set-Cookie"]); got != "[a=1 b=2]" {
			t.Errorf("%s: cookies %s: want both", name, got)
		}
		for key, want := range map[string]string{"Content-Encoding": "made-up", "Server": "own/1",
			"Date": "Thu, 01 Jan 1970 00:00:00 GMT", "Keep-Alive": ""} {
			if got := a.Header.Get(key); got != want {
				t.Errorf("%s: %s: %q: want %q", name, key, got, want)
			}
		}
		if a.body != "\x1f\x8bnot really zipped" || a.ContentLength != int64(len(a.body)) {
			t.Errorf("%s: body %q of length %d: want it untouched", name, a.body, a.ContentLength)
		}
	}
}
