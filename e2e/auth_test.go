package e2e

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pikoproxy/piko/e2e/classic"
)

const secret = "a-key-of-more-than-32-bytes-for-tests"

// withKey asks for tokens that are signed with secret.
const withKey = `auth.hmac_secret_key = "` + secret + `"`

type claims struct {
	Endpoints []string
	Expires   time.Time // default: in an hour
	Key       string    // default: secret
	ID        string    // jti; default: none
}

// sign makes a JWT by hand, so that it does not depend on the library that checks it.
func sign(t testing.TB, c claims) string {
	t.Helper()
	if c.Expires.IsZero() {
		c.Expires = time.Now().Add(time.Hour)
	}
	if c.Key == "" {
		c.Key = secret
	}
	payload := map[string]any{"exp": c.Expires.Unix(), "sub": "e2e"}
	if c.ID != "" {
		payload["jti"] = c.ID
	}
	if c.Endpoints != nil {
		payload["piko"] = map[string]any{"endpoints": c.Endpoints}
	}
	b, err := json.Marshal(payload)
	if err != nil {
		t.Fatal(err)
	}
	e := base64.RawURLEncoding
	text := e.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + e.EncodeToString(b)
	mac := hmac.New(sha256.New, []byte(c.Key))
	_, _ = mac.Write([]byte(text))
	return text + "." + e.EncodeToString(mac.Sum(nil))
}

// contains fails when one of the words is not in the text.
func contains(text string, words ...string) error {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return fmt.Errorf("no %q in %.500q", w, text)
		}
	}
	return nil
}

func TestClientsNeedATokenWhenAskedFor(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Proxy: withKey})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serve(t, showHeaders)},
		offer{Endpoint: "tcp", Addr: serveTCP(t, echo), Protocol: "tcp"})
	c := n.client(t)
	good := sign(t, claims{Endpoints: []string{"e", "tcp"}})
	for _, test := range []struct {
		name          string
		authorization string
		own           string // x-piko-authorization
		status        int
		text          string
	}{
		{"good", "Bearer " + good, "", 200, ""},
		{"good, for every endpoint", "Bearer " + sign(t, claims{}), "", 200, ""},
		{"good, by prefix", "Bearer " + sign(t, claims{Endpoints: []string{"x", "e*"}}), "", 200, ""},
		{"own field wins", "Basic for-the-service", "Bearer " + good, 200, ""},
		{"missing", "", "", 401, "missing authorization"},
		{"malformed", "Bearer", "", 401, "invalid authorization"},
		{"not Bearer", "Basic dTpw", "", 401, "unsupported auth type"},
		{"garbage", "Bearer garbage", "", 401, "invalid token"},
		{"signed by another", "Bearer " + sign(t, claims{Key: strings.Repeat("k", 40)}), "", 401, "invalid token"},
		{"expired", "Bearer " + sign(t, claims{Expires: time.Now().Add(-time.Minute)}), "", 401, "expired token"},
		{"for another endpoint", "Bearer " + sign(t, claims{Endpoints: []string{"other"}}), "", 401,
			"endpoint not permitted"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := request(t, http.MethodGet, at("e", "/"), nil)
			if test.authorization != "" {
				r.Header.Set("Authorization", test.authorization)
			}
			if test.own != "" {
				r.Header.Set("X-Piko-Authorization", test.own)
			}
			a := do(t, c, r)
			if a.StatusCode != test.status || !strings.Contains(a.body, test.text) {
				t.Errorf("status %d %s: want %d %q", a.StatusCode, a.body, test.status, test.text)
			}
			if test.status == 401 && a.Header.Get("WWW-Authenticate") == "" {
				t.Error("no WWW-Authenticate in a 401")
			}
			if test.status == 200 && strings.Contains(a.body, good) {
				t.Errorf("the token reached the service:\n%s", a.body)
			}
			if test.own != "" && field(a.body, "Authorization") != test.authorization {
				t.Errorf("the service's own authorization is %q: want it untouched", field(a.body, "Authorization"))
			}
		})
	}
	for name, token := range map[string]string{"good": good, "": ""} {
		conn, err := classic.Dial(t.Context(), "http://"+n.proxy, "tcp", token)
		var status *classic.StatusError
		if name == "good" && err != nil || name == "" && (!errors.As(err, &status) || status.Status != 401) {
			t.Errorf("TCP with token %q: %v", name, err)
		}
		if err == nil {
			_ = conn.Close()
		}
	}
}

func TestForwardSendsItsToken(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Proxy: withKey})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serveTCP(t, echo), Protocol: "tcp"})
	address := freeAddress(t)
	p := start(t, nil, "piko-forward", address, "e", "--url", "http://"+n.proxy, "--token-file",
		writeFile(t, "token", sign(t, claims{})+"\n"))
	p.awaitListen(t, "tcp", address)
	c := connect(t, address)
	mustWrite(t, c, "ping")
	mustRead(t, c, "ping")
}

func TestClassicAgentsAreToldWhyTheyMayNot(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Upstream: withKey})
	for name, test := range map[string]struct{ token, text string }{
		"missing":     {"", "missing authorization"},
		"bad":         {"x.y.z", "invalid token"},
		"expired":     {sign(t, claims{Expires: time.Now().Add(-time.Hour)}), "expired token"},
		"another's":   {sign(t, claims{Endpoints: []string{"other"}}), "endpoint not permitted"},
		"and allowed": {sign(t, claims{Endpoints: []string{"e"}}), ""},
	} {
		agent, err := classic.Listen(t.Context(), classic.Options{
			URL: "http://" + n.upstream, Endpoint: "e", Token: test.token})
		if test.text == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			_ = agent.Close()
			continue
		}
		var status *classic.StatusError
		if !errors.As(err, &status) || status.Status != 401 || !strings.Contains(status.Body, test.text) {
			t.Errorf("%s: %v: want 401 %q", name, err, test.text)
		}
	}
}
