// Package config holds the settings of pikod, piko-agent and piko-forward: their types, their only defaults, and the
// strict load of the files they are written in.
//
// A setting is one struct field. Its comment is what the reference files and manual pages say about it, its `toml` tag
// is its name, its `reload` tag says whether a running process takes a new value ("live") or needs a restart, and
// [DefaultPikod], [DefaultAgent] and [DefaultForward] hold its one default. Further tags narrow the value:
//
//	one_of:"a|b"   the words allowed
//	min, max       bounds of a number, size or duration
//	required       must not be empty
//	key:"name"     on a list of tables: the key that says which entry is meant
//	into:"Field"   on a [File]: its content becomes the value of that field
//
// # Order
//
// Later beats earlier: defaults, the file NAME.toml, the files NAME.d/*.toml in the order of their names, the command
// line ([Override]). A value replaces a value and a list replaces a list. Only lists of tables with a `key` grow: a table
// whose key is new is appended, one whose key is known replaces that entry as a whole.
//
// # Promises
//
// A load reports every problem it finds, each with file, line, key, what was wanted and what was found, and never the
// value of a secret. Loaded settings are plain values that nobody changes any more: they may be copied and shared between
// goroutines. The package reads files and the environment during a load only; it starts nothing, watches nothing,
// and resolves no names. Keys and certificates are parsed by those who use them.
package config

//go:generate go run ./reference -root ../..
