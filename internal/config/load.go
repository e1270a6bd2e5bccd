package config

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// LoadPikod returns the settings of pikod from the file and the files beside it, changed by over. An empty file name
// means no files, a directory NAME.d those in it. The error is a [*Problems] with everything that is wrong; what is
// returned beside it has a [Source] and no settings.
func LoadPikod(file string, over ...Override) (Pikod, error) {
	p := DefaultPikod()
	l := newLoader(&p, os.LookupEnv)
	l.load(file, over, func() { l.checkPikod(&p) })
	if err := l.err(); err != nil {
		return Pikod{Source: Source{&l.source}}, err
	}
	p.Source = Source{&l.source}
	return p, nil
}

// LoadAgent returns the settings of piko-agent, as [LoadPikod] does for pikod.
func LoadAgent(file string, over ...Override) (Agent, error) {
	a := DefaultAgent()
	l := newLoader(&a, os.LookupEnv)
	l.load(file, over, func() { l.checkAgent(&a) })
	if err := l.err(); err != nil {
		return Agent{Source: Source{&l.source}}, err
	}
	a.Source = Source{&l.source}
	return a, nil
}

// LoadForward returns the settings of piko-forward, as [LoadPikod] does for pikod.
func LoadForward(file string, over ...Override) (Forward, error) {
	f := DefaultForward()
	l := newLoader(&f, os.LookupEnv)
	l.load(file, over, func() { l.checkForward(&f) })
	if err := l.err(); err != nil {
		return Forward{Source: Source{&l.source}}, err
	}
	f.Source = Source{&l.source}
	return f, nil
}

// Override is a setting that the command line gives. It beats every file. Variables in it are left to the shell.
type Override struct {
	From  string // what an error blames, such as "--url"
	Key   string // such as "connect.url"; a list is replaced, whatever its kind
	Value any    // string, bool, int64, []any or map[string]any, as TOML would have it
}

// Connect returns the overrides behind --url and --token-file of agent and forwarder. Empty: the flag was not given.
func Connect(url, tokenFile string) []Override {
	var over []Override
	if url != "" {
		over = append(over, Override{From: "--url", Key: "connect.url", Value: url})
	}
	if tokenFile != "" {
		over = append(over, Override{From: "--token-file", Key: "connect.token_file", Value: tokenFile})
	}
	return over
}

// Offer returns the override behind `piko-agent http ENDPOINT ADDR`: this listener instead of those of the files.
func Offer(protocol, endpoint, addr string) Override {
	return Override{From: "command line", Key: "listeners", Value: []any{
		map[string]any{"protocol": protocol, "endpoint": endpoint, "addr": addr},
	}}
}

// Reach returns the override behind `piko-forward ADDR ENDPOINT`: this forward instead of those of the files. A lone
// port is one of 127.0.0.1.
func Reach(addr, endpoint string) Override {
	if goodPort(addr) {
		addr = "127.0.0.1:" + addr
	}
	return Override{From: "command line", Key: "forwards", Value: []any{
		map[string]any{"listen": addr, "endpoint": endpoint},
	}}
}

// loader fills one settings struct and finds out what is wrong with it.
type loader struct {
	decoder
	source  source
	into    reflect.Value // the settings struct
	partial bool          // a part of a file was left out, so rules about several keys would blame the wrong one
}

func newLoader[S Settings](into *S, env func(string) (string, bool)) *loader {
	l := &loader{into: reflect.ValueOf(into).Elem()}
	l.env, l.places = env, make(map[string]place)
	for _, k := range Keys(*into) {
		l.names = append(l.names, k.Name)
	}
	return l
}

// load reads the layers in order, then the files that they name, and checks the whole.
func (l *loader) load(file string, over []Override, check func()) {
	if file != "" {
		l.files(file)
	}
	for _, o := range over {
		l.override(o)
	}
	l.named(l.into, "")
	if !l.partial {
		l.required(l.into, "")
		check()
	}
	l.source.places = l.places
	slices.Sort(l.source.files)
	l.source.files = slices.Compact(l.source.files)
}

