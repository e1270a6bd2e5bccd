package forward

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon/daemontest"
)

func TestReloadTakesAnotherToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("from-file"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := start(t, "127.0.0.1:0", func(c *config.Forward) { c.Connect.Token = config.NewSecret("first") })
	h.offer(say("one "))
	for _, step := range []struct {
		want   string
		change func(*config.Forward)
	}{
		{"first", func(*config.Forward) {}},
		{"second", func(c *config.Forward) { c.Connect.Token = config.NewSecret("second") }},
		{"from-file", func(c *config.Forward) { c.Connect.TokenFile = config.File(file) }},
	} {
		if err := h.reload(step.change); err != nil {
			t.Fatal(err)
		}
		exchange(t, h.dial(), "a", "one a")
		tokens := h.node.Tokens()
		if got := tokens[len(tokens)-1]; got != step.want {
			t.Errorf("the node is shown %q, want %q", got, step.want)
		}
	}
}

func TestReloadShortensTheDrain(t *testing.T) {
	h := start(t, "127.0.0.1:0", func(c *config.Forward) { c.DrainTimeout = config.Duration(time.Hour) })
	h.offer(say("one "))
	running := h.dial()
	exchange(t, running, "a", "one a")
	if err := h.reload(func(c *config.Forward) { c.DrainTimeout = config.Duration(50 * time.Millisecond) }); err != nil {
		t.Fatal(err)
	}
	h.stop()
	select {
	case err := <-h.ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("the drain takes as long as the settings before said")
		_ = running.Close()
	}
}

func TestEveryLiveKeyHasItsEffectSeen(t *testing.T) {
	daemontest.EveryEffect(t, config.Keys(config.DefaultForward()), nil, map[string]string{
		"drain_timeout":       "TestReloadShortensTheDrain",
		"log.":                "TestLevelAndFormatChangeLive",
		"connect.":            "TestReloadTakesAnotherServer", // all the rest makes another client
		"connect.token":       "TestReloadTakesAnotherToken",
		"admin.":              "TestConsoleTakesOtherSettings",
		"forwards[].listen":   "TestReloadAddsRemovesAndChangesForwards",
		"forwards[].endpoint": "TestReloadAddsRemovesAndChangesForwards",
	})
}
