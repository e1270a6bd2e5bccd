// Command reference writes what people read about the settings: the commented files in configs/ and the manual pages
// man/*.toml.5. Its sources are the structs of internal/config: their comments, tags and defaults. Nothing is
// described anywhere else.
//
//	go run ./internal/config/reference           write the files
//	go run ./internal/config/reference -check    exit 1 if a file is not what would be written
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/pikoproxy/piko/internal/config"
)

func main() {
	root := flag.String("root", ".", "the `directory` of the module")
	check := flag.Bool("check", false, "only compare, and exit 1 if a file is stale")
	flag.Parse()
	os.Exit(run(*root, *check, os.Stderr))
}

// run writes or compares the files under root and returns the exit code.
func run(root string, check bool, stderr io.Writer) int {
	files, err := generate(root)
	if err != nil {
		fmt.Fprintln(stderr, "reference:", err)
		return 1
	}
	code := 0
	for _, f := range files {
		name := filepath.Join(root, f.name)
		if check {
			if old, err := os.ReadFile(name); err != nil || !bytes.Equal(old, f.text) {
				fmt.Fprintf(stderr, "reference: %s is stale: run make generate\n", f.name)
				code = 1
			}
			continue
		}
		if err := write(name, f.text); err != nil {
			fmt.Fprintln(stderr, "reference:", err)
			return 1
		}
	}
	return code
}

// write puts a file in place, readable by everybody.
func write(name string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil { //nolint:gosec // part of the source tree, not secret
		return err
	}
	return os.WriteFile(name, text, 0o644) //nolint:gosec // part of the source tree, not secret
}

// file is one generated file.
type file struct {
	name string // below the root
	text []byte
}

// book is what is known about the settings file of one daemon.
type book struct {
	daemon   string // the program's name
	section  int    // of the program's manual page
	summary  string // for the NAME line
	keys     []key
	examples []example
}

// key is one key with its description.
type key struct {
	config.Key
	text string // the comment of its field
}

// generate returns all files.
func generate(root string) ([]file, error) {
	comments, err := readComments(filepath.Join(root, "internal", "config"))
	if err != nil {
		return nil, err
	}
	var out []file
	for _, b := range books() {
		for i, k := range b.keys {
			text, ok := comments[k.Struct+"."+k.Field]
			if !ok {
				return nil, fmt.Errorf("%s.%s (%s) has no comment", k.Struct, k.Field, k.Name)
			}
			b.keys[i].text = text
		}
		out = append(out,
			file{"configs/" + b.daemon + ".toml", sample(b)},
			file{"man/" + b.daemon + ".toml.5", page(b)})
	}
	return out, nil
}

// books returns the three files without their comments.
func books() []book {
	return []book{
		{"pikod", 8, "settings of the Piko server", describe(config.Keys(config.DefaultPikod())), pikodExamples()},
		{"piko-agent", 8, "settings of the Piko agent", describe(config.Keys(config.DefaultAgent())), agentExamples()},
		{"piko-forward", 1, "settings of the Piko forwarder", describe(config.Keys(config.DefaultForward())), forwardExamples()},
	}
}

func describe(keys []config.Key) []key {
	out := make([]key, len(keys))
	for i, k := range keys {
		out[i].Key = k
	}
	return out
}
