//go:build cluster

package e2e

import (
	"testing"
	"time"
)

// What takes too long for every change runs by `make test-cluster`.

func TestLongConsulStops(t *testing.T) { consulStops(t, 3*time.Minute) }

func TestLongRoutableAtOnce(t *testing.T) { routableAtOnce(t, 300) }

func TestLongLoadsMany(t *testing.T) { loadsMany(t, 100_000, 5*time.Second) }

func TestLongMovesMany(t *testing.T) { movesMany(t, 33_000, 15*time.Second) }
