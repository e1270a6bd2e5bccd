package config

import (
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Key describes one key of a settings file, a section or a list of tables.
type Key struct {
	Name     string   // whole name, such as "proxy.listen"; keys of list entries as "listeners[].addr"
	Kind     Kind     // what it holds
	Type     string   // what a value is, for people: "a duration such as ..."
	Default  string   // as TOML; empty for a section or list of tables
	OneOf    []string // the words allowed; nil: any
	Min, Max string   // bounds as TOML would have them, without quotes; empty: none
	Required bool     // must not be empty
	Live     bool     // a running process takes a new value
	Identity string   // of a list of tables: the key that tells entries apart
	Struct   string   // the Go struct and
	Field    string   // field whose comment describes the key
}

// Kind is what a key holds.
type Kind int

// The kinds of keys.
const (
	Value  Kind = iota // a value
	Table              // a section [name]
	Tables             // a list of tables [[name]]
)

// Keys returns the keys of a settings struct in the order of its fields, each section before its keys, with the values
// in settings as defaults.
func Keys[S Settings](settings S) []Key {
	return keys(reflect.ValueOf(settings), "", true)
}

func keys(v reflect.Value, prefix string, live bool) []Key {
	var out []Key
	for _, f := range fields(v.Type()) {
		field := v.FieldByIndex(f.Index)
		k := Key{
			Name: join(prefix, f.Tag.Get("toml")), Struct: v.Type().Name(), Field: f.Name,
			Live:     live && f.Tag.Get("reload") != "restart",
			Required: f.Tag.Get("required") == "true",
			Min:      f.Tag.Get("min"), Max: f.Tag.Get("max"),
		}
		if words := f.Tag.Get("one_of"); words != "" {
			k.OneOf = strings.Split(words, "|")
		}
		switch {
		case isTable(f.Type):
			k.Kind = Table
			out = append(append(out, k), keys(field, k.Name, k.Live)...)
		case isTables(f.Type):
			k.Kind, k.Identity = Tables, f.Tag.Get("key")
			out = append(append(out, k), keys(defaultEntry(f.Type.Elem()), k.Name+"[]", k.Live)...)
		default:
			k.Type, k.Default = wanted(f.Type), literal(field)
			out = append(out, k)
		}
	}
	return out
}

// fields returns the fields of a struct that are settings: values first, then sections, as TOML wants them.
func fields(t reflect.Type) []reflect.StructField {
	var values, sections []reflect.StructField
	for i := range t.NumField() {
		switch f := t.Field(i); {
		case f.Tag.Get("toml") == "" || f.Tag.Get("toml") == "-":
		case isTable(f.Type) || isTables(f.Type):
			sections = append(sections, f)
		default:
			values = append(values, f)
		}
	}
	return append(values, sections...)
}

func fieldOf(t reflect.Type, name string) (reflect.StructField, bool) {
	for _, f := range fields(t) {
		if f.Tag.Get("toml") == name {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

// isTable reports whether a type is a section, not a value.
func isTable(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t != reflect.TypeFor[Secret]() && t != reflect.TypeFor[ProxyURL]() &&
		t != reflect.TypeFor[netip.Prefix]()
}

func isTables(t reflect.Type) bool { return t.Kind() == reflect.Slice && isTable(t.Elem()) }

// isSecret reports whether values of a field must not be shown.
func isSecret(sf reflect.StructField) bool {
	switch sf.Type {
	case reflect.TypeFor[Secret](), reflect.TypeFor[ProxyURL](), reflect.TypeFor[PrivateURL]():
		return true
	}
	return false
}

// defaultEntry returns what an entry of a list of tables is before its table is read.
func defaultEntry(t reflect.Type) reflect.Value {
	switch t {
	case reflect.TypeFor[Listener]():
		return reflect.ValueOf(DefaultListener())
	case reflect.TypeFor[Tenant]():
		return reflect.ValueOf(DefaultTenant())
	}
	return reflect.Zero(t)
}

// wanted describes the values of a type.
func wanted(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[Duration]():
		return wantDuration
	case reflect.TypeFor[Size]():
		return wantSize
	case reflect.TypeFor[Address]():
		return wantAddress
	case reflect.TypeFor[ServiceAddress]():
		return wantService
	case reflect.TypeFor[ProxyURL]():
		return wantProxyURL
	case reflect.TypeFor[File]():
		return "the path of a file"
	case reflect.TypeFor[CIDRs]():
		return `a list of networks such as ["10.0.0.0/8"]`
	case reflect.TypeFor[List]():
		return "a text or a list of texts"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.Slice:
		return `a list of texts such as ["a", "b"]`
	}
	return "a text in quotes"
}

// oneOf says which words a field takes when text is none of them, else "".
func oneOf(text string, sf reflect.StructField) string {
	tag, limited := sf.Tag.Lookup("one_of")
	words := strings.Split(tag, "|")
	if !limited || slices.Contains(words, text) {
		return ""
	}
	for i := range words {
		words[i] = strconv.Quote(words[i])
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// within says which bounds a field has when v is outside, else "".
func within(v reflect.Value, sf reflect.StructField) string {
	low, high := sf.Tag.Get("min"), sf.Tag.Get("max")
	if low == "" && high == "" {
		return ""
	}
	n := number(v)
	if n >= bound(sf.Type, low, math.Inf(-1)) && n <= bound(sf.Type, high, math.Inf(1)) {
		return ""
	}
	switch noun := strings.SplitN(wanted(sf.Type), " such as", 2)[0]; {
	case high == "":
		return noun + " of at least " + low
	case low == "":
		return noun + " of at most " + high
	default:
		return noun + " from " + low + " to " + high
	}
}

func number(v reflect.Value) float64 {
	if v.Kind() == reflect.Float64 {
		return v.Float()
	}
	return float64(v.Int())
}

// bound reads the text of a bound; a test keeps the tags valid.
func bound(t reflect.Type, text string, none float64) float64 {
	if text == "" {
		return none
	}
	v := reflect.New(t)
	if to, ok := v.Interface().(setter); ok {
		if to.set(text) != nil {
			return math.NaN()
		}
		return number(v.Elem())
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return math.NaN()
	}
	return n
}

// literal writes the value of a field as TOML. Secrets are masked.
func literal(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case List:
		if len(x) == 0 {
			return `""`
		}
		if len(x) == 1 {
			return quoteTOML(x[0])
		}
	case fmt.Stringer:
		return quoteTOML(x.String())
	}
	switch v.Kind() {
	case reflect.Bool:
		return strconv.FormatBool(v.Bool())
	case reflect.Int:
		return strconv.FormatInt(v.Int(), 10)
	case reflect.Float64:
		return strconv.FormatFloat(v.Float(), 'f', -1, 64)
	case reflect.Slice:
		items := make([]string, v.Len())
		for i := range items {
			items[i] = literal(v.Index(i))
		}
		return "[" + strings.Join(items, ", ") + "]"
	}
	return quoteTOML(v.String())
}

// quoteTOML writes a text as a TOML string. A dollar is doubled, as a file would need it.
func quoteTOML(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '$':
			b.WriteString("$$")
		case r < ' ' || 0x7f <= r && r <= 0x9f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func join(prefix, name string) string {
	if prefix == "" {
		return name
	}
	return prefix + "." + name
}
