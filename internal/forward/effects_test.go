package forward

import (
	"testing"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon/daemontest"
)

func TestEveryLiveKeyHasItsEffectSeen(t *testing.T) {
	daemontest.EveryEffect(t, config.Keys(config.DefaultForward()), nil, map[string]string{
		"drain_timeout":       "TestReloadsOfAForwarderUnderLoad", // read when the drain begins
		"log.":                "TestLevelAndFormatChangeLive",
		"connect.":            "TestReloadTakesAnotherServer", // all of it makes another client
		"admin.":              "TestConsoleTakesOtherSettings",
		"forwards[].listen":   "TestReloadAddsRemovesAndChangesForwards",
		"forwards[].endpoint": "TestReloadAddsRemovesAndChangesForwards",
	})
}
