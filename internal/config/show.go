package config

// Dump returns the effective settings as TOML, with secrets masked.
func (p Pikod) Dump() string { return "" }

// Dump returns the effective settings as TOML, with secrets masked.
func (a Agent) Dump() string { return "" }

// Dump returns the effective settings as TOML, with secrets masked.
func (f Forward) Dump() string { return "" }

// Digest returns 16 hexadecimal digits that are equal for equal effective settings, in whatever files and order they
// are written. A secret counts only as set or not, so that the digest can be shown; [Diff] compares secrets too.
func (p Pikod) Digest() string { return "" }

// Digest returns the digest of the effective settings, as [Pikod.Digest] does.
func (a Agent) Digest() string { return "" }

// Digest returns the digest of the effective settings, as [Pikod.Digest] does.
func (f Forward) Digest() string { return "" }

// Change is one setting that differs between two loads.
type Change struct {
	Key      string // such as proxy.idle_timeout, or listeners[my-endpoint].addr
	Old, New string // as TOML, secrets masked; "" for a list entry that is not there
	Live     bool   // whether a running process can take it
}

// Diff returns what differs between two settings, in the order of the reference file. Secrets are compared too.
func Diff[S Pikod | Agent | Forward](old, now S) []Change { return nil }
