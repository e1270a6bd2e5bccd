package config

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// layer is one source of settings: a file, or an option of the command line.
type layer struct {
	name    string // what problems blame
	dir     string // what relative paths are relative to
	expand  bool   // whether ${VAR} is a variable
	replace bool   // whether lists of tables replace instead of growing
}

// decoder puts layers into one settings struct, one after another.
type decoder struct {
	env      func(string) (string, bool)
	names    []string // of all keys of the file
	problems []Problem
	places   map[string]place
}

// setter is a type that is written as a text.
type setter interface{ set(text string) error }

// spot is the value that is being read: its layer, key and line.
type spot struct {
	layer
	key  string
	node *node
	sf   reflect.StructField
}

func (d *decoder) problem(s spot, p Problem) {
	p.File, p.Line = s.name, s.node.at()
	if p.Key == "" {
		p.Key = s.key
	}
	d.problems = append(d.problems, p)
}

// want reports that a value is not what its key takes.
func (d *decoder) want(s spot, want string, raw any, hint string) {
	d.problem(s, Problem{Want: want, Have: show(raw, s.sf), Hint: hint})
}

// table reads the keys of a table into a struct.
func (d *decoder) table(v reflect.Value, raw any, s spot) {
	values, ok := raw.(map[string]any)
	if !ok {
		d.want(s, "a table ["+s.key+"]", raw, "")
		return
	}
	if s.key != "" {
		d.places[s.key] = place{s.name, s.node.at()}
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		at := spot{layer: s.layer, key: join(s.key, name), node: s.node.key(name)}
		field, ok := fieldOf(v.Type(), name)
		if !ok {
			d.problem(at, Problem{Have: "there is no such key", Hint: suggest(v.Type(), s.key, name, d.names)})
			continue
		}
		at.sf = field
		d.value(v.FieldByIndex(field.Index), values[name], at)
	}
	d.pairs(v, values, s)
}

// pairs lets a value and the file that holds it, such as token and token_file, beat each other: the later layer wins.
func (d *decoder) pairs(v reflect.Value, values map[string]any, s spot) {
	for _, f := range fields(v.Type()) {
		into := f.Tag.Get("into")
		if into == "" {
			continue
		}
		target, _ := v.Type().FieldByName(into)
		name, fileName := target.Tag.Get("toml"), f.Tag.Get("toml")
		_, set := values[name]
		_, fileSet := values[fileName]
		file, inline := v.FieldByIndex(f.Index), v.FieldByIndex(target.Index)
		switch {
		case set && fileSet && !file.IsZero() && !inline.IsZero():
			d.problem(spot{layer: s.layer, key: join(s.key, fileName), node: s.node.key(fileName)},
				Problem{Have: "stands beside " + name, Hint: "keep one of the two"})
		case set && !fileSet:
			file.SetZero()
			delete(d.places, join(s.key, fileName))
		case fileSet && !set:
			inline.SetZero()
			delete(d.places, join(s.key, name))
		}
	}
}

// value reads one value into the field it belongs to.
func (d *decoder) value(v reflect.Value, raw any, s spot) {
	if isTable(v.Type()) {
		d.table(v, raw, s)
		return
	} else if isTables(v.Type()) {
		d.tables(v, raw, s)
		return
	}
	before := len(d.problems)
	fresh := reflect.New(v.Type()).Elem()
	if fresh.Kind() == reflect.Slice {
		d.list(fresh, raw, s)
	} else {
		d.scalar(fresh, raw, s)
	}
	d.places[s.key] = place{s.name, s.node.at()}
	if len(d.problems) == before {
		v.Set(fresh)
	}
}

