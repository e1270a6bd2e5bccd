package daemon

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/pikoproxy/piko/internal/config"
)

func TestAnAssemblyServesTheShell(t *testing.T) {
	bad := config.Problem{Key: "drain_timeout", Want: "another", Have: "this"}
	file := t.TempDir() + "/pikotestd.toml"
	write(t, file, drainOf("7s"))
	c, err := config.LoadPikod(file)
	do(t, err)
	var built []*Process
	var problem error
	s := Loaded[config.Pikod]{Values: c, Assemble: func(_ config.Pikod, p *Process) (func(context.Context) error, error) {
		built = append(built, p)
		return func(context.Context) error { return errors.New("run") }, problem
	}}
	if s.DrainLimit() != c.Process().DrainLimit || s.Digest() != c.Digest() || s.Dump() != c.Dump() || s.Log() != c.Log {
		t.Error("the shell is not shown the settings")
	}
	do(t, s.Check())
	p := &Process{}
	if err := s.Run(t.Context(), p); err == nil || err.Error() != "run" {
		t.Errorf("the outcome of a run is %v", err)
	}
	if len(built) != 2 || built[0] == p || built[1] != p {
		t.Errorf("assembled with %v", built)
	}
	problem = bad
	for name, err := range map[string]error{"check": s.Check(), "run": s.Run(t.Context(), p)} {
		if err == nil || !strings.HasPrefix(err.Error(), file+":1: drain_timeout: want another") {
			t.Errorf("%s says %v, without the place", name, err)
		}
	}
	if _, ok := errors.AsType[*SettingsError](s.Run(t.Context(), p)); !ok {
		t.Error("settings that can't be assembled are no fault of the settings")
	}
}

func TestNewSettingsAreOfTheSameProgram(t *testing.T) {
	p := &Process{reload: &reloads{assembly: make(chan Prepare, 1)}}
	var taken []config.Pikod
	Takes(p, func(next config.Pikod) (Change, error) {
		taken = append(taken, next)
		return Change{}, nil
	})
	prepare := <-p.reload.assembly
	if _, err := prepare(Loaded[config.Agent]{}); err == nil || len(taken) > 0 {
		t.Errorf("a node takes settings of an agent: %v", err)
	}
	if _, err := prepare(Loaded[config.Pikod]{}); err != nil || len(taken) != 1 {
		t.Errorf("a node does not take its own settings: %v", err)
	}
	node := Loaded[config.Pikod]{Values: config.DefaultPikod()}
	other := config.DefaultPikod()
	other.Log.Level = "debug"
	if got := node.Changes(Loaded[config.Pikod]{Values: other}); len(got) != 1 || got[0].Key != "log.level" {
		t.Errorf("changes are %v", got)
	}
	if got := node.Changes(Loaded[config.Agent]{}); got != nil {
		t.Errorf("changes towards another program are %v", got)
	}
}
