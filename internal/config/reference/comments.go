package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"

	"github.com/pikoproxy/piko/internal/config"
)

// readComments returns the comments of all struct fields of the package in dir, by "Struct.Field", as one line each.
func readComments(dir string) (map[string]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no Go files in %s", dir)
	}
	out := make(map[string]string)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if fields, ok := spec.Type.(*ast.StructType); ok {
				for _, f := range fields.Fields.List {
					for _, id := range f.Names {
						if text := f.Doc.Text(); text != "" {
							out[spec.Name.Name+"."+id.Name] = strings.Join(strings.Fields(text), " ")
						}
					}
				}
			}
			return false
		})
	}
	return out, nil
}

// facts says about a key what its tags say, as sentences with code in backquotes.
func facts(k key) []string {
	var out []string
	if len(k.OneOf) > 0 {
		words := make([]string, 0, len(k.OneOf))
		for _, w := range k.OneOf {
			words = append(words, "`\""+w+"\"`")
		}
		last := len(words) - 1
		out = append(out, "One of "+strings.Join(words[:last], ", ")+" and "+words[last]+".")
	}
	switch {
	case k.Min != "" && k.Max != "":
		out = append(out, "From "+k.Min+" to "+k.Max+".")
	case k.Min != "" && k.Min != "0":
		out = append(out, "At least "+k.Min+".")
	case k.Max != "":
		out = append(out, "At most "+k.Max+".")
	}
	if k.Kind == config.Value && !k.Live {
		out = append(out, "A change needs a restart.")
	}
	return out
}
