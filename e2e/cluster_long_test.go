//go:build cluster

package e2e

import (
	"testing"
	"time"
)

// What takes too long for every change runs by `make test-cluster`.

func TestLongRollingRestart(t *testing.T) { rollingRestart(t, thorough) }

func TestLongRollingRestartOfClassicAgents(t *testing.T) { classicRollingRestart(t, thorough) }

func TestLongGhosts(t *testing.T) { ghosts(t, 50) }

func TestLongStop(t *testing.T) { stoppedNode(t, 30*time.Second) }

func TestLongBalance(t *testing.T) { balanced(t, 10_000, 2) }

func TestLongLossOfConsul(t *testing.T) { consulGone(t, 3*time.Minute) }

func TestLongPropagation(t *testing.T) { propagation(t, 100) }
