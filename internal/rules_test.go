package internal

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
)

// pkg is what the rules look at in one folder, tests left out.
type pkg struct {
	imports map[string][]string // import path -> files
	docs    []string            // files with a package comment
}

// load reads the packages of a tree. Nested modules, test data and hidden folders are not part of it.
func load(tree fs.FS) (map[string]*pkg, error) {
	pkgs := map[string]*pkg{}
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skipDir(tree, name)
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		source, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, source, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		p := pkgs[path.Dir(name)]
		if p == nil {
			p = &pkg{imports: map[string][]string{}}
			pkgs[path.Dir(name)] = p
		}
		return p.add(name, file)
	})
	return pkgs, err
}

// skipDir returns fs.SkipDir for a folder that is not part of the module.
func skipDir(tree fs.FS, name string) error {
	base := path.Base(name)
	if name == "." {
		return nil
	}
	if base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
		return fs.SkipDir
	}
	if _, err := fs.Stat(tree, path.Join(name, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

func (p *pkg) add(name string, file *ast.File) error {
	if file.Doc != nil {
		p.docs = append(p.docs, name)
	}
	for _, spec := range file.Imports {
		to, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return err
		}
		p.imports[to] = append(p.imports[to], name)
	}
	return nil
}

// under reports whether the import path is the module or a package of it, whatever its major version.
func under(importPath, prefix string) bool {
	return importPath == prefix || strings.HasPrefix(importPath, prefix+"/")
}

// ownImport returns the folder of one of our packages.
func ownImport(importPath string) (string, bool) {
	if importPath == module {
		return ".", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

// tableFaults says where the table itself breaks its promise that imports lead strictly downwards.
func tableFaults(rooms map[string]room) []string {
	var faults []string
	for name, r := range rooms {
		for _, to := range r.mayImport {
			if to == anyLower {
				continue
			}
			if below, ok := rooms[to]; !ok || below.layer >= r.layer {
				faults = append(faults, fmt.Sprintf("the table lets %s import %s, which is not below it", name, to))
			}
		}
	}
	return sorted(faults)
}

// importFaults says which imports the table forbids, and which packages it does not know.
func importFaults(pkgs map[string]*pkg, rooms map[string]room) []string {
	var faults []string
	for name, p := range pkgs {
		r, ok := rooms[name]
		if !ok {
			faults = append(faults, fmt.Sprintf("%s: not in the table of layers", name))
			continue
		}
		for to, files := range p.imports {
			own, ok := ownImport(to)
			if !ok || slices.Contains(r.mayImport, own) {
				continue
			}
			below, known := rooms[own]
			if slices.Contains(r.mayImport, anyLower) && known && below.layer < r.layer {
				continue
			}
			faults = append(faults, fmt.Sprintf("%s: %s may not import %s", files[0], name, own))
		}
	}
	for name := range rooms {
		if pkgs[name] == nil {
			faults = append(faults, fmt.Sprintf("%s: in the table of layers, but not in the tree", name))
		}
	}
	return sorted(faults)
}

// homeFaults says who imports a module that belongs to another package.
func homeFaults(pkgs map[string]*pkg, homes map[string][]string) []string {
	var faults []string
	for name, p := range pkgs {
		for to, files := range p.imports {
			for prefix, home := range homes {
				if under(to, prefix) && !slices.Contains(home, name) {
					faults = append(faults, fmt.Sprintf("%s: only %s may import %s", files[0], strings.Join(home, ", "), prefix))
				}
			}
		}
	}
	return sorted(faults)
}

// docFaults says which packages do not have their package comment in exactly one file.
func docFaults(pkgs map[string]*pkg) []string {
	var faults []string
	for name, p := range pkgs {
		if len(p.docs) != 1 {
			faults = append(faults, fmt.Sprintf("%s: want one file with a package comment, have %d %v", name, len(p.docs), p.docs))
		}
	}
	return sorted(faults)
}

// bannedFaults says which of the packages that come with the SDK should not.
func bannedFaults(deps []string, banned map[string]string) []string {
	var faults []string
	for _, dep := range deps {
		for prefix, why := range banned {
			if under(dep, prefix) {
				faults = append(faults, fmt.Sprintf("the SDK brings in %s: %s", dep, why))
			}
		}
	}
	return sorted(faults)
}

func sorted(s []string) []string {
	slices.Sort(s)
	return s
}

// tableTextFaults compares the rows "| layer | package | what for | may import |" of a text with the table.
func tableTextFaults(text string, rooms map[string]room) []string {
	var faults []string
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 6 {
			continue
		}
		layer, err := strconv.Atoi(strings.TrimSpace(cells[1]))
		if err != nil {
			continue
		}
		name := strings.Trim(strings.Fields(cells[2] + " ?")[0], "`")
		seen[name] = true
		r, ok := rooms[name]
		if !ok {
			faults = append(faults, fmt.Sprintf("ARCHITECTURE.md: %s is not in the table of layers", name))
			continue
		}
		have := fmt.Sprintf("%d %s", layer, strings.TrimSpace(cells[4]))
		if want := fmt.Sprintf("%d %s", r.layer, mayImportText(r)); have != want {
			faults = append(faults, fmt.Sprintf("ARCHITECTURE.md: %s: want %q, have %q", name, want, have))
		}
	}
	for name := range maps.Keys(rooms) {
		if !seen[name] {
			faults = append(faults, fmt.Sprintf("ARCHITECTURE.md: %s is missing", name))
		}
	}
	return sorted(faults)
}

// mayImportText is the last column of the table for people.
func mayImportText(r room) string {
	if len(r.mayImport) == 0 {
		return "nothing"
	}
	if r.mayImport[0] == anyLower {
		return "anything below"
	}
	var names []string
	for _, name := range r.mayImport {
		names = append(names, strings.TrimPrefix(name, "internal/"))
	}
	return strings.Join(names, ", ")
}
