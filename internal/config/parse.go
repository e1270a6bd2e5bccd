package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// maxMistakes is how many mistakes in the notation of one file are looked for.
const maxMistakes = 50

// parsed is one TOML text, taken apart.
type parsed struct {
	values map[string]any
	root   *node
	clean  bool // no mistake in the notation, so nothing was left out
}

// parseText takes a TOML text apart. After a mistake in the notation it leaves the statement out and goes on, so that all
// mistakes are reported and the rest can be checked.
func parseText(text string, report func(Problem)) parsed {
	text, err := plainText(text)
	if err != nil {
		line := 1 + strings.Count(text, "\n")
		report(Problem{Line: line, Have: err.Error()})
		return parsed{}
	}
	out := parsed{clean: true}
	for range maxMistakes {
		x := indexText(text)
		out.root = x.root
		if x.err != nil {
			report(Problem{Line: x.line, Have: x.err.Error()})
			return parsed{root: x.root}
		}
		_, err := toml.Decode(text, &out.values)
		if err == nil {
			return out
		}
		out.clean, out.values = false, nil
		var mistake toml.ParseError
		if !errors.As(err, &mistake) {
			report(Problem{Have: err.Error()})
			return out
		}
		i := x.statementAt(mistake.Position.Start)
		if i < 0 {
			report(Problem{Line: mistake.Position.Line, Have: lowerFirst(mistake.Message)})
			return out
		}
		report(describe(text, mistake, x.statements[i]))
		rest, ok := x.without(i)
		if !ok {
			return out
		}
		text = rest
	}
	return out
}

// plainText returns a text without the mark that some editors put before UTF-8. With an error it returns the text up to
// what is no UTF-8. Nobody else may remove anything, or offsets would differ.
func plainText(text string) (string, error) {
	text = strings.TrimPrefix(text, bom)
	if strings.HasPrefix(text, bom) {
		return "", errNotUTF8
	}
	for i, r := range text {
		if r == utf8.RuneError && !strings.HasPrefix(text[i:], string(utf8.RuneError)) || r == 0 {
			return text[:i], errNotUTF8
		}
	}
	return text, nil
}

const bom = "\ufeff"

var errNotUTF8 = errors.New("is not UTF-8 text")

// statementAt returns the number of the statement that holds the byte at offset, or of the last one before it; -1 if
// there is none.
func (x *index) statementAt(offset int) int {
	for i := len(x.statements) - 1; i >= 0; i-- {
		if x.statements[i].start <= offset {
			return i
		}
	}
	return -1
}

// without returns the text with blank lines in place of statement i. With a header goes what stands under it, which
// would otherwise be taken for keys of another table. It reports false when nobody can say where the statement ends.
func (x *index) without(i int) (string, bool) {
	st := x.statements[i]
	end := st.end
	switch {
	case x.text[st.start] == '[':
		end = len(x.text)
		for _, next := range x.statements[i+1:] {
			if x.text[next.start] == '[' {
				end = next.start
				break
			}
		}
	case !st.whole:
		line := x.text[st.start:lineEnd(x.text, st.start)]
		if strings.Contains(line, `"""`) || strings.Contains(line, `'''`) || strings.ContainsAny(line, "[{") {
			return "", false
		}
		fallthrough
	default:
		end = lineEnd(x.text, max(st.start, min(end, len(x.text))))
	}
	lines := strings.Count(x.text[st.start:end], "\n")
	return x.text[:st.start] + strings.Repeat("\n", lines) + x.text[end:], end > st.start
}

// lineEnd returns the offset of the end of the line that holds offset.
func lineEnd(text string, offset int) int {
	if i := strings.IndexByte(text[offset:], '\n'); i >= 0 {
		return offset + i
	}
	return len(text)
}

// describe says what the parser found wrong with a statement.
func describe(text string, mistake toml.ParseError, st statement) Problem {
	if have := otherNotation(text[st.start:lineEnd(text, st.start)]); have != "" {
		return Problem{Line: st.line, Want: "TOML, which is [section] and key = value", Have: quote(have)}
	}
	p := Problem{Line: mistake.Position.Line, Key: strings.Join(slices.Concat(st.table, st.key), ".")}
	if st.first > 0 {
		p.Line, p.Have = st.line, fmt.Sprintf("is set a second time, first in line %d", st.first)
		return p
	}
	if long := text[st.value:]; !st.whole && (strings.HasPrefix(long, `"""`) || strings.HasPrefix(long, "'''")) {
		p.Line = st.line // it was noticed at the end of the file only
	}
	p.Have = lowerFirst(mistake.Message)
	if st.value == 0 {
		return p
	}
	value, _, _ := strings.Cut(text[st.value:lineEnd(text, st.value)], "#")
	value = strings.TrimSpace(value)
	bare := value != "" && strings.IndexFunc(value, func(r rune) bool { return !strings.ContainsRune(bareText, r) }) < 0 &&
		strings.ContainsAny(value, bareText[:52])
	switch {
	case secretive(st.key):
		// The parser's own words may repeat the value.
		p.Have = "the value is no valid TOML; a text stands in quotes"
	case bare:
		p.Want, p.Have, p.Hint = "a value", value[:min(len(value), maxShown)], "a text stands in quotes"
	}
	return p
}

// otherNotation returns the beginning of a line that looks like YAML or JSON, as far as it can't be a value; "" if none does.
func otherNotation(line string) string {
	if strings.HasPrefix(line, "{") {
		return "{"
	}
	key, _, ok := strings.Cut(line, ":")
	if !ok || strings.ContainsAny(key, "=[#") {
		return ""
	}
	return key + ":"
}

// bareText is what people write without quotes where TOML wants them: words, durations, addresses and paths.
const bareText = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:/$*"

// secretive reports whether the value of a key may be a secret, even if there is no such key.
func secretive(key []string) bool {
	name := strings.ToLower(strings.Join(key, "."))
	return slices.ContainsFunc([]string{"secret", "token", "key", "password", "proxy_url"}, func(word string) bool {
		return strings.Contains(name, word)
	})
}

func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + strings.TrimSuffix(s[1:], ".")
}
