package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Settings are taken from where the administrator puts them, and from nowhere else: not from the directory one happens to
// be in, nor from a home (CVE-2023-1314 too).
func TestCVE_2020_24356_NoSettingsFromWhereverOneIs(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"pikod.toml", "config.toml", ".pikod.toml", "pikod.d/x.toml", ".config/piko/pikod.toml", "etc/piko/pikod.toml"} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("this is = not a setting"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "pikod", "--check-config")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir+"/.config")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("it read a file that nobody named: %v\n%s", err, out)
	}
}
