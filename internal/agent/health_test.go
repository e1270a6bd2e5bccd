package agent

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tunnel"
)

func TestHealthChangesAfterTheSetNumberOfChecks(t *testing.T) {
	const up, down = true, false
	for name, c := range map[string]struct {
		checks []bool
		want   []bool // at each change
	}{
		"good from the start":        {[]bool{up, up, up}, []bool{up}},
		"bad from the start":         {[]bool{down, down, down, down}, []bool{down}},
		"two bad of three are borne": {[]bool{up, down, down, up, down, down, up}, []bool{up}},
		"three bad in a row":         {[]bool{up, down, down, down}, []bool{up, down}},
		"one good is not enough":     {[]bool{down, up, down, up, down}, []bool{down}},
		"two good in a row":          {[]bool{down, up, up}, []bool{down, up}},
		"down and up again":          {[]bool{up, down, down, down, down, up, up, up, down}, []bool{up, down, up}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				settings := config.DefaultListener().Health
				settings.Interval, settings.UnhealthyAfter, settings.HealthyAfter = config.Duration(5*time.Second), 3, 2
				left := c.checks
				started := time.Now()
				log := logrus.New()
				log.SetOutput(io.Discard)
				h := &health{settings: settings, log: log, check: func(context.Context) error {
					if want := time.Duration(len(c.checks)-len(left)) * 5 * time.Second; time.Since(started) != want {
						t.Errorf("check after %v, want %v", time.Since(started), want)
					}
					if len(left) == 0 {
						cancel() // and this check does not count
						return nil
					}
					good := left[0]
					left = left[1:]
					if good {
						return nil
					}
					return errors.New("bad")
				}}
				var got []bool
				h.watch(ctx, func(healthy bool) { got = append(got, healthy) })
				if !slices.Equal(got, c.want) {
					t.Errorf("changes are %v, want %v", got, c.want)
				}
			})
		})
	}
}

func TestCheckThatHangsIsABadOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		log := logrus.New()
		log.SetOutput(io.Discard)
		h := &health{settings: config.DefaultListener().Health, log: log, check: func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		h.watch(ctx, func(healthy bool) {
			if healthy {
				t.Error("a service that does not answer is healthy")
			}
			cancel()
		})
	})
}

func TestUnhealthyServiceIsNotOffered(t *testing.T) {
	var status atomic.Int64
	status.Store(http.StatusOK)
	s := httpService(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			if r.Host != "service.test" {
				t.Errorf("the check asks for host %q", r.Host)
			}
			w.WriteHeader(int(status.Load()))
			return
		}
		echoRequest(w, r)
	})
	l := proxied(s.URL)
	l.Health.Type, l.Health.Path, l.Health.Timeout = "http", "/health", config.Duration(time.Minute)
	l.Health.Interval, l.Health.UnhealthyAfter, l.Health.HealthyAfter = config.Duration(10*time.Millisecond), 2, 2
	h := start(t, nil, l)
	h.node.AwaitListen("e", true)
	c := h.client("e", tunnel.ProtocolHTTP)
	for range 2 {
		if got, _ := h.get(c, "http://x/"); got != http.StatusOK {
			t.Errorf("status is %d", got)
		}
		status.Store(http.StatusInternalServerError)
		h.node.AwaitListen("e", false)
		if got := h.agent.status().Listeners[0].State; got != stateUnhealthy {
			t.Errorf("state is %s", got)
		}
		if h.agent.Ready() == nil {
			t.Error("the agent says that it is ready")
		}
		// A stream that is open already goes on: whether to use it is the node's choice.
		if got, _ := h.get(c, "http://x/"); got != http.StatusOK {
			t.Errorf("status is %d", got)
		}
		status.Store(http.StatusFound)
		h.node.AwaitListen("e", true)
	}
}

func TestServiceThatListensLaterIsOfferedThen(t *testing.T) {
	path := t.TempDir() + "/s"
	l := listenerFor("tcp", "e", "unix:"+path)
	l.Health.Type = "tcp"
	l.Health.Interval, l.Health.HealthyAfter = config.Duration(10*time.Millisecond), 1
	h := start(t, nil, l)
	eventually(t, "a bad check", func() bool { return strings.Contains(h.log.String(), "service unhealthy") })
	if _, ok := h.node.Listens("e"); ok {
		t.Error("the endpoint is offered")
	}
	unixService(t, path)
	h.node.AwaitListen("e", true)
}
