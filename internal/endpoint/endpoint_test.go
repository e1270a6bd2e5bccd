package endpoint_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/pikoproxy/piko/internal/endpoint"
)

func TestParse(t *testing.T) {
	long := strings.Repeat("a", endpoint.MaxLength)
	for name, tc := range map[string]struct {
		in, want string
		bad      bool
	}{
		"plain":          {in: "my-endpoint", want: "my-endpoint"},
		"upper case":     {in: "My-Endpoint", want: "my-endpoint"},
		"classic names":  {in: "team_a.web", want: "team_a.web"},
		"longest":        {in: long, want: long},
		"too long":       {in: long + "a", bad: true},
		"empty":          {in: "", bad: true},
		"path":           {in: "../../ep1", bad: true},
		"list":           {in: "ep1, ep2", bad: true},
		"leading hyphen": {in: "-a", bad: true},
		"trailing dot":   {in: "a.", bad: true},
		"escaped line":   {in: "ep1%0d%0ax", bad: true},
		"not ascii":      {in: "é", bad: true},
		"wildcard":       {in: "a*", bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := endpoint.Parse(tc.in)
			if (err != nil) != tc.bad || got != tc.want {
				t.Errorf("Parse(%q) = %q, %v; want %q, error %v", tc.in, got, err, tc.want, tc.bad)
			}
		})
	}
}

func TestFromHost(t *testing.T) {
	domains := []string{"piko.example.com", "piko.test"}
	for name, tc := range map[string]struct {
		host    string
		domains []string
		want    string
		is      error
		bad     bool
	}{
		"first label":        {host: "foo.piko.example.com", want: "foo"},
		"port":               {host: "foo.example.com:8000", want: "foo"},
		"case":               {host: "FOO.Example.COM", want: "foo"},
		"trailing dot":       {host: "foo.example.com.", want: "foo"},
		"one label":          {host: "localhost:8000", is: endpoint.ErrNone},
		"ipv4":               {host: "127.0.0.1:8000", is: endpoint.ErrNone},
		"ipv6":               {host: "[::1]:8000", is: endpoint.ErrNone},
		"empty":              {host: "", is: endpoint.ErrNone},
		"digits are a label": {host: "1.example.com", want: "1"},
		"empty label":        {host: ".piko.test", bad: true},
		"userinfo":           {host: "ep1.piko.test@evil.example", is: endpoint.ErrNone},
		"bad port":           {host: "ep1.piko.test:80a", is: endpoint.ErrNone},
		"domain":             {host: "foo.piko.test", domains: domains, want: "foo"},
		"domain, case":       {host: "FOO.PIKO.TEST", domains: domains, want: "foo"},
		"foreign domain":     {host: "foo.evil.example", domains: domains, is: endpoint.ErrForeign},
		"domain itself":      {host: "piko.test", domains: domains, is: endpoint.ErrForeign},
		"two labels under":   {host: "a.b.piko.test", domains: domains, is: endpoint.ErrForeign},
		"userinfo, domain":   {host: "ep1.piko.test@evil.example", domains: domains, is: endpoint.ErrNone},
		"suffix only":        {host: "foo.xpiko.test", domains: domains, is: endpoint.ErrForeign},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := endpoint.FromHost(tc.host, tc.domains)
			if got != tc.want || (tc.is != nil && !errors.Is(err, tc.is)) || (err != nil) != (tc.bad || tc.is != nil) {
				t.Errorf("FromHost(%q) = %q, %v; want %q, %v", tc.host, got, err, tc.want, tc.is)
			}
		})
	}
}

func FuzzFromHost(f *testing.F) {
	for _, s := range []string{"foo.example.com", "FOO.example.com:80", "[::1]:80", "1.2.3.4", "a..b", ".", "x:y:z", "é.example"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, host string) {
		for _, domains := range [][]string{nil, {"example.com"}} {
			got, err := endpoint.FromHost(host, domains)
			if err != nil {
				continue
			}
			if again, err := endpoint.Parse(got); err != nil || again != got {
				t.Errorf("FromHost(%q) = %q, which is not canonical: %q, %v", host, got, again, err)
			}
		}
	})
}
