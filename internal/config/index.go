package config

import (
	"fmt"
	"strconv"
	"strings"
)

// maxDepth is how deep tables, lists and dotted keys of a file may nest together.
const maxDepth = 16

// node is what the index knows of one value: the line it is written in and the values inside it. A nil node is a value
// that no file holds, such as one of the command line.
type node struct {
	line int
	set  bool // by a statement of its own, not only as part of the way to another key
	keys map[string]*node
	list []*node
}

func (n *node) at() int {
	if n == nil {
		return 0
	}
	return n.line
}

func (n *node) key(name string) *node {
	if n == nil {
		return nil
	}
	return n.keys[name]
}

func (n *node) item(i int) *node {
	if n == nil || i >= len(n.list) {
		return n
	}
	return n.list[i]
}

// child returns the node of a key, which it makes if need be. A way through a list of tables leads to its last table.
func (n *node) child(name string, line int) *node {
	if len(n.list) > 0 {
		n = n.list[len(n.list)-1]
	}
	if n.keys == nil {
		n.keys = make(map[string]*node)
	}
	if n.keys[name] == nil {
		n.keys[name] = &node{line: line}
	}
	return n.keys[name]
}

// statement is one table header or one key with its value, as bytes start to end of the text.
type statement struct {
	start, end int
	value      int // where the value starts; 0 for a header
	line       int
	table, key []string // the header above it, and its own key
	first      int      // for a key that is set again: the line of the first time
	whole      bool     // the index found its end
}

// index finds the line of every key and list entry in a TOML text. It is a companion of the TOML parser, which gives
// values without lines: it takes every text that the parser takes, finds the same keys in it, and leaves all judgement
// to the parser, except that it stops at [maxDepth] so that the parser never sees deeper texts.
type index struct {
	text       string
	pos, line  int
	root       *node
	statements []statement
	err        error // too deep; what else is wrong is for the parser to say
}

// indexText indexes text as far as it can be understood.
func indexText(text string) *index {
	x := &index{text: text, line: 1, root: &node{line: 1}}
	var header []string
	table := x.root
	for {
		x.blank(true)
		if x.pos >= len(text) {
			return x
		}
		st := statement{start: x.pos, line: x.line}
		if x.peek() == '[' {
			table = x.header(&st)
			header = st.key
		} else {
			st.table = header
			st.whole = x.assignment(&st, table, len(header))
		}
		st.end = x.pos
		x.statements = append(x.statements, st)
		if !st.whole {
			return x
		}
	}
}

func (x *index) peek() byte {
	if x.pos < len(x.text) {
		return x.text[x.pos]
	}
	return 0
}

func (x *index) take(s string) bool {
	if strings.HasPrefix(x.text[x.pos:], s) {
		x.pos += len(s)
		return true
	}
	return false
}

// blank skips spaces and, with lines, also line ends and comments.
func (x *index) blank(lines bool) {
	for ; x.pos < len(x.text); x.pos++ {
		switch c := x.text[x.pos]; {
		case c == ' ' || c == '\t' || c == '\r':
		case c == '\n' && lines:
			x.line++
		case c == '#' && lines:
			for x.pos+1 < len(x.text) && x.text[x.pos+1] != '\n' {
				x.pos++
			}
		default:
			return
		}
	}
}

// deep reports whether depth is too deep, and remembers that.
func (x *index) deep(depth int) bool {
	if depth > maxDepth && x.err == nil {
		x.err = fmt.Errorf("nested deeper than %d levels", maxDepth)
	}
	return x.err != nil
}

// header reads [a.b] or [[a.b]].
func (x *index) header(st *statement) *node {
	x.pos++
	list := x.take("[")
	path, ok := x.path(0)
	st.key = path
	if !ok || !x.take("]") || list && !x.take("]") {
		return nil
	}
	table := x.root
	for i, name := range path {
		table = table.child(name, st.line)
		if i < len(path)-1 {
			continue
		}
		if list {
			table.list = append(table.list, &node{line: st.line, set: true})
			table = table.list[len(table.list)-1]
		} else if table.set {
			st.first = table.line
		} else {
			table.line, table.set = st.line, true
		}
	}
	st.whole = true
	return table
}

