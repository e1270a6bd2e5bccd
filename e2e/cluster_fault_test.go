package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pause lets a fault last. There is no event to wait for: it is time that matters.
func pause(d time.Duration) { <-time.After(d) }

// TestClusterSurvivesAKill is not parallel: it measures how fast. The logs of the nodes tell which requests were on the node
// that was killed: those that it had got from clients, and those that another node had sent on to it.
func TestClusterSurvivesAKill(t *testing.T) {
	c := startClusterOf(t, 3, func(int) nodeOptions { return nodeOptions{More: "[log]\nformat = \"json\"\n"} })
	c.agents(t, 3, offer{Endpoint: "e", Addr: serve(t, loadService)})
	c.routed(t, "e")
	f := startCrowd(t, c, crowdOptions{Rate: 200, Endpoints: []string{"e"}, Lasting: 3 * time.Second, Brief: 6})
	pause(2 * time.Second)
	const victim = 2
	c.nodes[victim].kill(t)
	killed := time.Now() // its sockets are closed
	back := c.awaitSessions(t, "e", 6, settle)
	t.Logf("the agents have their sessions again after %s", back.Round(time.Millisecond))
	if back > bound(3*time.Second) {
		t.Errorf("it took the agents %s to have all sessions again: want at most 3 s", back)
	}
	pause(2 * time.Second)
	unaware := bound(0) // how long a node may take to hear that its session is gone
	front, behind := 0, 0
	var wrong []failure
	for _, x := range f.end() {
		switch {
		case x.node == victim && x.began.Before(killed.Add(bound(300*time.Millisecond))):
			front++ // the balancer finds out that a node is gone by asking it
		case x.node != victim && x.began.Before(killed.Add(unaware)) && c.sentTo(t, x, "n3"):
			behind++
		default:
			wrong = append(wrong, x)
		}
	}
	t.Logf("of %d requests and %d WebSockets %d failed that clients had sent to the node, and %d that another node had", f.sent.Load(),
		f.tunnels.Load(), front, behind)
	for _, x := range f.waits {
		if x.ended.After(killed) && x.node != victim && x.ended.Sub(x.began) > bound(time.Second) {
			x.err = errors.New("took more than 1 s")
			wrong = append(wrong, x)
		}
	}
	complain(t, wrong, f.sent.Load())
	c.nodes[victim].run(t)
	t.Logf("the cluster is whole %s after the kill", (time.Since(killed) + c.awaitAll(t)).Round(time.Millisecond))
}

// sentTo looks up in the log of a node whether it had sent a request on to another one. The line may come after the answer.
func (c *cluster) sentTo(t testing.TB, x failure, node string) bool {
	t.Helper()
	if strings.HasPrefix(x.what, "WebSocket") {
		return true // they have no number; those that began before the kill may have been there
	}
	for deadline := time.Now().Add(settle); ; pause(50 * time.Millisecond) {
		for line := range strings.Lines(c.nodes[x.node].output(t)) {
			var r struct{ Path, Session string }
			if json.Unmarshal([]byte(line), &r) == nil && r.Path == fmt.Sprint("/", x.number) {
				return r.Session == node
			}
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// TestClusterPassesOverAStoppedNode suspends a node for some time. It is not parallel: it measures how fast.
func TestClusterPassesOverAStoppedNode(t *testing.T) {
	const lasting = 5 * time.Second
	c := startCluster(t, 3, "")
	onNode(t, c.nodes[1], "e", "ok")
	onNode(t, c.nodes[2], "e", "ok")
	c.routed(t, "e")
	client := c.nodes[0].client(t)
	c.nodes[2].signal(t, syscall.SIGSTOP)
	stopped := time.Now()
	var failed, late int
	var worst time.Duration
	for time.Since(stopped) < lasting {
		began := time.Now()
		a, err := try(client, request(t, http.MethodGet, at("e", "/"), nil))
		worst = max(worst, time.Since(began))
		if err == nil && a.StatusCode == http.StatusOK {
			continue
		}
		failed++
		if began.Sub(stopped) > bound(4*time.Second) {
			late++
			t.Errorf("after %s: %v, %v", began.Sub(stopped), a.Response, err)
		}
	}
	t.Logf("%d requests failed, %d of them after 4 s; the slowest took %s", failed, late, worst.Round(time.Millisecond))
	c.nodes[2].signal(t, syscall.SIGCONT)
	t.Logf("the cluster is whole again after %s", c.awaitAll(t).Round(time.Millisecond))
	c.awaitSessions(t, "e", 2, settle)
}

func TestClusterHasNoGhosts(t *testing.T) {
	t.Parallel()
	ghosts(t, 10)
}

// ghosts kills and restarts nodes over and over: what the cluster knows in the end must be what lives.
func ghosts(t *testing.T, kills int) {
	c := startCluster(t, 3, "")
	c.agents(t, 2, offer{Endpoint: "e", Addr: serve(t, say("ok"))})
	for k := range kills {
		n := c.nodes[k%len(c.nodes)]
		n.kill(t)
		n.run(t)
	}
	t.Logf("the members are the living after %s", c.awaitAll(t).Round(time.Millisecond))
	c.awaitSessions(t, "e", 4, settle)
	took := await(t, "the routes are the living", 2*settle, func() error {
		for i := range c.nodes {
			if err := c.routesAreTrue(i, "e"); err != nil {
				return err
			}
		}
		return nil
	})
	t.Logf("the routes are the living after %s", took.Round(time.Millisecond))
	c.routed(t, "e")
}

// routesAreTrue compares what a node thinks of an endpoint with what the nodes that hold it say.
func (c *cluster) routesAreTrue(i int, endpoint string) error {
	_, body, err := fetch("http://" + c.nodes[i].admin + "/status/routes/" + endpoint)
	if err != nil {
		return err
	}
	var routes struct {
		Upstreams []struct {
			Remote      bool
			Node, State string
		}
	}
	if err := json.Unmarshal(body, &routes); err != nil {
		return err
	}
	local, remote := 0, map[string]bool{}
	for _, u := range routes.Upstreams {
		if u.State != "healthy" {
			return fmt.Errorf("n%d has a route to %q that is %s", i+1, u.Node, u.State)
		}
		if u.Remote {
			remote[u.Node] = true
		} else {
			local++
		}
	}
	each, _ := c.sessions(endpoint)
	for k, have := range each {
		id := fmt.Sprint("n", k+1)
		switch {
		case k == i && local != have, k != i && remote[id] != (have > 0):
			return fmt.Errorf("n%d has the routes %s: want %v", i+1, body, each)
		}
		delete(remote, id)
	}
	if len(remote) > 0 {
		return fmt.Errorf("n%d has routes to %v, which is gone", i+1, remote)
	}
	return nil
}
