// Package syntax says what the parts of a message may be made of, in all versions of HTTP alike.
package syntax

// tokenBytes marks the bytes of a token (RFC 9110, 5.6.2).
var tokenBytes = func() (t [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		t[c] = true
	}
	return t
}()

// IsToken reports whether s is a token, as the name of a field is.
func IsToken(s string) bool {
	for i := range len(s) {
		if !tokenBytes[s[i]] {
			return false
		}
	}
	return s != ""
}

// Name returns the length of the token that s begins with, and whether it is written as names of fields are by convention: with
// a capital at the beginning and behind each hyphen, and nowhere else.
func Name(s string) (n int, canonical bool) {
	canonical = true
	for first := true; n < len(s) && tokenBytes[s[n]]; n++ {
		c := s[n]
		if first && 'a' <= c && c <= 'z' || !first && 'A' <= c && c <= 'Z' {
			canonical = false
		}
		first = c == '-'
	}
	return n, canonical
}

// IsValue reports whether s may stand in a field's value: no control byte but the tab (RFC 9110, 5.5). The space around it
// is the caller's concern.
func IsValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// ParseLength reads a length in bytes: 1*DIGIT that fits into 63 bits with room to spare (RFC 9110, 8.6).
func ParseLength(s string) (int64, bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	var n int64
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, true
}
