package main

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/pikoproxy/piko/internal/config"
)

// pageDate is the day that the pages say they were last changed. It stands here so that they can be made again to the byte.
const pageDate = "November 21, 2026"

// page writes the manual page of a settings file in mdoc.
func page(b book) []byte {
	var p mdoc
	p.macro("Dd", pageDate)
	p.macro("Dt", strings.ToUpper(b.daemon)+".TOML", "5")
	p.macro("Os")
	p.macro("Sh", "NAME")
	p.macro("Nm", b.daemon+".toml")
	p.macro("Nd", b.summary)
	p.macro("Sh", "DESCRIPTION")
	p.text(introduction(b))
	p.macro("Ss", "Rules for every file")
	for i, rule := range rules(b) {
		if i > 0 {
			p.macro("Pp")
		}
		p.text(rule)
	}
	p.keys(b)
	p.macro("Sh", "FILES")
	p.macro("Bl", "-tag", "-width", "Ds")
	for _, f := range []string{".toml", ".d/*.toml"} {
		p.macro("It", "Pa", "/etc/piko/"+b.daemon+f)
	}
	p.macro("El")
	p.macro("Sh", "EXAMPLES")
	for i, e := range b.examples {
		if i > 0 {
			p.macro("Pp")
		}
		p.text(e.title)
		p.macro("Bd", "-literal", "-offset", "indent")
		for line := range strings.SplitSeq(strings.Trim(e.toml, "\n"), "\n") {
			p.line(strings.ReplaceAll(escape(line), "-", `\-`))
		}
		p.macro("Ed")
	}
	p.macro("Sh", "SEE ALSO")
	if own := fmt.Sprint(b.section); b.section < 7 {
		p.macro("Xr", b.daemon, own, ",")
		p.macro("Xr", "piko", "7")
	} else {
		p.macro("Xr", "piko", "7", ",")
		p.macro("Xr", b.daemon, own)
	}
	return p.Bytes()
}

// keys writes one section of the page for each section of the file.
func (p *mdoc) keys(b book) {
	p.macro("Sh", "KEYS")
	p.text("Keys outside any section come first in the file.")
	p.macro("Bl", "-tag", "-width", "Ds")
	for _, k := range b.keys {
		name := strings.ReplaceAll(k.Name, "[]", "")
		if k.Kind != config.Value {
			p.macro("El")
			open, shut := "[", "]"
			if k.Kind == config.Tables {
				open, shut = "[[", "]]"
			}
			p.macro("Ss", open+name+shut+`\&`) // without the mark mandoc takes the bracket for punctuation
			p.text(k.text)
			if k.Kind == config.Tables {
				p.text(fmt.Sprintf("May stand more than once; `%s` tells the entries apart.", k.Identity))
			}
			p.macro("Bl", "-tag", "-width", "Ds")
			continue
		}
		p.macro("It", "Ic", name[strings.LastIndexByte(name, '.')+1:])
		p.text(k.text)
		for _, fact := range facts(k) {
			p.text(fact)
		}
		if k.Required && strings.Contains(k.Name, "[]") {
			p.text("Must be given.")
		} else {
			p.text("Default: " + k.Default + ".")
		}
	}
	p.macro("El")
}

// mdoc is a manual page in the making.
type mdoc struct{ bytes.Buffer }

func (p *mdoc) line(s string) { fmt.Fprintln(&p.Buffer, s) }

// macro writes a macro line. Its arguments are free of what mdoc could take for macros or quotes.
func (p *mdoc) macro(name string, args ...string) {
	line := "." + name
	for _, a := range args {
		line += " " + a
	}
	p.line(line)
}

// text writes running text: each sentence begins a line, and none is wider than a terminal.
func (p *mdoc) text(s string) {
	const widest = 78
	for _, sentence := range sentences(plain(s)) {
		line := ""
		for word := range strings.FieldsSeq(sentence) {
			if line != "" && len(line)+1+len(word) > widest {
				p.line(escape(line))
				line = ""
			}
			if line != "" {
				line += " "
			}
			line += word
		}
		p.line(escape(line))
	}
}

// sentences cuts a text behind each full stop that a new sentence follows.
func sentences(s string) []string {
	var out []string
	start := 0
	for i := 0; i+2 < len(s); i++ {
		if next := s[i+2]; s[i] == '.' && s[i+1] == ' ' && next != '.' && (next < 'a' || next > 'z') {
			out = append(out, s[start:i+1])
			start = i + 2
		}
	}
	return append(out, s[start:])
}

// escape protects a text line from being taken for something else, and keeps options as they are typed.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "--", `\-\-`).Replace(s)
	if s != "" && (s[0] == '.' || s[0] == '\'') {
		s = `\&` + s
	}
	return s
}
