package logline

import (
	"fmt"
	"slices"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/sirupsen/logrus"
)

// keys returns the names of the fields in order.
func keys(data logrus.Fields) []string {
	ks := make([]string, 0, len(data))
	for k := range data {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}

// text writes a value as an operator would: types that hide or name themselves do so.
func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case time.Time:
		return v.Format(timeFormat)
	case nil:
		return ""
	default:
		return fmt.Sprint(v)
	}
}

// AppendValue appends s as it is if it is one plain word, else quoted.
func AppendValue(b []byte, s string) []byte {
	if plain(s) {
		return append(b, s...)
	}
	return AppendQuoted(b, s)
}

func plain(s string) bool {
	i := 0
	for i < len(s) && s[i] > ' ' && s[i] < 0x7f && s[i] != '"' && s[i] != '=' && s[i] != '\\' {
		i++ // plain ASCII is nearly everything
	}
	if i == len(s) {
		return s != ""
	}
	for _, r := range s[i:] {
		if r == ' ' || r == '"' || r == '=' || r == '\\' || r == utf8.RuneError || !unicode.IsPrint(r) {
			return false
		}
	}
	return s != ""
}

// AppendQuoted appends s as a JSON string, which text lines use as well. Escaped is everything that Unicode does not
// call printable: line breaks of every kind (U+2028, U+2029), control bytes and with them terminal escapes, marks that
// reorder text (U+202E). Bytes that are no UTF-8 become U+FFFD.
func AppendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	if n := easy(s); n > 0 {
		b, s = append(b, s[:n]...), s[n:]
	}
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, '\\', 'n')
		case r == '\t':
			b = append(b, '\\', 't')
		case unicode.IsPrint(r):
			b = utf8.AppendRune(b, r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			b = fmt.Appendf(b, `\u%04x\u%04x`, hi, lo)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
	}
	return append(b, '"')
}

// easy returns the length of what s begins with that stands for itself: plain ASCII, which is nearly everything.
func easy(s string) int {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return i
		}
	}
	return len(s)
}
