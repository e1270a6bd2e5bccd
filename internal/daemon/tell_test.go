package daemon

import (
	"context"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

func TestAStatusIsToldAgainAndAgain(t *testing.T) {
	Tell(t.Context(), nil, nil) // returns
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*tellEvery+time.Millisecond)
		defer cancel()
		var told []string
		Tell(ctx, func(s string) { told = append(told, s) }, func() string { return strconv.Itoa(len(told)) })
		if !slices.Equal(told, []string{"0", "1", "2"}) {
			t.Errorf("told %q", told)
		}
	})
}
