package server

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/pikoproxy/piko/internal/config"
)

func TestAThousandAgentsOfOneAddressMayComeAtOnce(t *testing.T) {
	c := config.DefaultPikod()
	log, _ := logtest.NewNullLogger()
	l := newLimits(&c, log, prometheus.NewRegistry())
	for i := range 1000 {
		if !l.attempt("203.0.113.7:1", &c.Upstream.Limits) {
			t.Fatalf("attempt %d is turned away", i+1)
		}
	}
	if !l.attempt("203.0.113.8:1", &c.Upstream.Limits) || !l.attempt("127.0.0.1:1", &c.Upstream.Limits) {
		t.Error("others pay for it")
	}
	turned := false
	for range 1000 { // of which some come as their time passes
		turned = turned || !l.attempt("203.0.113.7:1", &c.Upstream.Limits)
	}
	if !turned {
		t.Error("there is no limit")
	}
}
