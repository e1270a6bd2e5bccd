package acme

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
)

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

func manager(t *testing.T) *Manager {
	t.Helper()
	l := logrus.New()
	l.SetOutput(io.Discard)
	m, err := New(Options{Log: l, Addr: func(string) net.Addr { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestSealedValuesOpenOnlyWhereTheyWereWritten(t *testing.T) {
	ctx, common := t.Context(), newShared()
	ours, theirs := newSealed(common.get, "0123456789abcdef"), newSealed(common.get, "fedcba9876543210")
	if err := ours.Store(ctx, "certificates/a.key", []byte("private")); err != nil {
		t.Fatal(err)
	}
	if got, err := ours.Load(ctx, "certificates/a.key"); err != nil || string(got) != "private" {
		t.Fatalf("%q, %v", got, err)
	}
	if bytes.Contains(common.values["certificates/a.key"], []byte("private")) {
		t.Error("the value lies open")
	}
	if _, err := theirs.Load(ctx, "certificates/a.key"); err == nil {
		t.Error("opened under another secret")
	}
	common.values["certificates/b.key"] = common.values["certificates/a.key"]
	if _, err := ours.Load(ctx, "certificates/b.key"); err == nil {
		t.Error("opened under another name")
	}
	for i := range common.values["certificates/a.key"] {
		broken := slices.Clone(common.values["certificates/a.key"])
		broken[i] ^= 1
		common.values["broken"] = broken
		if _, err := ours.Load(ctx, "broken"); err == nil {
			t.Errorf("opened with byte %d changed", i)
		}
		common.values["broken"] = broken[:i]
		if _, err := ours.Load(ctx, "broken"); err == nil {
			t.Errorf("opened with %d bytes", i)
		}
	}
}

func TestSealedIsAStorage(t *testing.T) {
	ctx, s := t.Context(), newSealed(newShared().get, "0123456789abcdef")
	if _, err := s.Load(ctx, "a/b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of nothing: %v", err)
	}
	if _, err := s.Stat(ctx, "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat of nothing: %v", err)
	}
	if _, err := s.List(ctx, "a", true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("List of nothing: %v", err)
	}
	for _, key := range []string{"a/b", "a/c/d", "a/c/e"} {
		if err := s.Store(ctx, key, []byte(key)); err != nil {
			t.Fatal(err)
		}
	}
	if !s.Exists(ctx, "a/b") || !s.Exists(ctx, "a/c") || s.Exists(ctx, "a/x") {
		t.Error("Exists is wrong about a file, a directory, or neither")
	}
	if got, err := s.List(ctx, "a", false); err != nil || !slices.Equal(got, []string{"a/b", "a/c"}) {
		t.Errorf("List: %q, %v", got, err)
	}
	if got, err := s.List(ctx, "a", true); err != nil || !slices.Equal(got, []string{"a/b", "a/c", "a/c/d", "a/c/e"}) {
		t.Errorf("List of all: %q, %v", got, err)
	}
	if info, err := s.Stat(ctx, "a/c/d"); err != nil || info.Size != 5 || !info.IsTerminal || info.Modified.IsZero() {
		t.Errorf("Stat: %+v, %v", info, err)
	}
	if info, err := s.Stat(ctx, "a/c"); err != nil || info.IsTerminal {
		t.Errorf("Stat of a directory: %+v, %v", info, err)
	}
	if err := s.Delete(ctx, "a/c"); err != nil || s.Exists(ctx, "a/c/d") || !s.Exists(ctx, "a/b") {
		t.Errorf("Delete: %v", err)
	}
}

func TestPrepareSaysWhatIsWrong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := config.ACME{Domains: []string{"piko.test"}, Directory: t.TempDir()}
	for key, bad := range map[string]config.ACME{
		"acme.directory": {Domains: good.Domains, Directory: file},
		"acme.ca":        {Domains: good.Domains, Directory: good.Directory, CA: config.File(file)},
	} {
		_, err := manager(t).Prepare(bad)
		if p, ok := errors.AsType[config.Problem](err); !ok || p.Key != key {
			t.Errorf("want a problem of %s, have %v", key, err)
		}
	}
	if _, err := manager(t).Prepare(good); err != nil {
		t.Error(err)
	}
	if _, err := manager(t).Prepare(config.ACME{Directory: file}); err != nil {
		t.Errorf("settings that order nothing: %v", err)
	}
}

func TestCertificatesOfFilesAreServedMeanwhile(t *testing.T) {
	hello := &tls.ClientHelloInfo{ServerName: "piko.test"}
	c := manager(t).Config(&tls.Config{Certificates: make([]tls.Certificate, 1), NextProtos: []string{"h2"}})
	if cert, err := c.GetCertificate(hello); cert != nil || err != nil {
		t.Errorf("%v, %v: want crypto/tls to choose", cert, err)
	}
	if !slices.Equal(c.NextProtos, []string{"h2", "acme-tls/1"}) {
		t.Errorf("offers %q", c.NextProtos)
	}
	if _, err := manager(t).Config(&tls.Config{}).GetCertificate(hello); !errors.Is(err, ErrOff) {
		t.Errorf("with no certificate at all: %v", err)
	}
}

func TestPlainRequestsAreSentToHTTPS(t *testing.T) {
	h := manager(t).Handler()
	for _, c := range []struct{ host, target, want string }{
		{"a.piko.test", "/x?y=z", "https://a.piko.test/x?y=z"},
		{"a.piko.test:80", "//evil.test/", "https://a.piko.test//evil.test/"},
		{"", "/", ""},
		{"a@evil.test", "/", ""},
	} {
		r := httptest.NewRequest(http.MethodGet, "http://x"+c.target, nil)
		r.Host = c.host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if got := w.Header().Get("Location"); got != c.want {
			t.Errorf("%s%s leads to %q with %d, want %q", c.host, c.target, got, w.Code, c.want)
		}
	}
}
