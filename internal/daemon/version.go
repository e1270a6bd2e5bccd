package daemon

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// What the Makefile says about the build by -ldflags "-X ...". They are variables only because the linker can set
// nothing else, and nothing writes them at run time. The toolchain's own stamp (-buildvcs) is no substitute: it needs
// git at build time, and knows the module's version only in `go install module@version`.
var (
	version string // "1.2.3"
	commit  string
	date    string // of the commit, so that builds can be reproduced
)

// Version returns the version of the binary with commit and date of what it was built from, as far as they are known,
// and the toolchain: "1.2.3 (4ec30f1, 2026-08-22, go1.26.8 linux/amd64)".
func Version() string {
	info, _ := debug.ReadBuildInfo()
	return describe(info, version, commit, date)
}

func describe(info *debug.BuildInfo, version, commit, date string) string {
	if info != nil {
		if version == "" && info.Main.Version != "(devel)" {
			version = strings.TrimPrefix(info.Main.Version, "v")
		}
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision" && commit == "":
				commit = s.Value
			case s.Key == "vcs.time" && date == "":
				date = s.Value
			}
		}
	}
	if version == "" {
		version = "dev"
	}
	var facts []string
	for _, f := range []string{commit, date} {
		if f != "" {
			facts = append(facts, f)
		}
	}
	facts = append(facts, fmt.Sprintf("%s %s/%s", runtime.Version(), runtime.GOOS, runtime.GOARCH))
	return fmt.Sprintf("%s (%s)", version, strings.Join(facts, ", "))
}
