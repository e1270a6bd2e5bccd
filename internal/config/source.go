package config

import (
	"crypto/sha256"
	"slices"
	"strconv"
	"strings"
)

// Source tells where loaded settings came from. It is part of [Pikod], [Agent] and [Forward]; the zero value is that of
// settings that were not loaded.
type Source struct{ s *source }

// source is filled by a load and not changed afterwards.
type source struct {
	places   map[string]place // key -> where it was set; list entries as listeners[0].addr
	files    []string
	sums     map[string][sha256.Size]byte // of the files that settings name, by path
	warnings []Problem
}

// place is where a key was set: a line of a file, or line 0 of a name such as "command line".
type place struct {
	file string
	line int
}

// IsSet reports whether a file or the command line gave the key a value, for example IsSet("proxy.listen").
func (s Source) IsSet(key string) bool {
	if s.s == nil {
		return false
	}
	_, ok := s.s.places[key]
	return ok
}

// Files returns the absolute paths of all files that the settings were read from or that they name: the file itself,
// its directory NAME.d and the files in it, secrets, certificates and keys. Each may change while the settings are in use.
func (s Source) Files() []string {
	if s.s == nil {
		return nil
	}
	return slices.Clone(s.s.files)
}

// Warnings returns what is allowed but unwise, for example a secret that every user of the host can read.
func (s Source) Warnings() []Problem {
	if s.s == nil {
		return nil
	}
	return slices.Clone(s.s.warnings)
}

// At returns p with the file and line where its key was set, if it was. A key whose value came from a file, such as that of
// token_file, becomes the key of that file, which is what the operator wrote. A key that was not set itself gets the place
// of the nearest section around it.
func (s Source) At(p Problem) Problem {
	if s.s == nil || p.File != "" {
		return p
	}
	if from := p.Key + "_file"; !s.IsSet(p.Key) && s.IsSet(from) {
		p.Key = from
	}
	for key := p.Key; key != ""; key = parent(key) {
		if at, ok := s.s.places[key]; ok {
			p.File, p.Line = at.file, at.line
			break
		}
	}
	return p
}

// parent returns the key of the section that holds key: listeners[0].addr -> listeners[0] -> listeners -> "".
func parent(key string) string {
	return key[:max(strings.LastIndexAny(key, ".["), 0)]
}

// Problem is one thing that is wrong with the settings.
type Problem struct {
	File string // file or "command line"; empty: it is wrong by default
	Line int    // 0: the file as a whole
	Key  string // empty: no key in particular
	Want string // what would be right; empty: Have is a whole sentence
	Have string
	Hint string // what to do, when we can guess
}

// String returns "FILE:LINE: KEY: want ..., have ...; hint". It holds no secret.
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			b.WriteString(":" + strconv.Itoa(p.Line))
		}
		b.WriteString(": ")
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	if p.Want != "" {
		b.WriteString("want " + p.Want + ", have ")
	}
	b.WriteString(p.Have)
	if p.Hint != "" {
		b.WriteString("; " + p.Hint)
	}
	return b.String()
}

// Error returns what String returns, so that a problem found elsewhere can travel as an error.
func (p Problem) Error() string { return p.String() }

// Problems is the error of a load: everything that is wrong, in the order of files and lines.
type Problems struct{ List []Problem }

// Error returns one line for each problem.
func (p *Problems) Error() string {
	lines := make([]string, len(p.List))
	for i, one := range p.List {
		lines[i] = one.String()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the problems one by one.
func (p *Problems) Unwrap() []error {
	list := make([]error, len(p.List))
	for i, one := range p.List {
		list[i] = one
	}
	return list
}