// assignment reads key = value.
func (x *index) assignment(st *statement, table *node, depth int) bool {
	path, ok := x.path(depth)
	st.key = path
	if !ok || !x.take("=") {
		return false
	}
	x.blank(false)
	st.value = x.pos
	n := table
	for _, name := range path {
		n = n.child(name, st.line)
	}
	if n.set {
		st.first = n.line
	} else {
		n.line, n.set = st.line, true
	}
	return x.value(n, depth+len(path))
}

// path reads a key of one or more parts and the spaces around it.
func (x *index) path(depth int) (parts []string, ok bool) {
	for {
		x.blank(false)
		part, ok := x.part()
		if parts = append(parts, part); !ok || x.deep(depth+len(parts)) {
			return parts, false
		}
		x.blank(false)
		if !x.take(".") {
			return parts, true
		}
	}
}

// part reads one part of a key.
func (x *index) part() (string, bool) {
	start := x.pos
	switch x.peek() {
	case '\'':
		if !x.quoted("'") {
			return "", false
		}
		return x.text[start+1 : x.pos-1], true
	case '"':
		if !x.quoted(`"`) {
			return "", false
		}
		return unescape(x.text[start+1 : x.pos-1]), true
	}
	for x.pos < len(x.text) && !strings.ContainsRune(" \t\r\n.=[]{}#,\"'", rune(x.text[x.pos])) {
		x.pos++
	}
	return x.text[start:x.pos], x.pos > start
}

// quoted skips a string that begins and ends with quote.
func (x *index) quoted(quote string) bool {
	long := len(quote) == 3
	for x.pos += len(quote); x.pos < len(x.text); x.pos++ {
		switch c := x.text[x.pos]; {
		case c == '\\' && quote[0] == '"':
			if x.pos++; x.peek() == '\n' {
				x.line++
			}
		case c == '\n' && !long:
			return false
		case c == '\n':
			x.line++
		case strings.HasPrefix(x.text[x.pos:], quote):
			x.pos += len(quote)
			// A long string may end in one or two quotes of its own.
			for i := 0; long && i < 2 && x.take(quote[:1]); i++ {
			}
			return true
		}
	}
	return false
}

// value reads the value of n.
func (x *index) value(n *node, depth int) bool {
	for _, quote := range []string{`"""`, `'''`, `"`, `'`} {
		if strings.HasPrefix(x.text[x.pos:], quote) {
			return x.quoted(quote)
		}
	}
	switch x.peek() {
	case '[':
		return x.array(n, depth+1)
	case '{':
		return x.inline(n, depth+1)
	}
	start := x.pos
	for x.pos < len(x.text) && !strings.ContainsRune(",]}#\n\"'[{=", rune(x.text[x.pos])) {
		x.pos++
	}
	return x.pos > start
}

func (x *index) array(n *node, depth int) bool {
	if x.deep(depth) {
		return false
	}
	x.pos++
	for {
		x.blank(true)
		if x.take("]") {
			return true
		}
		item := &node{line: x.line, set: true}
		n.list = append(n.list, item)
		if !x.value(item, depth) {
			return false
		}
		x.blank(true)
		if !x.take(",") && x.peek() != ']' {
			return false
		}
	}
}

func (x *index) inline(n *node, depth int) bool {
	if x.deep(depth) {
		return false
	}
	x.pos++
	for {
		x.blank(true)
		if x.take("}") {
			return true
		}
		if !x.assignment(&statement{line: x.line}, n, depth) {
			return false
		}
		x.blank(true)
		if !x.take(",") && x.peek() != '}' {
			return false
		}
	}
}

// unescape resolves the escapes of a quoted key. What is no escape stays; the parser refuses it.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	simple := map[byte]string{'b': "\b", 't': "\t", 'n': "\n", 'f': "\f", 'r': "\r", 'e': "\x1b", '"': `"`, '\\': `\`}
	digits := map[byte]int{'x': 2, 'u': 4, 'U': 8}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		n := digits[s[i]]
		if n > 0 && i+n < len(s) {
			if r, err := strconv.ParseInt(s[i+1:i+1+n], 16, 32); err == nil {
				b.WriteRune(rune(r))
				i += n
				continue
			}
		}
		b.WriteString(simple[s[i]])
	}
	return b.String()
}
