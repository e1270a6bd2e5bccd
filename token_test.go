package piko

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func jwt(claims string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
}

func TestTokenIsRenewedAfterFourFifthsOfItsLife(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for name, c := range map[string]struct {
		token string
		wait  time.Duration // 0: never
	}{
		"an hour left":      {jwt(`{"exp":1700003600}`), 48 * time.Minute},
		"fraction":          {jwt(`{"exp":1700000100.5}`), 80 * time.Second},
		"about to expire":   {jwt(`{"exp":1700000001}`), time.Second},
		"expired":           {jwt(`{"exp":1600000000}`), time.Second},
		"no date":           {jwt(`{"sub":"a"}`), 0},
		"date is a text":    {jwt(`{"exp":"soon"}`), 0},
		"date out of range": {jwt(`{"exp":1e300}`), 0},
		"not JSON":          {jwt(`exp`), 0},
		"not a JWT":         {"opaque", 0},
		"two parts":         {"a.b", 0},
		"bad base64":        {"a.?.c", 0},
		"none":              {"", 0},
	} {
		t.Run(name, func(t *testing.T) {
			wait, expires := renewIn(c.token, now)
			if expires != (c.wait != 0) || expires && wait != c.wait {
				t.Errorf("renewIn gives %v, %v; want %v", wait, expires, c.wait)
			}
		})
	}
}

func FuzzExpiry(f *testing.F) {
	f.Add(jwt(`{"exp":1700003600}`))
	f.Add(jwt(`{"exp":-1}`))
	f.Add("a.b.c")
	f.Add("")
	f.Fuzz(func(t *testing.T, token string) {
		if at, ok := expiry(token); ok && (at.Before(time.Unix(0, 0)) || at.Year() > 9999) {
			t.Errorf("expiry of %q is %v", token, at)
		}
	})
}

func TestTokenFileIsReadEachTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	source := TokenFile(path)
	if _, err := source(t.Context()); err == nil {
		t.Error("a missing file gives no error")
	}
	for _, c := range []struct{ content, want string }{
		{"first\n", "first"},
		{"  second  ", "second"},
		{"", ""},
		{strings.Repeat("x", maxToken+1), ""},
		{strings.Repeat("x", maxToken), strings.Repeat("x", maxToken)},
	} {
		if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := source(t.Context())
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("file of %d bytes gives a token of %d bytes and error %v", len(c.content), len(got), err)
		}
	}
}

func TestTokenThatFitsNoHeaderIsRefusedWithoutBeingRepeated(t *testing.T) {
	for _, token := range []string{"two words", "line\r\nbreak", "\x7f", "caf\u00e9", strings.Repeat("x", maxToken+1)} {
		err := checkToken(token)
		if err == nil {
			t.Errorf("token %.20q is taken", token)
		} else if strings.Contains(err.Error(), token) {
			t.Errorf("error repeats the token: %v", err)
		}
	}
}

func TestErrorsRepeatLittleOfAnAnswer(t *testing.T) {
	for name, c := range map[string]struct{ body, want string }{
		"ours":          {`{"type":"about:blank","error":"expired token"}`, "expired token"},
		"plain text":    {"Bad Gateway\nmore", "Bad Gateway"},
		"page":          {"<!DOCTYPE html><html>", ""},
		"control bytes": {"a\x1b[31mb\x00", "a[31mb"},
		"long":          {strings.Repeat("x", 1000), strings.Repeat("x", maxMessage) + "..."},
		"empty":         {"", ""},
		"other JSON":    {`{"message":"no"}`, `{"message":"no"}`},
	} {
		t.Run(name, func(t *testing.T) {
			if got := message(c.body); got != c.want {
				t.Errorf("message is %q, want %q", got, c.want)
			}
		})
	}
}
