package server

import (
	runtimemetrics "runtime/metrics"
	"testing"
)

func TestGarbageIsCollectedSoonerInACrowd(t *testing.T) {
	want := func(percent uint64) {
		t.Helper()
		s := []runtimemetrics.Sample{{Name: "/gc/gogc:percent"}}
		if runtimemetrics.Read(s); s[0].Value.Uint64() != percent {
			t.Errorf("GOGC is %d, want %d", s[0].Value.Uint64(), percent)
		}
	}
	t.Setenv("GOGC", "")
	collectSooner(true)
	want(crowdGarbage)
	t.Setenv("GOGC", "100")
	collectSooner(false)
	want(crowdGarbage)
	t.Setenv("GOGC", "")
	collectSooner(false)
	want(usualGarbage)
}
