//go:build cluster

package e2e

import "testing"

// What takes too long for every change runs by `make test-cluster`.

func TestLongRollingRestart(t *testing.T) { rollingRestart(t, thorough) }

func TestLongRollingRestartOfClassicAgents(t *testing.T) { classicRollingRestart(t, thorough) }

func TestLongGhosts(t *testing.T) { ghosts(t, 50) }

func TestLongBalance(t *testing.T) { balanced(t, 10_000, 2) }
