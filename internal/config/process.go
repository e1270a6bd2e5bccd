package config

import "time"

// Settings are those of one of the three daemons.
type Settings interface {
	Pikod | Agent | Forward

	Process() Process
	Dump() string
	Digest() string
}

// Process is what the settings of every daemon say about its process.
type Process struct {
	Source     Source        // where the settings came from
	Log        Log           // what is logged, and how
	DrainLimit time.Duration // how long a drain may take, with all that comes before it
}

// Process returns what the settings say about the process.
func (p Pikod) Process() Process {
	return Process{p.Source, p.Log, time.Duration(p.DrainNotice) + time.Duration(p.DrainTimeout)}
}

// Process returns what the settings say about the process.
func (a Agent) Process() Process { return Process{a.Source, a.Log, time.Duration(a.DrainTimeout)} }

// Process returns what the settings say about the process.
func (f Forward) Process() Process { return Process{f.Source, f.Log, time.Duration(f.DrainTimeout)} }
