package config

import (
	"errors"
	"fmt"
	"strings"
)

// expand replaces ${VAR} and ${VAR:-default} in s by what lookup knows, and $$ by a dollar. The default is taken for a
// variable that is not set or empty; it is taken as it stands. Errors repeat names of variables only, never text of s.
func expand(s string, lookup func(string) (string, bool)) (string, error) {
	if !strings.Contains(s, "$") {
		return s, nil
	}
	var b strings.Builder
	for {
		text, rest, found := strings.Cut(s, "$")
		b.WriteString(text)
		switch {
		case !found:
			return b.String(), nil
		case strings.HasPrefix(rest, "$"):
			b.WriteByte('$')
			s = rest[1:]
			continue
		case !strings.HasPrefix(rest, "{"):
			return "", errors.New("a $ stands alone; write ${NAME} for a variable of the environment, or $$ for a dollar")
		}
		inside, after, closed := strings.Cut(rest[1:], "}")
		name, fallback, optional := strings.Cut(inside, ":-")
		switch {
		case !closed:
			return "", errors.New("a ${ has no }")
		case !variable(name):
			return "", errors.New("${ is not followed by the name of a variable: letters, digits and _")
		}
		value, set := lookup(name)
		switch {
		case optional && value == "":
			value = fallback
		case !set:
			return "", fmt.Errorf("the environment variable %s is not set; set it, or write ${%s:-default}", name, name)
		}
		b.WriteString(value)
		s = after
	}
}

// variable reports whether s can be the name of an environment variable.
func variable(s string) bool {
	if s == "" || '0' <= s[0] && s[0] <= '9' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}
