package config

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{"5s": 5 * time.Second, "1m30s": 90 * time.Second, "0s": 0, "1.5h": 90 * time.Minute} {
		if d, err := ParseDuration(text); err != nil || time.Duration(d) != want {
			t.Errorf("ParseDuration(%q) = %v, %v", text, d, err)
		}
	}
	for _, text := range []string{"", "5", "0", "-5s", "s", "5 s", "5d", "9999999h"} {
		if d, err := ParseDuration(text); err == nil {
			t.Errorf("ParseDuration(%q) = %v", text, d)
		}
	}
	for d, want := range map[time.Duration]string{
		time.Minute: "1m", time.Hour: "1h", 90 * time.Second: "1m30s", 0: "0s", time.Hour + time.Second: "1h0m1s", 10 * time.Minute: "10m",
	} {
		if got := Duration(d).String(); got != want {
			t.Errorf("%d is written %s, not %s", d, got, want)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{"0B": 0, "1B": 1, "64KiB": 64 << 10, "1MiB": 1 << 20, "3GiB": 3 << 30, "1TiB": 1 << 40, "1MB": 1e6, "2kB": 2000} {
		if n, err := ParseSize(text); err != nil || n != want {
			t.Errorf("ParseSize(%q) = %d, %v", text, n, err)
		}
	}
	for _, text := range []string{"", "1", "-1B", "1.5MiB", "1 MiB", "MiB", "1mib", "1MiBB", "9999999TiB", "+1B", "1_0B"} {
		if n, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %d", text, n)
		}
	}
	for n, want := range map[Size]string{0: "0B", 1: "1B", 1 << 10: "1KiB", 1<<20 + 1: "1048577B", 3 << 20: "3MiB"} {
		if n.String() != want {
			t.Errorf("%d is written %s", int64(n), n)
		}
	}
}

func TestListenerAddresses(t *testing.T) {
	for text, want := range map[string]string{
		":8000":              "tcp :8000 false",
		"127.0.0.1:8000":     "tcp 127.0.0.1:8000 true",
		"localhost:0":        "tcp localhost:0 true",
		"[::1]:80":           "tcp [::1]:80 true",
		"[::ffff:7f00:1]:80": "tcp [::ffff:7f00:1]:80 true",
		"127.1:80":           "tcp 127.1:80 false", // a name to us, whatever a resolver makes of it
		"0.0.0.0:80":         "tcp 0.0.0.0:80 false",
		"node-1.test:80":     "tcp node-1.test:80 false",
		"localhost.evil:80":  "tcp localhost.evil:80 false",
		"unix:/run/x.sock":   "unix /run/x.sock true",
	} {
		a, err := ParseAddress(text)
		if err != nil {
			t.Error(err)
			continue
		}
		network, address := a.Split()
		local := map[bool]string{true: "true", false: "false"}[a.Local()]
		if got := network + " " + address + " " + local; got != want {
			t.Errorf("%q is %s, not %s", text, got, want)
		}
	}
	for text, hint := range map[string]string{
		"":                                  "",
		"8000":                              `write ":8000" or "127.0.0.1:8000"`,
		"host":                              "joined by one colon",
		"*:80":                              "without the *",
		"host:http":                         "a number",
		"host:65536":                        "a number",
		"::1:80":                            "brackets",
		"a b:80":                            "a name or an IP address",
		"http://a:80":                       "",
		"unix:run/x":                        "",
		"unix:/" + strings.Repeat("x", 107): "",
		"unix:":                             "",
	} {
		a, err := ParseAddress(text)
		if err == nil || !strings.Contains(err.Error(), hint) {
			t.Errorf("ParseAddress(%q) = %q, %v; want a hint of %q", text, a, err, hint)
		}
	}
}

func TestServiceAddresses(t *testing.T) {
	for text, want := range map[string]string{
		"3000":             " tcp localhost:3000",
		"127.0.0.1:3000":   " tcp 127.0.0.1:3000",
		"[::1]:3000":       " tcp [::1]:3000",
		"unix:/run/x.sock": " unix /run/x.sock",
		"http://a":         "http tcp a:80",
		"https://a/":       "https tcp a:443",
		"https://[::1]:1":  "https tcp [::1]:1",
		"HTTPS://a":        "https tcp a:443",
	} {
		a, err := ParseServiceAddress(text)
		if err != nil {
			t.Error(err)
			continue
		}
		if scheme, network, address := a.Split(); scheme+" "+network+" "+address != want {
			t.Errorf("%q is %s %s %s, not %s", text, scheme, network, address, want)
		}
	}
	for _, text := range []string{"", "0", ":3000", "a", "a:0", "99999", "http://a/b", "http://a?", "http://u@a", "ftp://a", "http://", "unix:x", "a:b", "http://a:b"} {
		if a, err := ParseServiceAddress(text); err == nil {
			t.Errorf("ParseServiceAddress(%q) = %q", text, a)
		}
	}
}

func TestNetworks(t *testing.T) {
	var set CIDRs
	for _, text := range []string{"10.0.0.0/8", "::ffff:192.0.2.0/120", "2001:db8::1"} {
		p, err := ParseCIDR(text)
		if err != nil {
			t.Fatal(err)
		}
		set = append(set, p)
	}
	for text, want := range map[string]bool{
		"10.1.2.3": true, "::ffff:10.1.2.3": true, "192.0.2.9": true, "192.0.3.9": false, "2001:db8::1": true, "2001:db8::2": false,
		"2001:db8::1%eth0": true, "0.0.0.0": false,
	} {
		if got := set.Contains(netip.MustParseAddr(text)); got != want {
			t.Errorf("Contains(%s) = %v", text, got)
		}
	}
	if _, err := ParseCIDR("10.0.0.1/8"); err == nil || !strings.Contains(err.Error(), `the network is "10.0.0.0/8"`) {
		t.Errorf("host bits: %v", err)
	}
	if set.Contains(netip.Addr{}) {
		t.Error("no address is in a network")
	}
}

func TestSuggestions(t *testing.T) {
	for pair, want := range map[[2]string]int{{"lisen", "listen"}: 1, {"litsen", "listen"}: 1, {"", "abc"}: 3, {"abc", "abc"}: 0, {"kitten", "sitting"}: 3} {
		if got := edits(pair[0], pair[1]); got != want {
			t.Errorf("edits(%q, %q) = %d", pair[0], pair[1], got)
		}
	}
}
