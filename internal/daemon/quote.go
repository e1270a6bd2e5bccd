package daemon

import (
	"unicode"

	"github.com/pikoproxy/piko/internal/logline"
)

// clean makes text fit for a terminal: what is not printable is escaped, as in a log line.
func clean(s string) string {
	for _, r := range s {
		if r != ' ' && !unicode.IsPrint(r) {
			q := logline.AppendQuoted(nil, s)
			return string(q[1 : len(q)-1])
		}
	}
	return s
}