// scalar reads a value that is not made of others.
func (d *decoder) scalar(v reflect.Value, raw any, s spot) {
	if to, ok := v.Addr().Interface().(setter); ok {
		d.text(raw, s, func(text string) error {
			if err := to.set(text); err != nil {
				return err
			}
			if f, ok := to.(*File); ok {
				*f = d.locate(*f, s.layer)
			}
			return refuse(within(v, s.sf), text)
		})
		return
	}
	switch v.Kind() {
	case reflect.String:
		d.text(raw, s, func(text string) error {
			v.SetString(text)
			return refuse(oneOf(text, s.sf), text)
		})
		return
	case reflect.Bool:
		if b, ok := raw.(bool); ok {
			v.SetBool(b)
			return
		}
	case reflect.Int:
		if n, ok := raw.(int64); ok && !v.OverflowInt(n) {
			v.SetInt(n)
			d.bounds(v, raw, s)
			return
		}
	case reflect.Float64:
		switch n := raw.(type) {
		case float64:
			v.SetFloat(n)
			d.bounds(v, raw, s)
			return
		case int64:
			v.SetFloat(float64(n))
			d.bounds(v, raw, s)
			return
		}
	}
	hint := ""
	if _, quoted := raw.(string); quoted {
		hint = "write it without quotes"
	}
	d.want(s, wanted(v.Type()), raw, hint)
}

// text expands a text and hands it to set.
func (d *decoder) text(raw any, s spot, set func(string) error) {
	text, ok := raw.(string)
	if !ok {
		hint := ""
		if n, number := raw.(int64); number && !isSecret(s.sf) {
			switch s.sf.Type {
			case reflect.TypeFor[Duration]():
				hint = fmt.Sprintf(`write "%ds" if these are seconds`, n)
			case reflect.TypeFor[Size]():
				hint = fmt.Sprintf(`write "%dB" if these are bytes`, n)
			case reflect.TypeFor[Address]():
				hint = fmt.Sprintf(`write ":%d" or "127.0.0.1:%d"`, n, n)
			default:
				hint = fmt.Sprintf(`write "%d"`, n)
			}
		}
		want := wanted(s.sf.Type)
		if words := oneOf("", s.sf); words != "" && s.sf.Type.Kind() == reflect.String {
			want, hint = words, ""
		}
		d.want(s, want, raw, hint)
		return
	}
	if s.expand {
		expanded, err := expand(text, d.env)
		if err != nil {
			d.problem(s, Problem{Have: err.Error()})
			return
		}
		text = expanded
	}
	if err := set(text); err != nil {
		var bad *mismatch
		if !errors.As(err, &bad) {
			bad = &mismatch{have: err.Error()}
		}
		d.problem(s, Problem{Want: bad.want, Have: bad.have, Hint: bad.hint})
	}
}

func (d *decoder) bounds(v reflect.Value, raw any, s spot) {
	if want := within(v, s.sf); want != "" {
		d.want(s, want, raw, "")
	}
}

func refuse(want, text string) error {
	if want == "" {
		return nil
	}
	return &mismatch{want: want, have: quote(text)}
}

// list reads a list of texts.
func (d *decoder) list(v reflect.Value, raw any, s spot) {
	if text, ok := raw.(string); ok && v.Type() == reflect.TypeFor[List]() {
		if raw = []any{text}; text == "" {
			return
		}
	}
	items, ok := raw.([]any)
	if !ok {
		hint := ""
		if text, isText := raw.(string); isText {
			hint = "write [" + quote(text) + "]"
		}
		d.want(s, wanted(v.Type()), raw, hint)
		return
	}
	for i, item := range items {
		at := s
		at.key, at.node, at.sf.Type = s.key+"["+strconv.Itoa(i)+"]", s.node.item(i), reflect.TypeFor[string]()
		d.text(item, at, func(text string) error {
			if v.Type() != reflect.TypeFor[CIDRs]() {
				v.Set(reflect.Append(v, reflect.ValueOf(text)))
				return nil
			}
			p, err := ParseCIDR(text)
			v.Set(reflect.Append(v, reflect.ValueOf(p)))
			return err
		})
	}
}

