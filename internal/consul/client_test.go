package consul

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/cluster"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/pikotest/consultest"
)

// plainOptions are enough for New.
func plainOptions() Options {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return Options{
		Settings: config.DefaultPikod().Consul, Cluster: "test", Local: cluster.NewLocal(), Table: cluster.NewTable(),
		Node: cluster.Node{ID: "n", Incarnation: "i", Addr: "127.0.0.1:8003", ProxyAddr: "127.0.0.1:8000"}, Log: log,
	}
}

func TestEnvironmentFillsWhatSettingsLeaveOpen(t *testing.T) {
	var got *http.Request
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		w.Header().Set("X-Consul-LastContact", "0")
		w.WriteHeader(http.StatusNotFound)
	}))
	defer s.Close()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"CONSUL_HTTP_ADDR": s.URL, "CONSUL_HTTP_TOKEN": "plain", "CONSUL_HTTP_TOKEN_FILE": file, "CONSUL_HTTP_AUTH": "user:word",
		"CONSUL_NAMESPACE": "team", "CONSUL_PARTITION": "part",
	} {
		t.Setenv(name, value)
	}
	o := plainOptions()
	ask := func() *http.Request {
		t.Helper()
		d, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		defer d.closeIdle()
		if _, _, err := d.readClient.KV().Get("x", readOptions(context.Background())); err != nil {
			t.Fatal(err)
		}
		return got
	}
	r := ask()
	q := r.URL.Query()
	if r.Header.Get("X-Consul-Token") != "from-file" || q.Get("ns") != "team" || q.Get("partition") != "part" {
		t.Errorf("asked %s with %v", r.URL, r.Header)
	}
	if user, word, _ := r.BasicAuth(); user != "user" || word != "word" {
		t.Errorf("asked as %s:%s", user, word)
	}
	o.Settings.Token, o.Settings.Namespace = config.NewSecret("ours"), "mine"
	if r = ask(); r.Header.Get("X-Consul-Token") != "ours" || r.URL.Query().Get("ns") != "mine" {
		t.Errorf("settings do not come first: asked %s with %v", r.URL, r.Header)
	}
	for _, name := range []string{"CONSUL_NAMESPACE", "CONSUL_PARTITION", "CONSUL_HTTP_TOKEN_FILE", "CONSUL_HTTP_TOKEN"} {
		t.Setenv(name, "")
	}
	o = plainOptions()
	if r = ask(); r.URL.Query().Has("ns") || r.URL.Query().Has("partition") || r.Header.Get("X-Consul-Token") != "" {
		t.Errorf("asked %s with %v, want no namespace, no partition and no token", r.URL, r.Header)
	}
}

func TestTokenChangesLive(t *testing.T) {
	tokens := newTokens(config.Consul{Token: config.NewSecret("one")}, environment{token: "env", tokenFile: "/nowhere"})
	if have := tokens.get(); have != "one" {
		t.Errorf("token %q, want that of the settings", have)
	}
	tokens.set("two")
	if have := tokens.get(); have != "two" {
		t.Errorf("token %q, want the one that was set", have)
	}
	if have := newTokens(config.Consul{}, environment{token: "env", tokenFile: "/nowhere"}).get(); have != "env" {
		t.Errorf("token %q, want that of the environment while its file cannot be read", have)
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Consul-LastContact", "0")
			w.Header().Set("X-Consul-Index", "1")
			_, _ = io.WriteString(w, `[{"Key":"x","Value":"`+map[bool]string{true: "eA==", false: ""}[r.Host == "localhost"]+`"}]`)
		})}}
	s.Start()
	defer s.Close()
	o := plainOptions()
	o.Settings.Address = config.List{"unix://" + path}
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.closeIdle()
	pair, _, err := d.readClient.KV().Get("x", readOptions(context.Background()))
	if err != nil || string(pair.Value) != "x" {
		t.Errorf("Get = %v, %v", pair, err)
	}
}

