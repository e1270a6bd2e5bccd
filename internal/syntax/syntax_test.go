package syntax

import (
	"math"
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
