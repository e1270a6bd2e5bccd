package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Dump returns the effective settings as TOML, with secrets masked.
func (p Pikod) Dump() string { return dump(reflect.ValueOf(p)) }

// Dump returns the effective settings as TOML, with secrets masked.
func (a Agent) Dump() string { return dump(reflect.ValueOf(a)) }

// Dump returns the effective settings as TOML, with secrets masked.
func (f Forward) Dump() string { return dump(reflect.ValueOf(f)) }

// Digest returns 16 hexadecimal digits that are equal for equal effective settings, in whatever files and order they
// are written. A secret counts only as set or not, so that the digest can be shown; [Diff] compares secrets too.
func (p Pikod) Digest() string { return digest(reflect.ValueOf(p)) }

// Digest returns the digest of the effective settings, as [Pikod.Digest] does.
func (a Agent) Digest() string { return digest(reflect.ValueOf(a)) }

// Digest returns the digest of the effective settings, as [Pikod.Digest] does.
func (f Forward) Digest() string { return digest(reflect.ValueOf(f)) }

func dump(v reflect.Value) string {
	var b strings.Builder
	dumpTable(&b, v, "")
	return b.String()
}

// dumpTable writes the values of a table, then the tables inside it.
func dumpTable(b *strings.Builder, v reflect.Value, prefix string) {
	hidden := fromFiles(v)
	for _, f := range fields(v.Type()) {
		field, name := v.FieldByIndex(f.Index), join(prefix, f.Tag.Get("toml"))
		switch {
		case isTable(f.Type):
			fmt.Fprintf(b, "\n[%s]\n", name)
			dumpTable(b, field, name)
		case isTables(f.Type):
			for i := range field.Len() {
				fmt.Fprintf(b, "\n[[%s]]\n", name)
				dumpTable(b, field.Index(i), name)
			}
		case !slices.Contains(hidden, f.Name):
			fmt.Fprintf(b, "%s = %s\n", f.Tag.Get("toml"), literal(field))
		}
	}
}

// fromFiles names the fields of v that need not be written, because a file holds their value, and the fields for such
// files where there is a value but no file.
func fromFiles(v reflect.Value) []string {
	var out []string
	for _, f := range fields(v.Type()) {
		into := f.Tag.Get("into")
		switch {
		case into == "":
		case !v.FieldByIndex(f.Index).IsZero():
			out = append(out, into)
		case !v.FieldByName(into).IsZero():
			out = append(out, f.Name)
		}
	}
	return out
}

func digest(v reflect.Value) string {
	sum := sha256.Sum256([]byte(dump(sorted(v))))
	return hex.EncodeToString(sum[:8])
}

// sorted returns a copy of a settings struct with its lists of tables in the order of their keys.
func sorted(v reflect.Value) reflect.Value {
	out := reflect.New(v.Type()).Elem()
	out.Set(v)
	for _, f := range fields(v.Type()) {
		field := out.FieldByIndex(f.Index)
		switch {
		case isTable(f.Type):
			field.Set(sorted(field))
		case isTables(f.Type):
			entries := make([]reflect.Value, field.Len())
			for i := range entries {
				entries[i] = sorted(field.Index(i))
			}
			slices.SortFunc(entries, func(a, b reflect.Value) int { return strings.Compare(identity(a, f), identity(b, f)) })
			field.Set(reflect.Append(reflect.MakeSlice(f.Type, 0, len(entries)), entries...))
		}
	}
	return out
}

// identity returns what tells an entry of the list of tables f from the others. Names of endpoints are the same in
// either case.
func identity(entry reflect.Value, f reflect.StructField) string {
	key := f.Tag.Get("key")
	field, _ := fieldOf(entry.Type(), key)
	id := entry.FieldByIndex(field.Index).String()
	if key == "endpoint" {
		return strings.ToLower(id)
	}
	return id
}

// Change is one setting that differs between two loads.
type Change struct {
	Key      string // such as proxy.idle_timeout, or listeners[my-endpoint].addr
	Old, New string // as TOML, secrets masked; "" for a list entry that is not there
	Live     bool   // whether a running process can take it
}

// Diff returns what differs between two settings, in the order of the reference file. Secrets are compared too, and of
// files that settings name, such as certificates, the content that they had when the settings were loaded.
func Diff[S Settings](old, now S) []Change {
	d := differ{sums: [2]*source{origin(old), origin(now)}}
	d.table(reflect.ValueOf(old), reflect.ValueOf(now), "", true)
	return d.changes
}

func origin(settings any) *source {
	s, _ := reflect.ValueOf(settings).FieldByName("Source").Interface().(Source)
	if s.s == nil {
		return &source{}
	}
	return s.s
}

type differ struct {
	sums    [2]*source
	changes []Change
}

func (d *differ) table(old, now reflect.Value, prefix string, live bool) {
	for _, f := range fields(old.Type()) {
		a, b := old.FieldByIndex(f.Index), now.FieldByIndex(f.Index)
		name, live := join(prefix, f.Tag.Get("toml")), live && f.Tag.Get("reload") != "restart"
		switch {
		case isTable(f.Type):
			d.table(a, b, name, live)
		case isTables(f.Type):
			d.tables(a, b, name, live, f)
		case !reflect.DeepEqual(plain(a), plain(b)) || d.rewritten(a, f):
			d.changes = append(d.changes, Change{name, literal(a), literal(b), live})
		}
	}
}

// plain returns the value of a field in which no list and an empty list are the same.
func plain(v reflect.Value) any {
	if v.Kind() == reflect.Slice && v.Len() == 0 {
		return nil
	}
	return v.Interface()
}

// rewritten reports whether the file that an unchanged field names has other content. Files that become the value of a
// field are compared as that value.
func (d *differ) rewritten(v reflect.Value, f reflect.StructField) bool {
	if f.Type != reflect.TypeFor[File]() || f.Tag.Get("into") != "" {
		return false
	}
	return d.sums[0].sums[v.String()] != d.sums[1].sums[v.String()]
}

func (d *differ) tables(old, now reflect.Value, name string, live bool, f reflect.StructField) {
	entries := func(list reflect.Value) map[string]reflect.Value {
		out := make(map[string]reflect.Value, list.Len())
		for i := range list.Len() {
			out[identity(list.Index(i), f)] = list.Index(i)
		}
		return out
	}
	before, after := entries(old), entries(now)
	for i := range old.Len() {
		id := identity(old.Index(i), f)
		key := name + "[" + id + "]"
		if b, kept := after[id]; kept {
			d.table(old.Index(i), b, key, live)
		} else {
			d.changes = append(d.changes, Change{Key: key, Old: quoteTOML(id), Live: live})
		}
	}
	for i := range now.Len() {
		if id := identity(now.Index(i), f); !before[id].IsValid() {
			d.changes = append(d.changes, Change{Key: name + "[" + id + "]", New: quoteTOML(id), Live: live})
		}
	}
}
