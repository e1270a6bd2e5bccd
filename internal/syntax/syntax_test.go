package syntax

import (
	"math"
	"net/textproto"
	"strconv"
	"testing"
)

func TestBytes(t *testing.T) {
	for c := range 256 {
		s := "a" + string([]byte{byte(c)}) + "a"
		if have, want := IsValue(s), c == '\t' || c >= ' ' && c != 0x7f; have != want {
			t.Errorf("IsValue(%q) = %v", s, have)
		}
		if have := IsToken(s); have && (c <= ' ' || c >= 0x7f || c == ':' || c == ',' || c == '"') {
			t.Errorf("IsToken(%q)", s)
		}
	}
	if IsToken("") || !IsToken("X-Piko_1.a~") || !IsValue("") {
		t.Error("an empty name is none; an empty value is one")
	}
}

func TestName(t *testing.T) {
	for _, s := range []string{
		"", "Content-Type", "content-type", "CONTENT-TYPE", "X-", "-x", "--X", "A1-b2", "1a", "Etag", "ETag", "X_y", "X_Y", "Www-Authenticate",
		"a b", " a", "A: b", "Ä", "X-Ä",
	} {
		n, canonical := Name(s)
		if n > len(s) || n > 0 != IsToken(s[:n]) || n < len(s) && IsToken(s[:n+1]) {
			t.Errorf("Name(%q): %d bytes", s, n)
		}
		if want := textproto.CanonicalMIMEHeaderKey(s[:n]) == s[:n]; canonical != want {
			t.Errorf("Name(%q): canonical: %t, want %t", s, canonical, want)
		}
	}
}

func TestParseLength(t *testing.T) {
	for _, s := range []string{"", "-1", "+1", "1 ", "0x1", "1e3", strconv.FormatUint(math.MaxUint64, 10)} {
		if n, ok := ParseLength(s); ok {
			t.Errorf("ParseLength(%q) = %d", s, n)
		}
	}
	if n, ok := ParseLength("0123456"); !ok || n != 123456 {
		t.Errorf("%d, %v", n, ok)
	}
}
