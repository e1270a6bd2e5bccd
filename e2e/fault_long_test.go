//go:build cluster

package e2e

import (
	"testing"
	"time"
)

// What takes too long for every change runs by `make test-cluster`.

func TestLongConsulStops(t *testing.T) { consulStops(t, 3*time.Minute) }

// TestLongFaults has each fault last until Consul has given the node up, and then some.
func TestLongFaults(t *testing.T) {
	r := startRig(t, rigOptions{})
	r.row("between two nodes", func(*testing.T) { r.cutPeers(30 * time.Second) })
	r.row("between a node and Consul", func(*testing.T) { r.cutConsul(35 * time.Second) })
	r.row("a node that is stopped", func(*testing.T) { r.stopNode(30 * time.Second) })
	r.row("power", func(*testing.T) { r.losePower() })
}

func TestLongLeaderDies(t *testing.T) { leaderDies(t) }

func TestLongAgentsOfConsulGo(t *testing.T) { agentsOfConsulGo(t) }

func TestLongTokenIsLost(t *testing.T) { tokenIsLost(t) }

func TestLongFreshGhosts(t *testing.T) { freshGhosts(t, 50).allDie() }

func TestLongRoutableAtOnce(t *testing.T) { routableAtOnce(t, 300) }

func TestLongLoadsMany(t *testing.T) { loadsMany(t, 100_000, 5*time.Second) }

func TestLongMovesMany(t *testing.T) { movesMany(t, 33_000, 15*time.Second) }
