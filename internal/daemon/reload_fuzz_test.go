package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
)

// FuzzReload loads any text over a running configuration. Whatever it is, the settings in use are those of the text, or the
// ones from before; and a good file heals what a bad one has done.
func FuzzReload(f *testing.F) {
	for _, seed := range []string{
		"", drainOf("11s"), "drain_timeout = 5", "[cluster]\nzone = \"b\"", "[[upstream.tenants]]\nid = \"t\"", "\x00", "[log]\nlevel = \"debug\"",
		"[proxy.tls]\ncert = \"/no/such\"\nkey = \"/no/such\"", "[proxy]\nlisten = \"${NO_SUCH}\"", "a = [[[[", "[consul]\naddress = \"x:1\"",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		file := filepath.Join(t.TempDir(), "pikotestd.toml")
		write(t, file, drainOf("10s"))
		l := &life{file: file, stderr: &buffer{}}
		log, err := newLog(l.stderr, config.Log{Level: "info", Format: "text"}, false)
		do(t, err)
		log.SetLevel(logrus.PanicLevel)
		p := l.program()
		load := func(file string) (Settings, error) { return p.Load(file, nil) }
		first, err := load(file)
		do(t, err)
		r := newReloads(NewProcess("pikotestd", "1", log), first, origin{file: file, load: load})
		r.p.reload, r.prepare = r, l.Prepare
		l.inUse = first.(*node)

		do(t, os.WriteFile(file, []byte(text), 0o600))
		r.command("fuzz", nil)
		outcome := r.p.LastReload()
		want := first.Digest()
		if len(outcome.Problems) == 0 {
			next, err := config.LoadPikod(file)
			do(t, err)
			want = next.Digest()
		}
		if have := r.current.Digest(); have != want || outcome.Digest != want {
			t.Errorf("settings in use are %s, told are %s, want %s; %q", have, outcome.Digest, want, outcome.Problems)
		}
		write(t, file, drainOf("10s"))
		r.command("fuzz", nil)
		if outcome := r.p.LastReload(); len(outcome.Problems) > 0 || l.drain() != "10s" {
			t.Errorf("not healed: %q", outcome.Problems)
		}
	})
}
