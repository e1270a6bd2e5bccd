package tlsconf_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tlsconf"
)

// A CA file that can't be read whole must never mean "no CA", which would let everybody in.
func TestCVE_2026_27586_BadCAFileIsRefused(t *testing.T) {
	a := newAuthority(t, "ca")
	cert, key := a.issue(t, time.Hour, "localhost")
	good, err := os.ReadFile(string(a.file))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty":               "",
		"no PEM":              "hello",
		"a key":               "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
		"broken":              strings.Replace(string(good), "M", "-", 2),
		"good, then a broken": string(good) + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
	} {
		file := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := tlsconf.Server("proxy.tls", config.TLS{Cert: cert, Key: key, ClientCA: config.File(file)}); err == nil {
			t.Errorf("%s: taken, with client authentication %v", name, c.ClientAuth)
		}
	}
	if _, err := tlsconf.Server("proxy.tls", config.TLS{Cert: cert, Key: key, ClientCA: "/no/such/file"}); err == nil {
		t.Error("a missing file is taken")
	}
}

// Floods of key updates and chains that cost too much to verify were mended in Go itself (also CVE-2026-56862): nothing of
// ours can do it, so what we are built with must not be older.
func TestCVE_2026_32283_BuiltWithAGoThatHasBeenMended(t *testing.T) {
	v := strings.TrimPrefix(runtime.Version(), "go")
	for _, old := range []string{"1.26.0", "1.26.1", "1.26.2", "1.26.3", "1.26.4", "1.26.5", "1.26rc", "1.25", "1.24"} {
		if v == old || strings.HasPrefix(v, old+".") || v == "1.26" {
			t.Errorf("Go %s has holes that 1.26.6 has not", v)
		}
	}
}