// err returns the problems of all layers, or nil.
func (l *loader) err() error {
	if len(l.problems) == 0 {
		return nil
	}
	order := make(map[string]int) // files in the order they were read
	for _, p := range l.problems {
		if _, ok := order[p.File]; !ok {
			order[p.File] = len(order)
		}
	}
	slices.SortStableFunc(l.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(order[a.File], order[b.File]), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Key, b.Key))
	})
	const most = 200
	list := slices.Compact(l.problems)
	if more := len(list) - most; more > 0 {
		list = append(list[:most:most], Problem{Have: fmt.Sprintf("and %d more", more)})
	}
	return &Problems{list}
}

// blame adds a problem with a key of the effective settings.
func (l *loader) blame(p Problem) {
	l.source.places = l.places
	l.problems = append(l.problems, Source{&l.source}.At(p))
}

// bad reports whether a problem is known with one of the keys, or with something inside them.
func (l *loader) bad(keys ...string) bool {
	for _, key := range keys {
		for _, p := range l.problems {
			if rest, ok := strings.CutPrefix(p.Key, key); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
				return true
			}
		}
	}
	return false
}

// Beside returns the directory that is read after a settings file: pikod.d beside pikod.toml.
func Beside(file string) string { return strings.TrimSuffix(file, ".toml") + ".d" }

// files reads the file and what lies in the directory beside it. A directory NAME.d is read alone, and the file that it would
// be read after is one of those that the settings depend on.
func (l *loader) files(file string) {
	dir := Beside(file)
	if base, ok := strings.CutSuffix(file, ".d"); ok && isDir(file) {
		dir = file
		l.depends(base + ".toml")
	} else {
		l.file(file)
	}
	l.depends(dir)
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		l.problems = append(l.problems, Problem{File: dir, Want: "a readable directory", Have: reason(err), Hint: access(dir, err)})
	}
	for _, e := range entries {
		// Hidden files belong to editors and to those who replace a whole directory at once.
		if name := e.Name(); strings.HasSuffix(name, ".toml") && name[0] != '.' && !e.IsDir() {
			l.file(filepath.Join(dir, name))
		}
	}
}

// file reads one file.
func (l *loader) file(name string) {
	l.depends(name)
	data, err := readFile(name, maxFile)
	if err != nil {
		l.partial = true
		l.problems = append(l.problems, Problem{File: name, Want: "a readable file", Have: reason(err), Hint: access(name, err)})
		return
	}
	l.text(name, string(data))
}

// text takes a file's text as the next layer.
func (l *loader) text(name, text string) {
	parsed := parseText(text, func(p Problem) {
		p.File = name
		l.problems = append(l.problems, p)
	})
	l.partial = l.partial || !parsed.clean
	if parsed.values == nil {
		l.partial = true
		return
	}
	s := spot{layer: layer{name: name, dir: filepath.Dir(name), expand: true}, node: parsed.root}
	l.table(l.into, parsed.values, s)
}

// override takes an option of the command line as the next layer.
func (l *loader) override(o Override) {
	values := o.Value
	names := strings.Split(o.Key, ".")
	for _, name := range slices.Backward(names) {
		values = map[string]any{name: values}
	}
	l.table(l.into, values, spot{layer: layer{name: o.From, replace: true}})
}

// depends adds a file to those that the settings depend on.
func (l *loader) depends(name string) {
	if path, err := filepath.Abs(name); err == nil {
		name = path
	}
	l.source.files = append(l.source.files, name)
}

// required reports keys that must not be empty but are.
func (l *loader) required(v reflect.Value, prefix string) {
	for _, f := range fields(v.Type()) {
		field, name := v.FieldByIndex(f.Index), join(prefix, f.Tag.Get("toml"))
		switch {
		case isTable(f.Type):
			l.required(field, name)
		case isTables(f.Type):
			for i := range field.Len() {
				l.required(field.Index(i), fmt.Sprintf("%s[%d]", name, i))
			}
		case f.Tag.Get("required") == "true" && field.IsZero() && !l.bad(name):
			l.blame(Problem{Key: name, Want: wanted(f.Type), Have: "nothing"})
		}
	}
}
