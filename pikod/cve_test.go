package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Settings are taken from where the administrator puts them, and from nowhere else.
func TestCVE_2020_24356_NoSettingsFromWhereverOneIs(t *testing.T) {
	dir := t.TempDir()
	passedOver(t, dir, "", "pikod.toml", "config.toml", ".pikod.toml", "pikod.d/x.toml", "etc/piko/pikod.toml")
}

// A home is no place of the administrator's: whoever can write there would set up the next start by root.
func TestCVE_2023_1314_NoSettingsFromAHome(t *testing.T) {
	dir := t.TempDir()
	passedOver(t, t.TempDir(), dir, ".pikod.toml", ".piko.toml", ".piko/pikod.toml", ".config/piko/pikod.toml", ".config/pikod.toml")
}

// passedOver runs the program somewhere, with a home, where files lie that it would refuse if it read them.
func passedOver(t *testing.T, where, home string, names ...string) {
	t.Helper()
	in := home
	if home == "" {
		home, in = t.TempDir(), where
	}
	for _, name := range names {
		file := filepath.Join(in, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("this is = not a setting"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "pikod", "--check-config")
	cmd.Dir, cmd.Env = where, append(os.Environ(), "HOME="+home, "XDG_CONFIG_HOME="+home+"/.config", "XDG_CONFIG_DIRS="+home)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("it read a file that nobody named: %v\n%s", err, out)
	}
}
