package daemon

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sh runs a line of shell in a directory.
func sh(t *testing.T, dir, line string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", line)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
}

// pauseWriting is a pause of somebody who writes: it makes no test wait for something to happen.
func pauseWriting(t *testing.T, d time.Duration) {
	t.Helper()
	_ = pause(t.Context(), d) // ends early only with the test
}

// TestWaysOfSaving saves a file as editors, tools and Kubernetes do. Each way gives exactly one reload.
func TestWaysOfSaving(t *testing.T) {
	for name, save := range map[string]func(t *testing.T, file, text string){
		"in place":  write,
		"in pieces": func(t *testing.T, file, text string) { writeInPieces(t, file, text, 20*time.Millisecond) },
		"truncated, and written after a pause": func(t *testing.T, file, text string) {
			write(t, file, "")
			pauseWriting(t, 500*time.Millisecond)
			write(t, file, text)
		},
		"cut in the middle of a key for a while": func(t *testing.T, file, text string) {
			write(t, file, text[:len("drain_ti")])
			pauseWriting(t, 500*time.Millisecond)
			write(t, file, text)
		},
		"new file renamed over it": func(t *testing.T, file, text string) {
			write(t, file+".new", text)
			do(t, os.Rename(file+".new", file))
		},
		"vim: old one away, new one in its place, back-up removed": func(t *testing.T, file, text string) {
			dir := filepath.Dir(file)
			write(t, filepath.Join(dir, "4913"), "")
			do(t, os.Remove(filepath.Join(dir, "4913")), os.Rename(file, file+"~"))
			write(t, filepath.Join(dir, ".pikotestd.toml.swp"), "b0VIM 9.1")
			write(t, file, text)
			do(t, os.Chmod(file, 0o644), os.Remove(file+"~"), os.Remove(filepath.Join(dir, ".pikotestd.toml.swp")))
		},
		"emacs: auto-save, lock link, back-up by copy": func(t *testing.T, file, text string) {
			dir := filepath.Dir(file)
			do(t, os.Symlink("user@host.1:2", filepath.Join(dir, ".#pikotestd.toml")))
			write(t, filepath.Join(dir, "#pikotestd.toml#"), text)
			sh(t, dir, "cp -p pikotestd.toml pikotestd.toml~")
			write(t, file, text)
			do(t, os.Remove(filepath.Join(dir, "#pikotestd.toml#")), os.Remove(filepath.Join(dir, ".#pikotestd.toml")))
		},
		"sed -i": func(t *testing.T, file, text string) {
			value := strings.TrimPrefix(strings.SplitN(text, "\n", 2)[0], "drain_timeout = ")
			sh(t, filepath.Dir(file), "sed -i 's/^drain_timeout = .*/drain_timeout = "+value+"/' pikotestd.toml")
		},
		"cp": func(t *testing.T, file, text string) {
			write(t, filepath.Join(t.TempDir(), "x"), text)
			other := filepath.Join(t.TempDir(), "new")
			write(t, other, text)
			sh(t, "/", fmt.Sprintf("cp %q %q", other, file))
		},
		"mv from another file system": func(t *testing.T, file, text string) {
			other, err := os.CreateTemp("/dev/shm", "piko")
			do(t, err)
			_, err = other.WriteString(text)
			do(t, err, other.Close())
			sh(t, "/", fmt.Sprintf("mv %q %q", other.Name(), file))
		},
		"deleted, and made anew": func(t *testing.T, file, text string) {
			do(t, os.Remove(file))
			pauseWriting(t, 500*time.Millisecond)
			write(t, file, text)
		},
		"directory removed, and made anew": func(t *testing.T, file, text string) {
			do(t, os.RemoveAll(filepath.Dir(file)))
			pauseWriting(t, 300*time.Millisecond)
			do(t, os.Mkdir(filepath.Dir(file), 0o755))
			write(t, file, text)
		},
		"link to a file elsewhere replaced": func(t *testing.T, file, text string) {
			other := filepath.Join(t.TempDir(), "real.toml")
			write(t, other, text)
			do(t, os.Symlink(other, file+".new"), os.Rename(file+".new", file))
		},
	} {
		t.Run(name, func(t *testing.T) {
			// A pause in writing may take longer on a machine that stands still.
			l := observe(t, "", drainOf("10s"), func(r *reloads) { r.patience, r.most = time.Minute, time.Minute })
			save(t, l.file, drainOf("11s"))
			await(t, "the change", func() bool { return l.drain() == "11s" })
			// A second save by the same means, since the first may have replaced what is watched.
			write(t, l.file, drainOf("12s"))
			// A reload is counted after it is in use.
			await(t, "the second change", func() bool { return l.drain() == "12s" && l.attempts() >= 2 })
			if have := fmt.Sprint(l.commits); have != "[10s 11s 12s]" || l.attempts() != 2 {
				t.Errorf("settings in use were %s after %d reloads, want one each", have, l.attempts())
			}
		})
	}
}

