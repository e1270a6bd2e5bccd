package config

import (
	"reflect"
	"strings"
)

// suggest says which key may have been meant by an unknown name in a section of type t, or "". It looks for similar names
// in the section, then for the same name among all.
func suggest(t reflect.Type, name string, all []string) string {
	best, distance := "", max(len(name)/3, 1)+1
	folded := strings.ReplaceAll(strings.ToLower(name), "-", "_")
	for _, f := range fields(t) {
		known := f.Tag.Get("toml")
		if d := edits(folded, known); d < distance {
			best, distance = known, d
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	var same []string
	for _, known := range all {
		if strings.HasSuffix(known, "."+folded) || known == folded {
			same = append(same, known)
		}
	}
	if len(same) == 0 || len(same) > 3 {
		return ""
	}
	return "did you mean " + strings.Join(same, " or ") + "?"
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
