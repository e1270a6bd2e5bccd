package agent

import (
	"testing"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon/daemontest"
)

// TestEveryLiveKeyHasItsEffectSeen: another setting of a listener makes another listener, in the same way as the first one was
// made, which TestReloadAddsRemovesAndChangesListeners sees; so what a setting of a listener does is seen by the test of that.
func TestEveryLiveKeyHasItsEffectSeen(t *testing.T) {
	daemontest.EveryEffect(t, config.Keys(config.DefaultAgent()), nil, map[string]string{
		"drain_timeout":       "TestDrainCutsWhatTakesTooLong", // read when the drain begins
		"log.":                "TestLevelAndFormatChangeLive",
		"connect.url":         "TestReloadMovesToAnotherServerFirst",
		"connect.connections": "TestSetConnectionsAddsAndTakesAway",
		"connect.token":       "TestRenewTokenPresentsItOnTheOpenSession",
		"connect.":            "TestReconfigureMovesToTheNewURLFirst", // all the rest makes new sessions with new settings
		"admin.":              "TestConsoleTakesOtherSettings",

		"listeners[].endpoint":       "TestReloadAddsRemovesAndChangesListeners",
		"listeners[].addr":           "TestReloadAddsRemovesAndChangesListeners",
		"listeners[].protocol":       "TestRawBytesNeedAListenerThatWasDeclaredForThem",
		"listeners[].host_header":    "TestHostHeaderIsRewrittenAndNothingElse",
		"listeners[].proxy_protocol": "TestProxyProtocolTellsTheServiceWhoTheClientIs",
		"listeners[].weight":         "TestReloadsOfAnAgentUnderLoad",
		"listeners[].access_log":     "TestAccessLogHasALineForEachRequestAndConnection",
		"listeners[].max_in_flight":  "TestFullHTTPListenerRefusesStreamsAndAnswersRequests",
		"listeners[].health.":        "TestReloadOfACheckedListenerWaitsForItsFirstCheck",
		"listeners[].tls.":           "TestServiceOverTLSSpeaksWhatTheStreamCarries",
	})
}