// tables reads a list of tables: an entry whose key is known replaces that one, any other is appended.
func (d *decoder) tables(v reflect.Value, raw any, s spot) {
	items, ok := tableList(raw)
	if !ok {
		d.want(s, "tables [["+s.key+"]]", raw, "")
		return
	}
	d.places[s.key] = place{s.name, s.node.at()}
	if s.replace {
		v.SetZero()
		maps.DeleteFunc(d.places, func(key string, _ place) bool { return strings.HasPrefix(key, s.key+"[") })
	} else {
		v.Set(reflect.AppendSlice(reflect.MakeSlice(v.Type(), 0, v.Len()+len(items)), v)) // a default may be shared
	}
	seen := make(map[string]int)
	known := make(map[string]int, v.Len()+len(items)) // where in v an identity is; lists may be long
	for i := range v.Len() {
		known[identity(v.Index(i), s.sf)] = i
	}
	for i, item := range items {
		at := spot{layer: s.layer, key: s.key + "[" + strconv.Itoa(v.Len()) + "]", node: s.node.item(i), sf: s.sf}
		entry := reflect.New(v.Type().Elem()).Elem()
		entry.Set(defaultEntry(entry.Type()))
		one := decoder{env: d.env, names: d.names, places: make(map[string]place)}
		one.table(entry, item, at)
		id := identity(entry, s.sf)
		if first, again := seen[id]; again && id != "" {
			name := join(at.key, s.sf.Tag.Get("key"))
			one.problem(spot{layer: s.layer, key: name, node: at.node.key(s.sf.Tag.Get("key"))},
				Problem{Have: fmt.Sprintf("%s is listed a second time, first in line %d", quote(id), first)})
		}
		seen[id] = at.node.at()
		index, again := known[id]
		if again && id != "" {
			v.Index(index).Set(entry)
			d.forget(s.key + "[" + strconv.Itoa(index) + "]")
		} else {
			index = v.Len()
			v.Set(reflect.Append(v, entry))
			known[id] = index
		}
		d.adopt(one, at.key, s.key+"["+strconv.Itoa(index)+"]")
	}
}

// forget drops what was found out about a list entry that another one replaces.
func (d *decoder) forget(entry string) {
	maps.DeleteFunc(d.places, func(key string, _ place) bool { return key == entry || strings.HasPrefix(key, entry+".") })
}

// adopt takes over what was found out about a list entry, under the place that the entry has in the list.
func (d *decoder) adopt(one decoder, from, to string) {
	for key, at := range one.places {
		d.places[to+strings.TrimPrefix(key, from)] = at
	}
	for _, p := range one.problems {
		p.Key = to + strings.TrimPrefix(p.Key, from)
		d.problems = append(d.problems, p)
	}
}

// locate returns where a file is: as it stands if absolute, else in the credentials that systemd hands over if it is
// there, else beside the file that names it.
func (d *decoder) locate(f File, l layer) File {
	path := string(f)
	if path == "" || filepath.IsAbs(path) {
		return f
	}
	if dir, ok := d.env("CREDENTIALS_DIRECTORY"); ok && dir != "" && filepath.IsLocal(path) {
		if credential := filepath.Join(dir, path); exists(credential) {
			return File(credential)
		}
	}
	return File(filepath.Join(l.dir, path))
}

func tableList(raw any) ([]map[string]any, bool) {
	switch list := raw.(type) {
	case []map[string]any:
		return list, true
	case []any:
		out := make([]map[string]any, len(list))
		for i := range list {
			item, ok := list[i].(map[string]any)
			if !ok {
				return nil, false
			}
			out[i] = item
		}
		return out, true
	}
	return nil, false
}

// show describes what was found, without what may be secret.
func show(raw any, sf reflect.StructField) string {
	switch x := raw.(type) {
	case string:
		if isSecret(sf) {
			return "a text"
		}
		return quote(x)
	case bool:
		return strconv.FormatBool(x)
	case int64:
		if isSecret(sf) {
			return "a number"
		}
		return "the number " + strconv.FormatInt(x, 10)
	case float64:
		if isSecret(sf) {
			return "a number"
		}
		return "the number " + strconv.FormatFloat(x, 'g', -1, 64)
	case time.Time:
		return "a date"
	case map[string]any:
		return "a table"
	case []map[string]any:
		return "a list of tables"
	default:
		return "a list"
	}
}
