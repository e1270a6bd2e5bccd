package main

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/pikoproxy/piko/internal/config"
)

// width is where the comments of a sample file are wrapped.
const width = 100

// sample writes the commented file of a daemon. Keys are commented out by a "#" without a space, so that the file as
// shipped means the defaults whatever they become, and names no address that systemd may hand over.
func sample(b book) []byte {
	var out bytes.Buffer
	comment(&out, fmt.Sprintf("%s.toml: settings of %s(%d). Every key is described in %s.toml(5).", b.daemon, b.daemon, b.section, b.daemon))
	out.WriteString("#\n")
	comment(&out, `Each key stands here with its default, behind a "#" without a space: remove that to change it. Durations and `+
		`sizes are texts ("5s", "1MiB"). `+"${VAR} and ${VAR:-default} stand for variables of the environment, $$ for a dollar. "+
		`Files named by a relative path are looked for in $CREDENTIALS_DIRECTORY, then beside this file. What lies in `+b.daemon+
		".d/*.toml beside this file is read after it and wins.")
	commented := "" // the list of tables that we are in: its keys have no meaning before the list has an entry
	for _, k := range b.keys {
		name := strings.ReplaceAll(k.Name, "[]", "")
		if commented != "" && !strings.HasPrefix(k.Name, commented) {
			commented = ""
		}
		out.WriteString("\n")
		comment(&out, plain(k.text))
		for _, fact := range facts(k) {
			comment(&out, plain(fact))
		}
		switch {
		case k.Kind == config.Tables:
			commented = k.Name
			fmt.Fprintf(&out, "#[[%s]]\n", name)
		case k.Kind == config.Table && commented != "":
			fmt.Fprintf(&out, "#[%s]\n", name)
		case k.Kind == config.Table:
			fmt.Fprintf(&out, "[%s]\n", name)
		default:
			fmt.Fprintf(&out, "#%s = %s\n", name[strings.LastIndexByte(name, '.')+1:], shown(k))
		}
	}
	return out.Bytes()
}

// shown returns the default of a key, or an example where there can be no default.
func shown(k key) string {
	if v := map[string]string{
		"proxy.endpoints[].endpoint":       `"my-endpoint"`,
		"listeners[].endpoint":             `"my-endpoint"`,
		"listeners[].addr":                 `"localhost:3000"`,
		"forwards[].listen":                `"127.0.0.1:3000"`,
		"forwards[].endpoint":              `"my-endpoint"`,
		"upstream.tenants[].id":            `"my-tenant"`,
		"proxy.tls.certificates[].cert":    `"other.pem"`,
		"proxy.tls.certificates[].key":     `"other.key"`,
		"upstream.tls.certificates[].cert": `"other.pem"`,
		"upstream.tls.certificates[].key":  `"other.key"`,
		"admin.tls.certificates[].cert":    `"other.pem"`,
		"admin.tls.certificates[].key":     `"other.key"`,
	}[k.Name]; v != "" {
		return v
	}
	return k.Default
}

// plain returns a text with its code in double quotes, or as it stands where it has quotes of its own.
func plain(text string) string {
	parts := strings.Split(text, "`")
	for i := 1; i < len(parts); i += 2 {
		if !strings.ContainsAny(parts[i], `"[`) {
			parts[i] = `"` + parts[i] + `"`
		}
	}
	return strings.Join(parts, "")
}

// comment writes a text as comment lines.
func comment(out *bytes.Buffer, text string) {
	line := "#"
	for _, word := range strings.Fields(text) {
		if len(line)+1+len(word) > width {
			fmt.Fprintln(out, line)
			line = "#"
		}
		line += " " + word
	}
	fmt.Fprintln(out, line)
}