func TestAnswersAreLimited(t *testing.T) {
	l := &limited{io.NopCloser(strings.NewReader("12345")), 3}
	b, err := io.ReadAll(l)
	if string(b) != "123" || err == nil {
		t.Errorf("read %q, %v; want three bytes and an error", b, err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"cluster":     func(o *Options) { o.Cluster = "a/b" },
		"dots":        func(o *Options) { o.Cluster = "a..b" },
		"node":        func(o *Options) { o.Node.ID = "a b" },
		"incarnation": func(o *Options) { o.Node.Incarnation = "" },
		"advertise":   func(o *Options) { o.Node.Addr = ":8003" },
		"address":     func(o *Options) { o.Settings.Address = nil },
		"authority":   func(o *Options) { o.Settings.TLS.CA = "/nowhere" },
	} {
		o := plainOptions()
		o.Settings.Address = config.List{"127.0.0.1:1"}
		if _, err := New(o); err != nil {
			t.Fatalf("good options: %v", err)
		}
		change(&o)
		if _, err := New(o); err == nil {
			t.Errorf("%s: bad options were taken", name)
		}
	}
}

// An older Consul does not know the check that follows a session.
func TestCheckPassesWithOlderConsul(t *testing.T) {
	t.Parallel()
	c := consultest.Start(t, consultest.Options{Settings: map[string]any{"session_ttl_min": "12s"}})
	l := newLiar(t, c, false)
	l.tell(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/v1/catalog/register" {
			return false
		}
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return true
		}
		if checks, ok := body["Checks"].([]any); ok && len(checks) > 0 {
			check := checks[0].(map[string]any)
			check["Type"], check["Definition"] = "", map[string]any{}
		}
		b, _ := json.Marshal(body)
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
		return false
	})
	w := newTown(t, c)
	w.change = func(o *Options) { o.Settings.Address = config.List{l.address()} }
	a := w.join("a")
	until(t, "the service passes", func() bool {
		entries, _, err := w.client.Health().Service(serviceName, "", true, nil)
		return err == nil && len(entries) == 1
	})
	a.isReady()
	entry, _, err := w.client.Session().Info(sessionOf(a), nil)
	if err != nil || entry.TTL != "12s" {
		t.Errorf("session %+v, %v; want the time to live that this Consul asks for", entry, err)
	}
}

func TestRunEndsWithItsContextWhenConsulIsNotThere(t *testing.T) {
	o := plainOptions()
	o.Settings.Address = config.List{"127.0.0.1:1"}
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if err := d.Run(ctx); err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	if err := d.Leave(context.Background()); err == nil {
		t.Error("Leave did not tell that Consul is not there")
	}
}

// Certificates of clients are rotated while nodes run.
func TestSettingsApplyLive(t *testing.T) {
	t.Parallel()
	c := consultest.Start(t, consultest.Options{})
	l := newLiar(t, c, true)
	w := newTown(t, c)
	w.pace.retryMax = 200 * time.Millisecond
	var settings config.Consul
	w.change = func(o *Options) {
		o.Settings.Address = config.List{l.URL}
		settings = o.Settings
	}
	a := w.join("a")
	until(t, "an unknown authority is refused", func() bool { return a.metric("piko_consul_watch_errors_total") > 0 })
	bad := settings
	bad.TLS.CA = "/nowhere"
	if err := a.Apply(bad); err == nil {
		t.Error("settings that cannot be had were applied")
	}
	settings.TLS.InsecureSkipVerify = true
	settings.WriteBudget = 10
	settings.Token = config.NewSecret("anonymous")
	l.tell(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("X-Consul-Token") == "anonymous" {
			r.Header.Del("X-Consul-Token")
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	if err := a.Apply(settings); err != nil {
		t.Fatal(err)
	}
	a.local.Add("kept", 1)
	a.publish("kept")
	if share := a.metric("piko_consul_write_budget_per_second"); share != 10 {
		t.Errorf("a budget of %v, want 10", share)
	}
}
