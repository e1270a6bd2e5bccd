package daemon

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"

	"github.com/pikoproxy/piko/internal/config"
)

func TestSlogWritesLinesOfTheSameForm(t *testing.T) {
	var out bytes.Buffer
	log, err := newLog(&out, config.Log{Level: "info", Format: "text"}, true)
	if err != nil {
		t.Fatal(err)
	}
	s := Slog(log).With("node", "n1").WithGroup("token").With("left", 3)
	s.Debug("not to be seen")
	s.Warn("it broke", "err", errors.New("no luck"), slog.Group("at", "line", 7))
	const want = "<4>level=warn msg=\"it broke\" node=n1 token.at.line=7 token.err=\"no luck\" token.left=3\n"
	if got := out.String(); got != want {
		t.Errorf("log has\n%swant\n%s", got, want)
	}
}
