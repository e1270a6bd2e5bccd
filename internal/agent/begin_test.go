package agent

import (
	"context"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/pikotest/fakenode"
)

// Settings may change from the moment in which the agent says that it is ready, which is before it offers anything: each step
// of the change may come before the agent begins and after it.
func TestSettingsMayChangeAsTheAgentBegins(t *testing.T) {
	service := tcpService(t, louder)
	node := fakenode.Start(t, "n1")
	c := config.DefaultAgent()
	c.Connect.URL = node.URL()
	c.Listeners = []config.Listener{listenerFor("tcp", "gone", service), listenerFor("tcp", "other", service), listenerFor("tcp", "same", service)}
	log := logrus.New()
	log.SetOutput(&logBuffer{})
	a, err := New(c, Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	before := a.current.Load()
	next := c
	next.Listeners = []config.Listener{listenerFor("tcp", "other", service), c.Listeners[2], listenerFor("tcp", "new", service)}
	next.Listeners[0].Weight = 7
	change, err := a.Prepare(next)
	if err != nil {
		t.Fatal(err)
	}
	change.Commit()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	for _, name := range []string{"other", "same", "new"} {
		node.AwaitListen(name, true)
	}
	a.start(a.current.Load(), before) // the last step of Commit
	change.Retire()
	if _, offered := node.Listens("gone"); offered {
		t.Error("a listener that was removed is offered")
	}
	eventually(t, "three listeners that are routable", func() bool { return a.states()[stateRoutable] == 3 })
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
