package config

import (
	"reflect"
	"strings"
)

// suggest says which key may have been meant by an unknown name in a section of type t, or "". It looks for similar names
// in the section, then for the same name among all, then for a section of another daemon.
func suggest(t reflect.Type, section, name string, all []string) string {
	folded := strings.ReplaceAll(strings.ToLower(name), "-", "_")
	var here []string
	for _, f := range fields(t) {
		here = append(here, f.Tag.Get("toml"))
	}
	if best := Nearest(folded, here); best != "" {
		return "did you mean " + best + "?"
	}
	if section == "" {
		if others := elsewhere(name); others != "" {
			return "it belongs in " + others
		}
	}
	var same []string
	for _, known := range all {
		if strings.HasSuffix(known, "."+folded) || known == folded {
			same = append(same, known)
		}
	}
	switch {
	case len(same) == 0:
		return ""
	case len(same) > 3:
		return "did you mean " + same[0] + " or another of that name?"
	}
	return "did you mean " + strings.Join(same, " or ") + "?"
}

// elsewhere returns the files of the daemons that have the section at the top, as text.
func elsewhere(section string) string {
	var files []string
	for _, one := range []struct {
		file     string
		settings reflect.Type
	}{
		{"pikod.toml", reflect.TypeFor[Pikod]()}, {"piko-agent.toml", reflect.TypeFor[Agent]()},
		{"piko-forward.toml", reflect.TypeFor[Forward]()},
	} {
		if f, ok := fieldOf(one.settings, section); ok && (isTable(f.Type) || isTables(f.Type)) {
			files = append(files, one.file)
		}
	}
	return strings.Join(files, " or ")
}

// Nearest returns the one of the known words that somebody who wrote word may have meant, or "" if none is near.
func Nearest(word string, known []string) string {
	best, distance := "", max(len(word)/3, 1)+1
	for _, one := range known {
		if d := edits(word, one); d < distance {
			best, distance = one, d
		}
	}
	return best
}

// edits returns how many letters must be added, removed, changed or swapped with their neighbour to make b of a.
func edits(a, b string) int {
	const longest = 64 // no key is nearly as long, and the work grows with the square
	if len(a) > longest {
		return len(a)
	}
	before, last, now := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		now[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			now[j] = min(last[j]+1, now[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				now[j] = min(now[j], before[j-2]+1)
			}
		}
		before, last, now = last, now, before
	}
	return last[len(b)]
}