func writeInPieces(t *testing.T, file, text string, between time.Duration) {
	t.Helper()
	f, err := os.Create(file)
	do(t, err)
	for i := range len(text) {
		_, err := f.WriteString(text[i : i+1])
		do(t, err)
		if i%8 == 0 {
			pauseWriting(t, between)
		}
	}
	do(t, f.Close())
}

// TestWaysOfLosing takes the file away: each gives one clear refusal, and the file's return heals it.
func TestWaysOfLosing(t *testing.T) {
	for name, c := range map[string]struct {
		lose, back func(t *testing.T, file string)
		says       string
	}{
		"deleted": {
			lose: func(t *testing.T, file string) { do(t, os.Remove(file)) },
			back: func(t *testing.T, file string) { write(t, file, drainOf("11s")) },
			says: "no such file",
		},
		"a directory in its place": {
			lose: func(t *testing.T, file string) { do(t, os.Remove(file), os.Mkdir(file, 0o755)) },
			back: func(t *testing.T, file string) { do(t, os.Remove(file)); write(t, file, drainOf("11s")) },
			says: "not a file",
		},
		"truncated for good": {
			lose: func(t *testing.T, file string) { do(t, os.Truncate(file, 0)) },
			back: func(t *testing.T, file string) { write(t, file, drainOf("11s")) },
			says: "empty file",
		},
		"link to nowhere": {
			lose: func(t *testing.T, file string) { do(t, os.Remove(file), os.Symlink(file+".gone", file)) },
			back: func(t *testing.T, file string) { write(t, file+".gone", drainOf("11s")) },
			says: "no such file",
		},
		"permission lost": {
			lose: func(t *testing.T, file string) {
				if os.Geteuid() == 0 { // root reads everything but this
					do(t, os.Remove(file), os.Symlink(file, file))
					return
				}
				do(t, os.Chmod(file, 0))
			},
			back: func(t *testing.T, file string) { do(t, os.Remove(file)); write(t, file, drainOf("11s")) },
			says: "toml: want a readable file",
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := observe(t, "", drainOf("10s"))
			c.lose(t, l.file)
			await(t, "the refusal", func() bool { return l.attempts() == 1 })
			if all := strings.Join(l.p.LastReload().Problems, "\n"); !strings.Contains(all, c.says) {
				t.Errorf("refused with %q, want %q in it", all, c.says)
			}
			c.back(t, l.file)
			await(t, "the return", func() bool { return l.drain() == "11s" && l.attempts() >= 2 })
			if n := l.attempts(); n != 2 {
				t.Errorf("%d reloads, want a refusal and a success", n)
			}
		})
	}
}

// TestConfigMap swaps the files as the kubelet does: through a link to a directory.
func TestConfigMap(t *testing.T) {
	dir := t.TempDir()
	publish := func(version, text string) {
		do(t, os.Mkdir(filepath.Join(dir, "..v"+version), 0o755))
		write(t, filepath.Join(dir, "..v"+version, "pikotestd.toml"), text)
		do(t, os.Symlink("..v"+version, filepath.Join(dir, "..data_tmp")),
			os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	publish("1", drainOf("10s"))
	do(t, os.Symlink("..data/pikotestd.toml", filepath.Join(dir, "pikotestd.toml")))
	l := observe(t, filepath.Join(dir, "pikotestd.toml"), "")
	for i, want := range []string{"11s", "12s", "13s"} {
		publish(fmt.Sprint(i+2), drainOf(want))
		do(t, os.RemoveAll(filepath.Join(dir, fmt.Sprintf("..v%d", i+1))))
		await(t, "version "+want, func() bool { return l.drain() == want })
	}
	await(t, "the count of the last", func() bool { return l.attempts() >= 3 })
	if n := l.attempts(); n != 3 {
		t.Errorf("%d reloads, want 3", n)
	}
}

// TestFilesNamedBySettings changes what is not the settings file.
func TestFilesNamedBySettings(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "deep", "secret")
	do(t, os.Mkdir(filepath.Dir(secret), 0o755))
	write(t, secret, "one")
	l := observe(t, "", drainOf("10s")+"[proxy.auth]\nhmac_secret_key_file = \""+secret+"\"\n")
	have := func() string {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.inUse.Proxy.Auth.HMACSecretKey.Reveal()
	}
	write(t, secret, "two")
	await(t, "the new secret", func() bool { return have() == "two" })

	d := strings.TrimSuffix(l.file, ".toml") + ".d"
	do(t, os.Mkdir(d, 0o755))
	write(t, filepath.Join(d, "50-drain.toml"), "drain_timeout = \"20s\"\n")
	await(t, "the file in the directory", func() bool { return l.drain() == "20s" })
	do(t, os.Remove(filepath.Join(d, "50-drain.toml")))
	await(t, "its end", func() bool { return l.drain() == "10s" })

	// A file that is not there yet: the refusal heals by itself when it comes.
	later := filepath.Join(t.TempDir(), "later")
	write(t, l.file, drainOf("11s")+"[proxy.auth]\nhmac_secret_key_file = \""+later+"\"\n")
	await(t, "the refusal", func() bool { return len(l.p.LastReload().Problems) == 1 })
	write(t, later, "three")
	await(t, "the secret that came later", func() bool { return have() == "three" })
}
