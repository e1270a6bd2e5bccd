package server

import (
	"testing"

	"github.com/pikoproxy/piko/internal/config"
)

func TestSurplus(t *testing.T) {
	c := config.Rebalance{Threshold: 0.2, ShedRate: 0.005, MinSessions: 50}
	for name, tc := range map[string]struct {
		own    int
		others []int
		want   int
	}{
		"alone":                     {1000, nil, 0},
		"even":                      {1000, []int{1000, 1000}, 0},
		"just within the threshold": {1200, []int{900, 900}, 0},
		"above it":                  {1300, []int{850, 850}, 7},
		"another one is above it":   {850, []int{1300, 850}, 0},
		"a node has come back":      {1500, []int{1500, 0}, 8},
		"few":                       {49, []int{0, 0}, 0},
		"not below the mean":        {60, []int{59, 0, 59, 59, 59}, 1},
	} {
		if got := surplus(c, tc.own, tc.others); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
	c.Threshold = 0
	if got := surplus(c, 1000, []int{0}); got != 0 {
		t.Errorf("switched off: %d", got)
	}
}
